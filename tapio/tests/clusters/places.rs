//! Machines, scheduling, storage, networks, and those who admit and control.

use serde_json::json;

use super::programs::quiet;
use super::world::{World, app, of};
use super::{Expected, Scene, cause, recovered};

pub const SCENES: &[(&str, Scene, Expected)] = &[
    (
        "a taint that nobody tolerates",
        taint,
        cause("scheduling.constraints", "StatefulSet", "harbour", "ledger"),
    ),
    (
        "no machine has the memory",
        no_room,
        cause("scheduling.insufficient_resources", "Deployment", "harbour", "pilot"),
    ),
    ("a pod had to make room", preempted, cause("scheduling.preempted", "StatefulSet", "harbour", "ledger")),
    ("a claim that is not there", no_claim, cause("storage.claim_absent", "", "harbour", "")),
    (
        "a claim that nobody provides",
        pending_claim,
        cause("storage.claim_pending", "PersistentVolumeClaim", "harbour", "ledger-data"),
    ),
    ("a volume held by another machine", multi_attach, cause("storage.multi_attach", "", "harbour", "")),
    ("a machine that is silent", silent_node, cause("node.not_ready", "Node", "", "rack-b1")),
    ("a machine short of memory", short_of_memory, cause("node.memory_pressure", "Node", "", "rack-c1")),
    ("a machine short of disk", short_of_disk, cause("node.disk_pressure", "Node", "", "rack-c1")),
    ("no addresses left for pods", no_addresses, cause("network.pod_network_failed", "", "", "")),
    (
        "a webhook whose certificate has ended",
        webhook,
        cause("admission.webhook_unavailable", "", "quay", "gatehouse"),
    ),
    ("a webhook that says no", denied, cause("admission.denied", "", "harbour", "pilot")),
    ("pods that the namespace's level forbids", pod_security, cause("admission.pod_security", "", "", "")),
    ("a quota that is used up", quota, cause("quota.exceeded", "ResourceQuota", "harbour", "berths")),
    ("a limit range", limit_range, cause("quota.limit_range", "", "harbour", "")),
    (
        "a service account that is not there",
        no_account,
        cause("config.service_account_absent", "", "harbour", ""),
    ),
    (
        "a priority class that is not there",
        no_priority_class,
        cause("config.priority_class_absent", "PriorityClass", "", "urgent"),
    ),
    (
        "an autoscaler without metrics",
        no_metrics,
        cause("scheduling.autoscaler_blind", "HorizontalPodAutoscaler", "harbour", "pilot"),
    ),
    (
        "a namespace that does not go",
        stuck_namespace,
        cause("controlplane.finalizer_stuck", "Namespace", "", "quay"),
    ),
    (
        "a scheduler that does not look",
        no_scheduler,
        cause("controlplane.scheduler_down", "Component", "", "kube-scheduler"),
    ),
    (
        "a selector that fits no pod",
        selector,
        cause("network.service_selector", "Service", "harbour", "pilot"),
    ),
    (
        "scaled to nothing, and asked for",
        scaled_away,
        cause("config.scaled_to_zero", "Deployment", "harbour", "pilot"),
    ),
    (
        "a policy that cuts callers off",
        policy,
        cause("network.policy_denies", "NetworkPolicy", "harbour", "walls"),
    ),
    ("names are not resolved", names, cause("dns.", "", "kube-system", "")),
    ("a machine that was silent and is back", node_back, recovered()),
];

fn new_pod(w: &mut World) -> (String, String, String) {
    w.pod("harbour", "pilot-5d4c8f7b9-zz9zz", "pilot", ("ReplicaSet", "pilot-5d4c8f7b9"), "")
}

fn taint(w: &mut World) {
    w.workload("StatefulSet", "harbour", "ledger", 1);
    w.at(12).change(&of("StatefulSet", "harbour", "ledger"), json!({"spec": {"replicas": 2}}));
    let pod = w.pod("harbour", "ledger-1", "ledger", ("StatefulSet", "ledger"), "");
    let message = "0/3 nodes are available: 3 node(s) had untolerated taint {pool: batch}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.";
    w.unschedulable(&pod, message);
    w.at(110).warn(&pod, "FailedScheduling", message);
}

