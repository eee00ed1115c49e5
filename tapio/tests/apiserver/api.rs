//! The real API server, as the tests talk to it: with the rights of an administrator, apart from the code under test.

use std::path::Path;
use std::sync::Arc;

use axum::http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Asks the API server.
#[derive(Clone)]
pub struct Api {
    runtime: Arc<Runtime>,
    client: Client,
}

/// What the API server refuses.
#[derive(Debug)]
pub struct Refused {
    /// HTTP status; zero when there was no answer.
    pub code: u16,
    /// What it says.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused with {}: {}", self.code, self.message)
    }
}

impl Api {
    /// The server of a kubeconfig.
    pub fn of(kubeconfig: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Arc::new(runtime.unwrap());
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            // A refusal is what some tests look for.
            config.default_retry = false;
            Client::try_from(config).unwrap()
        });
        Self { runtime, client }
    }

    /// One request with a JSON body, or without one.
    pub fn ask(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Result<Value, Refused> {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(bytes).unwrap();
        self.runtime.block_on(self.client.request::<Value>(request)).map_err(|error| match error {
            kube::Error::Api(status) => Refused { code: status.code, message: status.message },
            error => Refused { code: 0, message: format!("{error:?}") },
        })
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.ask("GET", path, "application/json", None).ok()
    }

    /// Objects of a list.
    pub fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
    }

    /// Text of a path that is no object, such as `/readyz?verbose`.
    pub fn text(&self, path: &str) -> Option<String> {
        let request = Request::get(path).body(Vec::new()).unwrap();
        self.runtime.block_on(self.client.request_text(request)).ok()
    }

    /// Makes an object.
    pub fn create(&self, object: &Value) -> Result<Value, Refused> {
        self.ask("POST", &collection(object), "application/json", Some(object))
    }

    /// Makes an object that the server must take.
    pub fn make(&self, object: &Value) -> Value {
        self.create(object).unwrap_or_else(|refused| panic!("{object}: {refused}"))
    }

    /// Makes several.
    pub fn make_all(&self, objects: &[Value]) {
        objects.iter().for_each(|object| drop(self.make(object)));
    }

    /// A merge patch.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<Value, Refused> {
        self.ask("PATCH", path, "application/merge-patch+json", Some(patch))
    }

    /// A merge patch that the server must take.
    pub fn change(&self, path: &str, patch: &Value) -> Value {
        self.merge(path, patch).unwrap_or_else(|refused| panic!("{path} {patch}: {refused}"))
    }

    pub fn delete(&self, path: &str) {
        let _ = self.ask("DELETE", path, "application/json", None);
    }

    /// Ends a pod at once, as a kubelet does when its containers have ended.
    pub fn remove_pod(&self, path: &str) {
        let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        let _ = self.ask("DELETE", path, "application/json", Some(&now));
    }

    /// A namespace of this name.
    pub fn namespace(&self, name: &str) {
        self.make(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
}

/// Where objects like this one are made.
pub fn collection(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{version}/{plural}"),
    }
}
