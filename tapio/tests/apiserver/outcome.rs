//! What becomes of a pod on a machine: a kubelet's part, for machines that have none. The name of an image says what its program
//! does (`runs`, `never-ready`, `exits-3`, `absent`); what a pod refers to is looked up in the API, as a kubelet does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;

/// A program that ends does so after this time.
const RUNS_FOR: Duration = Duration::from_secs(1);
/// A registry answers after this time.
const ASKS_FOR: Duration = Duration::from_secs(2);
/// Before the second start; twice as long before each further one.
const BACKOFF: Duration = Duration::from_secs(10);

/// What a kubelet remembers of a pod.
pub struct Memory {
    began: Instant,
    restarts: u32,
    last: Value,
}

/// What it says of it: a status, and an Event with reason and message.
pub struct Told {
    pub status: Value,
    pub event: Option<(&'static str, String)>,
}

impl Memory {
    pub fn new() -> Self {
        Self { began: Instant::now(), restarts: 0, last: json!({}) }
    }

    /// The pod as it is now.
    pub fn look(&mut self, pod: &Value, api: &Api) -> Told {
        if let Some(absent) = absent_mount(pod, api) {
            return self.waits(pod, "ContainerCreating", "", Some(("FailedMount", absent)));
        }
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        let what = image.split(':').next().unwrap_or_default();
        if what == "absent" && self.began.elapsed() < ASKS_FOR {
            return self.waits(pod, "ContainerCreating", "", None);
        }
        if what == "absent" {
            let why = format!(
                "failed to resolve reference \"docker.io/library/{image}\": docker.io/library/{image}: not found"
            );
            let said = Some(("Failed", format!("Failed to pull image \"{image}\": {why}")));
            return self.waits(pod, "ErrImagePull", &why, said);
        }
        // After the image, as a kubelet does: only who has one is given its variables.
        if let Some(absent) = absent_reference(pod, api) {
            let said = Some(("Failed", format!("Error: {absent}")));
            return self.waits(pod, "CreateContainerConfigError", &absent, said);
        }
        match what.strip_prefix("exits-").and_then(|code| code.parse().ok()) {
            Some(code) => self.exits(pod, code),
            None => self.runs(pod, what != "never-ready"),
        }
    }

    fn runs(&self, pod: &Value, ready: bool) -> Told {
        let state = json!({"running": {"startedAt": pod["metadata"]["creationTimestamp"]}});
        let event = (!ready).then(|| ("Unhealthy", "Readiness probe failed: connection refused".to_owned()));
        Told { status: self.status(pod, "Running", ready, state), event }
    }

