//! An API server in this process, for what `tapio fix` asks of one: objects with versions, JSON patches that are done as
//! a whole or not at all, dry runs, reviews of access, and a controller that makes pods of a Deployment's template.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

/// What is done after a change, as controllers do.
pub type Controller = fn(&mut Store, path: &str);

#[derive(Clone)]
pub struct Api {
    store: Arc<Mutex<Store>>,
    /// Requests that wait for the store.
    waiting: Arc<AtomicUsize>,
}

pub struct Store {
    /// Objects by their path.
    pub objects: BTreeMap<String, Value>,
    version: u64,
    /// Verbs that are denied.
    pub denied: BTreeSet<&'static str>,
    /// Changes that were made, by method and path.
    pub made: Vec<(Method, String)>,
    /// Dry runs.
    pub tried: usize,
    /// Lists of pods.
    pub lists: usize,
    /// Somebody else changes this object between a dry run and the change.
    pub meddles: Option<fn(&mut Value)>,
    controller: Controller,
}

impl Store {
    /// Puts an object where it belongs, with a version of its own.
    pub fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// Objects of a collection, in one namespace or in all.
    fn of(&self, collection: &str) -> Vec<&Value> {
        let plural = collection.rsplit('/').next().unwrap_or_default();
        let root = collection.split("/namespaces/").next().unwrap_or_default();
        let root = if collection == root { &collection[..collection.len() - plural.len() - 1] } else { root };
        let is_of = |path: &str| match collection.contains("/namespaces/") {
            true => path.rsplit_once('/').is_some_and(|(of, _)| of == collection),
            false => path.starts_with(root) && path.split('/').rev().nth(1) == Some(plural),
        };
        self.objects.iter().filter(|(path, _)| is_of(path)).map(|(_, object)| object).collect()
    }
}

/// Where an object stands.
pub fn path(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{root}/{version}/{plural}/{name}"),
    }
}

impl Api {
    /// Starts it on a free port, in a thread that ends with the test.
    pub fn start(objects: Vec<Value>, controller: Controller) -> (Self, SocketAddr) {
        let mut store = Store {
            objects: BTreeMap::new(),
            version: 100,
            denied: BTreeSet::new(),
            made: Vec::new(),
            tried: 0,
            lists: 0,
            meddles: None,
            controller,
        };
        for object in objects {
            store.put(&path(&object), object.clone());
        }
        let api = Self { store: Arc::new(Mutex::new(store)), waiting: Arc::default() };
        let routes = Router::new().fallback(answer).with_state(api.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, routes).await
            })
        });
        (api, address)
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        look(&mut self.store.lock().unwrap())
    }

    /// Requests that are not answered while somebody [looks](Self::with): one at most, it has one thread.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

fn status(code: StatusCode, message: &str) -> (StatusCode, String) {
    (code, json!({"kind": "Status", "code": code.as_u16(), "message": message}).to_string())
}

async fn answer(
    State(api): State<Api>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    api.waiting.fetch_add(1, Ordering::SeqCst);
    let mut store = api.store.lock().unwrap();
    api.waiting.fetch_sub(1, Ordering::SeqCst);
    let path = uri.path().to_owned();
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path.ends_with("/selfsubjectaccessreviews") {
        let verb = said["spec"]["resourceAttributes"]["verb"].as_str().unwrap();
        let denied = store.denied.contains(verb);
        let reason = if denied { "RBAC: no role binds it" } else { "" };
        let review = json!({"status": {"allowed": !denied, "reason": reason}});
        return (StatusCode::CREATED, review.to_string());
    }
    if method == Method::GET {
        store.lists += usize::from(path.ends_with("/pods"));
        if path.ends_with("/log") {
            return (StatusCode::OK, "out of memory\n".to_owned());
        }
        return match store.objects.get(&path) {
            Some(object) => (StatusCode::OK, object.to_string()),
            // The last part of a list's path is a plural.
            None if path.ends_with('s') || path.ends_with("ies") => {
                let items = store.of(&path);
                let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items});
                (StatusCode::OK, list.to_string())
            }
            None => status(StatusCode::NOT_FOUND, "not found"),
        };
    }
    let verb = if method == Method::POST { "create" } else { "patch" };
    if store.denied.contains(verb) {
        return status(StatusCode::FORBIDDEN, "RBAC: no role binds it");
    }
    let query = uri.query().unwrap_or_default();
    assert!(query.contains("fieldManager=tapio-fix"), "{query}");
    // The options of a deletion that come in its body are all that counts.
    let is_dry = match (&method, said.is_object()) {
        (&Method::DELETE, true) => said["dryRun"] == json!(["All"]),
        _ => query.contains("dryRun=All"),
    };
    let changed = match method {
        Method::PATCH => {
            assert_eq!(headers["content-type"], "application/json-patch+json");
            patched(&mut store, &path, &said, is_dry)
        }
        Method::POST => created(&store, &path, said),
        Method::DELETE => return deleted(&mut store, &path, &said, is_dry),
        _ => Err(status(StatusCode::METHOD_NOT_ALLOWED, "no")),
    };
    let (path, object) = match changed {
        Ok(changed) => changed,
        Err(refusal) => return refusal,
    };
    if is_dry {
        store.tried += 1;
        return (StatusCode::OK, object.to_string());
    }
    store.made.push((method, path.clone()));
    let object = store.put(&path, object);
    let controller = store.controller;
    controller(&mut store, &path);
    (StatusCode::OK, object.to_string())
}

