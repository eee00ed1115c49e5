//! A small API server: keeps objects with versions, lists them in pages or as streams, tells their changes, and can fail in
//! all the ways of the protocol. What objects mean it does not know.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, Response, StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    state: Mutex<Cluster>,
    /// Grows with what open watches must look at.
    news: watch::Sender<News>,
}

/// Latest version, times that the watches were dropped, bookmarks.
#[derive(Clone, Copy, Default, PartialEq)]
struct News {
    version: u64,
    drops: u64,
    bookmarks: u64,
}

/// What the server does to a request instead of, or before, its work.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// This code; the client is to wait so many seconds.
    Status(u16, Option<u64>),
    /// A watch begins with this line.
    Line(String),
    /// A watch tells half a change and ends.
    Half,
    /// The body does not come.
    Stuck,
    /// The body comes in small pieces.
    Slow,
}

#[derive(Default)]
struct Cluster {
    /// Version, type, plural, object.
    history: VecDeque<(u64, &'static str, String, Value)>,
    /// By plural and uid.
    live: BTreeMap<(String, String), Value>,
    /// Watches from before this version are answered with 410.
    oldest: u64,
    /// Of requests for pods.
    requests: Requests,
    /// Answers to requests for pods to give instead of work.
    failures: usize,
    /// Field selector of the last request for pods.
    fields: String,
    /// Open watches send nothing.
    paused: bool,
    /// Plurals that may be read; all when none is named.
    allowed: Option<BTreeSet<String>>,
    forbidden: BTreeSet<String>,
    /// Paths that are not there.
    absent: BTreeSet<String>,
    streams: bool,
    faults: HashMap<String, VecDeque<Fault>>,
    /// Answers to paths of discovery.
    documents: BTreeMap<String, Value>,
    /// Paths with their queries.
    asked: Vec<String>,
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
    #[serde(rename = "sendInitialEvents", default)]
    initial: bool,
    #[serde(default)]
    limit: usize,
    #[serde(rename = "continue", default)]
    token: String,
}

impl Server {
    /// Starts one on a free port that lets only pods be read; it ends with the test's runtime.
    pub async fn start() -> (Self, SocketAddr) {
        let (server, address) = Self::start_open().await;
        server.state().allowed = Some(BTreeSet::from(["pods".to_owned()]));
        (server, address)
    }

    /// Starts one that lets everything be read.
    pub async fn start_open() -> (Self, SocketAddr) {
        let news = watch::channel(News { version: 1, ..News::default() }).0;
        let server = Self(Arc::new(Shared { state: Mutex::default(), news }));
        let routes = Router::new().fallback(answer).with_state(server.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (server, address)
    }

    fn state(&self) -> MutexGuard<'_, Cluster> {
        self.0.state.lock().unwrap()
    }

