//! What waits for something else is told, and what only looks as if it did is not.

use serde_json::{Value, json};
use tapio_agents::collectors::kubernetes::WatchType;
use tapio_schemas::kind::EventKind;

use crate::lasting::{Cluster, budget, machine, named, placed, service, slice};

/// `2030-01-01T11:00:00Z` and so many seconds.
fn time(second: u64) -> String {
    format!("2030-01-01T11:{:02}:{:02}Z", second / 60, second % 60)
}

fn running(container: &str, since: u64) -> Value {
    json!({"name": container, "state": {"running": {"startedAt": time(since)}}})
}

fn done(container: &str) -> Value {
    let end = json!({"exitCode": 0, "reason": "Completed", "finishedAt": time(0), "containerID": container});
    json!({"name": container, "state": {"terminated": end}})
}

/// A pod whose init containers each look for one host.
fn starting(inits: &[(&str, &str)], statuses: Value) -> Value {
    let spec: Vec<Value> = inits
        .iter()
        .map(|(name, host)| {
            let script = format!("until nslookup {host}; do sleep 1; done");
            json!({"name": name, "command": ["sh", "-c", script]})
        })
        .collect();
    let conditions = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": time(0)}]);
    named(
        "Pod",
        "api-1",
        json!({"spec": {"nodeName": "n1", "initContainers": spec},
            "status": {"phase": "Pending", "conditions": conditions, "initContainerStatuses": statuses}}),
    )
}

/// When it was told that something is stuck, and why.
fn stuck(cluster: &mut Cluster) -> Vec<(u64, String)> {
    let told = cluster.told().into_iter();
    told.filter(|(_, kind, _)| *kind == EventKind::K8sStuck).map(|(at, _, why)| (at, why)).collect()
}

fn waits(times: &[u64]) -> Vec<(u64, String)> {
    times.iter().map(|at| (*at, "InitWaits".to_owned())).collect()
}

const BOTH: [(&str, &str); 2] = [("first", "api"), ("second", "ledger")];

#[test]
fn each_init_container_has_its_minute() {
    let mut cluster = Cluster::new();
    cluster.added(&service("api", 80)).added(&starting(&BOTH, json!([running("first", 0)]))).until(50);
    // One follows the other in one update.
    let next = json!([done("first"), running("second", 50)]);
    cluster.sees(WatchType::Modified, &starting(&BOTH, next)).until(500);
    assert_eq!(stuck(&mut cluster), waits(&[110, 350]));
}

#[test]
fn the_second_init_container_is_looked_at_when_the_first_waited_for_nobody() {
    let inits = [("first", "$HOST"), ("second", "ledger")];
    let mut cluster = Cluster::new();
    cluster.added(&service("api", 80)).added(&starting(&inits, json!([running("first", 0)]))).until(100);
    let next = json!([done("first"), running("second", 100)]);
    cluster.sees(WatchType::Modified, &starting(&inits, next)).until(200);
    assert_eq!(stuck(&mut cluster), waits(&[160]));
}

#[test]
fn a_container_that_stays_beside_the_others_waits_for_nobody() {
    let mut cluster = Cluster::new();
    let mut pod = starting(&BOTH, json!([running("first", 0), running("second", 5)]));
    pod["spec"]["initContainers"][0]["command"] = json!(["nslookup", "nobody"]);
    pod["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
    pod["spec"]["initContainers"][1]["restartPolicy"] = json!("Always");
    cluster.added(&service("api", 80)).added(&pod).until(400);
    assert_eq!(stuck(&mut cluster), []);
    // The one after it is an init container all the same.
    pod["spec"]["initContainers"][1]["restartPolicy"] = Value::Null;
    pod["status"]["initContainerStatuses"][1] = running("second", 400);
    cluster.sees(WatchType::Modified, &pod).until(500);
    assert_eq!(stuck(&mut cluster), waits(&[460]));
}

#[test]
fn a_container_that_starts_anew_waits_in_one_line_of_times() {
    let one = [("first", "ledger")];
    let mut cluster = Cluster::new();
    cluster.added(&service("api", 80));
    for start in 0..10 {
        let mut state = running("first", start * 40);
        state["restartCount"] = json!(start);
        cluster.sees(WatchType::Modified, &starting(&one, json!([state]))).until(start * 40 + 40);
    }
    stuck(&mut cluster);
    cluster.until(1600);
    assert_eq!(stuck(&mut cluster).len(), 5, "once every four minutes");
}

#[test]
fn nothing_is_said_of_services_that_nobody_can_know_of() {
    let elsewhere = [("first", "ledger.bank.svc")];
    let mut cluster = Cluster::new();
    cluster.added(&service("api", 80)).added(&starting(&elsewhere, json!([running("first", 0)]))).until(290);
    assert_eq!(stuck(&mut cluster), [], "Services of the other namespace may not have been asked for");
    cluster.listed("Service", &[service("api", 80)]).until(310);
    assert_eq!(stuck(&mut cluster), waits(&[300]), "a list is of all namespaces");

    // The name of a pod behind a Service that is there, and one of no Service.
    for host in ["api-0.api.shop.svc.cluster.local", "api.svc"] {
        let mut cluster = Cluster::new();
        cluster.listed("Service", &[service("api", 80)]);
        cluster.added(&starting(&[("first", host)], json!([running("first", 0)]))).until(400);
        assert_eq!(stuck(&mut cluster), [], "{host}");
    }

    // What is behind a Service without a selector are no pods.
    let mut service = service("api", 80);
    service["spec"]["selector"] = Value::Null;
    let mut cluster = Cluster::new();
    cluster.added(&service).added(&slice(json!([{"addresses": ["192.0.2.1"]}])));
    cluster.added(&starting(&[("first", "api")], json!([running("first", 0)]))).until(400);
    assert_eq!(stuck(&mut cluster), []);
}

fn unscheduled(uid: &str, going: Option<u64>) -> Value {
    let mut pod = named("Pod", "api-1", json!({"spec": {}, "status": {"phase": "Pending"}}));
    pod["metadata"]["uid"] = json!(uid);
    if let Some(second) = going {
        pod["metadata"]["deletionTimestamp"] = json!(time(second));
    }
    pod
}

#[test]
fn a_deletion_has_its_time_whatever_else_was_waited_for() {
    let mut cluster = Cluster::new();
    cluster.added(&unscheduled("a", None)).until(30);
    cluster.sees(WatchType::Modified, &unscheduled("a", Some(60))).until(400);
    let told = stuck(&mut cluster);
    assert_eq!(told, [(120, "Terminating".to_owned()), (360, "Terminating".to_owned())]);
}

#[test]
fn the_pod_that_takes_a_name_over_has_a_time_of_its_own() {
    let mut cluster = Cluster::new();
    cluster.added(&unscheduled("a", None)).until(50);
    cluster.sees(WatchType::Deleted, &unscheduled("a", None)).added(&unscheduled("b", None)).until(120);
    assert_eq!(stuck(&mut cluster), [(110, "NotScheduled".to_owned())]);
    // Gates are no reason to wait; without them it is the scheduler's turn.
    let mut gated = unscheduled("c", None);
    gated["spec"]["schedulingGates"] = json!([{"name": "later"}]);
    cluster.sees(WatchType::Deleted, &unscheduled("b", None)).added(&gated).until(300);
    cluster.sees(WatchType::Modified, &unscheduled("c", None)).until(400);
    assert_eq!(stuck(&mut cluster), [(360, "NotScheduled".to_owned())]);
}

/// Two pods on a machine, one of them held by a budget.
fn placed_pods() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.added(&machine("n1", false)).added(&placed("kept", "n1")).added(&placed("left", "n1"));
    cluster
}

