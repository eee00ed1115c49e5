//! What is no failure, and failures that come together.

use serde_json::json;

use super::programs::quiet;
use super::world::{World, of};
use super::{Expected, Scene, recovered};

pub const SCENES: &[(&str, Scene, Expected)] = &[
    ("a release that goes well", release, Expected::Healthy),
    // For half a minute no machine has room: it is over at the end, and said.
    ("more pods, by an autoscaler, on a new machine", scaled_up, recovered()),
    ("one failed probe and one restart", one_restart, Expected::Healthy),
    ("a volume mounted at the second try", second_try, Expected::Healthy),
    ("CronJobs that do their work", cron_jobs, Expected::Healthy),
    ("a claim that waits for its first pod", waits_for_consumer, Expected::Healthy),
    ("a machine that is cordoned and emptied", emptied, Expected::Healthy),
    ("warnings that mean little", warnings, Expected::Healthy),
    ("old troubles from before the recording", old_troubles, Expected::Healthy),
    ("a policy that stops nobody", harmless_policy, Expected::Healthy),
    ("settings changed and read", harmless_settings, Expected::Healthy),
    ("a pod that ends its work when it is told to", told_to_end, Expected::Healthy),
    (
        "out of memory here and a typo there, with a release between",
        two_at_once,
        Expected::Causes(&[
            ["memory.limit_exceeded", "StatefulSet", "harbour", "ledger"],
            ["image.not_found", "Deployment", "quay", "crane"],
        ]),
    ),
    (
        "a quota here and a probe there",
        quota_and_probe,
        Expected::Causes(&[
            ["quota.exceeded", "ResourceQuota", "harbour", "berths"],
            ["code.crash_exit", "DaemonSet", "quay", "shipper"],
        ]),
    ),
];

fn roll(w: &mut World, namespace: &str, name: &str, from: u64) {
    w.at(from).image("Deployment", namespace, name, 2);
    let set = w.replica_set(namespace, name, "7f6d5c4b8");
    let old: Vec<_> =
        ["h2x4p", "k9w7c"].map(|id| of("Pod", namespace, &format!("{name}-5d4c8f7b9-{id}"))).into();
    let mut serving = old.clone();
    for (number, gone) in old.iter().enumerate() {
        let at = from + 2 + 20 * number as u64;
        let new = w.at(at).new_pod(
            namespace,
            &format!("{name}-7f6d5c4b8-{}", ["aa1aa", "bb2bb"][number]),
            name,
            ("ReplicaSet", &set.2),
            "rack-a1",
        );
        w.pod_waits(&new, "ContainerCreating", "");
        w.at(at + 3).warn(&new, "Unhealthy", "Readiness probe failed: Get \"http://10.8.2.2:8080/ready\": dial tcp 10.8.2.2:8080: connect: connection refused");
        w.at(at + 8).ready(&new);
        serving.retain(|pod| pod != gone);
        serving.push(new);
        w.endpoints(namespace, name, &serving);
        let now = w.time(0);
        w.change(gone, json!({"metadata": {"deletionTimestamp": now, "deletionGracePeriodSeconds": 30}}));
        w.event(gone, "Normal", "Killing", "Stopping container main");
        w.at(at + 10).unready(gone);
        w.at(at + 12).delete(gone);
    }
}

fn release(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    roll(w, "harbour", "pilot", 15);
    quiet(w, 120);
}

fn scaled_up(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    let scaler = w.add("HorizontalPodAutoscaler", "harbour", "pilot", json!({"spec": {"maxReplicas": 3}}));
    w.at(12).event(
        &scaler,
        "Normal",
        "SuccessfulRescale",
        "New size: 3; reason: cpu resource utilization (percentage of request) above target",
    );
    w.change(&of("Deployment", "harbour", "pilot"), json!({"spec": {"replicas": 3}}));
    let pod = w.pod("harbour", "pilot-5d4c8f7b9-zz9zz", "pilot", ("ReplicaSet", "pilot-5d4c8f7b9"), "");
    w.unschedulable(&pod, "0/3 nodes are available: 3 Insufficient cpu.");
    w.event(&pod, "Normal", "TriggeredScaleUp", "pod triggered scale-up: [{workers 3->4 (max: 9)}]");
    w.at(40).node("rack-d1");
    w.at(44).condition(&pod, "PodScheduled", "True", "", "");
    w.change(&pod, json!({"spec": {"nodeName": "rack-d1"}}));
    w.at(50).ready(&pod);
    quiet(w, 300);
}

