//! What is seen of machines, routes and permissions, in objects, metrics and logs.

use serde_json::{Value, json};

use super::places::client_fails;
use super::programs::quiet;
use super::world::{World, app, of};
use super::{Expected, Scene, cause, recovered};

pub const SCENES: &[(&str, Scene, Expected)] = &[
    (
        "an init container that asks for nobody",
        init_waits,
        cause("dependency.init_waits", "Service", "harbour", "tides"),
    ),
    ("an init container that had to wait a little", init_done, Expected::Healthy),
    (
        "a Service that was deleted",
        service_deleted,
        cause("config.service_deleted", "Service", "harbour", "pilot"),
    ),
    (
        "a route to a Service that is not there",
        no_backend,
        cause("network.route_unresolved", "Ingress", "harbour", "quayside"),
    ),
    (
        "a route to a port that its Service has not",
        no_port,
        cause("network.route_unresolved", "Ingress", "harbour", "quayside"),
    ),
    ("a route whose certificate is not there, for a while", certificate_comes, recovered()),
    (
        "a gateway without a sound listener",
        gateway,
        cause("network.route_unresolved", "Gateway", "harbour", "gate"),
    ),
    (
        "a route of two gateways to a Service that is not there",
        route_of_gateways,
        cause("network.route_unresolved", "HTTPRoute", "harbour", "quayside"),
    ),
    ("routes that lead somewhere", good_routes, Expected::Healthy),
    (
        "what somebody wants so: a scaler that rests, a machine that takes no more pods",
        wanted,
        Expected::Healthy,
    ),
    (
        "a machine that may not be emptied",
        drain_blocked,
        cause("scheduling.drain_blocked", "PodDisruptionBudget", "harbour", "ledger"),
    ),
    ("a machine that is emptied at last", drain_done, recovered()),
    ("a machine that was started anew", rebooted, cause("node.rebooted", "Node", "", "rack-b1")),
    ("a spot machine that is taken back", shut_down, cause("node.shut_down", "Node", "", "rack-c1")),
    ("a container runtime that hangs", runtime_hangs, cause("node.runtime_down", "Node", "", "rack-b1")),
    ("a container runtime that is away", runtime_away, cause("node.runtime_down", "Node", "", "rack-a1")),
    (
        "a role that lacks a verb",
        no_verb,
        cause("credentials.rbac_denied", "ServiceAccount", "harbour", "pilot"),
    ),
    (
        "a mesh that lets nobody through",
        mesh,
        cause("network.mesh_denies", "AuthorizationPolicy", "harbour", "walls"),
    ),
    ("no file can be opened", open_files, cause("runtime.files_exhausted", "Deployment", "harbour", "pilot")),
    ("no inode is left", inodes, cause("storage.inodes_exhausted", "Node", "", "rack-a1")),
    ("a full table of connections", conntrack, cause("network.conntrack_full", "Node", "", "rack-a1")),
    ("no port is left", ports, cause("network.ports_exhausted", "Deployment", "harbour", "pilot")),
    (
        "no thread can be made",
        threads,
        cause("runtime.processes_exhausted", "Deployment", "harbour", "pilot"),
    ),
    ("a clock that is wrong", clock, cause("node.clock_skewed", "Node", "", "rack-a1")),
    ("tasks that hang", hung_tasks, cause("node.tasks_hang", "Node", "", "rack-a1")),
    ("an etcd that writes late", slow_etcd, cause("controlplane.etcd_slow", "", "", "")),
    ("an API server that refuses", busy_api, cause("controlplane.api_overloaded", "", "", "")),
    ("a controller that falls behind", backlog, cause("controlplane.backlog", "", "", "")),
    ("measures that are sound", sound, Expected::Healthy),
];

fn init_pod(w: &mut World) -> (String, String, String) {
    w.deployment("harbour", "pilot", 1);
    let pod = w.at(12).next_pilot();
    let began = w.time(0);
    w.change(&pod, json!({"spec": {"initContainers": [{"name": "wait", "command": ["sh", "-c", "until nslookup tides; do echo waiting; sleep 2; done"]}]},
        "status": {"phase": "Pending", "initContainerStatuses": [{"name": "wait", "restartCount": 0, "containerID": "containerd://w",
            "state": {"running": {"startedAt": began}}}],
            "containerStatuses": [{"name": "main", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}]}}));
    pod
}

