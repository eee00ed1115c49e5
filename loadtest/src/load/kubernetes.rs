//! What the Kubernetes API says of pods in the course of a day.

use std::sync::Arc;

use tapio_schemas::payload::{KubernetesData, Relation};
use tapio_schemas::{EntityRef, EventKind, EventSeverity, Payload, Source, UnifiedEvent};

use super::random::Random;
use super::shapes::event;

const NORMAL: [(&str, &str, &str); 5] = [
    ("Scheduled", "default-scheduler", "Successfully assigned the pod"),
    ("Pulled", "kubelet", "Container image already present on machine"),
    ("Created", "kubelet", "Created container: main"),
    ("Started", "kubelet", "Started container main"),
    ("ScalingReplicaSet", "deployment-controller", "Scaled up replica set from 9 to 10"),
];

/// An event about a pod with which nothing is wrong.
pub fn routine(container: &Arc<EntityRef>, random: &mut Random) -> UnifiedEvent {
    let (kind, data) = match random.below(10) {
        0..=5 => {
            let (reason, reporter, message) = NORMAL[random.below(NORMAL.len())];
            let data = KubernetesData {
                reason: reason.into(),
                reporter: reporter.into(),
                message: message.into(),
                event_type: "Normal".into(),
                count: 1,
                ..pod(container)
            };
            (EventKind::K8sEvent, data)
        }
        6 => (EventKind::K8sContainerStarted, pod(container)),
        7 => (EventKind::K8sPodReady, pod(container)),
        _ => {
            let edge = |edge: &str, kind: &str, name: &str| Relation {
                edge: edge.into(),
                kind: kind.into(),
                name: name.into(),
            };
            let config = format!("{}-config", container.workload);
            let relations =
                vec![edge("mounts", "ConfigMap", &config), edge("runs_on", "Node", container.node.as_str())];
            (EventKind::K8sObjectChanged, KubernetesData { relations, ..pod(container) })
        }
    };
    let payload = Payload::Kubernetes(Box::new(data));
    event(kind, Source::Kubernetes, EventSeverity::Info, container, payload)
}

/// What all facts about a pod share.
pub fn pod(container: &EntityRef) -> KubernetesData {
    KubernetesData {
        api_version: "v1".into(),
        object_kind: "Pod".into(),
        object_name: container.pod.clone(),
        uid: container.pod_uid.clone(),
        generation: 1,
        ..KubernetesData::default()
    }
}
