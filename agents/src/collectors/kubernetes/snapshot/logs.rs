//! The last lines of containers that fail: why they ended, in their own words. Secrets in them are masked.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::{Request, StatusCode};
use futures::StreamExt;
use kube::client::Body;
use smol_str::SmolStr;
use tapio_schemas::ids::UnixNanos;

use super::Snapshot;
use super::api::Cluster;
use crate::collectors::kubernetes::owners::{KindName, Owners};
use crate::collectors::kubernetes::summary::Detail;
use crate::convert::secrets::{LINES_MAX, last_lines};

/// Containers whose lines are read: of each owner's the first one.
pub const CONTAINERS_MAX: usize = 12;
/// Bytes of them.
const BYTES_MAX: usize = 16 << 10;
/// Containers asked for at the same time.
const PARALLEL_MAX: usize = 6;
/// A container that runs again is asked when it failed this long ago at most.
const LATELY_NS: u64 = 15 * 60 * 1_000_000_000;
/// A container's lines have to come within this time: nobody waits longer for what is only evidence.
const TIME_MAX: Duration = Duration::from_millis(1500);

/// A container that fails.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failing {
    /// Namespace of its pod.
    pub namespace: SmolStr,
    /// Its pod.
    pub pod: SmolStr,
    /// Its name.
    pub container: SmolStr,
    /// Whether it runs again: the lines of the life before count.
    pub previous: bool,
    /// Who owns its pod: the next owner, and the top one, which may be the same.
    pub owners: Vec<KindName>,
}

/// What a container said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastWords {
    /// Which container.
    pub of: Failing,
    /// Its last lines, oldest first, masked.
    pub lines: Vec<String>,
}

impl Snapshot {
    /// Containers that ended with an error and are waited for, stay ended, or ended so lately; of those of one owner the one that was
    /// restarted most often, at most [`CONTAINERS_MAX`].
    pub fn failing(&self) -> Vec<Failing> {
        let mut between = Owners::default();
        self.objects.iter().for_each(|object| between.learn(&object.summary));
        let mut all = Vec::new();
        for object in &self.objects {
            let Detail::Pod(pod) = &object.summary.detail else { continue };
            for container in &pod.containers {
                let is_waited_for =
                    container.waiting.as_ref().is_some_and(|(reason, _)| reason == "CrashLoopBackOff");
                let failed: Vec<_> = container.ended.iter().filter(|ended| ended.exit_code != 0).collect();
                let runs = container.running_since.is_some();
                let lately = |at: UnixNanos| self.newest().since(at) < LATELY_NS;
                let failed_lately = failed.iter().any(|ended| ended.at.is_some_and(lately));
                let stays_ended = !failed.is_empty() && !runs;
                if !is_waited_for && !stays_ended && !failed_lately {
                    continue;
                }
                let summary = &object.summary;
                let owner = summary.owner.clone().unwrap_or((SmolStr::default(), summary.name.clone()));
                let of = Failing {
                    namespace: summary.namespace.clone(),
                    pod: summary.name.clone(),
                    container: container.name.clone(),
                    previous: runs,
                    owners: owners(&between, summary.owner.as_ref(), &summary.namespace),
                };
                all.push((std::cmp::Reverse(container.restarts), of, owner));
            }
        }
        all.sort_unstable();
        let mut owners = BTreeSet::new();
        all.retain(|(_, of, owner)| {
            owners.insert((of.namespace.clone(), owner.clone(), of.container.clone()))
        });
        all.into_iter().take(CONTAINERS_MAX).map(|(_, of, _)| of).collect()
    }
}

/// The next owner and the top one.
fn owners(between: &Owners, next: Option<&KindName>, namespace: &SmolStr) -> Vec<KindName> {
    let Some(next) = next else { return Vec::new() };
    let mut all = vec![next.clone(), between.top(namespace, next)];
    all.dedup();
    all
}

