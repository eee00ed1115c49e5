//! What each change of an object says.

use serde_json::{Value, json};
use tapio_agents::attribution::PodLookup;
use tapio_agents::collectors::kubernetes::{PodIndex, Tracker, WatchType};
use tapio_runtime::clock::ManualClock;
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::{KubernetesData, Payload};

use crate::fixtures::{UID, deployment, event, killed_pod, node, pod, replica_set};

fn at(text: &str) -> UnixNanos {
    format!("2030-01-01T{text}Z").parse().unwrap()
}

const NOW: &str = "11:00:00.25";

struct Cluster(Tracker);

impl Cluster {
    fn new() -> Self {
        Self(Tracker::new("c", None))
    }

    fn sees(&mut self, watch_type: WatchType, object: &Value) -> Vec<UnifiedEvent> {
        self.0.object(at(NOW), UnixNanos(0), watch_type, object).unwrap()
    }

    fn after(objects: &[Value]) -> Self {
        let mut cluster = Self::new();
        for object in objects {
            cluster.sees(WatchType::Added, object);
        }
        cluster
    }
}

fn data(event: &UnifiedEvent) -> &KubernetesData {
    let Payload::Kubernetes(data) = &event.payload else { panic!("{event:?}") };
    data
}

fn kinds_of(events: &[UnifiedEvent]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

#[test]
fn a_new_pod_tells_what_it_runs_on_and_needs_and_whose_it_is() {
    let events = Cluster::new().sees(WatchType::Added, &pod(1));
    assert_eq!(kinds_of(&events), [EventKind::K8sContainerStarted, EventKind::K8sObjectAdded]);
    let added = &events[1];
    let relations: Vec<_> =
        data(added).relations.iter().map(|r| (r.edge.as_str(), r.kind.as_str(), r.name.as_str())).collect();
    let expected = [
        ("mounts", "ConfigMap", "settings"),
        ("mounts", "PersistentVolumeClaim", "data"),
        ("mounts", "Secret", "keys"),
        ("runs_on", "Node", "n1"),
    ];
    assert_eq!(relations, expected);
    let entity = &added.entity;
    assert_eq!((entity.workload_kind.as_str(), entity.workload.as_str()), (kinds::DEPLOYMENT, "api"));
    assert_eq!((entity.pod_uid.as_str(), entity.node.as_str(), entity.cluster.as_str()), (UID, "n1", "c"));
    assert_eq!(added.timestamp, at(NOW));
    assert_eq!(events[0].entity.container_id, "c1");
    assert_eq!(events[0].timestamp, at("10:00:03"));
}

#[test]
fn an_out_of_memory_kill_is_told_once_with_its_time_and_code() {
    let mut cluster = Cluster::after(&[pod(1)]);
    let events = cluster.sees(WatchType::Modified, &killed_pod(2));
    let expected =
        [EventKind::K8sContainerTerminated, EventKind::K8sPodNotReady, EventKind::K8sContainerWaiting];
    assert_eq!(kinds_of(&events), expected);
    let end = &events[0];
    assert_eq!((end.timestamp, end.severity), (at("10:30:00"), EventSeverity::Critical));
    assert_eq!((data(end).reason.as_str(), data(end).exit_code, data(end).signal), ("OOMKilled", 137, 9));
    assert_eq!((end.entity.container.as_str(), end.entity.container_id.as_str()), ("app", "c1"));
    assert_eq!(end.entity.lineage, events[1].entity.lineage);
    assert_eq!(data(&events[2]).reason, "CrashLoopBackOff");
    // The same again (a relist), then a restart that shows the same end as the last state.
    assert!(cluster.sees(WatchType::Added, &killed_pod(2)).is_empty());
    let mut restarted = killed_pod(3);
    restarted["status"]["containerStatuses"][0]["containerID"] = json!("containerd://c2");
    restarted["status"]["containerStatuses"][0]["restartCount"] = json!(1);
    restarted["status"]["containerStatuses"][0]["state"] =
        json!({"running": {"startedAt": "2030-01-01T10:30:10Z"}});
    assert_eq!(kinds_of(&cluster.sees(WatchType::Modified, &restarted)), [EventKind::K8sContainerStarted]);
    // An agent that was started anew sees the end with the same id.
    let again = Cluster::new().sees(WatchType::Added, &killed_pod(2));
    let same = again.iter().find(|e| e.kind == EventKind::K8sContainerTerminated).unwrap();
    assert_eq!(same.id, end.id);
}

#[test]
fn old_ends_are_not_news_to_a_new_agent() {
    let mut tracker = Tracker::new("c", None);
    let events = tracker.object(at(NOW), at("10:50:00"), WatchType::Added, &killed_pod(1)).unwrap();
    // What is wrong now is told all the same.
    assert_eq!(kinds_of(&events), [EventKind::K8sObjectAdded, EventKind::K8sContainerWaiting]);
    assert_eq!(tracker.event(at(NOW), at("10:50:00"), &event(1, 1)).unwrap(), None);
}

#[test]
fn an_image_change_names_both_images_and_who_did_it() {
    let mut cluster = Cluster::after(&[deployment(1, 1, "shop/api:1", 2)]);
    let events = cluster.sees(WatchType::Modified, &deployment(2, 2, "shop/api:2", 2));
    assert_eq!(kinds_of(&events), [EventKind::K8sImageChanged, EventKind::K8sRollout]);
    let change = data(&events[0]);
    assert_eq!((change.old_value.as_str(), change.new_value.as_str()), ("shop/api:1", "shop/api:2"));
    assert_eq!((change.changed_by.as_str(), change.generation), ("helm", 2));
    assert_eq!(events[0].timestamp, at(NOW), "nobody says when");
    let scaled = cluster.sees(WatchType::Modified, &deployment(3, 3, "shop/api:2", 5));
    assert_eq!(kinds_of(&scaled), [EventKind::K8sScaled]);
    assert_eq!((data(&scaled[0]).old_value.as_str(), data(&scaled[0]).new_value.as_str()), ("2", "5"));
    // A change of the status alone says nothing.
    assert!(cluster.sees(WatchType::Modified, &deployment(4, 3, "shop/api:2", 5)).is_empty());
    let lineage = events[0].entity.lineage;
    assert_eq!(
        cluster.sees(WatchType::Added, &pod(1))[0].entity.lineage,
        lineage,
        "pods meet their Deployment"
    );
    assert_eq!(cluster.sees(WatchType::Added, &replica_set(1))[0].entity.lineage, lineage);
}

#[test]
fn a_change_is_told_with_the_time_of_its_manager() {
    let mut cluster = Cluster::after(&[deployment(1, 1, "shop/api:1", 2)]);
    let mut changed = deployment(2, 2, "shop/api:2", 2);
    let fields = changed["metadata"]["managedFields"].as_array_mut().unwrap();
    fields.push(json!({"manager": "kubectl-edit", "operation": "Update", "time": "2030-01-01T10:59:58Z"}));
    let events = cluster.sees(WatchType::Modified, &changed);
    assert_eq!(kinds_of(&events), [EventKind::K8sImageChanged, EventKind::K8sRollout]);
    assert_eq!((events[0].timestamp, data(&events[0]).changed_by.as_str()), (at("10:59:58"), "kubectl-edit"));
    // A change of somebody who says no time is of now, not of the change before.
    changed["spec"]["replicas"] = json!(7);
    let scaled = cluster.sees(WatchType::Modified, &changed);
    assert_eq!((scaled[0].kind, scaled[0].timestamp), (EventKind::K8sScaled, at(NOW)));
}

#[test]
fn configuration_is_compared_by_key_and_values_stay_secret() {
    let secret = |data: Value| json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "keys", "namespace": "shop", "uid": "s"}, "data": data});
    let mut cluster = Cluster::after(&[secret(json!({"a": "b25l", "b": "dHdv", "c": "Mw=="}))]);
    let events = cluster.sees(WatchType::Modified, &secret(json!({"a": "b25l", "b": "MjI=", "d": "NA=="})));
    assert_eq!(kinds_of(&events), [EventKind::K8sConfigChanged; 3]);
    let keys: Vec<_> = events.iter().map(|e| data(e).reason.as_str()).collect();
    assert_eq!(keys, ["b", "c", "d"]);
    assert_eq!((data(&events[0]).old_value.len(), data(&events[1]).new_value.as_str()), (16, ""));
    assert!(!format!("{events:?}").contains("MjI="), "hashes only");
}

