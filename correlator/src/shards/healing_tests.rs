//! What mends itself is said faintly and ends; what is repeated or lasts is certain.

use std::sync::Arc;

use proptest::prelude::*;
use tapio_schemas::entity::kinds;
use tapio_schemas::payload::{KernelData, KubernetesData, LogData, SystemdData};
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, Signal, SignalKind, UnifiedEvent, UnixNanos,
};

use super::confirm::FAINT;
use super::shard_tests::{Sim, event, seconds};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;

fn container(pod: &str, name: &str) -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: kinds::DEPLOYMENT.into(),
        workload: "api".into(),
        pod: pod.into(),
        container: name.into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

fn at(seconds: u64) -> UnixNanos {
    UnixNanos(START + seconds * SECOND)
}

fn told(kind: EventKind, entity: &Arc<EntityRef>, when: u64, id: u128, data: KubernetesData) -> UnifiedEvent {
    let data = KubernetesData { object_kind: kinds::POD.into(), object_name: entity.pod.clone(), ..data };
    event(kind, entity, at(when), EventId(id), Payload::Kubernetes(Box::new(data)))
}

fn ended(pod: &str, when: u64, id: u128) -> UnifiedEvent {
    let data = KubernetesData { reason: "Error".into(), exit_code: 1, ..KubernetesData::default() };
    told(EventKind::K8sContainerTerminated, &container(pod, "main"), when, id, data)
}

fn started(pod: &str, when: u64, id: u128) -> UnifiedEvent {
    told(EventKind::K8sContainerStarted, &container(pod, "main"), when, id, KubernetesData::default())
}

fn of_pod(kind: EventKind, pod: &str, when: u64, id: u128) -> UnifiedEvent {
    told(kind, &container(pod, ""), when, id, KubernetesData::default())
}

fn warned(container: &Arc<EntityRef>, reason: &str, message: &str, when: u64, id: u128) -> UnifiedEvent {
    let data = KubernetesData { reason: reason.into(), message: message.into(), ..KubernetesData::default() };
    told(EventKind::K8sEvent, container, when, id, data)
}

/// Everything said of a kind, in order, with an event far later that drives time.
fn said(kind: SignalKind, events: &[UnifiedEvent], until: u64) -> Vec<Signal> {
    let mut sim = Sim::new();
    sim.feed(events);
    sim.feed(&[of_pod(EventKind::K8sPodReady, "other", until, 9999)]);
    sim.signals.into_iter().filter(|s| s.kind == kind).collect()
}

fn is_certain(signal: &Signal) -> bool {
    signal.strength.get() >= 0.5
}

#[test]
fn one_end_that_runs_again_stays_faint_whichever_is_read_first() {
    // Same second, either order of ids.
    for (end, start) in [(1, 2), (2, 1)] {
        let events = [ended("api-1", 10, end), started("api-1", 10, start)];
        let crashes = said(SignalKind::ContainerCrashed, &events, 400);
        assert!(!crashes.is_empty() && crashes.iter().all(|s| !is_certain(s)), "{crashes:?}");
    }
}

#[test]
fn one_end_after_which_nothing_runs_is_certain_after_a_while() {
    let crashes = said(SignalKind::ContainerCrashed, &[ended("api-1", 10, 1)], 60);
    let first = crashes.iter().find(|s| is_certain(s)).expect("certain");
    assert!((at(25)..at(26)).contains(&first.last_seen), "{:?}", first.last_seen);
    assert!(!is_certain(&crashes[0]) && crashes[0].last_seen <= at(11), "said at once, faintly");
}

#[test]
fn a_second_end_is_certain_at_once() {
    let events = [ended("api-1", 10, 1), started("api-1", 11, 2), ended("api-1", 20, 3)];
    let crashes = said(SignalKind::ContainerCrashed, &events, 60);
    let first = crashes.iter().find(|s| is_certain(s)).expect("certain");
    assert_eq!((first.last_seen, first.count), (at(20), 2));
}

#[test]
fn the_kernel_view_of_the_same_end_is_faint_as_well_and_outside_of_pods_it_is_not() {
    let exit = |entity: &Arc<EntityRef>| {
        let data = KernelData { exit_code: 3, is_init: true, comm: "api".into(), ..KernelData::default() };
        let mut exit =
            event(EventKind::ProcessExit, entity, at(10), EventId(1), Payload::Kernel(Box::new(data)));
        exit.pid = 77;
        exit
    };
    let inside =
        said(SignalKind::ExitNonzero, &[exit(&container("api-1", "main")), started("api-1", 11, 2)], 30);
    assert!(!inside.is_empty() && inside.iter().all(|s| !is_certain(s)));
    let unit = EntityRef {
        cluster: "c".into(),
        node: "n1".into(),
        unit: "api.service".into(),
        ..EntityRef::default()
    };
    let outside = said(SignalKind::ExitNonzero, &[exit(&Arc::new(unit.sealed()))], 30);
    assert!(outside.iter().all(is_certain) && !outside.is_empty());
}

