//! What is told of Services that lose their pods, and of what nobody does.

use super::*;
use crate::collectors::kubernetes::tracker::Tracker;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tapio_schemas::payload::Payload;

const START: UnixNanos = UnixNanos(1_900_000_000_000_000_000);

fn after(seconds: u64) -> UnixNanos {
    START.plus(seconds * 1_000_000_000)
}

/// (kind, reason) of what is told, but for what is told of every object.
fn told(tracker: &mut Tracker, at: u64, object: &Value) -> Vec<(EventKind, String)> {
    let events = tracker.object(after(at), UnixNanos(0), WatchType::Modified, object).unwrap();
    let facts = events.into_iter().filter_map(|event| match event.payload {
        Payload::Kubernetes(data) if event.kind != EventKind::K8sObjectAdded => {
            Some((event.kind, data.reason.to_string()))
        }
        _ => None,
    });
    facts.filter(|(kind, _)| *kind != EventKind::K8sObjectChanged).collect()
}

fn pod(labels: Value, conditions: Value) -> Value {
    json!({"kind": "Pod", "metadata": {"name": "api-1", "namespace": "shop", "uid": "p", "labels": labels,
        "ownerReferences": [{"kind": "StatefulSet", "name": "api", "controller": true}]},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "conditions": conditions}})
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}])
}

fn service(selector: &str) -> Value {
    json!({"kind": "Service", "metadata": {"name": "api", "namespace": "shop", "uid": "s"},
        "spec": {"selector": {"app": selector}}})
}

fn slice(endpoints: Value) -> Value {
    json!({"kind": "EndpointSlice", "metadata": {"name": "api-x", "namespace": "shop", "uid": "e",
        "ownerReferences": [{"kind": "Service", "name": "api", "controller": true}]}, "endpoints": endpoints})
}

fn served() -> Tracker {
    let mut tracker = Tracker::new("c", None);
    told(&mut tracker, 0, &pod(json!({"app": "api"}), ready()));
    told(&mut tracker, 0, &service("api"));
    told(&mut tracker, 0, &slice(json!([{"targetRef": {"kind": "Pod", "name": "api-1"}}])));
    tracker
}

#[test]
fn a_selector_that_fits_no_pod_is_told_once_and_its_end_as_well() {
    let mut tracker = served();
    let changed = told(&mut tracker, 1, &service("other"));
    assert_eq!(changed, [(EventKind::K8sSpecChanged, "selector".to_owned())]);
    let lost = told(&mut tracker, 2, &slice(json!(null)));
    assert_eq!(lost, [(EventKind::K8sNoEndpoints, "SelectorMatchesNoPod".to_owned())]);
    assert_eq!(told(&mut tracker, 3, &slice(json!([]))), []);
    told(&mut tracker, 4, &service("api"));
    let back = told(&mut tracker, 5, &slice(json!([{"targetRef": {"kind": "Pod", "name": "api-1"}}])));
    assert_eq!(back, [(EventKind::K8sEndpoints, String::new())]);
}

#[test]
fn a_selector_that_is_heard_of_after_what_it_did_is_told_all_the_same() {
    let mut tracker = served();
    let lost = told(&mut tracker, 1, &slice(json!([])));
    assert_eq!(lost, [(EventKind::K8sNoEndpoints, "NoPods".to_owned())]);
    let why = told(&mut tracker, 2, &service("other"));
    let is_told = (EventKind::K8sNoEndpoints, "SelectorMatchesNoPod".to_owned());
    assert!(why.contains(&is_told), "{why:?}");
    assert!(!told(&mut tracker, 3, &service("another")).contains(&is_told), "once");
}