#[test]
fn nodes_pods_that_find_no_place_and_evictions() {
    let mut cluster = Cluster::after(&[node(1, "True", "KubeletReady")]);
    let lost = cluster.sees(WatchType::Modified, &node(2, "Unknown", "NodeStatusUnknown"));
    assert_eq!(kinds_of(&lost), [EventKind::K8sNodeCondition]);
    assert_eq!((data(&lost[0]).new_value.as_str(), lost[0].severity), ("Unknown", EventSeverity::Error));
    assert_eq!((lost[0].timestamp, lost[0].entity.node.as_str()), (at("10:10:00"), "n1"));
    assert_eq!(
        (data(&lost[0]).reason.as_str(), data(&lost[0]).message.as_str()),
        ("Ready", "NodeStatusUnknown: ")
    );
    let back = cluster.sees(WatchType::Modified, &node(3, "True", "KubeletReady"));
    assert_eq!((data(&back[0]).old_value.as_str(), back[0].severity), ("Unknown", EventSeverity::Info));

    let mut pending = pod(1);
    pending["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/3 nodes are available", "lastTransitionTime": "2030-01-01T10:00:00Z"}]});
    let events = cluster.sees(WatchType::Added, &pending);
    assert_eq!(kinds_of(&events), [EventKind::K8sPodUnschedulable, EventKind::K8sObjectAdded]);
    assert!(cluster.sees(WatchType::Modified, &pending).is_empty());

    let mut evicted = pod(2);
    evicted["status"] =
        json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."});
    let events = cluster.sees(WatchType::Modified, &evicted);
    assert_eq!(kinds_of(&events), [EventKind::K8sPodEvicted]);
}