#[test]
fn a_machine_that_pods_left_before_it_was_cordoned_is_not_emptied() {
    let mut cluster = placed_pods();
    cluster.added(&budget()).sees(WatchType::Deleted, &placed("left", "n1")).until(30);
    cluster.sees(WatchType::Modified, &machine("n1", true)).until(150);
    assert_eq!(stuck(&mut cluster), []);
    // Nor by the end of what goes where it likes, or was done.
    let mut of_set = placed("logger", "n1");
    of_set["metadata"]["ownerReferences"] =
        json!([{"kind": "DaemonSet", "name": "logger", "controller": true}]);
    let mut finished = placed("task", "n1");
    finished["status"]["phase"] = json!("Succeeded");
    for pod in [of_set, finished] {
        cluster.added(&pod).sees(WatchType::Deleted, &pod);
    }
    assert_eq!(stuck(cluster.until(300)), []);
    // The last word of a pod is how it ended.
    let mut other = placed("other", "n1");
    cluster.added(&other);
    other["status"]["phase"] = json!("Failed");
    cluster.sees(WatchType::Deleted, &other).until(400);
    assert_eq!(stuck(&mut cluster).first(), Some(&(330, "DrainBlocked".to_owned())));
}

#[test]
fn a_machine_that_is_cordoned_anew_has_a_minute_of_its_own() {
    let mut cluster = placed_pods();
    cluster.added(&budget()).sees(WatchType::Modified, &machine("n1", true)).until(30);
    cluster.sees(WatchType::Modified, &machine("n1", false)).until(50);
    cluster.sees(WatchType::Modified, &machine("n1", true));
    cluster.sees(WatchType::Deleted, &placed("left", "n1")).until(150);
    assert_eq!(stuck(&mut cluster), [(110, "DrainBlocked".to_owned())]);
}

#[test]
fn a_budget_that_waits_for_the_next_pod_blocks_nothing() {
    let allowing = |count: u64| {
        let mut budget = budget();
        budget["status"]["disruptionsAllowed"] = json!(count);
        budget
    };
    let mut cluster = placed_pods();
    cluster.added(&allowing(1)).sees(WatchType::Modified, &machine("n1", true)).until(50);
    cluster.sees(WatchType::Modified, &allowing(0)).sees(WatchType::Deleted, &placed("left", "n1")).until(70);
    cluster.sees(WatchType::Modified, &allowing(1)).until(100);
    cluster.sees(WatchType::Modified, &allowing(0)).until(130);
    assert_eq!(stuck(&mut cluster), [], "the place of the last one is taken each time");
    assert_eq!(stuck(cluster.until(190)), [(180, "DrainBlocked".to_owned())]);
}

#[test]
fn nothing_is_made_of_what_is_known_in_part() {
    // A budget with expressions is for some of the pods that its labels name.
    let mut cluster = placed_pods();
    let mut narrow = budget();
    narrow["spec"]["selector"]["matchExpressions"] =
        json!([{"key": "tier", "operator": "In", "values": ["gold"]}]);
    cluster.added(&narrow).sees(WatchType::Modified, &machine("n1", true));
    cluster.sees(WatchType::Deleted, &placed("left", "n1"));
    assert_eq!(stuck(cluster.until(200)), []);
    // A Service with more ports than are kept.
    let mut wide = service("api", 80);
    let ports: Vec<Value> = (1000..1100).map(|port| json!({"port": port})).collect();
    wide["spec"]["ports"] = json!(ports);
    let backend = json!({"service": {"name": "api", "port": {"number": 1099}}});
    let mut cluster = Cluster::new();
    cluster.added(&wide).added(&named("Ingress", "front", json!({"spec": {"defaultBackend": backend}})));
    assert_eq!(stuck(cluster.until(200)), []);
}