fn no_room(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    w.at(12).change(&of("Deployment", "harbour", "pilot"), json!({"spec": {"replicas": 3}}));
    let pod = new_pod(w);
    let message = "0/3 nodes are available: 1 node(s) had untolerated taint {pool: batch}, 2 Insufficient memory. preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod.";
    w.unschedulable(&pod, message);
    w.at(110).warn(&pod, "FailedScheduling", message);
}

fn preempted(w: &mut World) {
    let pods = w.deployment("quay", "crane", 2);
    let high = w.at(12).pod("harbour", "ledger-0", "ledger", ("StatefulSet", "ledger"), "");
    let uid = w.get(&high)["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    w.at(14).warn(&pods[0], "Preempted", &format!("Preempted by pod {uid} on node rack-a1"));
    w.condition(
        &pods[0],
        "DisruptionTarget",
        "True",
        "PreemptionByScheduler",
        "default-scheduler: preempting to accommodate a higher priority pod",
    );
    w.at(16).delete(&pods[0]);
    let pod = w.pod("quay", "crane-5d4c8f7b9-zz9zz", "crane", ("ReplicaSet", "crane-5d4c8f7b9"), "");
    w.unschedulable(&pod, "0/3 nodes are available: 3 Insufficient cpu.");
    w.at(110).warn(&pod, "FailedScheduling", "0/3 nodes are available: 3 Insufficient cpu.");
}

fn no_claim(w: &mut World) {
    let pod = w.at(12).pod("harbour", "toolbox", "toolbox", ("", ""), "");
    w.change(
        &pod,
        json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "logbook"}}]}}),
    );
    let message = "0/3 nodes are available: persistentvolumeclaim \"logbook\" not found. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.";
    w.unschedulable(&pod, message);
    w.at(110).warn(&pod, "FailedScheduling", message);
}

fn pending_claim(w: &mut World) {
    let claim = w.at(10).add(
        "PersistentVolumeClaim",
        "harbour",
        "ledger-data",
        json!({"spec": {"storageClassName": "granite"}, "status": {"phase": "Pending"}}),
    );
    w.workload("StatefulSet", "harbour", "ledger", 0);
    let pod = w.pod("harbour", "ledger-0", "ledger", ("StatefulSet", "ledger"), "");
    w.change(
        &pod,
        json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "ledger-data"}}]}}),
    );
    w.at(12).unschedulable(&pod, "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.");
    w.warn_until(&claim, "ProvisioningFailed", "storageclass.storage.k8s.io \"granite\" not found", 15, 110);
}

fn multi_attach(w: &mut World) {
    w.add(
        "PersistentVolumeClaim",
        "harbour",
        "ledger-data",
        json!({"spec": {"volumeName": "pv-77"}, "status": {"phase": "Bound"}}),
    );
    w.workload("StatefulSet", "harbour", "ledger", 0);
    let pod = w.at(12).new_pod("harbour", "ledger-0", "ledger", ("StatefulSet", "ledger"), "rack-a1");
    w.change(
        &pod,
        json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "ledger-data"}}]}}),
    );
    w.pod_waits(&pod, "ContainerCreating", "");
    w.warn_until(&pod, "FailedAttachVolume", "Multi-Attach error for volume \"pv-77\" Volume is already exclusively attached to one node and can't be attached to another", 20, 120);
}

fn silence(w: &mut World, node: &str, pods: &[(String, String, String)]) {
    let node = of("Node", "", node);
    w.at(40);
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
        w.condition(&node, kind, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.");
    }
    w.event(&node, "Normal", "NodeNotReady", "Node status is now: NodeNotReady");
    for pod in pods {
        w.condition(pod, "Ready", "False", "NodeNotReady", "");
        w.warn(pod, "NodeNotReady", "Node is not ready");
    }
}

fn silent_node(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    let sets = w.workload("StatefulSet", "harbour", "ledger", 2);
    silence(w, "rack-b1", &[pods[1].clone(), sets[1].clone()]);
    quiet(w, 130);
}

