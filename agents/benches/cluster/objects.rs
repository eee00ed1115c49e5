//! A cluster of some size and what changes in it, as large as objects of a real one are.

use std::io::BufRead;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::Server;

/// Pods of a Deployment.
const REPLICAS: usize = 10;
/// Pods of a node.
const PODS_PER_NODE: usize = 100;

/// Serves until the process is killed: prints its address, waits for a line, then makes changes.
pub async fn serve(pods: usize, rate: usize) {
    let (server, address) = Server::start_open().await;
    fill(&server, pods);
    println!("{address}");
    tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next()).await.expect("a line is read");
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut number = 0;
    loop {
        ticks.tick().await;
        for _ in 0..rate / 10 {
            number += 1;
            change(&server, pods, number);
        }
        // What nobody asks for any more.
        server.forget_before(10_000);
    }
}

fn fill(server: &Server, pods: usize) {
    for n in 0..pods.div_ceil(PODS_PER_NODE) {
        server.change("ADDED", |_| node(n, 0));
    }
    for n in 0..pods.div_ceil(REPLICAS) {
        server.change("ADDED", |_| deployment(n, 0));
        server.change("ADDED", |_| replica_set(n));
        server.change("ADDED", |_| service(n));
        server.change("ADDED", |_| endpoint_slice(n, 0));
        server.change("ADDED", |_| config_map(n, 0));
    }
    for n in 0..pods {
        server.change("ADDED", |_| pod(n, 0));
    }
}

/// Of a hundred changes: sixty of pods, fifteen Events, ten of nodes, ten of endpoints, three of ConfigMaps, two of Deployments.
fn change(server: &Server, pods: usize, number: usize) {
    // A multiplier without a common divisor reaches all.
    let n = number.wrapping_mul(7919) % pods;
    match number % 100 {
        0..60 => server.change("MODIFIED", |_| pod(n, number)),
        60..75 => server.change("ADDED", |_| event(n, number)),
        75..85 => server.change("MODIFIED", |_| node(n / PODS_PER_NODE, number)),
        85..95 => server.change("MODIFIED", |_| endpoint_slice(n / REPLICAS, number)),
        95..98 => server.change("MODIFIED", |_| config_map(n / REPLICAS, number)),
        _ => server.change("MODIFIED", |_| deployment(n / REPLICAS, number)),
    };
}

fn namespace(n: usize) -> String {
    format!("team-{:02}", n % 50)
}

fn meta(kind: &str, name: &str, namespace: &str, change: usize) -> Value {
    let fields = |names: &[&str]| -> Value {
        names.iter().map(|name| (format!("f:{name}"), json!({".": {}, "f:a": {}, "f:b": {}}))).collect()
    };
    json!({"name": name, "namespace": namespace, "uid": format!("{kind}-{namespace}-{name}"), "generation": 1 + change,
        "creationTimestamp": "2030-01-01T00:00:00Z", "labels": {"app.kubernetes.io/name": "app", "app": name,
            "pod-template-hash": "5f6585d649", "team": namespace},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(800), "checksum/config": "0".repeat(64)},
        "managedFields": [
            {"manager": "helm", "operation": "Update", "apiVersion": "v1", "time": "2030-01-01T00:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": fields(&["metadata", "spec", "labels", "annotations", "containers", "volumes", "env", "image"])},
            {"manager": "kubelet", "operation": "Update", "subresource": "status", "time": "2030-01-01T00:00:00Z",
                "fieldsV1": fields(&["status", "conditions", "containerStatuses", "phase", "podIP"])}]})
}

fn owner(kind: &str, name: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true, "uid": name}])
}

fn app(n: usize) -> String {
    format!("app-{n:04}")
}

fn set(n: usize) -> String {
    format!("{}-5f6585d649", app(n))
}

fn pod_name(n: usize) -> String {
    format!("{}-{:05}", set(n / REPLICAS), n % REPLICAS)
}

