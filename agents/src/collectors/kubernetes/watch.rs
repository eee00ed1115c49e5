//! One watch per kind, all into one bounded queue: list, watch, resume, list again when the server has
//! forgotten the version (410), wait between errors.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde_json::Value;
use smol_str::SmolStr;
use tapio_runtime::backoff::Backoff;
use tapio_runtime::clock::SharedClock;
use tokio::sync::mpsc;

use super::config::WatchScope;

/// Changes that wait for conversion; then the watches wait, and the server's buffers fill.
pub const QUEUE_MAX: usize = 256;
/// The server ends a watch after this time; a dead connection is noticed at most five seconds later.
const WATCH_TIMEOUT_S: u32 = 60;

/// What a watch says.
#[derive(Debug)]
pub enum Change {
    /// A full list of the kind begins.
    ListBegins,
    /// An object of that list.
    Listed(Value),
    /// The list is complete.
    ListEnds,
    /// Added or modified.
    Applied(Value),
    /// Deleted.
    Deleted(Value),
    /// The watch cannot go on for now, and will try again.
    Failed(String),
}

/// What to watch and how patiently.
pub struct Watches {
    /// Connected to the API server.
    pub client: Client,
    /// What to watch.
    pub scope: WatchScope,
    /// This machine, for [`WatchScope::Node`].
    pub node: SmolStr,
    /// Whether ConfigMaps are watched.
    pub config_maps: bool,
    /// Whether Secrets are watched.
    pub secrets: bool,
    /// Between errors.
    pub backoff: Backoff,
    /// Clock of the waits.
    pub clock: SharedClock,
}

impl Watches {
    /// The kinds that are watched.
    fn kinds(&self) -> Vec<ApiResource> {
        if self.scope == WatchScope::Node {
            return vec![resource::<Pod>()];
        }
        // Owners first: so their names are known when the pods come.
        let mut kinds = vec![
            resource::<Deployment>(),
            resource::<ReplicaSet>(),
            resource::<StatefulSet>(),
            resource::<DaemonSet>(),
            resource::<Node>(),
        ];
        kinds.extend(self.config_maps.then(resource::<ConfigMap>));
        kinds.extend(self.secrets.then(resource::<Secret>));
        kinds.extend([resource::<Pod>(), resource::<Event>()]);
        kinds
    }

    /// Watches all kinds for ever; ends when the receiver is gone.
    pub async fn run(self, changes: mpsc::Sender<(ApiResource, Change)>) {
        let kinds = self.kinds();
        join_all(kinds.into_iter().map(|kind| self.watch(kind, changes.clone()))).await;
    }

    async fn watch(&self, kind: ApiResource, changes: mpsc::Sender<(ApiResource, Change)>) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        let mut config = watcher::Config::default().timeout(WATCH_TIMEOUT_S);
        if self.scope == WatchScope::Node {
            config = config.fields(&format!("spec.nodeName={}", self.node));
        }
        let stream = watcher::watcher(api, config);
        futures::pin_mut!(stream);
        let mut errors = 0;
        while let Some(item) = stream.next().await {
            let delay = match &item {
                Err(_) => {
                    errors += 1;
                    Some(self.backoff.delay(errors - 1))
                }
                // That a list is about to be asked for is no success yet.
                Ok(watcher::Event::Init) => None,
                Ok(_) => {
                    errors = 0;
                    None
                }
            };
            if changes.send((kind.clone(), change(&kind, item))).await.is_err() {
                return;
            }
            if let Some(delay) = delay {
                self.clock.sleep(delay.max(Duration::from_millis(1))).await;
            }
        }
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

fn change(kind: &ApiResource, item: Result<watcher::Event<DynamicObject>, watcher::Error>) -> Change {
    match item {
        Ok(watcher::Event::Init) => Change::ListBegins,
        Ok(watcher::Event::InitDone) => Change::ListEnds,
        Ok(watcher::Event::InitApply(object)) => value(kind, object, Change::Listed),
        Ok(watcher::Event::Apply(object)) => value(kind, object, Change::Applied),
        Ok(watcher::Event::Delete(object)) => value(kind, object, Change::Deleted),
        Err(error) => Change::Failed(failure(kind, &error)),
    }
}

/// Why a watch fails; which permission it is that is missing.
fn failure(kind: &ApiResource, error: &watcher::Error) -> String {
    use watcher::Error as E;
    let status = match error {
        E::InitialListFailed(kube::Error::Api(status))
        | E::WatchStartFailed(kube::Error::Api(status))
        | E::WatchFailed(kube::Error::Api(status))
        | E::WatchError(status) => status,
        other => return chain(other),
    };
    if status.code != 403 {
        return chain(error);
    }
    let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
    let plural = &kind.plural;
    format!("not allowed: grant get, list and watch of {plural}{group} in all namespaces: {}", status.message)
}

/// Replaces what a ConfigMap or Secret says by its hash, before anything else sees it. The copy that `kubectl
/// apply` leaves in the annotations goes as well.
fn hide_values(object: &mut Value) {
    // Of this process: a short password must not be found by hashing the likely ones.
    static SALT: OnceLock<u64> = OnceLock::new();
    let salt = SALT.get_or_init(|| RandomState::new().build_hasher().finish());
    for part in ["data", "binaryData", "stringData"] {
        let values = object.get_mut(part).and_then(Value::as_object_mut);
        for value in values.into_iter().flat_map(|values| values.values_mut()) {
            let text = value.as_str().unwrap_or_default();
            let hash = xxhash_rust::xxh3::xxh3_128_with_seed(text.as_bytes(), *salt);
            *value = Value::from(format!("{hash:032x}"));
        }
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("annotations");
    }
}

fn value(kind: &ApiResource, object: DynamicObject, of: impl Fn(Value) -> Change) -> Change {
    match serde_json::to_value(&object) {
        Ok(mut value) => {
            // Items of a list carry no kind.
            value["kind"] = Value::from(kind.kind.as_str());
            value["apiVersion"] = Value::from(kind.api_version.as_str());
            if matches!(kind.kind.as_str(), "ConfigMap" | "Secret") {
                hide_values(&mut value);
            }
            of(value)
        }
        Err(error) => Change::Failed(error.to_string()),
    }
}

/// An error with all its causes: the outer ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
