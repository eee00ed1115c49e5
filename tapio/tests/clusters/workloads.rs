//! Workloads and their pods, and what befalls them.

use serde_json::{Value, json};

use super::world::{World, app, of};

type Key = (String, String, String);

const NODES: [&str; 3] = ["rack-a1", "rack-b1", "rack-c1"];

impl World {
    /// A Deployment with its ReplicaSet, ready pods, Service and slice of endpoints.
    pub fn deployment(&mut self, namespace: &str, name: &str, replicas: usize) -> Vec<Key> {
        self.add(
            "Deployment",
            namespace,
            name,
            json!({"spec": {"replicas": replicas, "template": template(name, 1)}}),
        );
        self.replica_set(namespace, name, "5d4c8f7b9");
        let pods: Vec<Key> = (0..replicas)
            .map(|number| {
                let pod = format!("{name}-5d4c8f7b9-{}", ["h2x4p", "k9w7c", "m5t8z", "q6b3n"][number]);
                self.pod(
                    namespace,
                    &pod,
                    name,
                    ("ReplicaSet", &format!("{name}-5d4c8f7b9")),
                    NODES[number % 3],
                )
            })
            .collect();
        self.service(namespace, name, &pods);
        pods
    }

    /// A ReplicaSet of a Deployment.
    pub fn replica_set(&mut self, namespace: &str, name: &str, hash: &str) -> Key {
        let owner = json!([{"kind": "Deployment", "name": name, "controller": true}]);
        self.add(
            "ReplicaSet",
            namespace,
            &format!("{name}-{hash}"),
            json!({"metadata": {"ownerReferences": owner},
            "spec": {"replicas": 1, "template": template(name, 1)}}),
        )
    }

    /// A workload of another kind with its pods, named as its controller names them.
    pub fn workload(&mut self, kind: &str, namespace: &str, name: &str, replicas: usize) -> Vec<Key> {
        self.add(
            kind,
            namespace,
            name,
            json!({"spec": {"replicas": replicas, "template": template(name, 1)}}),
        );
        let pods = (0..replicas).map(|number| {
            let pod = if kind == "StatefulSet" {
                format!("{name}-{number}")
            } else {
                format!("{name}-{}", ["8dk2s", "w4qzv", "x7n5j"][number])
            };
            self.pod(namespace, &pod, name, (kind, name), NODES[number % 3])
        });
        pods.collect()
    }

    /// A Job of a CronJob, with its pod.
    pub fn job(&mut self, namespace: &str, cron: &str, number: &str, node: &str) -> (Key, Key) {
        let owner = json!([{"kind": "CronJob", "name": cron, "controller": true}]);
        let job = self.add(
            "Job",
            namespace,
            &format!("{cron}-{number}"),
            json!({"metadata": {"ownerReferences": owner},
            "spec": {"template": template(cron, 1)}}),
        );
        let pod = self.new_pod(
            namespace,
            &format!("{cron}-{number}-t4x8w"),
            cron,
            ("Job", &format!("{cron}-{number}")),
            node,
        );
        (job, pod)
    }

    /// A Service and its endpoints.
    pub fn service(&mut self, namespace: &str, name: &str, pods: &[Key]) -> Key {
        let service = self.add(
            "Service",
            namespace,
            name,
            json!({"spec": {"selector": app(name), "ports": [{"name": "web", "port": 80}]}}),
        );
        let owner = json!([{"kind": "Service", "name": name, "controller": true}]);
        self.add(
            "EndpointSlice",
            namespace,
            &format!("{name}-z9x"),
            json!({"metadata": {"ownerReferences": owner,
            "labels": {"kubernetes.io/service-name": name}}, "endpoints": endpoints(pods)}),
        );
        service
    }

    /// Who is behind a Service now.
    pub fn endpoints(&mut self, namespace: &str, name: &str, pods: &[Key]) {
        self.change(
            &of("EndpointSlice", namespace, &format!("{name}-z9x")),
            json!({"endpoints": endpoints(pods)}),
        );
    }