fn template(n: usize) -> Value {
    let env: Vec<Value> =
        (0..20).map(|i| json!({"name": format!("SETTING_{i}"), "value": format!("value-{i}")})).collect();
    json!({"containers": [{"name": "app", "image": format!("registry.example/{}:1", app(n)), "env": env,
        "envFrom": [{"configMapRef": {"name": app(n)}}], "ports": [{"containerPort": 8080}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]})
}

fn pod(n: usize, change: usize) -> Value {
    let mut metadata = meta("Pod", &pod_name(n), &namespace(n / REPLICAS), change);
    metadata["ownerReferences"] = owner("ReplicaSet", &set(n / REPLICAS));
    let mut spec = template(n / REPLICAS);
    spec["nodeName"] = json!(format!("node-{:03}", n / PODS_PER_NODE));
    // Half of the changes are of readiness, the others of what nobody asks.
    let ready = if change % 4 == 1 { "False" } else { "True" };
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec,
        "status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": "2030-01-01T00:00:00Z",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"},
                {"type": "Initialized", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"},
                {"type": "ContainersReady", "status": ready, "lastTransitionTime": "2030-01-01T00:00:00Z"},
                {"type": "Ready", "status": ready, "reason": "ContainersNotReady", "lastTransitionTime": "2030-01-01T00:00:00Z"}],
            "containerStatuses": [{"name": "app", "containerID": format!("containerd://{n:064}"), "ready": ready == "True",
                "image": "app", "imageID": "0".repeat(90), "restartCount": 0, "state": {"running": {"startedAt": "2030-01-01T00:00:03Z"}}}]}})
}

fn node(n: usize, change: usize) -> Value {
    let name = format!("node-{n:03}");
    let images: Vec<Value> =
        (0..50).map(|i| json!({"names": [format!("registry.example/image-{i}@sha256:{}", "0".repeat(64))], "sizeBytes": 100_000_000})).collect();
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "Kubelet", "message": "kubelet is well",
        "lastHeartbeatTime": format!("2030-01-01T00:{:02}:00Z", change % 60), "lastTransitionTime": "2030-01-01T00:00:00Z"})
    };
    json!({"kind": "Node", "apiVersion": "v1", "metadata": meta("Node", &name, "", change),
        "status": {"images": images, "capacity": {"cpu": "16", "memory": "64Gi", "pods": "110"}, "conditions": [
            condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False"),
            condition("Ready", "True")]}})
}

fn deployment(n: usize, change: usize) -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": meta("Deployment", &app(n), &namespace(n), change),
        "spec": {"replicas": REPLICAS + change % 2, "template": {"spec": template(n)}},
        "status": {"replicas": REPLICAS, "conditions": [{"type": "Available", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}]}})
}

fn replica_set(n: usize) -> Value {
    let mut metadata = meta("ReplicaSet", &set(n), &namespace(n), 0);
    metadata["ownerReferences"] = owner("Deployment", &app(n));
    json!({"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": metadata,
        "spec": {"replicas": REPLICAS, "template": {"spec": template(n)}}})
}

fn service(n: usize) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": meta("Service", &app(n), &namespace(n), 0),
        "spec": {"selector": {"app": app(n)}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn endpoint_slice(n: usize, change: usize) -> Value {
    let mut metadata = meta("EndpointSlice", &format!("{}-abcde", app(n)), &namespace(n), change);
    metadata["ownerReferences"] = owner("Service", &app(n));
    let endpoints: Vec<Value> = (0..REPLICAS)
        .map(|i| {
            let ready = i > 0 || change.is_multiple_of(2);
            json!({"addresses": ["10.0.0.1"], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": pod_name(n * REPLICAS + i)}})
        })
        .collect();
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "endpoints": endpoints})
}

fn config_map(n: usize, change: usize) -> Value {
    let mut data: serde_json::Map<String, Value> =
        (0..10).map(|i| (format!("key-{i}"), json!("v".repeat(200)))).collect();
    data.insert("changed".to_owned(), json!(change.to_string()));
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": meta("ConfigMap", &app(n), &namespace(n), 0), "data": data})
}

fn event(n: usize, number: usize) -> Value {
    let (name, namespace) = (pod_name(n), namespace(n / REPLICAS));
    json!({"kind": "Event", "apiVersion": "v1", "metadata": meta("Event", &format!("{name}.{number:x}"), &namespace, 0),
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": name, "uid": format!("Pod-{namespace}-{name}")},
        "reason": "Pulled", "message": "Container image already present on machine", "type": "Normal", "count": 1,
        "source": {"component": "kubelet"}})
}
