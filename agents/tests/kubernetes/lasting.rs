//! What goes on is told for as long as it does, and what waits is told once it waits in vain.

use serde_json::{Value, json};
use tapio_agents::collectors::kubernetes::{Tracker, WatchType};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::{KubernetesData, Payload};

use crate::fixtures::{killed_pod, node, pod};

/// Unix seconds of 2030-01-01T11:00:00Z.
const START_S: u64 = 1_893_495_600;

pub fn after(seconds: u64) -> UnixNanos {
    UnixNanos((START_S + seconds) * 1_000_000_000)
}

pub fn data(event: &UnifiedEvent) -> &KubernetesData {
    let Payload::Kubernetes(data) = &event.payload else { panic!("{event:?}") };
    data
}

/// A cluster that is looked at every ten seconds, with what was told when.
pub struct Cluster {
    pub tracker: Tracker,
    second: u64,
    told: Vec<(u64, EventKind, String)>,
}

impl Cluster {
    pub fn new() -> Self {
        Self { tracker: Tracker::new("c", None), second: 0, told: Vec::new() }
    }

    fn keep(&mut self, events: &[UnifiedEvent]) {
        let told = events.iter().map(|e| (self.second, e.kind, data(e).reason.to_string()));
        let plain = [EventKind::K8sObjectAdded, EventKind::K8sContainerStarted];
        self.told.extend(told.filter(|(_, kind, _)| !plain.contains(kind)));
    }

    pub fn sees(&mut self, word: WatchType, object: &Value) -> &mut Self {
        let events = self.tracker.object(after(self.second), UnixNanos(0), word, object).unwrap();
        self.keep(&events);
        self
    }

    pub fn added(&mut self, object: &Value) -> &mut Self {
        self.sees(WatchType::Added, object)
    }

    pub fn listed(&mut self, kind: &str, objects: &[Value]) -> &mut Self {
        self.tracker.list_begins(kind);
        objects.iter().for_each(|object| {
            self.added(object);
        });
        let events = self.tracker.list_ends(after(self.second), kind);
        self.keep(&events);
        self
    }

    /// Lets time pass.
    pub fn until(&mut self, second: u64) -> &mut Self {
        while self.second < second {
            self.second = (self.second + 10).min(second);
            let now = after(self.second);
            let events = [self.tracker.overdue(now), self.tracker.lasting(now)].concat();
            self.keep(&events);
        }
        self
    }

    /// What was told since the last question.
    pub fn told(&mut self) -> Vec<(u64, EventKind, String)> {
        std::mem::take(&mut self.told)
    }

    /// When something of this kind was told.
    fn times(&mut self, kind: EventKind) -> Vec<u64> {
        self.told().into_iter().filter(|(_, told, _)| *told == kind).map(|(at, ..)| at).collect()
    }
}

/// When what is told at `from` is told again until `to`.
fn every_four_minutes(from: u64, to: u64) -> Vec<u64> {
    (from..=to).step_by(240).collect()
}

#[test]
fn a_node_that_is_down_for_forty_minutes_is_told_as_down_all_the_time() {
    let mut cluster = Cluster::new();
    cluster.added(&node(1, "True", "KubeletReady")).until(60);
    assert_eq!(cluster.told(), []);
    cluster.sees(WatchType::Modified, &node(2, "Unknown", "NodeStatusUnknown")).until(2460);
    assert_eq!(cluster.times(EventKind::K8sNodeCondition), every_four_minutes(60, 2460));
    cluster.sees(WatchType::Modified, &node(3, "True", "KubeletReady"));
    assert_eq!(cluster.told().len(), 1, "it is back");
    assert_eq!(cluster.until(4000).told(), [], "what is well is left alone");
}