fn init_waits(w: &mut World) {
    init_pod(w);
    quiet(w, 150);
}

fn init_done(w: &mut World) {
    let pod = init_pod(w);
    w.at(40).service("harbour", "tides", &[]);
    w.change(
        &pod,
        json!({"status": {"phase": "Running", "initContainerStatuses": [{"name": "wait", "restartCount": 0,
        "state": {"terminated": {"reason": "Completed", "exitCode": 0, "containerID": "containerd://w"}}}]}}),
    );
    w.ready(&pod);
    quiet(w, 150);
}

fn service_deleted(w: &mut World) {
    w.deployment("quay", "crane", 2);
    w.deployment("harbour", "pilot", 2);
    w.at(20).delete(&of("EndpointSlice", "harbour", "pilot-z9x"));
    w.delete(&of("Service", "harbour", "pilot"));
    client_fails(
        w,
        "Get \"http://pilot.harbour:80/ask\": dial tcp: lookup pilot.harbour on 10.96.0.10:53: no such host",
        25,
        120,
    );
}

fn ingress(backend: &str, port: u32, secret: &str) -> Value {
    json!({"spec": {"ingressClassName": "outer", "tls": [{"secretName": secret}], "rules": [{"http": {"paths": [
        {"path": "/", "backend": {"service": {"name": backend, "port": {"number": port}}}}]}}]}})
}

fn entry(w: &mut World) -> (String, String, String) {
    w.deployment("harbour", "pilot", 2);
    w.add("IngressClass", "", "outer", json!({"spec": {"controller": "example.com/outer"}}));
    w.add("Secret", "harbour", "quayside-tls", json!({"data": {"tls.crt": "aaaaaaaaaaaa"}}));
    w.add("Ingress", "harbour", "quayside", ingress("pilot", 80, "quayside-tls"))
}

fn no_backend(w: &mut World) {
    let route = entry(w);
    w.at(20).change(&route, ingress("pylot", 80, "quayside-tls"));
    quiet(w, 120);
}

fn no_port(w: &mut World) {
    let route = entry(w);
    w.at(20).change(&route, ingress("pilot", 8080, "quayside-tls"));
    quiet(w, 120);
}

fn certificate_comes(w: &mut World) {
    let route = entry(w);
    w.at(20).change(&route, ingress("pilot", 80, "quayside-new"));
    quiet(w, 60);
    w.at(70).add("Secret", "harbour", "quayside-new", json!({"data": {"tls.crt": "bbbbbbbbbbbb"}}));
    w.at(90).condition(&of("Node", "", "rack-a1"), "Ready", "True", "Kubelet", "well");
    w.at(150).condition(&of("Node", "", "rack-a1"), "Ready", "True", "Kubelet", "well still");
}

fn gateway(w: &mut World) {
    let gate = w.add("Gateway", "harbour", "gate", json!({"spec": {}, "status": {"conditions": []}}));
    w.at(20).condition(
        &gate,
        "Programmed",
        "False",
        "Invalid",
        "no listener is valid: the certificate cannot be read",
    );
    quiet(w, 100);
}

/// The route as each of its gateways sees it.
fn parents(second: &str, reason: &str) -> Value {
    let parent = |gateway: &str, status: &str, reason: &str| {
        json!({"parentRef": {"name": gateway}, "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted"},
            {"type": "ResolvedRefs", "status": status, "reason": reason, "message": "Service pylot is not there"}]})
    };
    json!({"status": {"parents": [parent("gate", "True", "ResolvedRefs"), parent("side-gate", second, reason)]}})
}

fn route_of_gateways(w: &mut World) {
    let route = w.add("HTTPRoute", "harbour", "quayside", parents("True", "ResolvedRefs"));
    w.at(20).change(&route, parents("False", "BackendNotFound"));
    quiet(w, 100);
}

/// A budget that none of its three pods may leave.
fn full_budget(w: &mut World) {
    w.add(
        "PodDisruptionBudget",
        "harbour",
        "ledger",
        json!({"spec": {"minAvailable": 3, "selector": {"matchLabels": app("ledger")}},
        "status": {"disruptionsAllowed": 0}}),
    );
}

