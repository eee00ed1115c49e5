//! A cluster made by hand: objects as an API server would send them, written as a recording.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

/// Where the recordings begin; any moment will do. Unix seconds of 2031-05-06T07:08:09Z.
const START_S: u64 = 1_935_904_089;

/// Kind, namespace and name.
type Key = (String, String, String);

/// Objects, the moment, and what was told so far.
pub struct World {
    at_ms: u64,
    told_ms: u64,
    version: u64,
    events: u64,
    objects: BTreeMap<Key, Value>,
    lines: String,
}

/// An object by name.
pub fn of(kind: &str, namespace: &str, name: &str) -> Key {
    (kind.to_owned(), namespace.to_owned(), name.to_owned())
}

/// A label `app` alone.
pub fn app(name: &str) -> Value {
    json!({"app": name})
}

impl World {
    /// Three machines and the name service, all well.
    pub fn new() -> Self {
        let mut world = Self {
            at_ms: 0,
            told_ms: 0,
            version: 0,
            events: 0,
            objects: BTreeMap::new(),
            lines: String::new(),
        };
        for node in ["rack-a1", "rack-b1", "rack-c1"] {
            world.node(node);
        }
        for namespace in ["kube-system", "harbour", "quay"] {
            world.add("Namespace", "", namespace, json!({"status": {"phase": "Active"}}));
        }
        world.deployment("kube-system", "coredns", 2);
        world
    }

    /// Goes on to this second.
    pub fn at(&mut self, second: u64) -> &mut Self {
        self.at_ms = self.at_ms.max(second * 1000);
        self
    }

    /// The moment as the API writes it, `ago` seconds before.
    pub fn time(&self, ago: u64) -> String {
        let seconds = START_S + self.at_ms / 1000 - ago;
        tapio_schemas::UnixNanos(seconds * 1_000_000_000).to_string()
    }

    /// The recording.
    pub fn recording(&self) -> &str {
        &self.lines
    }

    fn tell(&mut self, signal: &str, request: Value) {
        self.told_ms = self.at_ms.max(self.told_ms + 3);
        let at = START_S * 1_000_000_000 + self.told_ms * 1_000_000;
        let line = json!({"at_unix_nano": at.to_string(), "signal": signal, "request": request});
        let _ = writeln!(self.lines, "{line}");
    }

    /// A new object; what is not given is made up.
    pub fn add(&mut self, kind: &str, namespace: &str, name: &str, mut object: Value) -> Key {
        self.version += 1;
        let created = self.time(if self.at_ms == 0 { 864_000 } else { 0 });
        let metadata = json!({"name": name, "uid": format!("uid-{kind}-{name}-{}", self.version),
            "generation": 1, "creationTimestamp": created});
        object["kind"] = json!(kind);
        merge(&mut object, json!({"metadata": metadata}));
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let key = of(kind, namespace, name);
        self.objects.insert(key.clone(), object.clone());
        self.tell("k8s_object", json!({"type": "ADDED", "object": object}));
        key
    }

    /// Changes an object; `null` removes a member. A new spec is a new generation.
    pub fn change(&mut self, key: &Key, patch: Value) {
        self.version += 1;
        let object = self.objects.get_mut(key).unwrap_or_else(|| panic!("{key:?} is not there"));
        if patch.get("spec").is_some() {
            let generation = object["metadata"]["generation"].as_u64().unwrap_or(1) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        merge(object, patch);
        let object = object.clone();
        self.tell("k8s_object", json!({"type": "MODIFIED", "object": object}));
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &Key) {
        let object = self.objects.remove(key).unwrap_or_else(|| panic!("{key:?} is not there"));
        self.tell("k8s_object", json!({"type": "DELETED", "object": object}));
    }

    /// What is known of an object.
    pub fn get(&self, key: &Key) -> &Value {
        &self.objects[key]
    }

    /// An Event about an object, once.
    pub fn event(&mut self, about: &Key, kind: &str, reason: &str, message: &str) {
        self.events += 1;
        let uid = self.objects.get(about).map_or(Value::Null, |object| object["metadata"]["uid"].clone());
        let now = self.time(0);
        let (object_kind, namespace, name) = about;
        let request = json!({"kind": "Event", "metadata": {"name": format!("{name}.{}", self.events),
            "namespace": if namespace.is_empty() { "default" } else { namespace }, "uid": format!("event-{}", self.events),
            "creationTimestamp": now},
            "involvedObject": {"kind": object_kind, "namespace": namespace, "name": name, "uid": uid},
            "reason": reason, "message": message, "type": kind, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "made-by-hand"}});
        self.tell("k8s_event", request);
    }