#[test]
fn a_pod_that_lost_readiness_is_certain_after_half_a_minute_and_not_when_it_is_back_before() {
    let lost = of_pod(EventKind::K8sPodNotReady, "api-1", 10, 1);
    let lasting = said(SignalKind::PodNotReady, std::slice::from_ref(&lost), 60);
    let first = lasting.iter().find(|s| is_certain(s)).expect("certain");
    assert!((at(40)..at(41)).contains(&first.last_seen), "{:?}", first.last_seen);
    let short = said(SignalKind::PodNotReady, &[lost, of_pod(EventKind::K8sPodReady, "api-1", 38, 2)], 200);
    assert!(short.iter().all(|s| !is_certain(s)) && short.last().is_some_and(|s| s.ended));
}

#[test]
fn a_mount_that_works_at_the_next_try_is_over_and_one_that_keeps_failing_is_certain() {
    let pod = container("api-1", "");
    let failed = |when, id| warned(&pod, "FailedMount", "MountVolume.SetUp failed", when, id);
    let healed = said(SignalKind::MountFailed, &[failed(10, 1), started("api-1", 14, 2)], 60);
    assert!(healed.iter().all(|s| !is_certain(s)) && healed.last().is_some_and(|s| s.ended));
    let tries: Vec<UnifiedEvent> =
        [10, 11, 12, 14, 18, 26, 42].into_iter().zip(1..).map(|(when, id)| failed(when, id)).collect();
    let lasting = said(SignalKind::MountFailed, &tries, 60);
    let first = lasting.iter().find(|s| is_certain(s)).expect("certain");
    assert_eq!(first.last_seen, at(42));
}

#[test]
fn a_killing_by_a_probe_is_certain_and_one_failed_probe_is_not() {
    let main = container("api-1", "main");
    let once = [warned(&main, "Unhealthy", "Readiness probe failed: HTTP probe failed", 10, 1)];
    assert!(said(SignalKind::ProbeFailed, &once, 60).iter().all(|s| !is_certain(s)));
    let killed = [
        warned(&main, "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404", 10, 1),
        warned(&main, "Killing", "Container main failed liveness probe, will be restarted", 11, 2),
    ];
    let last = said(SignalKind::ProbeFailed, &killed, 60).pop().expect("a signal");
    assert!(is_certain(&last));
    let fact = |key: &str| last.attribute(key).map(|v| v.as_f64().unwrap_or(1.0));
    assert_eq!((fact("probe_status"), fact("readiness")), (Some(404.0), None));
    assert!(fact("killed").is_some() && fact("restarts").is_some() && fact("liveness").is_some());
    let stopped = [warned(&main, "Killing", "Stopping container main", 10, 1)];
    assert!(said(SignalKind::ProbeFailed, &stopped, 60).is_empty(), "a pod that is stopped");
}

#[test]
fn a_line_that_is_delivered_again_is_one_line() {
    let line = |id: u128| {
        let data = LogData { body: "write /data/wal: no space left on device".into(), ..LogData::default() };
        let main = container("api-1", "main");
        let line = event(EventKind::Log, &main, at(10), EventId(id), Payload::Log(Box::new(data)));
        UnifiedEvent { severity: EventSeverity::Error, ..line }
    };
    // Event time has passed the first one when the next ones come.
    let told = |ids: [u128; 3]| {
        let mut sim = Sim::new();
        for (id, passed) in ids.into_iter().zip([15, 20, 60]) {
            sim.feed(&[line(id), of_pod(EventKind::K8sPodReady, "other", passed, 900 + u128::from(passed))]);
        }
        let faults: Vec<_> = sim.signals.iter().filter(|s| s.kind == SignalKind::LogFault).cloned().collect();
        (faults.last().map(|s| s.count), faults.iter().any(is_certain), sim.counters().dropped.duplicate)
    };
    assert_eq!(told([1, 2, 3]), (Some(3), true, 0));
    assert_eq!(told([1, 1, 1]), (Some(1), false, 2));
}