#[test]
fn a_pod_that_starts_or_is_deleted_is_not_unready() {
    let mut starting = pod(1);
    starting["status"]["conditions"][0]["status"] = json!("False");
    let mut cluster = Cluster::after(&[starting]);
    assert_eq!(kinds_of(&cluster.sees(WatchType::Modified, &pod(2))), [EventKind::K8sPodReady]);
    let mut leaving = pod(3);
    leaving["metadata"]["deletionTimestamp"] = json!("2030-01-01T10:20:00Z");
    leaving["status"]["conditions"][0]["status"] = json!("False");
    leaving["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    assert!(cluster.sees(WatchType::Modified, &leaving).is_empty());
    // It ends with an error when told to, as most do, and is gone before its grace period is over.
    let status = &mut leaving["status"]["containerStatuses"][0];
    status["state"] = json!({"terminated": {"containerID": "containerd://c1", "exitCode": 143, "reason": "Error",
        "finishedAt": "2030-01-01T10:19:32Z"}});
    leaving["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    leaving["metadata"]["deletionTimestamp"] = json!("2030-01-01T10:19:33Z");
    assert_eq!(kinds_of(&cluster.sees(WatchType::Deleted, &leaving)), [EventKind::K8sObjectDeleted]);
}

#[test]
fn a_crash_before_the_deletion_is_news_and_the_end_of_a_job_is_not_unreadiness() {
    let mut crashed = pod(2);
    crashed["metadata"]["deletionTimestamp"] = json!("2030-01-01T10:20:00Z");
    crashed["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"containerID": "containerd://c1",
        "exitCode": 139, "reason": "Error", "finishedAt": "2030-01-01T10:19:00Z"}});
    let events = Cluster::after(&[pod(1)]).sees(WatchType::Deleted, &crashed);
    assert_eq!(kinds_of(&events), [EventKind::K8sContainerTerminated, EventKind::K8sObjectDeleted]);
    assert_eq!(data(&events[0]).signal, 11);

    let mut done = pod(2);
    done["status"]["conditions"][0]["status"] = json!("False");
    done["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"containerID": "containerd://c1",
        "exitCode": 0, "reason": "Completed", "finishedAt": "2030-01-01T10:19:00Z"}});
    let events = Cluster::after(&[pod(1)]).sees(WatchType::Modified, &done);
    assert_eq!(kinds_of(&events), [EventKind::K8sContainerTerminated]);
    assert_eq!(events[0].severity, EventSeverity::Info);
}