type Changed = Result<(String, Value), (StatusCode, String)>;

fn created(store: &Store, collection: &str, mut object: Value) -> Changed {
    let path = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap());
    if store.objects.contains_key(&path) {
        return Err(status(StatusCode::CONFLICT, "it is there"));
    }
    object["metadata"]["uid"] = json!("made-by-the-server");
    Ok((path, object))
}

fn deleted(store: &mut Store, path: &str, options: &Value, is_dry: bool) -> (StatusCode, String) {
    let Some(object) = store.objects.get(path) else { return status(StatusCode::NOT_FOUND, "not found") };
    if object["metadata"]["uid"] != options["preconditions"]["uid"] {
        return status(StatusCode::CONFLICT, "it is another one by now");
    }
    if is_dry {
        store.tried += 1;
    } else {
        store.objects.remove(path);
        store.made.push((Method::DELETE, path.to_owned()));
    }
    (StatusCode::OK, json!({"kind": "Status", "status": "Success"}).to_string())
}

fn patched(store: &mut Store, path: &str, patch: &Value, is_dry: bool) -> Changed {
    let Some(mut object) = store.objects.get(path).cloned() else {
        return Err(status(StatusCode::NOT_FOUND, "not found"));
    };
    if let Some(meddle) = store.meddles.filter(|_| !is_dry) {
        meddle(&mut object);
        object = store.put(path, object);
    }
    let before = object.clone();
    for operation in patch.as_array().unwrap() {
        if let Err(reason) = operate(&mut object, operation) {
            return Err(status(StatusCode::UNPROCESSABLE_ENTITY, &reason));
        }
    }
    if object["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"] {
        return Err(status(StatusCode::CONFLICT, "the object has been modified"));
    }
    normal(&mut object).map_err(|reason| status(StatusCode::UNPROCESSABLE_ENTITY, &reason))?;
    if object["spec"] != before["spec"] {
        object["metadata"]["generation"] = json!(before["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
    }
    Ok((path.to_owned(), object))
}

/// One operation of RFC 6902.
fn operate(object: &mut Value, operation: &Value) -> Result<(), String> {
    let pointer = operation["path"].as_str().unwrap();
    let value = &operation["value"];
    let stands = object.pointer(pointer).cloned();
    match operation["op"].as_str().unwrap() {
        "test" if stands.as_ref() == Some(value) => return Ok(()),
        "test" => return Err(format!("testing path {pointer} failed")),
        "replace" | "remove" if stands.is_none() => return Err(format!("there is no {pointer}")),
        _ => {}
    }
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = object.pointer_mut(parent).ok_or(format!("there is no parent of {pointer}"))?;
    match (parent, operation["op"].as_str().unwrap()) {
        (Value::Object(map), "remove") => drop(map.remove(&key)),
        (Value::Object(map), _) => drop(map.insert(key, value.clone())),
        (Value::Array(list), "replace") => list[key.parse::<usize>().unwrap()] = value.clone(),
        (_, other) => return Err(format!("{other} of {pointer} is not done here")),
    }
    Ok(())
}

/// As the server spells quantities; what is none is refused.
fn normal(object: &mut Value) -> Result<(), String> {
    let containers = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
    for limit in containers.into_iter().flatten().filter_map(|c| c.pointer_mut("/resources/limits/memory")) {
        let text = limit.as_str().ok_or("quantities are text")?;
        let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        number.parse::<f64>().map_err(|_| format!("`{text}` is no quantity"))?;
        if text == "0.5Gi" {
            *limit = json!("512Mi");
        }
    }
    Ok(())
}