fn wanted(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    w.workload("StatefulSet", "harbour", "ledger", 3);
    full_budget(w);
    let scaler = w.add("HorizontalPodAutoscaler", "harbour", "pilot", json!({"status": {"conditions": []}}));
    w.at(10).delete(&pods[1]);
    w.at(20).change(&of("Node", "", "rack-b1"), json!({"spec": {"unschedulable": true}}));
    w.condition(
        &scaler,
        "ScalingActive",
        "False",
        "ScalingDisabled",
        "scaling is disabled since replicas is zero",
    );
    quiet(w, 200);
}

fn good_routes(w: &mut World) {
    entry(w);
    w.add("HTTPRoute", "harbour", "quayside", parents("True", "ResolvedRefs"));
    w.add(
        "Gateway",
        "harbour",
        "gate",
        json!({"status": {"conditions": [{"type": "Programmed", "status": "True"}]}}),
    );
    quiet(w, 120);
}

fn drain(w: &mut World) -> Vec<(String, String, String)> {
    let sets = w.workload("StatefulSet", "harbour", "ledger", 3);
    let pods = w.deployment("harbour", "pilot", 3);
    full_budget(w);
    w.at(15).change(&of("Node", "", "rack-b1"), json!({"spec": {"unschedulable": true}}));
    let now = w.time(0);
    w.at(17).condition(
        &pods[1],
        "DisruptionTarget",
        "True",
        "EvictionByEvictionAPI",
        "Eviction API: evicting",
    );
    w.change(&pods[1], json!({"metadata": {"deletionTimestamp": now, "deletionGracePeriodSeconds": 30}}));
    w.at(22).delete(&pods[1]);
    sets
}

fn drain_blocked(w: &mut World) {
    drain(w);
    quiet(w, 180);
}

fn drain_done(w: &mut World) {
    let sets = drain(w);
    quiet(w, 130);
    w.at(140).change(
        &of("PodDisruptionBudget", "harbour", "ledger"),
        json!({"status": {"disruptionsAllowed": 1}}),
    );
    w.at(142).delete(&sets[1]);
    quiet(w, 300);
}

fn rebooted(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    let node = of("Node", "", "rack-b1");
    w.at(20).condition(
        &node,
        "Ready",
        "Unknown",
        "NodeStatusUnknown",
        "Kubelet stopped posting node status.",
    );
    w.unready(&pods[1]);
    w.at(60).change(&node, json!({"status": {"nodeInfo": {"bootID": "boot-rack-b1-2"}}}));
    w.condition(&node, "Ready", "True", "Kubelet", "");
    w.warn(&node, "Rebooted", "Node rack-b1 has been rebooted, boot id: boot-rack-b1-2");
    w.crashes(&pods[1], "Unknown", 255, 1, 62, 6);
    quiet(w, 100);
}

fn shut_down(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    let node = of("Node", "", "rack-c1");
    w.at(20).condition(&node, "Ready", "False", "KubeletNotReady", "node is shutting down");
    let message = "Pod was terminated in response to imminent node shutdown.";
    w.at(24)
        .change(&pods[2], json!({"status": {"phase": "Failed", "reason": "Terminated", "message": message}}));
    quiet(w, 100);
}

fn runtime_hangs(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 3);
    let node = of("Node", "", "rack-b1");
    w.at(30).condition(
        &node,
        "Ready",
        "False",
        "KubeletNotReady",
        "PLEG is not healthy: pleg was last seen active 3m12s ago; threshold is 3m0s",
    );
    w.unready(&pods[1]);
    quiet(w, 130);
}

fn runtime_away(w: &mut World) {
    w.deployment("harbour", "pilot", 1);
    let pod = w.at(12).next_pilot();
    let message = "Failed to create pod sandbox: rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: connection refused\"";
    w.warn_until(&pod, "FailedCreatePodSandBox", message, 15, 110);
}

const FORBIDDEN: &str = "configmaps is forbidden: User \"system:serviceaccount:harbour:pilot\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"harbour\"";

fn no_verb(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 1);
    for second in [15, 25, 35, 45, 55] {
        w.at(second).log(&of_pod(&pods[0].2), 17, &format!("cannot read settings: {FORBIDDEN}"));
    }
    quiet(w, 70);
}

fn mesh(w: &mut World) {
    w.deployment("quay", "crane", 2);
    w.deployment("harbour", "pilot", 2);
    w.at(20).add(
        "AuthorizationPolicy",
        "harbour",
        "walls",
        json!({"spec": {"selector": {"matchLabels": app("pilot")}, "action": "DENY"}}),
    );
    client_fails(
        w,
        "http://pilot.harbour.svc.cluster.local:80/ask answered 403: RBAC: access denied",
        25,
        120,
    );
}