#[test]
fn a_kill_that_is_told_again_is_no_part_of_the_next_one() {
    let machine = EntityRef {
        cluster: "c".into(),
        node: "n1".into(),
        object_kind: kinds::NODE.into(),
        object: "n1".into(),
        ..EntityRef::default()
    };
    let machine = Arc::new(machine.sealed());
    let kubelet = |reason: &str, message: &str, when, id| {
        let data = KubernetesData {
            object_kind: kinds::NODE.into(),
            object_name: "n1".into(),
            reason: reason.into(),
            message: message.into(),
            reporter: "kubelet".into(),
            ..KubernetesData::default()
        };
        event(EventKind::K8sEvent, &machine, at(when), EventId(id), Payload::Kubernetes(Box::new(data)))
    };
    let killed = |when, id| {
        let message = format!("System OOM encountered, victim process: batch, pid: {id}");
        kubelet("SystemOOM", &message, when, id)
    };
    // Of the same second, either is read first.
    for (start, kills) in [(1, [2, 3]), (3, [1, 2])] {
        let mut events = vec![kubelet("Starting", "Starting kubelet.", 10, start)];
        events.extend(kills.map(|id| killed(10, id)));
        events.push(killed(30, 9));
        let kills = said(SignalKind::OomKill, &events, 50);
        let told: Vec<_> = kills.iter().filter(|s| is_certain(s)).map(|s| (s.onset, s.count)).collect();
        assert!(!told.is_empty() && told.iter().all(|told| *told == (at(30), 1)), "{kills:#?}");
        assert!(kills.iter().filter(|s| is_certain(s)).all(|s| s.evidence == [EventId(9)]), "{kills:#?}");
    }
}

#[test]
fn with_a_pod_goes_what_was_wrong_in_it_unless_its_successor_has_it_too() {
    let wrong = |pod: &str, id: u128| {
        vec![
            ended(pod, 10, id),
            started(pod, 11, id + 1),
            ended(pod, 20, id + 2),
            of_pod(EventKind::K8sPodNotReady, pod, 20, id + 3),
        ]
    };
    let mut events = wrong("api-1", 10);
    events.extend(wrong("api-2", 20));
    events.push(of_pod(EventKind::K8sObjectDeleted, "api-1", 60, 30));
    let mut sim = Sim::new();
    sim.feed(&events);
    sim.feed(&[of_pod(EventKind::K8sPodReady, "other", 95, 9999)]);
    let over: Vec<(&str, SignalKind, u64)> = sim
        .signals
        .iter()
        .filter(|s| s.ended)
        .map(|s| (s.entity.pod.as_str(), s.kind, s.last_seen.since(at(0)) / SECOND))
        .collect();
    assert_eq!(over, [("api-1", SignalKind::PodNotReady, 60), ("api-1", SignalKind::ContainerCrashed, 90)]);
}

