//! One scene in all its forms: a Deployment whose new image needs more memory than it may have.
#![allow(dead_code)]

use serde_json::{Value, json};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::UnixNanos;

const SECOND: u64 = 1_000_000_000;

/// A Deployment whose new image needs more memory than it may have, at seconds of the scene.
pub struct Scene {
    /// When it begins.
    pub begin: UnixNanos,
    /// Whether the second release fails.
    pub fails: bool,
}

/// End of the scene.
pub const END_S: u64 = 300;

impl Scene {
    /// One that ends now.
    pub fn new(fails: bool) -> Self {
        let now = SystemClock::new().now_unix_nanos() / SECOND * SECOND;
        Self { begin: UnixNanos(now).minus(END_S * SECOND), fails }
    }

    pub fn at(&self, second: u64) -> UnixNanos {
        self.begin.plus(second * SECOND)
    }

    pub fn time(&self, second: u64) -> String {
        let text = self.at(second).to_string();
        format!("{}Z", text.split('.').next().unwrap_or_default().trim_end_matches('Z'))
    }

    pub fn object(&self, kind: &str, version: &str, name: &str, rest: Value) -> Value {
        let namespace = if kind == "Node" { Value::Null } else { json!("shop") };
        let mut object = json!({"kind": kind, "apiVersion": version, "metadata": {"name": name, "namespace": namespace,
            "uid": format!("{kind}-{name}"), "creationTimestamp": "2020-01-01T00:00:00Z", "labels": {"app": "api"}}});
        merge(&mut object, rest);
        object
    }

    pub fn node(&self) -> Value {
        let ready =
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]);
        self.object("Node", "v1", "n1", json!({"status": {"conditions": ready}}))
    }

    pub fn deployment(&self, image: &str, generation: u64) -> Value {
        let spec = json!({"replicas": 1, "template": template(image)});
        self.object(
            "Deployment",
            "apps/v1",
            "api",
            json!({"metadata": {"generation": generation}, "spec": spec}),
        )
    }

    pub fn set(&self, image: &str, name: &str, revision: u64, created: &str) -> Value {
        let metadata = json!({"creationTimestamp": created, "annotations":
            {"deployment.kubernetes.io/revision": revision.to_string()},
            "ownerReferences": [{"kind": "Deployment", "name": "api", "controller": true}]});
        self.object(
            "ReplicaSet",
            "apps/v1",
            name,
            json!({"metadata": metadata, "spec": {"template": template(image)}}),
        )
    }

    /// The pod of the second release, after so many kills.
    pub fn pod(&self, kills: u64) -> Value {
        let metadata = json!({"creationTimestamp": self.time(60),
            "ownerReferences": [{"kind": "ReplicaSet", "name": "api-5f6585d649", "controller": true}]});
        let killed_at = self.time(70 + kills * 30);
        let (state, ready) = match kills {
            0 => (json!({"running": {"startedAt": self.time(62)}}), "True"),
            _ => (
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}),
                "False",
            ),
        };
        let since = if kills == 0 { self.time(62) } else { killed_at.clone() };
        let mut status = json!({"name": "app", "containerID": format!("containerd://c{kills}"), "restartCount": kills,
            "state": state});
        if kills > 0 {
            status["lastState"] = json!({"terminated": {"containerID": format!("containerd://c{kills}"), "exitCode": 137,
                "reason": "OOMKilled", "finishedAt": killed_at}});
        }
        let conditions = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": self.time(60)},
            {"type": "Ready", "status": ready, "reason": "ContainersNotReady", "lastTransitionTime": since}]);
        let rest = json!({"metadata": metadata, "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]}});
        self.object("Pod", "v1", "api-5f6585d649-x2x2x", rest)
    }

    pub fn event(&self, count: u64, last: u64) -> Value {
        json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e1", "namespace": "shop", "uid": "e1"},
            "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "api-5f6585d649-x2x2x",
                "uid": "Pod-api-5f6585d649-x2x2x", "fieldPath": "spec.containers{app}"},
            "reason": "BackOff", "message": "Back-off restarting failed container app in pod api", "type": "Warning",
            "count": count, "firstTimestamp": self.time(103), "lastTimestamp": self.time(last)})
    }

    /// All that stands at the end.
    pub fn standing(&self) -> Vec<Value> {
        let mut all = vec![
            self.node(),
            self.deployment("shop/api:2", 2),
            self.set("shop/api:1", "api-6b8f9c7d54", 1, "2020-01-01T00:00:00Z"),
            self.set("shop/api:2", "api-5f6585d649", 2, &self.time(60)),
            self.pod(if self.fails { 7 } else { 0 }),
        ];
        if self.fails {
            all.push(self.event(9, END_S - 5));
        } else {
            // Something has to say what time it is.
            let lease = json!({"spec": {"renewTime": self.time(END_S)}});
            all.push(self.object("Lease", "coordination.k8s.io/v1", "n1", lease));
        }
        all
    }

    /// The same as watches told it.
    pub fn recording(&self) -> String {
        let mut lines = vec![
            (0, "ADDED", self.node()),
            (0, "ADDED", self.deployment("shop/api:1", 1)),
            (0, "ADDED", self.set("shop/api:1", "api-6b8f9c7d54", 1, "2020-01-01T00:00:00Z")),
            (60, "MODIFIED", self.deployment("shop/api:2", 2)),
            (60, "ADDED", self.set("shop/api:2", "api-5f6585d649", 2, &self.time(60))),
            (62, "ADDED", self.pod(0)),
        ];
        if self.fails {
            for kills in 1..=7 {
                lines.push((70 + kills * 30, "MODIFIED", self.pod(kills)));
                lines.push((73 + kills * 30, "event", self.event(kills, 73 + kills * 30)));
            }
            lines.push((END_S - 5, "event", self.event(9, END_S - 5)));
        }
        lines.push((END_S, "MODIFIED", self.node()));
        let line = |(at, word, object): (u64, &str, Value)| {
            let (signal, request) = match word {
                "event" => ("k8s_event", object),
                word => ("k8s_object", json!({"type": word, "object": object})),
            };
            json!({"at_unix_nano": self.at(at).0.to_string(), "signal": signal, "request": request})
                .to_string()
                + "\n"
        };
        lines.into_iter().map(line).collect()
    }
}

pub fn template(image: &str) -> Value {
    json!({"spec": {"containers": [{"name": "app", "image": image}]}})
}

pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}