#[test]
fn pods_that_are_not_ready_are_no_fault_of_the_selector() {
    let mut tracker = served();
    let unready = json!([{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]);
    told(&mut tracker, 1, &pod(json!({"app": "api"}), unready));
    let lost = told(&mut tracker, 2, &slice(json!([])));
    assert_eq!(lost, [(EventKind::K8sNoEndpoints, "NoPods".to_owned())]);
}

/// Reasons that are told again when it is time to.
fn told_again(tracker: &mut Tracker, at: u64) -> Vec<String> {
    let events = tracker.lasting(after(at)).into_iter();
    let reason = |event: UnifiedEvent| match event.payload {
        Payload::Kubernetes(data) => Some(data.reason.to_string()),
        _ => None,
    };
    events.filter(|event| event.kind == EventKind::K8sNoEndpoints).filter_map(reason).collect()
}

#[test]
fn pods_with_other_labels_are_why_whether_they_are_heard_of_before_the_slice_or_after() {
    let is_lost = |reason: &str| (EventKind::K8sNoEndpoints, reason.to_owned());
    let (relabelled, empty) = (pod(json!({"app": "old"}), ready()), slice(json!([])));
    for orders in [[&relabelled, &empty], [&empty, &relabelled]] {
        let mut tracker = served();
        let heard = [told(&mut tracker, 1, orders[0]), told(&mut tracker, 2, orders[1])].concat();
        assert_eq!(heard.last(), Some(&is_lost("SelectorMatchesNoPod")), "{heard:?}");
        assert_eq!(told_again(&mut tracker, 300), ["SelectorMatchesNoPod"]);
        // Selected again, and still not among the endpoints: whatever it is, the selector is not why any more.
        assert!(!told(&mut tracker, 301, &pod(json!({"app": "api"}), ready())).contains(&is_lost("NoPods")));
        assert_eq!(told_again(&mut tracker, 600), ["NoPods"]);
    }
}

#[test]
fn why_nothing_is_behind_a_service_is_what_its_pods_show_when_it_is_told_again() {
    let mut tracker = served();
    let unready = |labels: Value| pod(labels, json!([{"type": "Ready", "status": "False"}]));
    told(&mut tracker, 1, &unready(json!({"app": "api"})));
    let lost = told(&mut tracker, 2, &slice(json!([])));
    assert_eq!(lost, [(EventKind::K8sNoEndpoints, "NoPods".to_owned())]);
    // Ready only after its labels have changed.
    told(&mut tracker, 3, &unready(json!({"app": "old"})));
    told(&mut tracker, 4, &pod(json!({"app": "old"}), ready()));
    assert_eq!(told_again(&mut tracker, 300), ["SelectorMatchesNoPod"]);
    told(&mut tracker, 301, &unready(json!({"app": "old"})));
    assert_eq!(told_again(&mut tracker, 600), ["SelectorMatchesNoPod"], "that it goes as well is not why");
}

#[test]
fn whose_pods_were_behind_a_service_is_told_again_when_they_are_gone() {
    let mut tracker = served();
    let told = |events: Vec<UnifiedEvent>| -> Vec<Value> {
        let lost = events.into_iter().filter(|event| event.kind == EventKind::K8sNoEndpoints);
        lost.map(|event| match event.payload {
            Payload::Kubernetes(data) => {
                json!(
                    data.relations.iter().map(|to| (to.kind.as_str(), to.name.as_str())).collect::<Vec<_>>()
                )
            }
            other => panic!("{other:?}"),
        })
        .collect()
    };
    let hear = |tracker: &mut Tracker, at, kind, object: &Value| {
        told(tracker.object(after(at), UnixNanos(0), kind, object).unwrap())
    };
    let lost = hear(&mut tracker, 1, WatchType::Modified, &slice(json!([])));
    assert_eq!(lost, [json!([["StatefulSet", "api"]])]);
    hear(&mut tracker, 2, WatchType::Deleted, &pod(json!({"app": "api"}), ready()));
    assert_eq!(told(tracker.lasting(after(300))), lost);
}

#[test]
fn services_that_come_and_go_leave_nothing_behind() {
    let objects = Stock::default();
    let mut consequences = Consequences::default();
    let named = |mut object: Value, n: usize| {
        object["metadata"]["name"] = json!(format!("api-{n}"));
        if let Some(owner) = object["metadata"].get_mut("ownerReferences") {
            owner[0]["name"] = json!(format!("api-{n}"));
        }
        Summary::of(&object).unwrap()
    };
    for n in 0..100 {
        let all =
            [named(service("api"), n), named(slice(json!([{"targetRef": {"kind": "Pod", "name": "p"}}])), n)];
        for word in [WatchType::Added, WatchType::Deleted] {
            all.iter().for_each(|object| consequences.note(after(1), word, object, None, &objects));
        }
    }
    assert_eq!(consequences.served.len(), 0);
}

#[test]
fn what_nobody_does_is_told_when_it_should_be_done() {
    let mut tracker = Tracker::new("c", None);
    let waiting =
        json!({"kind": "Pod", "metadata": {"name": "new", "namespace": "shop", "uid": "n"}, "spec": {}});
    told(&mut tracker, 0, &waiting);
    let gated = json!({"kind": "Pod", "metadata": {"name": "gated", "namespace": "shop", "uid": "g"},
        "spec": {"schedulingGates": [{"name": "later"}]}});
    told(&mut tracker, 0, &gated);
    let going = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "shop",
        "uid": "d", "finalizers": ["a/b"], "deletionTimestamp": "2030-03-17T17:46:40Z"}});
    told(&mut tracker, 0, &going);
    assert!(tracker.overdue(after(59)).is_empty());
    let events = tracker.overdue(after(60));
    let reasons: BTreeSet<String> = events
        .iter()
        .filter_map(|e| match &e.payload {
            Payload::Kubernetes(data) => Some(format!("{} {}", data.object_name, data.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), ["data Terminating", "new NotScheduled"]);
    assert!(tracker.overdue(after(299)).is_empty());
    assert_eq!(tracker.overdue(after(300)).len(), 2, "who does not hear of it again takes it to be over");
}

#[test]
fn a_policy_names_the_pods_it_is_for() {
    let mut tracker = served();
    let policy = json!({"kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": "shop", "uid": "np",
        "creationTimestamp": "2030-03-17T17:46:40Z"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    let events = tracker.object(after(1), UnixNanos(0), WatchType::Added, &policy).unwrap();
    let added = events.iter().find(|e| e.kind == EventKind::K8sObjectAdded).unwrap();
    let Payload::Kubernetes(data) = &added.payload else { panic!("{added:?}") };
    assert_eq!((data.relations[0].edge.as_str(), data.relations[0].name.as_str()), ("limits", "api-1"));
    assert!(events.iter().any(|e| e.kind == EventKind::K8sSpecChanged));
}
