//! Objects as the API sends them, with only what matters.

use serde_json::{Value, json};

pub const UID: &str = "8b4f3c0e-2f6a-4f0e-9d0b-1c2d3e4f5a6b";

/// `metadata` of an object of namespace `shop`.
fn meta(name: &str, uid: &str, version: u64) -> Value {
    json!({"name": name, "namespace": "shop", "uid": uid, "resourceVersion": version.to_string(),
        "creationTimestamp": "2030-01-01T10:00:00Z", "generation": 1})
}

/// A running pod `api-5f6585d649-x2x2x` of ReplicaSet `api-5f6585d649`, with one container `app`.
pub fn pod(version: u64) -> Value {
    let mut metadata = meta("api-5f6585d649-x2x2x", UID, version);
    metadata["labels"] = json!({"pod-template-hash": "5f6585d649"});
    metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-5f6585d649", "controller": true}]);
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata,
        "spec": {"nodeName": "n1",
            "volumes": [{"configMap": {"name": "settings"}}, {"persistentVolumeClaim": {"claimName": "data"}},
                {"projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}}],
            "containers": [{"name": "app", "image": "shop/api:1", "envFrom": [{"secretRef": {"name": "keys"}}]}]},
        "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T10:00:05Z"},
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2030-01-01T10:00:00Z"}],
            "containerStatuses": [{"name": "app", "containerID": "containerd://c1", "restartCount": 0,
                "state": {"running": {"startedAt": "2030-01-01T10:00:03Z"}}}]}})
}

/// The same after its container was killed for its memory and waits to be started again.
pub fn killed_pod(version: u64) -> Value {
    let mut pod = pod(version);
    pod["status"]["conditions"][0] = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady",
        "message": "containers with unready status: [app]", "lastTransitionTime": "2030-01-01T10:30:01Z"});
    pod["status"]["containerStatuses"][0] = json!({"name": "app", "containerID": "containerd://c1", "restartCount": 0,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}},
        "lastState": {"terminated": {"containerID": "containerd://c1", "exitCode": 137, "reason": "OOMKilled",
            "startedAt": "2030-01-01T10:00:03Z", "finishedAt": "2030-01-01T10:30:00Z"}}});
    pod
}

pub fn deployment(version: u64, generation: u64, image: &str, replicas: u64) -> Value {
    let mut metadata = meta("api", "d1", version);
    metadata["generation"] = json!(generation);
    metadata["managedFields"] = json!([
        {"manager": "helm", "operation": "Update", "time": "2030-01-01T10:20:00Z"},
        {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "time": "2030-01-01T10:21:00Z"}]);
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": metadata,
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "app", "image": image}]}}}})
}

pub fn replica_set(version: u64) -> Value {
    let mut metadata = meta("api-5f6585d649", "r1", version);
    metadata["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "api", "controller": true}]);
    json!({"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": metadata, "spec": {"replicas": 1}})
}

pub fn node(version: u64, ready: &str, reason: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1", "uid": "n1", "resourceVersion": version.to_string()},
        "status": {"conditions": [
            {"type": "MemoryPressure", "status": "False", "lastTransitionTime": "2030-01-01T09:00:00Z"},
            {"type": "Ready", "status": ready, "reason": reason, "lastTransitionTime": "2030-01-01T10:10:00Z"}]}})
}

pub fn event(version: u64, count: u64) -> Value {
    json!({"kind": "Event", "apiVersion": "v1",
        "metadata": {"name": "api.1", "namespace": "shop", "uid": "e1", "resourceVersion": version.to_string()},
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "api-5f6585d649-x2x2x", "uid": UID,
            "apiVersion": "v1", "fieldPath": "spec.containers{app}"},
        "reason": "BackOff", "message": "Back-off restarting failed container", "type": "Warning", "count": count,
        "source": {"component": "kubelet"}, "firstTimestamp": "2030-01-01T10:30:00Z",
        "lastTimestamp": "2030-01-01T10:31:00Z", "eventTime": null, "reportingComponent": ""})
}