fn of_pod(name: &str) -> Value {
    json!({"k8s.namespace.name": "harbour", "k8s.pod.name": name, "k8s.deployment.name": "pilot", "service.name": "pilot"})
}

fn of_node() -> Value {
    json!({"k8s.node.name": "rack-a1", "host.name": "rack-a1"})
}

fn says(w: &mut World, resource: &Value, severity: u8, body: &str) {
    for second in [15, 25, 35, 45, 55, 65] {
        w.at(second).log(resource, severity, body);
    }
    quiet(w, 80);
}

fn open_files(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 1);
    says(w, &of_pod(&pods[0].2), 17, "accept4: too many open files; retrying in 1s");
}

fn ports(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 1);
    says(w, &of_pod(&pods[0].2), 17, "dial tcp 10.96.4.4:5432: connect: cannot assign requested address");
}

fn threads(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 1);
    says(w, &of_pod(&pods[0].2), 17, "java.lang.OutOfMemoryError: unable to create new native thread");
}

fn hung_tasks(w: &mut World) {
    says(w, &of_node(), 13, "INFO: task jbd2/vda1-8:412 blocked for more than 120 seconds.");
}

/// A part of a whole, each quarter of a minute.
fn share(w: &mut World, part: (&str, f64), whole: (&str, f64), attributes: &Value) {
    for second in (15..=120).step_by(15) {
        w.at(second).gauge(&of_node(), whole.0, whole.1, attributes);
        w.gauge(&of_node(), part.0, part.1, attributes);
    }
}

fn inodes(w: &mut World) {
    let place = json!({"mountpoint": "/var", "device": "/dev/vda2", "fstype": "ext4"});
    share(w, ("node_filesystem_files_free", 12.0), ("node_filesystem_files", 655_360.0), &place);
}

fn conntrack(w: &mut World) {
    share(
        w,
        ("node_nf_conntrack_entries", 260_900.0),
        ("node_nf_conntrack_entries_limit", 262_144.0),
        &json!({}),
    );
    w.log(&of_node(), 13, "nf_conntrack: nf_conntrack: table full, dropping packet");
}

fn clock(w: &mut World) {
    for second in (15..=120).step_by(15) {
        w.at(second).gauge(&of_node(), "node_timex_offset_seconds", -0.41, &json!({}));
    }
}

fn slow_etcd(w: &mut World) {
    let of_etcd = json!({"service.name": "etcd", "k8s.namespace.name": "kube-system"});
    for step in 1..=8u32 {
        let sum = f64::from(step) * 40.0 * 0.55;
        w.at(u64::from(step) * 15).histogram(
            &of_etcd,
            "etcd_disk_wal_fsync_duration_seconds",
            u64::from(step) * 40,
            sum,
        );
    }
}

fn busy_api(w: &mut World) {
    let of_api = json!({"service.name": "kube-apiserver", "k8s.namespace.name": "kube-system"});
    for step in 1..=8u32 {
        w.at(u64::from(step) * 15).gauge(
            &of_api,
            "apiserver_flowcontrol_rejected_requests_total",
            f64::from(step) * 90.0,
            &json!({"priority_level": "workload-low"}),
        );
    }
}

fn backlog(w: &mut World) {
    let of_manager = json!({"service.name": "kube-controller-manager", "k8s.namespace.name": "kube-system"});
    for second in (15..=120).step_by(15) {
        w.at(second).gauge(&of_manager, "workqueue_depth", 2400.0, &json!({"name": "endpoint_slice"}));
    }
}

fn sound(w: &mut World) {
    share(
        w,
        ("node_nf_conntrack_entries", 60_900.0),
        ("node_nf_conntrack_entries_limit", 262_144.0),
        &json!({}),
    );
    share(w, ("node_filefd_allocated", 4_000.0), ("node_filefd_maximum", 9_000_000.0), &json!({}));
    w.gauge(&of_node(), "node_timex_offset_seconds", 0.0004, &json!({}));
    w.log(&of_node(), 13, "systemd-resolved: Using degraded feature set UDP instead of UDP+EDNS0");
    quiet(w, 150);
}
