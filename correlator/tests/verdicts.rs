//! Verdicts on what the Kubernetes API tells, through both stages: one cause is one finding, what is over is over,
//! what heals by itself is no incident.

use std::sync::Arc;

use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::Engine;
use tapio_correlator::model::Model;
use tapio_schemas::finding::Status;
use tapio_schemas::payload::{KubernetesData, Relation};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    Entity, EntityRef, EventId, EventKind, EventSeverity, Finding, Payload, ProducerId, Source, UnifiedEvent,
    UnixNanos,
};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;

/// What an API tells, in seconds after the start.
#[derive(Default)]
struct Api {
    events: Vec<UnifiedEvent>,
}

fn place(workload: &str, pod: &str, container: &str) -> EntityRef {
    EntityRef {
        cluster: "test".into(),
        namespace: "bakery".into(),
        workload_kind: "Deployment".into(),
        workload: workload.into(),
        pod: pod.into(),
        container: container.into(),
        ..EntityRef::default()
    }
}

impl Api {
    fn tell(&mut self, at: u64, kind: EventKind, entity: EntityRef, data: KubernetesData) {
        let at = UnixNanos(START + at * SECOND);
        self.events.push(UnifiedEvent {
            id: EventId(1 + self.events.len() as u128),
            timestamp: at,
            observed_at: at,
            kind,
            source: Source::Kubernetes,
            severity: EventSeverity::Warning,
            entity: Arc::new(entity.sealed()),
            payload: Payload::Kubernetes(Box::new(data)),
            ..UnifiedEvent::default()
        });
    }

    fn pod(&mut self, at: u64, kind: EventKind, workload: &str, pod: &str) {
        let data = KubernetesData {
            object_kind: "Pod".into(),
            object_name: pod.into(),
            ..KubernetesData::default()
        };
        self.tell(at, kind, place(workload, pod, ""), data);
    }

    fn starts(&mut self, at: u64, workload: &str, pod: &str) {
        let entity = place(workload, pod, "main");
        self.tell(at, EventKind::K8sContainerStarted, entity, KubernetesData::default());
    }

    fn ends(&mut self, at: u64, workload: &str, pod: &str, reason: &str, exit_code: i32) {
        let data = KubernetesData { reason: reason.into(), exit_code, ..KubernetesData::default() };
        self.tell(at, EventKind::K8sContainerTerminated, place(workload, pod, "main"), data);
    }

    fn loops(&mut self, at: u64, workload: &str, pod: &str) {
        let data = KubernetesData { reason: "CrashLoopBackOff".into(), ..KubernetesData::default() };
        self.tell(at, EventKind::K8sContainerWaiting, place(workload, pod, "main"), data);
    }

    fn image(&mut self, at: u64, workload: &str, old: &str, new: &str) {
        let data =
            KubernetesData { old_value: old.into(), new_value: new.into(), ..KubernetesData::default() };
        self.tell(at, EventKind::K8sImageChanged, place(workload, "", ""), data);
    }

    /// What the kubelet of a machine tells of it.
    fn kubelet(&mut self, at: u64, reason: &str, message: &str) {
        let entity = EntityRef {
            cluster: "test".into(),
            node: "n1".into(),
            object_kind: "Node".into(),
            object: "n1".into(),
            ..EntityRef::default()
        };
        let data = KubernetesData {
            object_kind: "Node".into(),
            object_name: "n1".into(),
            reason: reason.into(),
            message: message.into(),
            reporter: "kubelet".into(),
            event_type: if reason == "Starting" { "Normal" } else { "Warning" }.into(),
            count: 1,
            ..KubernetesData::default()
        };
        self.tell(at, EventKind::K8sEvent, entity, data);
    }

    fn kills(&mut self, at: u64, pid: u32) {
        let message = format!("System OOM encountered, victim process: batch, pid: {pid}");
        self.kubelet(at, "SystemOOM", &message);
    }

    /// A container that ends three times and then waits longer and longer.
    fn crashes(&mut self, at: u64, workload: &str, pod: &str, reason: &str, exit_code: i32) {
        for (end, start) in [(0, 1), (3, 14), (17, 38)] {
            self.ends(at + end, workload, pod, reason, exit_code);
            if end > 0 {
                self.loops(at + end, workload, pod);
            }
            self.pod(at + end, EventKind::K8sPodNotReady, workload, pod);
            self.starts(at + start, workload, pod);
        }
        self.ends(at + 41, workload, pod, reason, exit_code);
        self.loops(at + 42, workload, pod);
    }