#[test]
fn a_pod_that_waits_or_is_not_ready_is_told_again_and_one_that_starts_is_not() {
    let mut cluster = Cluster::new();
    cluster.added(&pod(1)).sees(WatchType::Modified, &killed_pod(2)).told();
    cluster.until(960);
    let told = cluster.told();
    let again = [
        (EventKind::K8sContainerWaiting, "CrashLoopBackOff".to_owned()),
        (EventKind::K8sPodNotReady, "ContainersNotReady".to_owned()),
    ];
    let expected: Vec<_> = every_four_minutes(240, 960)
        .into_iter()
        .flat_map(|at| again.clone().map(|(kind, reason)| (at, kind, reason)))
        .collect();
    assert_eq!(told, expected);
    cluster.sees(WatchType::Deleted, &killed_pod(3)).told();
    assert_eq!(cluster.until(2000).told(), []);

    let mut starting = pod(1);
    starting["status"]["conditions"][0] = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady",
        "lastTransitionTime": "2030-01-01T10:00:01Z"});
    starting["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "ContainerCreating"}});
    assert_eq!(Cluster::new().added(&starting).until(2000).told(), []);

    let mut homeless = pod(1);
    homeless["spec"]["nodeName"] = json!("");
    homeless["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "lastTransitionTime": "2030-01-01T10:00:01Z"}]});
    let mut cluster = Cluster::new();
    cluster.added(&homeless).until(500);
    assert_eq!(cluster.times(EventKind::K8sPodUnschedulable), [0, 240, 480]);
}

pub fn service(selector: &str, port: u64) -> Value {
    json!({"kind": "Service", "metadata": {"name": "api", "namespace": "shop", "uid": "s"},
        "spec": {"selector": {"app": selector}, "ports": [{"port": port}]}})
}

pub fn slice(endpoints: Value) -> Value {
    json!({"kind": "EndpointSlice", "metadata": {"name": "api-x", "namespace": "shop", "uid": "e",
        "ownerReferences": [{"kind": "Service", "name": "api", "controller": true}]}, "endpoints": endpoints})
}

pub fn behind() -> Value {
    json!([{"targetRef": {"kind": "Pod", "name": "api-5f6585d649-x2x2x"}}])
}

#[test]
fn a_service_with_nothing_behind_it_is_told_in_the_same_words_until_something_is() {
    let mut cluster = Cluster::new();
    cluster.added(&pod(1)).added(&service("api", 80)).added(&slice(behind()));
    cluster.sees(WatchType::Modified, &service("other", 80)).told();
    cluster.sees(WatchType::Modified, &slice(json!([])));
    // The pod that was behind it goes as well: that is not why.
    cluster.until(300).sees(WatchType::Deleted, &pod(2)).until(2400);
    let told = cluster.told();
    let lost: Vec<_> = told.iter().filter(|(_, kind, _)| *kind == EventKind::K8sNoEndpoints).collect();
    assert_eq!(lost.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), every_four_minutes(0, 2400));
    assert!(lost.iter().all(|(_, _, reason)| *reason == lost[0].2), "{lost:?}");
    cluster.sees(WatchType::Modified, &slice(behind()));
    assert_eq!(cluster.told().last().unwrap(), &(2400, EventKind::K8sEndpoints, String::new()));
    assert_eq!(cluster.until(4000).told(), []);
}

pub fn named(kind: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({"kind": kind, "metadata": {"name": name, "namespace": "shop", "uid": format!("{kind}-{name}")}});
    if kind == "Node" {
        object["metadata"]["namespace"] = Value::Null;
    }
    for (key, value) in rest.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

pub fn ingress(name: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 80}}});
    named("Ingress", name, json!({"spec": {"defaultBackend": backend}}))
}

#[test]
fn a_route_to_nowhere_is_told_until_its_service_is_there() {
    let mut cluster = Cluster::new();
    cluster
        .added(&named("Service", "other", json!({"spec": {}})))
        .added(&ingress("front", "api"))
        .until(1000);
    let stuck: Vec<_> = cluster.told();
    assert_eq!(stuck.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), every_four_minutes(10, 1000));
    assert!(
        stuck.iter().all(|(_, kind, why)| (*kind, why.as_str()) == (EventKind::K8sStuck, "BackendAbsent"))
    );
    cluster.added(&service("api", 80)).until(1010);
    assert_eq!(cluster.told().last().unwrap(), &(1010, EventKind::K8sUnstuck, String::new()));
    cluster.sees(WatchType::Modified, &service("api", 8080)).until(1020);
    assert_eq!(cluster.told().last().unwrap().2, "PortAbsent");
}

