//! One watch per kind, all into one bounded queue: list, watch, resume, list again when the server has
//! forgotten the version (410), wait between errors.

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
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
    /// Between errors.
    pub backoff: Backoff,
    /// Clock of the waits.
    pub clock: SharedClock,
}

impl Watches {
    /// The kinds that are watched.
    pub fn kinds(scope: WatchScope) -> Vec<ApiResource> {
        match scope {
            WatchScope::Node => vec![resource::<Pod>()],
            // Owners first: so their names are known when the pods come.
            WatchScope::Cluster => vec![
                resource::<Deployment>(),
                resource::<ReplicaSet>(),
                resource::<StatefulSet>(),
                resource::<DaemonSet>(),
                resource::<Node>(),
                resource::<Pod>(),
                resource::<Event>(),
            ],
        }
    }

    /// Watches all kinds for ever; ends when the receiver is gone.
    pub async fn run(self, changes: mpsc::Sender<(ApiResource, Change)>) {
        let kinds = Self::kinds(self.scope);
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
        Err(error) => Change::Failed(chain(&error)),
    }
}

fn value(kind: &ApiResource, object: DynamicObject, of: impl Fn(Value) -> Change) -> Change {
    match serde_json::to_value(&object) {
        Ok(mut value) => {
            // Items of a list carry no kind.
            value["kind"] = Value::from(kind.kind.as_str());
            value["apiVersion"] = Value::from(kind.api_version.as_str());
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
