//! Machines for a control plane that has none: a Node with its Lease, which is renewed, and pods whose status is patched as
//! a kubelet would.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::outcome::{Memory, Told, now};
use crate::plane::Plane;
use crate::told::deployment;

/// Between two looks at the pods.
const LOOK: Duration = Duration::from_millis(250);
/// Between two renewals of a lease.
const RENEWAL: Duration = Duration::from_secs(3);
/// Between two repetitions of an Event.
const REPETITION: Duration = Duration::from_secs(5);

/// Machines, until they are dropped.
pub struct Kubelets {
    stop: Arc<AtomicBool>,
    dead: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

/// An Event that is repeated.
struct Repeated {
    count: u64,
    first: String,
    told_at: Instant,
}

struct Loop {
    api: Api,
    nodes: Vec<String>,
    dead: Arc<Mutex<Vec<String>>>,
    renewed: Option<Instant>,
    pods: HashMap<String, Memory>,
    events: HashMap<String, Repeated>,
}

/// A control plane with the machines `n1` and `n2`, and a Deployment `web` in the namespace `shop` that runs.
pub fn shop(replicas: u32) -> (Plane, Kubelets) {
    let plane = Plane::start();
    let machines = Kubelets::start(&plane.api, &["n1", "n2"]);
    plane.api.namespace("shop");
    plane.api.make(&deployment("shop", "web", "runs:1", replicas));
    (plane, machines)
}

impl Kubelets {
    /// Adds machines of 4 CPUs and 8 GiB each.
    pub fn start(api: &Api, nodes: &[&str]) -> Self {
        for name in nodes {
            api.make(&json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}}}));
        }
        let (stop, dead) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut machines = Loop {
            api: api.clone(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
            dead: Arc::clone(&dead),
            renewed: None,
            pods: HashMap::new(),
            events: HashMap::new(),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                machines.look();
                std::thread::park_timeout(LOOK);
            }
        });
        Self { stop, dead, thread: Some(thread) }
    }

    /// The machine falls silent.
    pub fn kill(&self, node: &str) {
        self.dead.lock().unwrap().push(node.to_owned());
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Loop {
    fn look(&mut self) {
        let dead = self.dead.lock().unwrap().clone();
        let alive: Vec<String> = self.nodes.iter().filter(|node| !dead.contains(node)).cloned().collect();
        if self.renewed.is_none_or(|at| at.elapsed() > RENEWAL) {
            alive.iter().for_each(|node| self.beat(node));
            self.renewed = Some(Instant::now());
        }
        for pod in self.api.list("/api/v1/pods") {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            if alive.iter().any(|alive| alive == node) {
                self.look_at(&pod);
            }
        }
    }

    /// Renews the lease, and says that the machine is ready.
    fn beat(&self, node: &str) {
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
        let time = now().replace('Z', ".000000Z");
        let spec = json!({"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": time});
        if self.api.merge(&lease, &json!({"spec": spec})).is_err() {
            let _ = self.api.create(&json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": spec}));
        }
        let path = format!("/api/v1/nodes/{node}");
        let Some(standing) = self.api.get(&path) else { return };
        let since = |kind: &str, word: &str| {
            let conditions = standing["status"]["conditions"].as_array().into_iter().flatten();
            let mut same = conditions.filter(|old| old["type"] == kind && old["status"] == word);
            same.next().map_or_else(|| json!(now()), |old| old["lastTransitionTime"].clone())
        };
        let condition = |kind: &str, word: &str, reason: &str| {
            json!({"type": kind, "status": word, "reason": reason, "lastHeartbeatTime": now(),
                "lastTransitionTime": since(kind, word)})
        };
        let resources = json!({"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "50Gi"});
        let status = json!({"capacity": resources, "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "192.0.2.10"}, {"type": "Hostname", "address": node}],
            "nodeInfo": {"kubeletVersion": "v1.20.2", "bootID": node, "machineID": node, "systemUUID": node},
            "conditions": [condition("Ready", "True", "KubeletReady"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID")]});
        let _ = self.patch(&format!("{path}/status"), &json!({"status": status}));
    }

    fn look_at(&mut self, pod: &Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let path = pod_path(pod);
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            self.pods.remove(&uid);
            return self.api.remove_pod(&path);
        }
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return;
        }
        let memory = self.pods.entry(uid.clone()).or_insert_with(Memory::new);
        let Told { status, event } = memory.look(pod, &self.api);
        if changes(&pod["status"], &status) {
            let _ = self.patch(&format!("{path}/status"), &json!({"status": status}));
        }
        if let Some((reason, message)) = event {
            self.tell(pod, &uid, reason, &message);
        }
    }

    fn patch(&self, path: &str, patch: &Value) -> Option<Value> {
        self.api.ask("PATCH", path, "application/strategic-merge-patch+json", Some(patch)).ok()
    }

    /// An Event, or one more of the same.
    fn tell(&mut self, pod: &Value, uid: &str, reason: &str, message: &str) {
        let name =
            format!("{}.{}", pod["metadata"]["name"].as_str().unwrap_or_default(), reason.to_lowercase());
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/events/{name}");
        let repeated = self.events.get_mut(&format!("{uid} {reason}"));
        if let Some(repeated) = repeated {
            if repeated.told_at.elapsed() > REPETITION {
                (repeated.count, repeated.told_at) = (repeated.count + 1, Instant::now());
                let _ = self.api.merge(&path, &json!({"count": repeated.count, "lastTimestamp": now()}));
            }
            return;
        }
        let repeated = Repeated { count: 1, first: now(), told_at: Instant::now() };
        let about = json!({"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "namespace": namespace,
            "uid": uid, "fieldPath": format!("spec.containers{{{}}}", pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default())});
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about, "reason": reason, "message": message, "type": "Warning", "count": 1,
            "firstTimestamp": repeated.first, "lastTimestamp": repeated.first,
            "source": {"component": "kubelet", "host": pod["spec"]["nodeName"]}});
        if self.api.create(&event).is_ok() {
            self.events.insert(format!("{uid} {reason}"), repeated);
        }
    }
}

/// True when the status says something else; times alone are nothing new.
fn changes(old: &Value, new: &Value) -> bool {
    let (was, is) = (&old["containerStatuses"][0], &new["containerStatuses"][0]);
    let word = |status: &Value| {
        let state = status["state"].as_object().and_then(|state| state.keys().next().cloned());
        let waiting = status["state"]["waiting"].clone();
        (state, waiting, status["ready"].clone(), status["restartCount"].clone())
    };
    old["phase"] != new["phase"] || word(was) != word(is)
}

fn pod_path(pod: &Value) -> String {
    let of = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{}", of("namespace"), of("name"))
}