    /// Changes an object; returns its version. `make` gets the version.
    pub fn change(&self, what: &'static str, make: impl Fn(u64) -> Value) -> u64 {
        let version = self.0.news.borrow().version + 1;
        let mut object = make(version);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        {
            let mut state = self.state();
            let plural = plural(object["kind"].as_str().unwrap());
            let key = (plural.clone(), object["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
            state.live.remove(&key);
            if what != "DELETED" {
                state.live.insert(key, object.clone());
            }
            state.history.push_back((version, what, plural, object));
        }
        self.0.news.send_modify(|news| news.version = version);
        version
    }

    /// Grants the right to read a kind.
    pub fn allow(&self, plural: &str) {
        let mut state = self.state();
        state.forbidden.remove(plural);
        if let Some(allowed) = &mut state.allowed {
            allowed.insert(plural.to_owned());
        }
    }

    /// Takes the right to read a kind.
    pub fn forbid(&self, plural: &str) {
        self.state().forbidden.insert(plural.to_owned());
    }

    /// This path, or all of this plural, is not there.
    pub fn lacks(&self, path: &str) {
        self.state().absent.insert(path.to_owned());
    }

    /// Lists may be streams.
    pub fn allow_streams(&self) {
        self.state().streams = true;
    }

    /// What is answered at a path.
    pub fn document(&self, path: &str, document: Value) {
        self.state().documents.insert(path.to_owned(), document);
    }

    /// Reads or writes one object; a version that is not the latest is refused.
    fn stored(&self, method: &Method, path: &str, body: &[u8]) -> Response<Body> {
        let version = self.0.news.borrow().version + 1;
        let mut state = self.state();
        if state.forbidden.contains("leases") {
            return reply(StatusCode::FORBIDDEN, &status(403, "Forbidden"));
        }
        if *method == Method::GET {
            return match state.documents.get(path) {
                Some(object) => reply(StatusCode::OK, object),
                None => reply(StatusCode::NOT_FOUND, &status(404, "NotFound")),
            };
        }
        let mut object: Value = serde_json::from_slice(body).unwrap();
        let path = match *method == Method::POST {
            true => format!("{path}/{}", object["metadata"]["name"].as_str().unwrap()),
            false => path.to_owned(),
        };
        let known = state.documents.get(&path).map(|known| known["metadata"]["resourceVersion"].clone());
        let is_latest = known.is_none_or(|known| known == object["metadata"]["resourceVersion"]);
        if !is_latest || (*method == Method::PUT && !state.documents.contains_key(&path)) {
            return reply(StatusCode::CONFLICT, &status(409, "Conflict"));
        }
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.documents.insert(path, object.clone());
        drop(state);
        self.0.news.send_modify(|news| news.version = version);
        reply(StatusCode::OK, &object)
    }

    /// An object that was written.
    pub fn written(&self, path: &str) -> Value {
        self.state().documents.get(path).cloned().unwrap_or_default()
    }

    /// The next requests for a kind meet these.
    pub fn meet(&self, plural: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.entry(plural.to_owned()).or_default().extend(faults);
    }

    /// True when all faults for a kind have been met.
    pub fn has_met_all(&self, plural: &str) -> bool {
        self.state().faults.get(plural).is_none_or(VecDeque::is_empty)
    }

    /// Ends all watches that are open.
    pub fn drop_watches(&self) {
        self.0.news.send_modify(|news| news.drops += 1);
    }

    /// Sends the latest version to all watches that are open.
    pub fn bookmark(&self) {
        self.0.news.send_modify(|news| news.bookmarks += 1);
    }

    /// Makes changes while no watch is open: what is open is dropped, and none is served until they are made.
    pub fn change_unseen(&self, changes: impl FnOnce(&Self)) {
        self.state().paused = true;
        self.drop_watches();
        changes(self);
        self.state().paused = false;
    }

    /// Keeps that many changes for those who watch; as in a real one, older ones are forgotten.
    pub fn forget_before(&self, count: usize) {
        let mut state = self.state();
        while state.history.len() > count {
            state.oldest = state.history.pop_front().map_or(0, |(version, ..)| version);
        }
    }

    /// Forgets all history, as after a compaction: only a list helps those who were not watching.
    pub fn compact(&self) {
        let latest = self.0.news.borrow().version;
        let mut state = self.state();
        state.oldest = latest;
        state.history.clear();
    }

    /// Answers that many requests for pods with an error.
    pub fn fail(&self, count: usize) {
        self.state().failures = count;
    }

    pub fn fields(&self) -> String {
        self.state().fields.clone()
    }

    pub fn requests(&self) -> Requests {
        self.state().requests
    }

    /// Paths with queries that were asked for, of a plural.
    pub fn asked(&self, plural: &str) -> Vec<String> {
        let state = self.state();
        state.asked.iter().filter(|path| path.contains(&format!("/{plural}?"))).cloned().collect()
    }

    /// Paths without queries that were asked for, each once.
    pub fn paths(&self) -> BTreeSet<String> {
        self.state().asked.iter().map(|path| path.split('?').next().unwrap().to_owned()).collect()
    }
}

/// `networkpolicies` of `NetworkPolicy`.
pub fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{stem}ies"),
        _ if kind.ends_with('s') => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

async fn answer(
    State(server): State<Server>,
    Query(asked): Query<Parameters>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response<Body> {
    if method != Method::GET || uri.path().contains("/leases/") {
        return server.stored(&method, uri.path(), &body);
    }
    let plural = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let fault = {
        let mut state = server.state();
        state.asked.push(uri.to_string());
        if let Some(document) = state.documents.get(uri.path()) {
            return reply(StatusCode::OK, document);
        }
        if let Some(refused) = refusal(&mut state, uri.path(), &plural, &asked) {
            return refused;
        }
        state.faults.get_mut(&plural).and_then(VecDeque::pop_front)
    };
    let latest = server.0.news.borrow().version;
    let from = asked.version.as_deref().unwrap_or_default().parse().unwrap_or(latest);
    match fault {
        Some(Fault::Status(code, after)) => {
            let mut refused = reply(StatusCode::from_u16(code).unwrap(), &status(code, "Fault"));
            if let Some(after) = after {
                refused.headers_mut().insert("retry-after", after.into());
            }
            refused
        }
        Some(Fault::Stuck) => {
            Response::new(Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()))
        }
        Some(Fault::Slow) if asked.watch.is_none() => slow(&list(&server, &plural, &asked)),
        Some(Fault::Half) => Response::new(Body::from("{\"type\":\"MODIFIED\",\"object\":{\"kind\":")),
        Some(Fault::Line(line)) if asked.watch.is_some() => {
            watched(&server, plural, from, asked.initial, Some(line))
        }
        _ if asked.watch.is_some() => watched(&server, plural, from, asked.initial, None),
        _ => reply(StatusCode::OK, &list(&server, &plural, &asked)),
    }
}

/// The answer to what may not be asked, or cannot be answered.
fn refusal(state: &mut Cluster, path: &str, plural: &str, asked: &Parameters) -> Option<Response<Body>> {
    let is_allowed = state.allowed.as_ref().is_none_or(|allowed| allowed.contains(plural));
    if state.absent.contains(path) || state.absent.contains(plural) {
        return Some(reply(StatusCode::NOT_FOUND, &status(404, "NotFound")));
    }
    if !is_allowed || state.forbidden.contains(plural) {
        return Some(reply(StatusCode::FORBIDDEN, &status(403, "Forbidden")));
    }
    let is_pods = plural == "pods";
    if is_pods && state.failures > 0 {
        state.failures -= 1;
        state.requests.failed += 1;
        return Some(reply(StatusCode::INTERNAL_SERVER_ERROR, &status(500, "InternalError")));
    }
    if asked.initial && !state.streams {
        return Some(reply(StatusCode::UNPROCESSABLE_ENTITY, &status(422, "Invalid")));
    }
    if is_pods {
        state.fields.clone_from(&asked.fields);
    }
    let from: Option<u64> = asked.version.as_deref().and_then(|version| version.parse().ok());
    if asked.watch.is_some() && from.is_some_and(|from| from < state.oldest) {
        state.requests.gone += usize::from(is_pods);
        return Some(reply(StatusCode::OK, &json!({"type": "ERROR", "object": status(410, "Expired")})));
    }
    let count = if asked.watch.is_some() { &mut state.requests.watches } else { &mut state.requests.lists };
    *count += usize::from(is_pods);
    None
}

fn list(server: &Server, plural: &str, asked: &Parameters) -> Value {
    let version = server.0.news.borrow().version;
    let state = server.state();
    let of = state.live.iter().filter(|((of, _), _)| of == plural);
    let from = asked.token.parse().unwrap_or(0);
    let limit = if asked.limit == 0 { usize::MAX } else { asked.limit };
    let mut items: Vec<Value> =
        of.skip(from).map(|(_, object)| object.clone()).take(limit.saturating_add(1)).collect();
    let next = if items.len() > limit { (from + limit).to_string() } else { String::new() };
    items.truncate(limit);
    // As the real one: items carry no kind.
    for item in &mut items {
        let fields = item.as_object_mut().unwrap();
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string(), "continue": next},
        "items": items})
}

fn slow(body: &Value) -> Response<Body> {
    let text = body.to_string();
    let pieces: Vec<Bytes> = text.as_bytes().chunks(text.len() / 5 + 1).map(Bytes::copy_from_slice).collect();
    let body = futures::stream::unfold(pieces.into_iter(), |mut pieces| async {
        let piece = pieces.next()?;
        // check: allow sleep, the server is slow on purpose
        tokio::time::sleep(Duration::from_millis(100)).await;
        Some((Ok::<_, std::io::Error>(piece), pieces))
    });
    Response::new(Body::from_stream(body))
}

type Line = Result<Bytes, std::io::Error>;

fn watched(
    server: &Server,
    plural: String,
    from: u64,
    initial: bool,
    first: Option<String>,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Line>(16);
    let server = server.clone();
    tokio::spawn(async move {
        if let Some(first) = first {
            let _ = sender.send(Ok(Bytes::from(format!("{first}\n")))).await;
        }
        stream(server, &plural, from, initial, sender).await;
    });
    let body = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|line| (line, receiver))
    });
    Response::new(Body::from_stream(body))
}