fn node_back(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    silence(w, "rack-b1", &pods[1..2]);
    let node = of("Node", "", "rack-b1");
    w.at(75);
    for (kind, status) in
        [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")]
    {
        w.condition(&node, kind, status, "Kubelet", "");
    }
    w.condition(&pods[1], "Ready", "True", "", "");
    quiet(w, 300);
}

fn pressure(w: &mut World, condition: &str, message: &str) {
    let pods = w.deployment("harbour", "pilot", 3);
    let node = of("Node", "", "rack-c1");
    w.at(20).condition(&node, condition, "True", "KubeletHas", "kubelet has it");
    w.warn(&node, "EvictionThresholdMet", "Attempting to reclaim");
    w.at(25).change(&pods[2], json!({"status": {"phase": "Failed", "reason": "Evicted", "message": message, "containerStatuses": null}}));
    w.warn(&pods[2], "Evicted", message);
    quiet(w, 110);
}

fn short_of_memory(w: &mut World) {
    pressure(
        w,
        "MemoryPressure",
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 61200Ki. Container main was using 3Gi, request is 0, has larger consumption of memory.",
    );
}

fn short_of_disk(w: &mut World) {
    pressure(
        w,
        "DiskPressure",
        "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 4Gi.",
    );
}

fn no_addresses(w: &mut World) {
    w.deployment("harbour", "pilot", 1);
    for (number, name) in ["zz9zz", "yy8yy", "xx7xx"].iter().enumerate() {
        let pod = w.at(12 + number as u64).new_pod(
            "harbour",
            &format!("pilot-5d4c8f7b9-{name}"),
            "pilot",
            ("ReplicaSet", "pilot-5d4c8f7b9"),
            "rack-a1",
        );
        w.pod_waits(&pod, "ContainerCreating", "");
        w.warn(&pod, "FailedCreatePodSandBox", "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox: plugin type=\"bridge\" failed (add): failed to allocate for range 0: no IP addresses available in range set: 10.8.1.1-10.8.1.254");
    }
    let pod = of("Pod", "harbour", "pilot-5d4c8f7b9-zz9zz");
    w.at(30).warn_until(&pod, "FailedCreatePodSandBox", "Failed to create pod sandbox: failed to setup network for sandbox: no IP addresses available in range set: 10.8.1.1-10.8.1.254", 15, 110);
}

/// The ReplicaSet of a new release cannot make its pod.
fn refused(w: &mut World, message: &str) {
    w.deployment("harbour", "pilot", 2);
    w.at(12).image("Deployment", "harbour", "pilot", 2);
    let set = w.replica_set("harbour", "pilot", "7f6d5c4b8");
    w.condition(&set, "ReplicaFailure", "True", "FailedCreate", message);
    w.warn_until(&set, "FailedCreate", &format!("Error creating: {message}"), 14, 110);
}

fn webhook(w: &mut World) {
    w.deployment("quay", "gatehouse", 1);
    w.add(
        "ValidatingWebhookConfiguration",
        "",
        "gatehouse",
        json!({"webhooks": [{"name": "admit.gatehouse.example"}]}),
    );
    refused(
        w,
        "Internal error occurred: failed calling webhook \"admit.gatehouse.example\": failed to call webhook: Post \"https://gatehouse.quay.svc:443/admit?timeout=10s\": tls: failed to verify certificate: x509: certificate has expired or is not yet valid",
    );
}

fn denied(w: &mut World) {
    refused(w, "admission webhook \"rules.example\" denied the request: the label owner is missing");
}

fn pod_security(w: &mut World) {
    refused(
        w,
        "pods \"pilot-7f6d5c4b8-x2x2x\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"main\" must set securityContext.allowPrivilegeEscalation=false)",
    );
}

fn quota(w: &mut World) {
    w.add("ResourceQuota", "harbour", "berths", json!({"spec": {"hard": {"pods": "2"}}}));
    refused(
        w,
        "pods \"pilot-7f6d5c4b8-x2x2x\" is forbidden: exceeded quota: berths, requested: pods=1, used: pods=2, limited: pods=2",
    );
}

fn limit_range(w: &mut World) {
    w.add("LimitRange", "harbour", "bounds", json!({"spec": {"limits": []}}));
    refused(
        w,
        "pods \"pilot-7f6d5c4b8-x2x2x\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi",
    );
}

fn no_account(w: &mut World) {
    refused(
        w,
        "pods \"pilot-7f6d5c4b8-\" is forbidden: error looking up service account harbour/helmsman: serviceaccount \"helmsman\" not found",
    );
}

fn no_priority_class(w: &mut World) {
    refused(w, "pods \"pilot-7f6d5c4b8-\" is forbidden: no PriorityClass with name urgent was found");
}

fn no_metrics(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    let scaler = w.add(
        "HorizontalPodAutoscaler",
        "harbour",
        "pilot",
        json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "pilot"}}}),
    );
    w.at(15).condition(&scaler, "ScalingActive", "False", "FailedGetResourceMetric", "the HPA was unable to compute the replica count: failed to get cpu utilization: missing request for cpu in container main of Pod pilot-5d4c8f7b9-h2x4p");
    w.warn_until(
        &scaler,
        "FailedGetResourceMetric",
        "failed to get cpu utilization: missing request for cpu in container main",
        15,
        110,
    );
}