#[test]
fn what_a_list_has_not_shown_yet_is_not_absent() {
    let mut cluster = Cluster::new();
    cluster.added(&ingress("front", "api"));
    cluster.tracker.list_begins("Service");
    cluster.added(&named("Service", "other", json!({"spec": {}}))).until(60);
    assert_eq!(cluster.told(), []);
    cluster.added(&service("api", 80));
    let events = cluster.tracker.list_ends(after(60), "Service");
    assert!(events.is_empty());
    assert_eq!(cluster.until(300).told(), []);

    // A list that may not be read says nothing of what is there, now or later.
    let mut blind = Cluster::new();
    blind.added(&ingress("front", "api"));
    blind.tracker.list_begins("Service");
    blind.added(&named("Service", "other", json!({"spec": {}})));
    blind.tracker.list_breaks("Service");
    assert_eq!(blind.until(300).told(), []);
    blind.listed("Service", &[named("Service", "other", json!({"spec": {}}))]).until(310);
    assert_eq!(blind.told().last().unwrap().2, "BackendAbsent");
}

#[test]
fn many_routes_and_many_services_leave_nothing_out() {
    let mut cluster = Cluster::new();
    (0..300).for_each(|n| {
        cluster.added(&ingress(&format!("route-{n}"), &format!("service-{n}")));
    });
    let services = |but: usize| -> Vec<Value> {
        (0..300)
            .filter(|n| *n != but)
            .map(|n| named("Service", &format!("service-{n}"), json!({"spec": {}})))
            .collect()
    };
    cluster.listed("Service", &services(300)).until(60);
    cluster.listed("Service", &services(300)).until(120);
    assert_eq!((cluster.told(), cluster.tracker.dropped()), (Vec::new(), 0));
    cluster.listed("Service", &services(7)).until(130);
    let told = cluster.told();
    let kinds: Vec<_> = told.iter().map(|(_, kind, why)| (*kind, why.as_str())).collect();
    assert_eq!(
        kinds,
        [
            (EventKind::K8sObjectDeleted, ""),
            (EventKind::K8sSpecChanged, "deleted"),
            (EventKind::K8sStuck, "BackendAbsent")
        ]
    );
}

pub fn machine(name: &str, is_cordoned: bool) -> Value {
    named("Node", name, json!({"spec": {"unschedulable": is_cordoned}}))
}

pub fn placed(name: &str, node: &str) -> Value {
    let mut pod = named("Pod", name, json!({"spec": {"nodeName": node}, "status": {"phase": "Running"}}));
    pod["metadata"]["labels"] = json!({"app": "api"});
    pod
}

pub fn budget() -> Value {
    named(
        "PodDisruptionBudget",
        "api",
        json!({"spec": {"selector": {"matchLabels": {"app": "api"}}}, "status": {"disruptionsAllowed": 0}}),
    )
}

/// A machine that is emptied while a budget holds a pod on it.
fn drained(node: &str) -> Cluster {
    let mut cluster = Cluster::new();
    for name in ["n1", "n2"] {
        cluster.added(&machine(name, false)).added(&placed(&format!("kept-{name}"), name));
        cluster.added(&placed(&format!("left-{name}"), name));
    }
    cluster.added(&budget());
    drain(&mut cluster, node);
    cluster
}

fn drain(cluster: &mut Cluster, node: &str) {
    cluster.sees(WatchType::Modified, &machine(node, true));
    cluster.sees(WatchType::Deleted, &placed(&format!("left-{node}"), node)).told();
    let at = cluster.second;
    cluster.until(at + 60);
    assert_eq!(cluster.told(), [(at + 60, EventKind::K8sStuck, "DrainBlocked".to_owned())]);
}

