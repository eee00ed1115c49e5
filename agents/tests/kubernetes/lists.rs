//! What a list alone shows of what waits for what is not there.

use std::time::Duration;

use serde_json::{Value, json};
use tapio_agents::collectors::kubernetes::snapshot::resources::RESOURCES;
use tapio_agents::collectors::kubernetes::{Snapshot, Tracker, WatchType};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventKind;

use crate::fixtures::pod;
use crate::lasting::{after, data};

fn listed(objects: &[Value]) -> Vec<UnifiedEvent> {
    let mut snapshot = Snapshot::new(None);
    objects.iter().for_each(|object| snapshot.take(object).unwrap());
    snapshot.into_events("c", after(0))
}

/// What is stuck, why, and what it waits for.
fn stuck(events: &[UnifiedEvent]) -> Vec<(String, String, String)> {
    let stuck = events.iter().filter(|event| event.kind == EventKind::K8sStuck).map(data);
    stuck.map(|d| (d.object_name.to_string(), d.reason.to_string(), d.changed_by.to_string())).collect()
}

fn named(kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({"kind": kind, "metadata": {"name": name, "namespace": namespace, "uid": format!("{kind}-{name}"),
        "creationTimestamp": "2030-01-01T09:00:00Z"}});
    for (key, value) in rest.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

/// A pod whose init container has run for ten minutes.
fn waiting() -> Value {
    let mut pod = pod(1);
    pod["spec"]["initContainers"] =
        json!([{"name": "wait", "command": ["sh", "-c", "until nc -z db 5432; do sleep 1; done"]}]);
    pod["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}],
        "initContainerStatuses": [{"name": "wait", "state": {"running": {"startedAt": "2030-01-01T10:50:00Z"}}}]});
    pod
}

#[test]
fn an_init_container_that_waits_for_nobody_is_seen_in_a_list() {
    let expected = ("api-5f6585d649-x2x2x", "InitWaits", "shop/Service/db");
    let expected = vec![(expected.0.to_owned(), expected.1.to_owned(), expected.2.to_owned())];
    let other = named("Service", "shop", "other", json!({}));
    assert_eq!(stuck(&listed(&[waiting(), other])), expected);
    // As well when it is there, and nothing is behind it.
    let service = named("Service", "shop", "db", json!({"spec": {"selector": {"app": "db"}}}));
    let mut slice = named("EndpointSlice", "shop", "db-x", json!({"endpoints": []}));
    slice["metadata"]["ownerReferences"] = json!([{"kind": "Service", "name": "db", "controller": true}]);
    assert_eq!(stuck(&listed(&[waiting(), service.clone(), slice.clone()])), expected);
    slice["endpoints"] = json!([{"targetRef": {"kind": "Pod", "name": "db-0"}}]);
    assert_eq!(stuck(&listed(&[waiting(), service, slice])), []);
}

#[test]
fn a_route_whose_certificate_or_class_is_not_there_is_seen_in_a_list() {
    for kind in ["Secret", "IngressClass"] {
        assert!(RESOURCES.iter().any(|resource| resource.kind == kind), "{kind} is listed");
    }
    assert!(RESOURCES.iter().all(|resource| resource.kind != "Secret" || resource.metadata_only));
    let route = |spec: Value| named("Ingress", "shop", "front", json!({"spec": spec}));
    let secret = named("Secret", "shop", "other", json!({}));
    let class = named("IngressClass", "", "outer", json!({}));
    for (spec, reason, missing) in [
        (
            json!({"ingressClassName": "outer", "tls": [{"secretName": "cert"}]}),
            "TlsSecretAbsent",
            "shop/Secret/cert",
        ),
        (json!({"ingressClassName": "inner"}), "ClassAbsent", "/IngressClass/inner"),
    ] {
        let events = listed(&[route(spec), secret.clone(), class.clone()]);
        assert_eq!(stuck(&events), [("front".to_owned(), reason.to_owned(), missing.to_owned())]);
    }
}

fn policy() -> Value {
    named("NetworkPolicy", "shop", "deny", json!({"spec": {"podSelector": {}}}))
}