    /// A pod that runs and is ready; on no machine it waits for the scheduler.
    pub fn pod(&mut self, namespace: &str, name: &str, label: &str, owner: (&str, &str), node: &str) -> Key {
        let owners = match owner {
            ("", _) => json!([]),
            (kind, owner) => json!([{"kind": kind, "name": owner, "controller": true}]),
        };
        let mut object = json!({"metadata": {"labels": app(label), "ownerReferences": owners},
            "spec": {"containers": [{"name": "main", "image": format!("registry.example/{label}:1")}]}});
        let since = self.time(if node.is_empty() { 0 } else { 3600 });
        if node.is_empty() {
            object["status"] = json!({"phase": "Pending"});
        } else {
            object["spec"]["nodeName"] = json!(node);
            object["status"] = json!({"phase": "Running", "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
                {"type": "Ready", "status": "True", "lastTransitionTime": since}],
                "containerStatuses": [running(name, 0, &since)]});
        }
        self.add("Pod", namespace, name, object)
    }

    /// A pod that was just bound to a machine: its container does not run yet.
    pub fn new_pod(
        &mut self,
        namespace: &str,
        name: &str,
        label: &str,
        owner: (&str, &str),
        node: &str,
    ) -> Key {
        let pod = self.pod(namespace, name, label, owner, "");
        let now = self.time(0);
        self.change(&pod, json!({"spec": {"nodeName": node}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastTransitionTime": now}],
            "containerStatuses": [{"name": "main", "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}}));
        pod
    }

    /// The next pod of the Deployment `pilot`, just bound to the first machine.
    pub fn next_pilot(&mut self) -> Key {
        let owner = ("ReplicaSet", "pilot-5d4c8f7b9");
        self.new_pod("harbour", "pilot-5d4c8f7b9-zz9zz", "pilot", owner, "rack-a1")
    }

    /// A pod on a machine whose container does not start: it waits with this reason.
    pub fn pod_waits(&mut self, pod: &Key, reason: &str, message: &str) {
        let restarts = self.restarts(pod);
        let status = json!({"name": "main", "restartCount": restarts, "state": {"waiting": {"reason": reason, "message": message}}});
        self.change(pod, json!({"status": {"containerStatuses": [status]}}));
    }

    fn restarts(&self, pod: &Key) -> u64 {
        self.get(pod)["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
    }

    /// A pod that was ready is not.
    pub fn unready(&mut self, pod: &Key) {
        let conditions = self.get(pod)["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "False") {
            return;
        }
        self.condition(pod, "Ready", "False", "ContainersNotReady", "containers with unready status: [main]");
    }

    /// A pod is ready, and its container runs.
    pub fn ready(&mut self, pod: &Key) {
        let (restarts, since) = (self.restarts(pod), self.time(0));
        let status = running(&pod.2, restarts, &since);
        self.change(pod, json!({"status": {"phase": "Running", "containerStatuses": [status]}}));
        self.condition(pod, "Ready", "True", "", "");
    }

    /// The container ends, waits and is started again, `times` over, every `step` seconds.
    pub fn crashes(&mut self, pod: &Key, reason: &str, code: i64, times: u64, first: u64, step: u64) {
        for time in 0..times {
            self.at(first + time * step);
            let restarts = self.restarts(pod);
            let ended = self.ended(pod, restarts, reason, code);
            self.unready(pod);
            self.change(
                pod,
                json!({"status": {"containerStatuses": [
                {"name": "main", "restartCount": restarts, "state": {"terminated": ended}}]}}),
            );
            self.at(first + time * step + 2);
            // The first time it is started again at once.
            if time > 0 {
                let waiting = json!({"reason": "CrashLoopBackOff", "message": "back-off restarting failed container main"});
                self.change(
                    pod,
                    json!({"status": {"containerStatuses": [{"name": "main", "restartCount": restarts,
                    "state": {"waiting": waiting}, "lastState": {"terminated": ended}}]}}),
                );
                self.warn(pod, "BackOff", "Back-off restarting failed container main in pod");
            }
            self.at(first + time * step + step / 2);
            let mut status = running(&pod.2, restarts + 1, &self.time(0));
            status["lastState"] = json!({"terminated": ended});
            self.change(pod, json!({"status": {"containerStatuses": [status]}}));
        }
    }

    fn ended(&self, pod: &Key, restarts: u64, reason: &str, code: i64) -> Value {
        json!({"reason": reason, "exitCode": code, "finishedAt": self.time(0), "startedAt": self.time(5),
            "containerID": format!("containerd://{}-{restarts}", pod.2)})
    }

    /// A workload gets a new image.
    pub fn image(&mut self, kind: &str, namespace: &str, name: &str, version: u32) {
        self.change(&of(kind, namespace, name), json!({"spec": {"template": template(name, version)}}));
    }

    /// The scheduler finds no machine.
    pub fn unschedulable(&mut self, pod: &Key, message: &str) {
        self.condition(pod, "PodScheduled", "False", "Unschedulable", message);
        self.warn(pod, "FailedScheduling", message);
    }
}

fn running(pod: &str, restarts: u64, since: &str) -> Value {
    json!({"name": "main", "restartCount": restarts, "containerID": format!("containerd://{pod}-{restarts}"),
        "ready": true, "state": {"running": {"startedAt": since}}})
}

fn template(name: &str, version: u32) -> Value {
    json!({"metadata": {"labels": app(name)},
        "spec": {"containers": [{"name": "main", "image": format!("registry.example/{name}:{version}")}]}})
}

fn endpoints(pods: &[Key]) -> Vec<Value> {
    pods.iter()
        .map(|pod| json!({"conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": pod.2}}))
        .collect()
}