    /// Last revision of every finding once `until` has passed.
    fn verdicts(mut self, until: u64) -> Vec<Finding> {
        self.pod(until, EventKind::K8sPodReady, "elsewhere", "elsewhere-1");
        self.events.sort_by_key(|e| e.timestamp);
        let model = Arc::new(Model::builtin().expect("the built-in model loads"));
        let mut engine = Engine::new("test", CorrelatorConfig::default(), model);
        let mut batches: Vec<EventBatch> = (0..64).map(|s| EventBatch::new(ProducerId(1), 0, s)).collect();
        let mut last: Vec<Finding> = Vec::new();
        for event in &self.events {
            let batch = &mut batches[usize::from(event.key().shard())];
            batch.push(event.clone());
            let bytes = batch.finish(UnixNanos(0)).expect("a batch");
            engine.push_batch(&bytes).expect("taken");
            for finding in engine.drain() {
                last.retain(|known| known.id != finding.id);
                last.push(finding);
            }
        }
        last
    }
}

fn cause(finding: &Finding) -> &str {
    finding.root_cause.as_ref().map_or("", |root| root.cause.as_str())
}

#[test]
fn a_release_that_needs_more_memory_is_one_finding_that_names_the_release() {
    let mut api = Api::default();
    api.image(0, "oven", "oven:1.4", "oven:1.5");
    api.crashes(20, "oven", "oven-b-1", "OOMKilled", 137);
    api.crashes(24, "oven", "oven-b-2", "OOMKilled", 137);
    let found = api.verdicts(90);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((cause(&found[0]), found[0].status), ("memory.limit_exceeded", Status::Active));
    assert!(
        found[0].story.contains("since the image was changed from oven:1.4 to oven:1.5"),
        "{}",
        found[0].story
    );
    assert!(found[0].hypotheses.iter().any(|h| h.cause == "rollout.bad_image" && !h.refuted_by.is_empty()));
}

#[test]
fn a_change_within_the_second_of_the_failure_is_told_and_a_later_one_is_not() {
    let told = |change_ms: u64| {
        let mut api = Api::default();
        // The kubelet stamps whole seconds; a change is stamped when it is seen.
        api.image(0, "oven", "oven:1.4", "oven:1.5");
        api.events[0].timestamp = UnixNanos(START + change_ms * (SECOND / 1000));
        let message = "Failed to pull image \"oven:1.5\": manifest unknown";
        for at in [20, 40, 60] {
            let data = KubernetesData {
                reason: "ErrImagePull".into(),
                message: message.into(),
                ..KubernetesData::default()
            };
            api.tell(at, EventKind::K8sContainerWaiting, place("oven", "oven-b-1", "main"), data);
        }
        let found = api.verdicts(80);
        assert_eq!((found.len(), cause(&found[0])), (1, "image.not_found"), "{found:#?}");
        found[0].chain.iter().any(|link| link.signal == "change.image")
    };
    assert_eq!([19_700, 20_000, 20_300, 20_999].map(told), [true; 4]);
    assert_eq!([21_000, 21_300].map(told), [false; 2]);
}

#[test]
fn a_release_that_was_rolled_back_is_over_when_its_pods_are_gone() {
    let release = || {
        let mut api = Api::default();
        api.image(0, "oven", "oven:1.4", "oven:1.5");
        api.crashes(20, "oven", "oven-b-1", "Error", 1);
        api
    };
    let failing = release().verdicts(80);
    assert_eq!((cause(&failing[0]), failing[0].status), ("rollout.bad_image", Status::Active));
    let mut back = release();
    back.image(70, "oven", "oven:1.5", "oven:1.4");
    back.pod(75, EventKind::K8sObjectDeleted, "oven", "oven-b-1");
    let over = back.verdicts(120);
    assert_eq!((over.len(), cause(&over[0]), over[0].status), (1, "rollout.bad_image", Status::Recovered));
    assert!(over[0].title.contains("oven:1.5"), "{}", over[0].title);
    // The look-alike: its pod is gone, and the next one of the same release fails as well.
    let mut again = release();
    again.pod(75, EventKind::K8sObjectDeleted, "oven", "oven-b-1");
    again.crashes(85, "oven", "oven-b-2", "Error", 1);
    let still = again.verdicts(140);
    assert_eq!((still.len(), cause(&still[0]), still[0].status), (1, "rollout.bad_image", Status::Active));
}