impl Cluster {
    /// The last lines of these containers, and what could not be had, in words and each once.
    pub async fn last_words(&self, failing: &[Failing]) -> (Vec<LastWords>, Vec<String>) {
        let asked = failing.iter().map(|of| async move {
            let lines = tokio::time::timeout(TIME_MAX, self.lines(of)).await;
            (of, lines.unwrap_or_else(|_| Err(String::new())))
        });
        let asked: Vec<_> = futures::stream::iter(asked).buffered(PARALLEL_MAX).collect().await;
        let (mut all, mut missing) = (Vec::new(), BTreeSet::new());
        for (of, lines) in asked {
            match lines {
                Ok(lines) if !lines.is_empty() => all.push(LastWords { of: of.clone(), lines }),
                Ok(_) => {}
                // It is evidence, no more: only what somebody can change is told.
                Err(reason) if reason.is_empty() => {}
                Err(reason) => drop(missing.insert(reason)),
            }
        }
        (all, missing.into_iter().collect())
    }

    async fn lines(&self, of: &Failing) -> Result<Vec<String>, String> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/log?container={}&previous={}&tailLines={LINES_MAX}&limitBytes={BYTES_MAX}",
            of.namespace, of.pod, of.container, of.previous
        );
        let request = Request::get(path).body(Body::empty()).map_err(|_| String::new())?;
        let answer = self.client().send(request).await.map_err(|_| String::new())?;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::FORBIDDEN {
            return Err(format!("not allowed: grant get of pods/log in namespace {}", of.namespace));
        }
        // Lines of a container that is gone are gone.
        if head.status != StatusCode::OK {
            return Err(String::new());
        }
        let mut bytes = Vec::new();
        let mut chunks = axum::body::Body::new(body).into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() >= BYTES_MAX {
                bytes.truncate(BYTES_MAX);
                break;
            }
        }
        Ok(last_lines(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, owner: &str, restarts: u32, state: Value, last: Value) -> Value {
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop", "uid": name,
            "ownerReferences": [{"kind": "ReplicaSet", "name": owner, "controller": true}]},
            "status": {"containerStatuses": [{"name": "app", "restartCount": restarts, "state": state, "lastState": last}]}})
    }

    #[test]
    fn of_each_owner_the_container_that_fails_most_is_asked_for_its_right_life() {
        let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let mut snapshot = Snapshot::new(None);
        for pod in [
            pod("a-1", "a", 2, back_off.clone(), failed.clone()),
            pod("a-2", "a", 9, back_off, failed.clone()),
            pod("b-1", "b", 0, failed.clone(), Value::Null),
            pod("c-1", "c", 3, running.clone(), failed),
            pod(
                "e-1",
                "e",
                1,
                running,
                json!({"terminated": {"exitCode": 2, "finishedAt": "2026-01-01T00:10:00Z"}}),
            ),
            pod("f-1", "f", 0, json!({"running": {"startedAt": "2026-01-01T00:12:00Z"}}), Value::Null),
            pod("d-1", "d", 0, json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), Value::Null),
        ] {
            snapshot.take(&pod).unwrap();
        }
        let names: Vec<_> = snapshot.failing().into_iter().map(|of| (of.pod, of.previous)).collect();
        assert_eq!(names, [("a-2".into(), false), ("e-1".into(), true), ("b-1".into(), false)]);
    }

    #[test]
    fn owners_are_those_that_the_objects_name() {
        let mut snapshot = Snapshot::new(None);
        let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        let set = json!({"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": {"name": "api-5f6585d649",
            "namespace": "shop", "uid": "rs",
            "ownerReferences": [{"kind": "Deployment", "name": "api", "controller": true}]}});
        snapshot.take(&set).unwrap();
        snapshot.take(&pod("api-5f6585d649-x2x2x", "api-5f6585d649", 1, failed, Value::Null)).unwrap();
        let failing = snapshot.failing();
        let owners: Vec<_> = failing[0].owners.iter().map(|(kind, name)| format!("{kind}/{name}")).collect();
        assert_eq!(owners, ["ReplicaSet/api-5f6585d649", "Deployment/api"]);
    }
}
