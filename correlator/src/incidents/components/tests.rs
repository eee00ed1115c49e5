//! What heals by itself: no incident alone, part of one while it lasts, nothing to one that begins later.

use std::sync::Arc;

use tapio_schemas::finding::Status;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{EntityRef, Finding, GroupId, Score, Signal, SignalKind, UnixNanos};

use crate::incidents::{IncidentConfig, IncidentEngine};
use crate::model::Model;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_767_225_600 * SECOND;

fn after(seconds: u64) -> UnixNanos {
    UnixNanos(START + seconds * SECOND)
}

fn pod(name: &str) -> Arc<EntityRef> {
    let own = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: "pay".into(),
        pod: name.into(),
        container: "main".into(),
        ..Default::default()
    };
    Arc::new(own.sealed())
}

/// A signal of one semantic group, from … until, seconds.
fn signal(kind: SignalKind, pod_name: &str, from: u64, until: u64, strength: f64, ended: bool) -> Signal {
    let mut signal = Signal::new(kind, pod(pod_name), None, after(from));
    signal.last_seen = after(until);
    signal.revision = until as u32 + 1;
    signal.strength = Score::clamped(strength);
    signal.ended = ended;
    signal.group = GroupId(7);
    signal
}

/// All revisions, with the signals applied in steps: each step's after the one before was decided.
fn told(steps: Vec<(Vec<Signal>, u64)>) -> Vec<Finding> {
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(Model::builtin().unwrap()));
    let mut found = Vec::new();
    for (signals, until) in steps {
        engine.apply(SignalSection { signals, ..SignalSection::default() });
        found.extend(engine.finish(after(until)));
    }
    found
}

#[test]
fn what_healed_before_is_no_part_of_what_fails_later() {
    let healed = signal(SignalKind::MountFailed, "pay-1", 0, 4, 0.3, true);
    let failed = signal(SignalKind::CreateFailed, "pay-2", 60, 80, 1.0, false);
    let found = told(vec![(vec![healed], 30), (vec![failed], 85)]);
    let kinds: Vec<&str> = found.last().unwrap().chain.iter().map(|l| l.signal.as_str()).collect();
    assert_eq!(kinds, ["k8s.create_failed"]);
    assert!(found.iter().all(|f| f.id == found[0].id));
}

#[test]
fn what_has_not_healed_yet_belongs_to_what_fails_with_it_and_stays_there() {
    let faint = |until, ended| signal(SignalKind::ContainerCrashed, "pay-1", 50, until, 0.3, ended);
    let failed = |until| signal(SignalKind::CreateFailed, "pay-2", 60, until, 1.0, false);
    let found = told(vec![
        (vec![faint(50, false), failed(60)], 70),
        (vec![faint(110, true)], 115),
        (vec![failed(120)], 125),
    ]);
    let last = found.last().unwrap();
    assert_eq!(last.chain.len(), 2);
    assert!(found.iter().all(|f| f.id == last.id && f.status != Status::Superseded), "one incident");
}

#[test]
fn one_end_is_told_when_it_is_repeated_and_is_over_when_its_pod_is_gone() {
    let end = |count, until, strength, ended| {
        let mut end = signal(SignalKind::ContainerCrashed, "pay-1", 10, until, strength, ended);
        end.count = count;
        end
    };
    let once = vec![(vec![end(1, 10, 0.3, false)], 19)];
    assert!(told(once.clone()).is_empty());
    let mut repeated = once.clone();
    repeated.push((vec![end(2, 20, 1.0, false)], 25));
    let found = told(repeated.clone());
    let first = &found[0];
    assert_eq!(first.root_cause.as_ref().unwrap().cause, "code.crash_exit");
    assert_eq!((first.status, first.emitted_at), (Status::Active, after(20)));
    repeated.push((vec![end(2, 60, 1.0, true)], 65));
    assert_eq!(told(repeated).last().unwrap().status, Status::Recovered);
    let mut healed = once;
    healed.push((vec![end(1, 70, 0.3, true)], 200));
    assert!(told(healed).is_empty(), "not even as recovered");
}
