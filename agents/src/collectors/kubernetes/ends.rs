//! Containers of this machine that have failed, handed to whoever reads what they said last.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use smol_str::SmolStr;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::Payload;
use tokio::sync::mpsc;

use super::pod::{ContainerState, PodState};

/// Failed containers that wait to be looked at; further ones are counted and not looked at.
pub const FAILED_MAX: usize = 256;

/// A container that has ended with an error.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedContainer {
    /// The container.
    pub entity: Arc<EntityRef>,
    /// The uid that its machine's directories carry: of a static pod it is not that of the API.
    pub uid: SmolStr,
    /// Which of its lives has ended, from zero: the kubelet names files by it.
    pub life: u32,
    /// When it ended, as far as the API knows.
    pub at: UnixNanos,
}

/// Tells of failed containers of one machine.
#[derive(Clone)]
pub struct FailureTeller {
    sender: mpsc::Sender<FailedContainer>,
    node: SmolStr,
    dropped: Counter,
}

impl FailureTeller {
    /// A teller of the failures on `node`, and who hears it.
    pub fn new(node: &str, metrics: &Metrics) -> (Self, mpsc::Receiver<FailedContainer>) {
        let (sender, heard) = mpsc::channel(FAILED_MAX);
        let dropped = metrics.shared(
            "pod_logs_dropped_containers",
            "Failed containers whose last lines are not read, because too many failed at once",
        );
        (Self { sender, node: SmolStr::new(node), dropped }, heard)
    }

    /// Tells of those that `events`, which are of changes of `pod`, say have failed. Waits for nobody.
    pub(super) fn tell(&self, events: &[UnifiedEvent], pod: &PodState) {
        for failed in failed(events, pod).filter(|failed| failed.entity.node == self.node) {
            if self.sender.try_send(failed).is_err() {
                self.dropped.inc();
            }
        }
    }
}

fn failed<'a>(events: &'a [UnifiedEvent], pod: &'a PodState) -> impl Iterator<Item = FailedContainer> + 'a {
    events.iter().filter_map(|event| {
        let Payload::Kubernetes(data) = &event.payload else { return None };
        if event.kind != EventKind::K8sContainerTerminated || data.exit_code == 0 {
            return None;
        }
        let container = pod.container(&event.entity.container)?;
        let uid = if pod.config_hash.is_empty() { &event.entity.pod_uid } else { &pod.config_hash };
        Some(FailedContainer {
            entity: Arc::clone(&event.entity),
            uid: uid.clone(),
            life: life(container, &event.entity.container_id)?,
            at: event.timestamp,
        })
    })
}

/// Which life of the container had that id. Its count of restarts is the number of the newest life: one that waits to be
/// started again has not begun the next, and of one that runs or has ended again the end before is of the life before.
fn life(container: &ContainerState, id: &SmolStr) -> Option<u32> {
    let last = container.ended.len().checked_sub(1)?;
    let at = container.ended.iter().rposition(|end| end.id == *id)?;
    let is_newest = at == last && container.running_since.is_none();
    if is_newest { Some(container.restarts) } else { container.restarts.checked_sub(1) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tapio_schemas::payload::KubernetesData;

    use super::*;

    fn lives(status: serde_json::Value) -> Vec<Option<u32>> {
        let pod = PodState::of(&json!({"status": {"containerStatuses": [status]}}));
        let container = &pod.containers[0];
        container.ended.iter().map(|end| life(container, &end.id)).collect()
    }

    #[test]
    fn the_life_that_ended_is_told_from_where_the_end_stands() {
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let runs = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let status = |restarts: u32, state: &serde_json::Value, last: &serde_json::Value| json!({"name": "app", "restartCount": restarts, "state": state, "lastState": last});
        assert_eq!(lives(status(0, &ended("c://a"), &json!({}))), [Some(0)]);
        assert_eq!(lives(status(1, &runs, &ended("c://a"))), [Some(0)]);
        assert_eq!(lives(status(1, &waits, &ended("c://b"))), [Some(1)]);
        assert_eq!(lives(status(2, &ended("c://c"), &ended("c://b"))), [Some(1), Some(2)]);
        // What cannot be is not told.
        assert_eq!(lives(status(0, &runs, &ended("c://a"))), [None]);
    }

    #[test]
    fn the_failures_of_one_machine_are_told_as_far_as_there_is_room() {
        let ended = json!({"terminated": {"exitCode": 1, "containerID": "c://a"}});
        let status = json!({"name": "app", "restartCount": 7, "state": ended});
        let pod = PodState::of(&json!({"status": {"containerStatuses": [status]}}));
        let event = |node: &str, kind, exit_code| {
            let entity = EntityRef {
                node: node.into(),
                container: "app".into(),
                container_id: "a".into(),
                pod_uid: "u".into(),
                ..EntityRef::default()
            };
            let data = KubernetesData { exit_code, ..KubernetesData::default() };
            let payload = Payload::Kubernetes(Box::new(data));
            UnifiedEvent { kind, entity: Arc::new(entity.sealed()), payload, ..UnifiedEvent::default() }
        };
        let (ends, starts) = (EventKind::K8sContainerTerminated, EventKind::K8sContainerStarted);
        let (teller, mut heard) = FailureTeller::new("n1", &Metrics::new());
        let others = [event("n2", ends, 1), event("", ends, 1), event("n1", ends, 0), event("n1", starts, 1)];
        teller.tell(&others, &pod);
        assert!(heard.try_recv().is_err());
        let offered = FAILED_MAX + 3;
        teller.tell(&vec![event("n1", ends, 1); offered], &pod);
        assert_eq!((heard.len() as u64 + teller.dropped.get(), heard.len()), (offered as u64, FAILED_MAX));
        let first = heard.try_recv().unwrap();
        assert_eq!((first.entity.node.as_str(), first.uid.as_str(), first.life), ("n1", "u", 7));
        // There is room again.
        teller.tell(&[event("n1", ends, 1)], &pod);
        assert_eq!((heard.len(), teller.dropped.get()), (FAILED_MAX, 3));
    }
}
