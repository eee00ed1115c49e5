//! Edges from an object to others that its spec names.
//!
//! Who owns what is not among them: every event carries the top owner in its entity.

use std::collections::BTreeSet;

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::payload::Relation;
use tapio_schemas::signal::EdgeKind;

use super::json::{list, str_at};

/// Edges kept of an object.
const RELATIONS_MAX: usize = 128;

/// The edges of an object, sorted, each once.
pub fn of(kind: &str, object: &Value) -> Vec<Relation> {
    let mut edges = BTreeSet::new();
    match kind {
        kinds::POD => {
            add(&mut edges, EdgeKind::RunsOn, kinds::NODE, str_at(object, "/spec/nodeName"));
            mounts(&mut edges, object);
        }
        "EndpointSlice" => selects(&mut edges, list(object, "/endpoints")),
        "PersistentVolumeClaim" => {
            add(&mut edges, EdgeKind::Mounts, "PersistentVolume", str_at(object, "/spec/volumeName"));
        }
        _ => {}
    }
    edges
        .into_iter()
        .take(RELATIONS_MAX)
        .map(|(edge, kind, name)| Relation {
            edge: SmolStr::new_static(edge),
            kind: SmolStr::new_static(kind),
            name,
        })
        .collect()
}

type Edges = BTreeSet<(&'static str, &'static str, SmolStr)>;

fn add(edges: &mut Edges, edge: EdgeKind, kind: &'static str, name: &str) {
    if !name.is_empty() {
        edges.insert((edge.as_str(), kind, SmolStr::new(name)));
    }
}

/// Volumes, and what environment variables are read from: both fail a container when they are missing.
fn mounts(edges: &mut Edges, pod: &Value) {
    const SOURCES: [(&str, &str); 3] = [
        ("/configMap/name", "ConfigMap"),
        ("/secret/secretName", "Secret"),
        ("/persistentVolumeClaim/claimName", "PersistentVolumeClaim"),
    ];
    for volume in list(pod, "/spec/volumes") {
        for (pointer, kind) in SOURCES {
            add(edges, EdgeKind::Mounts, kind, str_at(volume, pointer));
        }
        // Projected volumes are left out: nearly all of them are the cluster's own certificates.
    }
    let containers = ["/spec/containers", "/spec/initContainers"];
    for container in containers.into_iter().flat_map(|pointer| list(pod, pointer)) {
        for from in list(container, "/envFrom") {
            add(edges, EdgeKind::Mounts, "ConfigMap", str_at(from, "/configMapRef/name"));
            add(edges, EdgeKind::Mounts, "Secret", str_at(from, "/secretRef/name"));
        }
        for variable in list(container, "/env") {
            add(edges, EdgeKind::Mounts, "ConfigMap", str_at(variable, "/valueFrom/configMapKeyRef/name"));
            add(edges, EdgeKind::Mounts, "Secret", str_at(variable, "/valueFrom/secretKeyRef/name"));
        }
    }
}

/// The pods that get traffic: ready ones.
fn selects(edges: &mut Edges, endpoints: &[Value]) {
    for endpoint in endpoints {
        let ready = endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
        if ready && str_at(endpoint, "/targetRef/kind") == kinds::POD {
            add(edges, EdgeKind::Selects, kinds::POD, str_at(endpoint, "/targetRef/name"));
        }
    }
}