    /// A warning about an object.
    pub fn warn(&mut self, about: &Key, reason: &str, message: &str) {
        self.event(about, "Warning", reason, message);
    }

    /// A warning, again every `step` seconds until `to`.
    pub fn warn_until(&mut self, about: &Key, reason: &str, message: &str, step: u64, to: u64) {
        let mut second = self.at_ms / 1000;
        while second <= to {
            self.at(second);
            self.warn(about, reason, message);
            second += step;
        }
    }

    /// A value of a metric, as an exporter of that machine or service tells it.
    pub fn gauge(&mut self, resource: &Value, name: &str, value: f64, attributes: &Value) {
        let point = json!({"timeUnixNano": self.now(), "asDouble": value, "attributes": pairs(attributes)});
        self.metric(resource, &json!({"name": name, "gauge": {"dataPoints": [point]}}));
    }

    /// Observations of a histogram so far, and their sum.
    pub fn histogram(&mut self, resource: &Value, name: &str, count: u64, sum: f64) {
        let point = json!({"timeUnixNano": self.now(), "startTimeUnixNano": (START_S * 1_000_000_000).to_string(),
            "count": count.to_string(), "sum": sum});
        self.metric(resource, &json!({"name": name, "unit": "s", "histogram": {"aggregationTemporality": 2, "dataPoints": [point]}}));
    }

    fn metric(&mut self, resource: &Value, metric: &Value) {
        let request = json!({"resourceMetrics": [{"resource": {"attributes": pairs(resource)}, "scopeMetrics": [{"metrics": [metric]}]}]});
        self.tell("metrics", request);
    }

    /// A log line; severity by its number (13 warns, 17 is an error).
    pub fn log(&mut self, resource: &Value, severity: u8, body: &str) {
        let record =
            json!({"timeUnixNano": self.now(), "severityNumber": severity, "body": {"stringValue": body}});
        let request = json!({"resourceLogs": [{"resource": {"attributes": pairs(resource)}, "scopeLogs": [{"logRecords": [record]}]}]});
        self.tell("logs", request);
    }

    fn now(&self) -> String {
        (START_S * 1_000_000_000 + self.at_ms * 1_000_000).to_string()
    }

    /// A machine that is well.
    pub fn node(&mut self, name: &str) -> Key {
        let since = self.time(864_000);
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Kubelet", "lastTransitionTime": since});
        let conditions = [
            ("MemoryPressure", "False"),
            ("DiskPressure", "False"),
            ("PIDPressure", "False"),
            ("Ready", "True"),
        ]
        .map(|(kind, status)| condition(kind, status));
        self.add(
            "Node",
            "",
            name,
            json!({"spec": {}, "status": {"conditions": conditions,
            "nodeInfo": {"bootID": format!("boot-{name}-1")}}}),
        )
    }

    /// A condition of an object turns.
    pub fn condition(&mut self, key: &Key, kind: &str, status: &str, reason: &str, message: &str) {
        let now = self.time(0);
        let mut conditions =
            self.objects[key]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != kind);
        conditions.push(json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}));
        self.change(key, json!({"status": {"conditions": conditions}}));
    }
}

/// As a merge patch, but that `null` removes.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(members) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in members {
        if value.is_null() {
            into.as_object_mut().map(|object| object.remove(&key));
        } else {
            merge(&mut into[&key], value);
        }
    }
}

/// Attributes as OTLP has them.
fn pairs(attributes: &Value) -> Vec<Value> {
    let members = attributes.as_object().into_iter().flatten();
    members.map(|(key, value)| json!({"key": key, "value": {"stringValue": value}})).collect()
}
