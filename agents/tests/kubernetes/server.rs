//! A small API server of pods, and of ConfigMaps once they are allowed: keeps objects with versions, lists and streams them, and can drop its
//! watches or forget its history.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{Response, StatusCode};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    state: Mutex<Cluster>,
    /// Changes with each version; and with each drop of the watches.
    version: watch::Sender<(u64, u64)>,
}

#[derive(Default)]
struct Cluster {
    /// Version, type, object.
    history: Vec<(u64, &'static str, Value)>,
    live: Vec<Value>,
    /// Watches from before this version are answered with 410.
    oldest: u64,
    requests: Requests,
    /// Answers to give instead of work.
    failures: usize,
    /// Field selector of the last request.
    fields: String,
    /// Open watches send nothing.
    paused: bool,
    /// ConfigMaps may be read.
    config_maps: bool,
}

/// What clients asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    pub lists: usize,
    pub watches: usize,
    pub gone: usize,
    pub failed: usize,
}

#[derive(Deserialize)]
struct Parameters {
    watch: Option<String>,
    #[serde(rename = "fieldSelector", default)]
    fields: String,
    #[serde(rename = "resourceVersion")]
    version: Option<String>,
}

impl Server {
    /// Starts it on a free port; it ends with the test's runtime.
    pub async fn start() -> (Self, SocketAddr) {
        let server = Self(Arc::new(Shared { state: Mutex::default(), version: watch::channel((1, 0)).0 }));
        let routes = Router::new()
            .route("/api/v1/{plural}", get(objects))
            .fallback(|| async { answer(StatusCode::FORBIDDEN, &status(403, "Forbidden")) })
            .with_state(server.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (server, address)
    }

    /// Changes an object; returns its version. `make` gets the version.
    pub fn change(&self, what: &'static str, make: impl Fn(u64) -> Value) -> u64 {
        let version = self.0.version.borrow().0 + 1;
        let object = make(version);
        {
            let mut state = self.0.state.lock().unwrap();
            let uid = object["metadata"]["uid"].clone();
            state.live.retain(|other| other["metadata"]["uid"] != uid);
            if what != "DELETED" {
                state.live.push(object.clone());
            }
            state.history.push((version, what, object));
        }
        self.0.version.send_modify(|(latest, _)| *latest = version);
        version
    }

    /// Grants the right to read ConfigMaps.
    pub fn allow_config_maps(&self) {
        self.0.state.lock().unwrap().config_maps = true;
    }

    /// Ends all watches that are open.
    pub fn drop_watches(&self) {
        self.0.version.send_modify(|(_, drops)| *drops += 1);
    }

    /// Makes changes while no watch is open: what is open is dropped, and none is served until they are made.
    pub fn change_unseen(&self, changes: impl FnOnce(&Self)) {
        self.0.state.lock().unwrap().paused = true;
        self.drop_watches();
        changes(self);
        self.0.state.lock().unwrap().paused = false;
    }

    /// Forgets all history, as after a compaction: only a list helps those who were not watching.
    pub fn compact(&self) {
        let latest = self.0.version.borrow().0;
        let mut state = self.0.state.lock().unwrap();
        state.oldest = latest;
        state.history.clear();
    }

    /// Answers that many requests with an error.
    pub fn fail(&self, count: usize) {
        self.0.state.lock().unwrap().failures = count;
    }

    pub fn fields(&self) -> String {
        self.0.state.lock().unwrap().fields.clone()
    }

    pub fn requests(&self) -> Requests {
        self.0.state.lock().unwrap().requests
    }
}

async fn objects(
    State(server): State<Server>,
    Path(plural): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Response<Body> {
    let mut state = server.0.state.lock().unwrap();
    let kind = match plural.as_str() {
        "pods" => "Pod",
        "configmaps" if state.config_maps => "ConfigMap",
        _ => return answer(StatusCode::FORBIDDEN, &status(403, "Forbidden")),
    };
    let latest = state.history.last().map_or(state.oldest.max(1), |(version, ..)| *version);
    if kind != "Pod" {
        // Counted and failed on purpose are the requests for pods alone.
        let items: Vec<_> = state.live.iter().filter(|object| object["kind"] == kind).cloned().collect();
        drop(state);
        if parameters.watch.is_some() {
            let from = parameters.version.unwrap().parse().unwrap();
            return watched(&server, kind, from);
        }
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": latest.to_string()},
            "items": items});
        return answer(StatusCode::OK, &list);
    }
    state.fields = parameters.fields;
    if state.failures > 0 {
        state.failures -= 1;
        state.requests.failed += 1;
        return answer(StatusCode::INTERNAL_SERVER_ERROR, &status(500, "InternalError"));
    }
    if parameters.watch.is_none() {
        state.requests.lists += 1;
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": latest.to_string()},
            "items": state.live.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>()});
        return answer(StatusCode::OK, &list);
    }
    let from: u64 = parameters.version.unwrap().parse().unwrap();
    if from < state.oldest {
        state.requests.gone += 1;
        let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
        return answer(StatusCode::OK, &gone);
    }
    state.requests.watches += 1;
    drop(state);
    watched(&server, kind, from)
}

fn watched(server: &Server, kind: &'static str, from: u64) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(16);
    tokio::spawn(stream(server.clone(), kind, from, sender));
    let body = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|line| (line, receiver))
    });
    Response::new(Body::from_stream(body))
}

/// Everything after `from`, until the watches are dropped.
async fn stream(server: Server, kind: &str, from: u64, sender: mpsc::Sender<Result<Bytes, std::io::Error>>) {
    let mut changed = server.0.version.subscribe();
    let drops = changed.borrow().1;
    let mut sent = from;
    loop {
        // Before the look at the history, so that what comes in between wakes again.
        let dropped = changed.borrow_and_update().1 != drops;
        let fresh: Vec<_> = {
            let state = server.0.state.lock().unwrap();
            // A watch whose past was forgotten ends; the next request for it is answered with 410.
            if state.paused || dropped || sent < state.oldest {
                return;
            }
            state.history.iter().filter(|(version, ..)| *version > sent).cloned().collect()
        };
        for (version, what, object) in fresh {
            sent = version;
            if object["kind"] != kind {
                continue;
            }
            let line = format!("{}\n", json!({"type": what, "object": object}));
            if sender.send(Ok(Bytes::from(line))).await.is_err() {
                return;
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": format!("test: {reason}")})
}

fn answer(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = code;
    response
}