fn one_restart(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    w.at(15).warn(
        &pods[1],
        "Unhealthy",
        "Readiness probe failed: Get \"http://10.8.2.2:8080/ready\": context deadline exceeded",
    );
    w.crashes(&pods[0], "Error", 1, 1, 30, 4);
    w.at(36).ready(&pods[0]);
    quiet(w, 240);
}

fn second_try(w: &mut World) {
    w.deployment("harbour", "pilot", 1);
    let pod = w.at(12).next_pilot();
    w.pod_waits(&pod, "ContainerCreating", "");
    w.warn(&pod, "FailedMount", "MountVolume.SetUp failed for volume \"kube-api-access-x\" : failed to sync configmap cache: timed out waiting for the condition");
    w.at(15).ready(&pod);
    quiet(w, 120);
}

fn cron_jobs(w: &mut World) {
    let cron =
        w.add("CronJob", "quay", "nightly", json!({"spec": {"jobTemplate": {"spec": {"template": {}}}}}));
    for (number, begin) in [(1, 20), (2, 80)] {
        let (job, pod) = w.at(begin).job("quay", "nightly", &format!("2993041{number}"), "rack-a1");
        w.event(&cron, "Normal", "SuccessfulCreate", "Created job");
        let done = w.at(begin + 10).time(0);
        w.change(&pod, json!({"status": {"phase": "Succeeded", "containerStatuses": [{"name": "main", "restartCount": 0,
            "state": {"terminated": {"reason": "Completed", "exitCode": 0, "finishedAt": done, "containerID": format!("containerd://c{number}")}}}]}}));
        w.condition(&pod, "Ready", "False", "PodCompleted", "");
        w.condition(&job, "Complete", "True", "CompletionsReached", "");
        w.at(begin + 20).delete(&pod);
        w.delete(&job);
    }
    quiet(w, 130);
}

fn waits_for_consumer(w: &mut World) {
    let claim = w.add(
        "PersistentVolumeClaim",
        "harbour",
        "spare",
        json!({"spec": {}, "status": {"phase": "Pending"}}),
    );
    for second in [15, 30, 45, 60, 75, 90] {
        w.at(second).event(
            &claim,
            "Normal",
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        );
    }
    quiet(w, 120);
}