fn limited(events: &[UnifiedEvent]) -> Vec<String> {
    let of_policy = events.iter().filter(|e| e.kind == EventKind::K8sObjectAdded).map(data);
    let of_policy = of_policy.filter(|data| data.object_kind == "NetworkPolicy");
    of_policy.flat_map(|data| data.relations.iter().map(|r| format!("{} {}", r.edge, r.name))).collect()
}

#[test]
fn a_policy_is_for_pods_that_are_listed_or_come_after_it() {
    let expected = ["limits api-5f6585d649-x2x2x"];
    assert_eq!(limited(&listed(&[policy(), pod(1)])), expected);

    let mut tracker = Tracker::new("c", None);
    let mut see = |object: &Value| tracker.object(after(0), UnixNanos(0), WatchType::Added, object).unwrap();
    assert_eq!(limited(&see(&policy())), [] as [String; 0]);
    see(&pod(1));
    let interval = Duration::from_secs(300);
    let again: Vec<UnifiedEvent> =
        (0..=301).flat_map(|s| tracker.retell(after(s), Duration::from_secs(s), interval)).collect();
    assert_eq!(limited(&again), expected);
}

fn job(name: &str, created: &str, owner: Option<(&str, &str)>, condition: Value) -> Value {
    let mut job = named("Job", "shop", name, json!({"status": {"conditions": [condition]}}));
    job["metadata"]["creationTimestamp"] = json!(created);
    if let Some((kind, owner)) = owner {
        job["metadata"]["ownerReferences"] = json!([{"kind": kind, "name": owner, "controller": true}]);
    }
    job
}

#[test]
fn a_failed_job_is_history_once_its_next_run_has_begun() {
    let failed = |at: &str| json!({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": at});
    let complete = json!({"type": "Complete", "status": "True"});
    let (sync, train) = (Some(("CronJob", "sync")), Some(("JobSet", "train")));
    let jobs = [
        job("sync-1", "2030-01-01T07:00:00Z", sync, failed("2030-01-01T07:05:00Z")),
        job("sync-2", "2030-01-01T10:20:00Z", sync, failed("2030-01-01T10:25:00Z")),
        job("sync-3", "2030-01-01T10:50:00Z", sync, complete.clone()),
        job("train-0", "2030-01-01T07:00:00Z", train, failed("2030-01-01T07:05:00Z")),
        job("train-1", "2030-01-01T07:00:01Z", train, complete),
        job("once", "2030-01-01T07:00:00Z", None, failed("2030-01-01T07:05:00Z")),
    ];
    let events = listed(&jobs);
    let times = |name: &str| {
        let of_it =
            events.iter().filter(|e| e.kind == EventKind::K8sObjectChanged && data(e).object_name == name);
        of_it.map(|event| event.timestamp).collect::<Vec<_>>()
    };
    assert_eq!(times("sync-1"), [], "long ago");
    assert_eq!(times("sync-2"), [after(0).minus(2_100_000_000_000)], "when it was");
    for name in ["once", "train-0"] {
        let times = times(name);
        assert!(times.len() > 10 && times.contains(&after(0)), "nobody did better since {name}");
    }
}

#[test]
fn a_pod_that_the_scheduler_has_refused_for_long_is_not_one_that_it_passes_over() {
    let mut refused = pod(1);
    refused["spec"]["nodeName"] = json!("");
    refused["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/3 nodes are available", "lastTransitionTime": "2030-01-01T10:00:01Z"}]});
    let events = listed(&[refused.clone()]);
    assert!(events.iter().any(|event| event.kind == EventKind::K8sPodUnschedulable), "{events:?}");
    assert_eq!(stuck(&events), []);
    // One that it has not looked at is.
    refused["status"] = json!({"phase": "Pending"});
    assert_eq!(stuck(&listed(&[refused]))[0].1, "NotScheduled");
}

#[test]
fn a_pod_that_only_its_events_tell_of_was_not_passed_over() {
    let event = |uid: &str, minute: u64| {
        let at = format!("2030-01-01T10:{minute:02}:00Z");
        json!({"kind": "Event", "metadata": {"name": uid, "namespace": "shop", "uid": uid}, "reason": "BackOff",
            "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "api-5f6585d649-gone", "uid": "gone"},
            "type": "Warning", "message": "Back-off", "firstTimestamp": at, "lastTimestamp": at})
    };
    assert_eq!(stuck(&listed(&[pod(1), event("e1", 10), event("e2", 40)])), []);
}