#[test]
fn one_crash_that_heals_is_silent_and_a_crash_loop_is_loud() {
    let mut once = Api::default();
    once.ends(10, "oven", "oven-1", "Error", 1);
    once.pod(10, EventKind::K8sPodNotReady, "oven", "oven-1");
    once.starts(11, "oven", "oven-1");
    once.pod(15, EventKind::K8sPodReady, "oven", "oven-1");
    assert_eq!(once.verdicts(400), []);
    let mut looping = Api::default();
    looping.crashes(10, "oven", "oven-1", "Error", 1);
    let found = looping.verdicts(60);
    assert_eq!((found.len(), cause(&found[0]), found[0].status), (1, "code.crash_exit", Status::Active));
    assert!(found[0].confidence.get() > 0.8);
    // Nothing runs again after its only end.
    let mut down = Api::default();
    down.ends(10, "oven", "oven-1", "Error", 1);
    let found = down.verdicts(60);
    assert_eq!((found.len(), cause(&found[0]), found[0].status), (1, "code.crash_exit", Status::Active));
}

#[test]
fn workloads_that_lose_their_readiness_together_are_not_silent_and_not_blamed() {
    let mut api = Api::default();
    for workload in ["oven", "till", "shelf"] {
        api.pod(10, EventKind::K8sPodNotReady, workload, &format!("{workload}-1"));
    }
    let found = api.verdicts(60);
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|f| f.status == Status::NotProvable && f.root_cause.is_none()));
    let mut short = Api::default();
    short.pod(10, EventKind::K8sPodNotReady, "oven", "oven-1");
    short.pod(35, EventKind::K8sPodReady, "oven", "oven-1");
    assert_eq!(short.verdicts(200), []);
}

#[test]
fn changed_settings_are_the_cause_for_what_mounts_them_only() {
    let scene = |mounted: &str| {
        let mut api = Api::default();
        let relation = Relation { edge: "mounts".into(), kind: "ConfigMap".into(), name: mounted.into() };
        let data = KubernetesData {
            object_kind: "Pod".into(),
            object_name: "oven-2".into(),
            relations: vec![relation],
            ..KubernetesData::default()
        };
        api.tell(30, EventKind::K8sObjectAdded, place("oven", "oven-2", ""), data);
        let settings = EntityRef {
            cluster: "test".into(),
            namespace: "bakery".into(),
            object_kind: "ConfigMap".into(),
            object: "recipes".into(),
            ..EntityRef::default()
        };
        let data = KubernetesData {
            object_kind: "ConfigMap".into(),
            object_name: "recipes".into(),
            reason: "salt".into(),
            old_value: "01".into(),
            new_value: "02".into(),
            ..KubernetesData::default()
        };
        api.tell(0, EventKind::K8sConfigChanged, settings, data);
        api.crashes(40, "oven", "oven-2", "Error", 1);
        api.verdicts(90)
    };
    let found = scene("recipes");
    assert_eq!((found.len(), cause(&found[0])), (1, "config.changed"));
    let seat = &found[0].root_cause.as_ref().unwrap().entity;
    assert_eq!(*seat, Entity::namespaced("ConfigMap", "bakery", "recipes"));
    assert!(found[0].story.contains("key salt"), "{}", found[0].story);
    let other = scene("colours");
    assert_eq!((other.len(), cause(&other[0])), (1, "code.crash_exit"));
}

#[test]
fn what_a_kubelet_tells_at_its_start_may_be_old_and_later_it_is_news() {
    // Of the same second, either is read first.
    for start_first in [true, false] {
        let mut api = Api::default();
        if start_first {
            api.kubelet(100, "Starting", "Starting kubelet.");
        }
        (0..5).for_each(|pid| api.kills(100, 40 + pid));
        if !start_first {
            api.kubelet(100, "Starting", "Starting kubelet.");
        }
        api.kills(102, 50);
        assert_eq!(api.verdicts(400), [], "start first: {start_first}");
    }
    let found = |told: &dyn Fn(&mut Api)| {
        let mut api = Api::default();
        told(&mut api);
        let found = api.verdicts(160);
        assert_eq!((found.len(), found.first().map(cause)), (1, Some("memory.node_exhausted")), "{found:#?}");
        // Since when, and by how many events.
        assert_eq!(found[0].first_bad_at, UnixNanos(START + 140 * SECOND), "{found:#?}");
        assert!(found[0].chain.iter().all(|link| link.evidence.len() == 1), "{found:#?}");
    };
    found(&|api| api.kills(140, 40));
    // It runs for a while already; what it told before does not hide this one.
    found(&|api| {
        api.kubelet(120, "Starting", "Starting kubelet.");
        api.kills(120, 40);
        api.kills(140, 60);
    });
    // Somebody else starts on the machine.
    found(&|api| {
        api.kubelet(138, "Starting", "Starting kube-proxy.");
        if let Some(Payload::Kubernetes(data)) = api.events.last_mut().map(|event| &mut event.payload) {
            data.reporter = "kube-proxy".into();
        }
        api.kills(140, 40);
    });
}