fn emptied(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    let node = of("Node", "", "rack-c1");
    w.at(15).change(&node, json!({"spec": {"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}}));
    w.event(&node, "Normal", "NodeNotSchedulable", "Node rack-c1 status is now: NodeNotSchedulable");
    w.at(20).condition(
        &pods[2],
        "DisruptionTarget",
        "True",
        "EvictionByEvictionAPI",
        "Eviction API: evicting",
    );
    let now = w.time(0);
    w.change(&pods[2], json!({"metadata": {"deletionTimestamp": now, "deletionGracePeriodSeconds": 30}}));
    let new =
        w.new_pod("harbour", "pilot-5d4c8f7b9-zz9zz", "pilot", ("ReplicaSet", "pilot-5d4c8f7b9"), "rack-a1");
    w.at(24).ready(&new);
    w.at(26).delete(&pods[2]);
    quiet(w, 150);
}

fn warnings(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    let node = of("Node", "", "rack-a1");
    w.at(12).warn(&pods[0], "FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (old-login); attempting to pull the image may not succeed.");
    w.at(20).warn(&node, "InvalidDiskCapacity", "invalid capacity 0 on image filesystem");
    w.at(30).warn(
        &pods[1],
        "DNSConfigForming",
        "Nameserver limits were exceeded, some nameservers have been omitted",
    );
    w.at(40).warn(
        &of("Service", "harbour", "pilot"),
        "FailedToUpdateEndpointSlices",
        "Error updating Endpoint Slices for Service harbour/pilot: the object has been modified",
    );
    w.at(50).warn(&node, "ImageGCFailed", "failed to get imageFs info: unable to find data in memory cache");
    quiet(w, 150);
}

fn old_troubles(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    w.change(&pods[0], json!({"status": {"containerStatuses": [{"name": "main", "restartCount": 14, "containerID": "containerd://b",
        "state": {"running": {"startedAt": "2031-05-01T00:00:00Z"}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2031-04-30T23:59:50Z", "containerID": "containerd://a"}}}]}}));
    w.at(10);
    quiet(w, 120);
}

fn harmless_policy(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    w.at(20).add(
        "NetworkPolicy",
        "harbour",
        "walls",
        json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}),
    );
    quiet(w, 120);
}

fn harmless_settings(w: &mut World) {
    let key = w.add("ConfigMap", "harbour", "pilot-settings", json!({"data": {"berths": "one"}}));
    let pods = w.deployment("harbour", "pilot", 2);
    w.change(
        &pods[0],
        json!({"spec": {"volumes": [{"name": "s", "configMap": {"name": "pilot-settings"}}]}}),
    );
    w.at(20).change(&key, json!({"data": {"berths": "two"}}));
    roll(w, "harbour", "pilot", 30);
    quiet(w, 150);
}

fn told_to_end(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    w.at(12).change(&of("Deployment", "harbour", "pilot"), json!({"spec": {"replicas": 2}}));
    let now = w.time(0);
    w.change(&pods[2], json!({"metadata": {"deletionTimestamp": now, "deletionGracePeriodSeconds": 30}}));
    w.at(20).warn(&pods[2], "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503");
    let done = w.at(42).time(0);
    w.change(&pods[2], json!({"status": {"containerStatuses": [{"name": "main", "restartCount": 0,
        "state": {"terminated": {"reason": "Error", "exitCode": 137, "finishedAt": done, "containerID": "containerd://x"}}}]}}));
    w.at(44).delete(&pods[2]);
    quiet(w, 150);
}

fn two_at_once(w: &mut World) {
    let ledger = w.workload("StatefulSet", "harbour", "ledger", 2);
    let crane = w.deployment("quay", "crane", 2);
    w.deployment("harbour", "pilot", 2);
    w.at(12).pod_waits(
        &crane[0],
        "ErrImagePull",
        "failed to resolve reference \"registry.example/crane:22\": not found",
    );
    w.warn(
        &crane[0],
        "Failed",
        "Failed to pull image: failed to resolve reference \"registry.example/crane:22\": not found",
    );
    w.crashes(&ledger[0], "OOMKilled", 137, 2, 20, 20);
    roll(w, "harbour", "pilot", 60);
    w.warn(&crane[0], "BackOff", "Back-off pulling image");
    w.crashes(&ledger[0], "OOMKilled", 137, 2, 110, 20);
}

fn quota_and_probe(w: &mut World) {
    w.add("ResourceQuota", "harbour", "berths", json!({"spec": {"hard": {"pods": "2"}}}));
    w.deployment("harbour", "pilot", 2);
    let shipper = w.workload("DaemonSet", "quay", "shipper", 3);
    let set = of("ReplicaSet", "harbour", "pilot-5d4c8f7b9");
    let message = "Error creating: pods \"pilot-5d4c8f7b9-zz9zz\" is forbidden: exceeded quota: berths, requested: pods=1, used: pods=2, limited: pods=2";
    w.at(15).warn(&set, "FailedCreate", message);
    w.crashes(&shipper[2], "Error", 1, 2, 20, 20);
    w.at(70).warn(&set, "FailedCreate", message);
    w.crashes(&shipper[2], "Error", 1, 2, 75, 20);
}