#[test]
fn a_budget_is_free_of_a_machine_that_is_gone() {
    let mut cluster = drained("n1");
    cluster.sees(WatchType::Deleted, &machine("n1", true)).told();
    cluster.until(70);
    assert_eq!(cluster.told(), [(70, EventKind::K8sUnstuck, String::new())]);
    drain(&mut cluster, "n2");
}

#[test]
fn a_budget_that_is_made_anew_is_another_one() {
    let mut cluster = drained("n1");
    cluster.sees(WatchType::Deleted, &budget()).told();
    cluster.until(200);
    assert_eq!(cluster.told(), []);
    let mut next = budget();
    next["metadata"]["uid"] = json!("another");
    // A new one allows nothing until somebody has counted its pods.
    cluster.added(&next).until(290);
    assert_eq!(cluster.told(), []);
    cluster.until(300);
    assert_eq!(cluster.told(), [(300, EventKind::K8sStuck, "DrainBlocked".to_owned())]);
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": "2030-01-01T11:00:00Z"})
}

fn with_conditions(kind: &str, name: &str, conditions: &[Value]) -> Value {
    named(kind, name, json!({"status": {"conditions": conditions}}))
}

#[test]
fn the_end_of_a_job_is_told_once_however_long_it_is_kept() {
    let failed = with_conditions("Job", "nightly-1", &[condition("Failed", "True", "BackoffLimitExceeded")]);
    let mut cluster = Cluster::new();
    cluster.added(&with_conditions("Job", "nightly-1", &[])).until(10);
    cluster.sees(WatchType::Modified, &failed).until(2000);
    assert_eq!(cluster.told(), [(10, EventKind::K8sObjectChanged, "BackoffLimitExceeded".to_owned())]);
    // Who begins to listen later hears of it only when it is news.
    let told = |news_after: u64| {
        let events = Cluster::new().tracker.object(after(60), after(news_after), WatchType::Added, &failed);
        let changed = events.unwrap().into_iter().find(|event| event.kind == EventKind::K8sObjectChanged);
        changed.map(|event| event.timestamp)
    };
    assert_eq!((told(30), told(0)), (None, Some(after(0))));
}

#[test]
fn what_somebody_wants_is_not_wrong() {
    let mut cluster = Cluster::new();
    let scaler = |reason: &str| {
        let conditions = [
            condition("AbleToScale", "True", "ReadyForNewScale"),
            condition("ScalingActive", "False", reason),
        ];
        with_conditions("HorizontalPodAutoscaler", "api", &conditions)
    };
    cluster.added(&scaler("ScalingDisabled")).until(500);
    let paused =
        [condition("Available", "True", "X"), condition("Progressing", "Unknown", "DeploymentPaused")];
    cluster.added(&with_conditions("Deployment", "api", &paused)).until(1000);
    assert_eq!(cluster.told(), []);
    cluster.sees(WatchType::Modified, &scaler("FailedGetResourceMetric")).until(1300);
    assert_eq!(cluster.times(EventKind::K8sObjectChanged), [1000, 1240]);
}

#[test]
fn a_route_with_two_gateways_is_as_well_as_the_worse_of_them() {
    let parent = |refs: &str| {
        let conditions =
            [condition("Accepted", "True", "Accepted"), condition("ResolvedRefs", refs, "BackendNotFound")];
        json!({"conditions": conditions})
    };
    let route = |first: &str, second: &str| {
        named("HTTPRoute", "front", json!({"status": {"parents": [parent(first), parent(second)]}}))
    };
    for order in [("True", "False"), ("False", "True")] {
        let mut cluster = Cluster::new();
        cluster.added(&route("True", "True")).sees(WatchType::Modified, &route(order.0, order.1)).until(100);
        for _ in 0..3 {
            cluster.sees(WatchType::Modified, &route(order.0, order.1));
        }
        assert_eq!(cluster.times(EventKind::K8sObjectChanged), [0], "{order:?}");
        assert_eq!(cluster.until(250).times(EventKind::K8sObjectChanged), [240], "it goes on");
        cluster.sees(WatchType::Modified, &route("True", "True")).until(900);
        assert_eq!(cluster.times(EventKind::K8sObjectChanged), [250], "it is well");
    }
}