#[test]
fn who_refused_a_pod_is_the_other_end_until_one_is_made() {
    let set = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: kinds::DEPLOYMENT.into(),
        workload: "api".into(),
        object_kind: kinds::REPLICA_SET.into(),
        object: "api-7f".into(),
        ..EntityRef::default()
    };
    let set = Arc::new(set.sealed());
    let quota =
        "Error creating: pods \"api-7f-x\" is forbidden: exceeded quota: team, requested: cpu=1, used: cpu=4";
    let webhook = "Error creating: Internal error occurred: failed calling webhook \"admit.guard\": failed to call \
                   webhook: Post \"https://guard.policy.svc:443/admit?timeout=5s\": connection refused";
    let events = [
        warned(&set, "FailedCreate", quota, 10, 1),
        warned(&set, "FailedCreate", webhook, 11, 2),
        warned(&set, "FailedCreate", "Error creating: must specify limits", 12, 3),
        warned(&set, "SuccessfulCreate", "Created pod: api-7f-y", 60, 4),
    ];
    let last: Vec<Signal> =
        said(SignalKind::CreateFailed, &events, 90).into_iter().filter(|s| s.ended).collect();
    let mut peers: Vec<String> = last.iter().filter_map(|s| s.peer.as_ref()).map(|p| p.to_string()).collect();
    peers.sort();
    assert_eq!(peers, ["policy/Service guard", "shop/ResourceQuota team"]);
    assert_eq!(last.len(), 3);
    assert!(last.iter().all(|s| s.last_seen < at(61)));
    let named = last.iter().filter_map(|s| s.attribute("webhook")).filter_map(|v| v.as_text());
    assert_eq!(named.collect::<Vec<_>>(), ["admit.guard"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Faint or certain, what is said does not depend on the order of arrival within the lateness bound.
    #[test]
    fn what_heals_is_judged_alike_in_any_order(
        offsets in proptest::collection::vec((0u64..400, 0u8..6, 0u8..2), 1..20),
        order in any::<u64>(),
    ) {
        let events: Vec<UnifiedEvent> = offsets
            .iter()
            .zip(1u128..)
            .map(|((ms, what, pod), id)| {
                let pod = ["api-1", "api-2"][usize::from(*pod)];
                let mut event = match what {
                    0 => ended(pod, 1, id),
                    1 => started(pod, 1, id),
                    2 => of_pod(EventKind::K8sPodNotReady, pod, 1, id),
                    3 => of_pod(EventKind::K8sPodReady, pod, 1, id),
                    4 => warned(&container(pod, ""), "FailedMount", "no", 1, id),
                    _ => of_pod(EventKind::K8sObjectDeleted, pod, 1, id),
                };
                event.timestamp = event.timestamp.plus(ms * 1_000_000);
                event
            })
            .collect();
        let run = |events: &[UnifiedEvent]| {
            let mut sim = Sim::new();
            sim.feed(events);
            sim.finish();
            // As text: a figure that is not a number equals none.
            sim.signals.iter().map(|s| format!("{s:?}")).collect::<Vec<String>>()
        };
        let mut shuffled = events.clone();
        shuffled.sort_by_key(|e| (e.id.0 as u64).wrapping_mul(order | 1).rotate_left(17));
        prop_assert_eq!(run(&events), run(&shuffled));
    }
}

fn unit(kind: EventKind, at: f64, states: (&str, &str), restarts: u32) -> UnifiedEvent {
    let entity = EntityRef {
        cluster: "c".into(),
        node: "n1".into(),
        unit: "a.service".into(),
        ..EntityRef::default()
    };
    let data = SystemdData {
        unit: "a.service".into(),
        active_state: states.0.into(),
        sub_state: states.1.into(),
        result: "exit-code".into(),
        exit_code: 7,
        restarts,
        ..SystemdData::default()
    };
    let id = EventId::derive(seconds(at), kind.as_str().as_bytes());
    event(kind, &Arc::new(entity.sealed()), seconds(at), id, Payload::Systemd(Box::new(data)))
}

/// Ends every five seconds, each followed by a start of systemd's.
fn restarts(count: u32) -> Vec<UnifiedEvent> {
    let one = |n: u32| {
        let at = f64::from(n) * 5.0;
        let end = unit(EventKind::SystemdUnitStopped, at, ("activating", "auto-restart"), n);
        [end, unit(EventKind::SystemdUnitStarted, at + 1.0, ("active", "running"), n + 1)]
    };
    (0..count).flat_map(one).collect()
}

fn unit_signals(events: &[UnifiedEvent]) -> Vec<Signal> {
    let mut sim = Sim::new();
    sim.feed(events);
    sim.finish();
    sim.signals.into_iter().filter(|s| s.kind == SignalKind::UnitFailed).collect()
}

#[test]
fn a_unit_that_ends_again_and_again_has_failed_though_it_is_restarted() {
    let told = unit_signals(&restarts(6));
    assert!(told[0].strength.get() <= FAINT, "{:?}", told[0]);
    let certain = told.iter().find(|s| s.strength.get() > FAINT).expect("certain");
    assert_eq!((certain.count, certain.last_seen), (3, seconds(10.0)));
    let last = told.last().unwrap();
    assert!(last.ended && last.count == 6 && last.id == told[0].id);
    assert_eq!(last.attribute("restarted").and_then(|v| v.as_f64()), Some(6.0));
    assert!(last.last_seen >= seconds(25.0 + 300.0), "until it has run for a while");
}

#[test]
fn a_restart_by_hand_is_no_failure_and_ends_one() {
    let stop = |at| unit(EventKind::SystemdUnitStopped, at, ("inactive", "dead"), 0);
    let start = |at| unit(EventKind::SystemdUnitStarted, at, ("active", "running"), 0);
    assert_eq!(unit_signals(&[stop(1.0), start(2.0)]), vec![]);
    for end in [stop(40.0), start(40.0)] {
        let told = unit_signals(&[restarts(6), vec![end]].concat());
        let last = told.last().unwrap();
        assert!(last.ended && last.last_seen < seconds(42.0), "{last:?}");
    }
    // systemd gave up, and somebody took note of it.
    let failed = unit(EventKind::SystemdUnitFailed, 1.0, ("failed", "failed"), 4);
    let told = unit_signals(&[failed, stop(9.0)]);
    assert!(told.last().unwrap().ended && told.last().unwrap().last_seen < seconds(11.0));
}
