//! Objects that the tests make, and what Tapio says of them.

use serde_json::{Value, json};

use crate::common::{run, stderr};

/// A Deployment whose pods run this image.
pub fn deployment(namespace: &str, name: &str, image: &str, replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": image}]}}}})
}

/// A Service in front of the pods of a Deployment of the same name.
pub fn service(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

/// The same with what `change` adds at a JSON pointer.
pub fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap_or_else(|| panic!("{parent}"))[key] = value;
    object
}

/// What `tapio check -o json` answers with these arguments, and its exit code.
pub fn check(kubeconfig: &str, args: &[&str]) -> (Option<i32>, Value) {
    let mut all = vec!["check", "-o", "json", "--kubeconfig", kubeconfig];
    all.extend(args);
    let output = run(&all);
    let answer = serde_json::from_slice(&output.stdout);
    (output.status.code(), answer.unwrap_or_else(|_| panic!("{args:?}: {}", stderr(&output))))
}

/// Cause and entity (`Kind/name`) of each finding.
pub fn causes(answer: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = answer["findings"].as_array().into_iter().flatten();
    let root = findings.map(|finding| &finding["root_cause"]);
    root.map(|root| {
        let entity = &root["entity"];
        (word(&root["cause"]), format!("{}/{}", word(&entity["kind"]), word(&entity["name"])))
    })
    .collect()
}