    fn waits(&self, pod: &Value, reason: &str, why: &str, event: Option<(&'static str, String)>) -> Told {
        let mut waiting = json!({"reason": reason});
        if !why.is_empty() {
            waiting["message"] = why.into();
        }
        Told { status: self.status(pod, "Pending", false, json!({"waiting": waiting})), event }
    }

    fn exits(&mut self, pod: &Value, code: i64) -> Told {
        let start = json!({"running": {"startedAt": now()}});
        if self.began.elapsed() < RUNS_FOR {
            return Told { status: self.status(pod, "Running", false, start), event: None };
        }
        let reason = if code == 0 { "Completed" } else { "Error" };
        let ended = json!({"exitCode": code, "reason": reason, "startedAt": now(), "finishedAt": now()});
        if pod["spec"]["restartPolicy"] == "Never" {
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            return Told {
                status: self.status(pod, phase, false, json!({"terminated": ended})),
                event: None,
            };
        }
        if self.last.as_object().is_none_or(serde_json::Map::is_empty)
            || self.last["restarts"] != self.restarts
        {
            self.last = json!({"restarts": self.restarts, "terminated": ended});
        }
        let delay = BACKOFF * 2_u32.pow(self.restarts.min(5));
        if self.began.elapsed() > RUNS_FOR + delay {
            (self.began, self.restarts) = (Instant::now(), self.restarts + 1);
            return Told { status: self.status(pod, "Running", false, start), event: None };
        }
        let why = format!("back-off {}s restarting failed container", delay.as_secs());
        let state = json!({"waiting": {"reason": "CrashLoopBackOff", "message": why}});
        let event = Some(("BackOff", "Back-off restarting failed container".to_owned()));
        Told { status: self.status(pod, "Running", false, state), event }
    }

    fn status(&self, pod: &Value, phase: &str, ready: bool, state: Value) -> Value {
        let word = if ready { "True" } else { "False" };
        let container = &pod["spec"]["containers"][0];
        let last = self.last.get("terminated").map_or(json!({}), |ended| json!({"terminated": ended}));
        let mut conditions: Vec<Value> = Vec::new();
        for (kind, word) in [("Initialized", "True"), ("Ready", word), ("ContainersReady", word)] {
            let standing = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut same = standing.filter(|old| old["type"] == kind && old["status"] == word);
            let since = same.next().map_or_else(|| json!(now()), |old| old["lastTransitionTime"].clone());
            let mut condition = json!({"type": kind, "status": word, "lastTransitionTime": since});
            if word == "False" {
                condition["reason"] = "ContainersNotReady".into();
            }
            conditions.push(condition);
        }
        json!({"phase": phase, "hostIP": "192.0.2.10", "conditions": conditions, "podIP": "10.0.0.9",
            "startTime": pod["metadata"]["creationTimestamp"],
            "containerStatuses": [{"name": container["name"], "image": container["image"], "imageID": "",
                "ready": ready, "started": ready, "restartCount": self.restarts, "state": state, "lastState": last}]})
    }
}

/// As the API writes times.
pub fn now() -> String {
    let text = tapio_schemas::UnixNanos(since_epoch()).to_string();
    format!("{}Z", text.split('.').next().unwrap_or_default().trim_end_matches('Z'))
}

fn since_epoch() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// A ConfigMap or Secret that is mounted and not there.
fn absent_mount(pod: &Value, api: &Api) -> Option<String> {
    let volumes = pod["spec"]["volumes"].as_array()?;
    volumes.iter().find_map(|volume| {
        if volume["configMap"]["optional"] == true || volume["secret"]["optional"] == true {
            return None;
        }
        let (kind, name) = match (&volume["configMap"]["name"], &volume["secret"]["secretName"]) {
            (Value::String(name), _) => ("configmap", name),
            (_, Value::String(name)) => ("secret", name),
            _ => return None,
        };
        let absent = absent(pod, api, kind, name)?;
        let volume = volume["name"].as_str().unwrap_or_default();
        Some(format!("MountVolume.SetUp failed for volume \"{volume}\" : {absent}"))
    })
}

/// A ConfigMap or Secret that the environment is taken from and that is not there.
fn absent_reference(pod: &Value, api: &Api) -> Option<String> {
    let variables = pod["spec"]["containers"][0]["env"].as_array()?;
    variables.iter().find_map(|variable| {
        let from = &variable["valueFrom"];
        match (&from["configMapKeyRef"]["name"], &from["secretKeyRef"]["name"]) {
            (Value::String(name), _) => absent(pod, api, "configmap", name),
            (_, Value::String(name)) => absent(pod, api, "secret", name),
            _ => None,
        }
    })
}

fn absent(pod: &Value, api: &Api, kind: &str, name: &str) -> Option<String> {
    let namespace = pod["metadata"]["namespace"].as_str()?;
    let path = format!("/api/v1/namespaces/{namespace}/{kind}s/{name}");
    // A server that is away says nothing of what is there.
    let gone =
        api.ask("GET", &path, "application/json", None).err().is_some_and(|refused| refused.code == 404);
    gone.then(|| format!("{kind} \"{name}\" not found"))
}