fn stuck_namespace(w: &mut World) {
    let key = of("Namespace", "", "quay");
    let now = w.at(12).time(0);
    w.change(&key, json!({"metadata": {"deletionTimestamp": now}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}}));
    w.at(16).condition(
        &key,
        "NamespaceFinalizersRemaining",
        "True",
        "SomeFinalizersRemain",
        "Some content in the namespace has finalizers remaining: example.com/keel in 1 resource instances",
    );
    quiet(w, 120);
}

fn no_scheduler(w: &mut World) {
    w.deployment("harbour", "pilot", 1);
    w.at(12);
    new_pod(w);
    w.pod("quay", "toolbox", "toolbox", ("", ""), "");
    quiet(w, 130);
}

fn selector(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    let service = of("Service", "harbour", "pilot");
    w.at(15).change(&service, json!({"spec": {"selector": app("pylot")}}));
    w.at(16).endpoints("harbour", "pilot", &[]);
    assert_eq!(pods.len(), 2);
    quiet(w, 100);
}

/// What a client's readiness probe says of whom it needs.
pub fn client_fails(w: &mut World, message: &str, from: u64, to: u64) {
    let clients = [of("Pod", "quay", "crane-5d4c8f7b9-h2x4p"), of("Pod", "quay", "crane-5d4c8f7b9-k9w7c")];
    let text = format!("Readiness probe failed: HTTP probe failed with statuscode: 503: {message}");
    let mut second = from;
    while second <= to {
        for client in &clients {
            w.at(second).warn(client, "Unhealthy", &text);
            if second == from + 20 {
                w.unready(client);
            }
        }
        second += 10;
    }
}

fn scaled_away(w: &mut World) {
    w.deployment("quay", "crane", 2);
    let pods = w.deployment("harbour", "pilot", 2);
    w.at(20).change(&of("Deployment", "harbour", "pilot"), json!({"spec": {"replicas": 0}}));
    for pod in &pods {
        w.at(22).delete(pod);
    }
    w.endpoints("harbour", "pilot", &[]);
    client_fails(
        w,
        "Get \"http://pilot.harbour.svc.cluster.local:80/ask\": dial tcp 10.96.4.4:80: connect: connection refused",
        25,
        120,
    );
}

fn policy(w: &mut World) {
    w.deployment("quay", "crane", 2);
    w.deployment("harbour", "pilot", 2);
    w.at(20).add(
        "NetworkPolicy",
        "harbour",
        "walls",
        json!({"spec": {"podSelector": {"matchLabels": app("pilot")}, "policyTypes": ["Ingress"]}}),
    );
    client_fails(
        w,
        "Get \"http://pilot.harbour.svc.cluster.local:80/ask\": dial tcp 10.96.4.4:80: i/o timeout",
        25,
        120,
    );
}

fn names(w: &mut World) {
    w.deployment("quay", "crane", 2);
    let pods = w.deployment("harbour", "pilot", 2);
    for pod in ["coredns-5d4c8f7b9-h2x4p", "coredns-5d4c8f7b9-k9w7c"] {
        w.at(18).unready(&of("Pod", "kube-system", pod));
    }
    for second in [25, 35, 45] {
        w.at(second).warn(&pods[0], "Unhealthy", "Readiness probe failed: lookup ledger.harbour.svc.cluster.local on 10.96.0.10:53: read udp 10.8.1.9:40312->10.96.0.10:53: i/o timeout");
    }
    client_fails(
        w,
        "lookup pilot.harbour.svc.cluster.local on 10.96.0.10:53: read udp 10.8.1.7:41211->10.96.0.10:53: i/o timeout",
        46,
        120,
    );
}