#[test]
fn endpoints_say_whom_a_service_reaches() {
    let slice = |ready: bool| {
        json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": {"name": "api-abc", "namespace": "shop",
            "uid": "sl", "ownerReferences": [{"kind": "Service", "name": "api", "controller": true}]},
            "endpoints": [{"conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": "api-1"}}]})
    };
    let mut cluster = Cluster::new();
    let added = cluster.sees(WatchType::Added, &slice(true));
    assert_eq!(
        (data(&added[0]).relations[0].edge.as_str(), added[0].entity.service.as_str()),
        ("selects", "api")
    );
    assert_eq!(
        (data(&added[0]).object_kind.as_str(), data(&added[0]).object_name.as_str()),
        ("Service", "api")
    );
    let changed = cluster.sees(WatchType::Modified, &slice(false));
    assert_eq!(kinds_of(&changed), [EventKind::K8sObjectChanged]);
    assert!(data(&changed[0]).relations.is_empty());
}

#[test]
fn events_are_told_once_per_count_and_find_their_container() {
    let mut cluster = Cluster::after(&[pod(1)]);
    let mut tell = |count| cluster.0.event(at(NOW), UnixNanos(0), &event(count, count)).unwrap();
    let first = tell(1).unwrap();
    assert_eq!((first.kind, first.severity), (EventKind::K8sEvent, EventSeverity::Warning));
    assert_eq!((first.timestamp, data(&first).reporter.as_str()), (at("10:31:00"), "kubelet"));
    assert_eq!((first.entity.workload.as_str(), first.entity.container_id.as_str()), ("api", "c1"));
    assert_eq!(tell(1), None, "a relist tells nothing new");
    assert_eq!(data(&tell(3).unwrap()).count, 3);
    // The pod is not known: its name tells the workload.
    let unknown = Cluster::new().0.event(at(NOW), UnixNanos(0), &event(1, 1)).unwrap().unwrap();
    assert_eq!(unknown.entity.lineage, first.entity.lineage);

    let newer = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"uid": "e9"}, "note": "no place",
        "regarding": {"kind": "Node", "name": "n1"}, "reason": "Rebooted", "type": "Warning",
        "eventTime": "2030-01-01T10:40:00.123456Z", "reportingController": "kubelet", "series": {"count": 4,
        "lastObservedTime": "2030-01-01T10:45:00.5Z"}});
    let newer = cluster.0.event(at(NOW), UnixNanos(0), &newer).unwrap().unwrap();
    assert_eq!(
        (newer.timestamp, data(&newer).count, data(&newer).message.as_str()),
        (at("10:45:00.5"), 4, "no place")
    );
    assert_eq!(newer.entity.node, "n1");
}

#[test]
fn the_clock_of_the_api_may_be_ahead() {
    let mut early = Tracker::new("c", None);
    let events = early.object(at("09:00:00"), UnixNanos(0), WatchType::Added, &killed_pod(1)).unwrap();
    assert!(events.iter().all(|event| event.timestamp <= at("09:00:00")), "{events:?}");
}

#[test]
fn another_reason_for_the_same_status_is_told_as_of_when_it_is_seen() {
    let scaler = |status: &str, reason: &str, since: &str| {
        json!({"kind": "HorizontalPodAutoscaler", "metadata": {"name": "api", "namespace": "shop", "uid": "h"},
            "status": {"conditions": [{"type": "ScalingLimited", "status": status, "reason": reason,
                "lastTransitionTime": format!("2030-01-01T{since}Z")}]}})
    };
    let too_few = scaler("True", "TooFewReplicas", "08:00:00");
    for (before, after, told_at) in [
        // It has been at its lower bound since the morning, and is at its upper one just now.
        (&too_few, scaler("True", "TooManyReplicas", "08:00:00"), NOW),
        (&scaler("True", "TooManyReplicas", "08:00:00"), too_few.clone(), NOW),
        // In between it was well, unseen.
        (&too_few, scaler("True", "TooManyReplicas", "10:30:00"), "10:30:00"),
        (
            &scaler("False", "DesiredWithinRange", "08:00:00"),
            scaler("True", "TooManyReplicas", "10:30:00"),
            "10:30:00",
        ),
    ] {
        let events = Cluster::after(std::slice::from_ref(before)).sees(WatchType::Modified, &after);
        let times: Vec<UnixNanos> = events.iter().map(|event| event.timestamp).collect();
        assert_eq!(
            (kinds_of(&events), times),
            (vec![EventKind::K8sObjectChanged], vec![at(told_at)]),
            "{after}"
        );
    }
}

