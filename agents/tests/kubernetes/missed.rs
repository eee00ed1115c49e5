//! What went unseen while nobody was told: a full list shows it.

use serde_json::json;
use tapio_agents::attribution::PodLookup;
use tapio_agents::collectors::kubernetes::{PodIndex, Tracker, WatchType};
use tapio_runtime::clock::ManualClock;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventKind;

use crate::fixtures::{UID, pod};
use crate::lasting::{Cluster, after, behind, data, slice};

#[test]
fn a_slice_that_a_list_no_longer_has_serves_nobody() {
    let mut cluster = Cluster::new();
    let service = json!({"kind": "Service", "metadata": {"name": "api", "namespace": "shop", "uid": "s"},
        "spec": {"selector": {"app": "api"}}});
    cluster.added(&pod(1)).added(&service).listed("EndpointSlice", &[slice(behind())]).told();
    let told = cluster.listed("EndpointSlice", &[]).told();
    let told: Vec<_> = told.iter().map(|(_, kind, why)| (*kind, why.as_str())).collect();
    assert_eq!(
        told,
        [(EventKind::K8sObjectDeleted, ""), (EventKind::K8sNoEndpoints, "SelectorMatchesNoPod")]
    );
}

#[test]
fn a_new_object_of_an_old_name_ends_the_old_one() {
    let clock = ManualClock::new(0);
    let index = PodIndex::new(clock.shared());
    let mut tracker = Tracker::new("c", Some(index.clone()));
    tracker.object(after(0), UnixNanos(0), WatchType::Added, &pod(1)).unwrap();
    let mut next = pod(2);
    next["metadata"]["uid"] = json!("next");
    next["status"]["containerStatuses"][0]["containerID"] = json!("containerd://c2");
    tracker.list_begins("Pod");
    let mut events = tracker.object(after(10), UnixNanos(0), WatchType::Added, &next).unwrap();
    events.extend(tracker.list_ends(after(10), "Pod"));
    let ends: Vec<_> = events.iter().filter(|e| e.kind == EventKind::K8sObjectDeleted).collect();
    assert_eq!(ends.iter().map(|e| data(e).uid.as_str()).collect::<Vec<_>>(), [UID]);
    let added = events.iter().find(|e| e.kind == EventKind::K8sObjectAdded).unwrap();
    assert!(ends[0].timestamp < added.timestamp && data(added).uid == "next");
    clock.advance(std::time::Duration::from_secs(3600));
    assert_eq!((index.find("c1", UID), index.find("c2", "").unwrap().pod_uid.as_str()), (None, "next"));
}

#[test]
fn what_a_list_no_longer_has_does_not_come_back_but_with_a_list() {
    let state = |version: &str, phase: &str| {
        let mut pod = pod(1);
        pod["metadata"]["resourceVersion"] = json!(version);
        pod["status"]["phase"] = json!(phase);
        pod
    };
    let mut cluster = Cluster::new();
    cluster.added(&state("100", "Running")).listed("Pod", &[]);
    assert_eq!(cluster.told().last().unwrap().1, EventKind::K8sObjectDeleted);
    cluster.sees(WatchType::Modified, &state("90", "Running"));
    assert_eq!((cluster.tracker.len(), cluster.tracker.outdated()), (0, 1));
    // A cluster that was restored tells of its past anew.
    cluster.listed("Pod", &[state("50", "Running")]).told();
    cluster.sees(WatchType::Modified, &state("60", "Failed"));
    assert_eq!((cluster.tracker.len(), cluster.tracker.outdated()), (1, 1));
    cluster.sees(WatchType::Deleted, &state("70", "Failed"));
    assert_eq!(cluster.told().last().unwrap().1, EventKind::K8sObjectDeleted);
}

#[test]
fn the_first_list_ends_the_pods_that_only_an_earlier_watch_knew() {
    let clock = ManualClock::new(0);
    let index = PodIndex::new(clock.shared());
    let mut before = Tracker::new("c", Some(index.clone()));
    before.object(after(0), UnixNanos(0), WatchType::Added, &pod(1)).unwrap();
    let mut now = Tracker::new("c", Some(index.clone()));
    let mut next = pod(2);
    next["metadata"]["uid"] = json!("next");
    next["status"]["containerStatuses"][0]["containerID"] = json!("containerd://c2");
    now.list_begins("Pod");
    now.object(after(10), UnixNanos(0), WatchType::Added, &next).unwrap();
    now.list_ends(after(10), "Pod");
    clock.advance(std::time::Duration::from_secs(3600));
    assert_eq!(index.find("c1", UID), None);
    assert!(index.find("c2", "").is_some());
}