fn line(what: &str, object: &Value) -> Line {
    Ok(Bytes::from(format!("{}\n", json!({"type": what, "object": object}))))
}

fn bookmark(version: u64, ends_list: bool) -> Line {
    let annotations = if ends_list { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
    line(
        "BOOKMARK",
        &json!({"metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

/// Everything after `from`, until the watches are dropped.
async fn stream(server: Server, plural: &str, from: u64, initial: bool, sender: mpsc::Sender<Line>) {
    let mut changed = server.0.news.subscribe();
    let mut before = *changed.borrow();
    let mut sent = from;
    if initial {
        let objects: Vec<Value> = {
            let state = server.state();
            sent = state.history.back().map_or(before.version, |(version, ..)| *version);
            state.live.iter().filter(|((of, _), _)| of == plural).map(|(_, object)| object.clone()).collect()
        };
        for object in objects {
            if sender.send(line("ADDED", &object)).await.is_err() {
                return;
            }
        }
        if sender.send(bookmark(sent, true)).await.is_err() {
            return;
        }
    }
    loop {
        // Before the look at the history, so that what comes in between wakes again.
        let news = *changed.borrow_and_update();
        let mut lines = Vec::new();
        {
            let state = server.state();
            // A watch whose past was forgotten ends; the next request for it is answered with 410.
            if state.paused || news.drops != before.drops || sent < state.oldest {
                return;
            }
            let fresh = state.history.iter().rev().take_while(|(version, ..)| *version > sent);
            lines.extend(
                fresh.filter(|(_, _, of, _)| of == plural).map(|(_, what, _, object)| line(what, object)),
            );
            lines.reverse();
            sent = state.history.back().map_or(sent, |(version, ..)| *version).max(sent);
        }
        if news.bookmarks != before.bookmarks {
            lines.push(bookmark(sent, false));
        }
        before = news;
        for line in lines {
            if sender.send(line).await.is_err() {
                return;
            }
        }
        // A client that has gone is noticed although nothing is to be sent.
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": format!("test: {reason}")})
}

fn reply(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = code;
    response
}