#[test]
fn what_is_no_object_is_refused() {
    let mut cluster = Cluster::new();
    for value in
        [json!({}), json!([]), json!({"kind": "Pod"}), json!({"metadata": {"name": "x"}}), Value::Null]
    {
        assert!(cluster.0.object(at(NOW), UnixNanos(0), WatchType::Added, &value).is_err(), "{value}");
        assert!(cluster.0.event(at(NOW), UnixNanos(0), &value).is_err(), "{value}");
    }
    // Odd types inside are as if they were missing.
    let odd = json!({"kind": "Pod", "metadata": {"name": "x", "ownerReferences": 7}, "status": {"conditions": {"a": 1},
        "containerStatuses": [3, {"name": 5, "restartCount": -4, "state": []}]}, "spec": {"volumes": "none"}});
    assert_eq!(kinds_of(&cluster.sees(WatchType::Added, &odd)), [EventKind::K8sObjectAdded]);
}

#[test]
fn pods_are_found_by_container_also_after_they_are_gone() {
    let pods = PodIndex::new(ManualClock::new(0).shared());
    let mut tracker = Tracker::new("c", Some(pods.clone()));
    tracker.object(at(NOW), UnixNanos(0), WatchType::Added, &pod(1)).unwrap();
    tracker.object(at(NOW), UnixNanos(0), WatchType::Deleted, &killed_pod(2)).unwrap();
    assert!(tracker.is_empty());
    let found = pods.find("c1", "").unwrap();
    assert_eq!(
        (found.workload.as_str(), found.container.as_str(), found.pod_uid.as_str()),
        ("api", "app", UID)
    );
}

#[test]
fn a_list_that_lacks_an_object_means_that_it_was_deleted() {
    let mut cluster = Cluster::after(&[pod(1), node(1, "True", "KubeletReady")]);
    cluster.0.list_begins("Pod");
    let gone = cluster.0.list_ends(at(NOW), "Pod");
    assert_eq!(kinds_of(&gone), [EventKind::K8sObjectDeleted]);
    assert_eq!((gone[0].entity.pod_uid.as_str(), cluster.0.len()), (UID, 1), "the node was not in question");
    assert!(cluster.0.list_ends(at(NOW), "Pod").is_empty());
}

#[test]
fn what_is_deleted_while_a_list_is_under_way_was_not_in_it() {
    let pods = PodIndex::new(ManualClock::new(0).shared());
    let mut tracker = Tracker::new("c", Some(pods.clone()));
    tracker.list_begins("Pod");
    let mut sees = |what, pod: &Value| kinds_of(&tracker.object(at(NOW), UnixNanos(0), what, pod).unwrap());
    sees(WatchType::Added, &pod(1));
    assert_eq!(sees(WatchType::Deleted, &pod(2)), [EventKind::K8sObjectDeleted]);
    // An end of the one before, that comes late, is not the end of the one that has its name.
    let mut next = pod(4);
    next["metadata"]["uid"] = json!("another");
    sees(WatchType::Added, &next);
    assert_eq!(sees(WatchType::Deleted, &pod(3)), []);
    assert_eq!(kinds_of(&tracker.list_ends(at(NOW), "Pod")), []);
    assert_eq!(tracker.len(), 1);
}

#[test]
fn what_belongs_to_what_is_told_again_and_nothing_else() {
    let second = |s: u64| std::time::Duration::from_secs(s);
    let mut cluster = Cluster::after(&[replica_set(1), killed_pod(2), node(3, "True", "KubeletReady")]);
    assert!(cluster.0.retell(at(NOW), second(0), second(300)).is_empty(), "it was told just now");
    let again = cluster.0.retell(at(NOW), second(300), second(300));
    assert_eq!(kinds_of(&again), [EventKind::K8sObjectAdded], "not that it was killed");
    assert_eq!(data(&again[0]).object_name, "api-5f6585d649-x2x2x");
    assert!(
        data(&again[0])
            .relations
            .iter()
            .any(|r| (r.edge.as_str(), r.name.as_str()) == ("mounts", "settings"))
    );
    assert_eq!(again[0].timestamp, at(NOW));
    cluster.0.object(at(NOW), UnixNanos(0), WatchType::Deleted, &killed_pod(4)).unwrap();
    assert!(cluster.0.retell(at(NOW), second(900), second(300)).is_empty(), "what is gone is not told");
}
