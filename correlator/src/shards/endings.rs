//! What events show to be over.

use tapio_schemas::payload::{Payload, SystemdData};
use tapio_schemas::{EntityRef, EventKind, SignalKind, UnifiedEvent, UnixNanos};

use super::counters::Counters;
use super::episode::{EpisodeKey, Episodes, episode_key};
use super::news::RESTARTED;
use super::record::hash_parts;

/// What is over in a pod that is ready and stays so …
const CALMED_BY_READY: [SignalKind; 3] =
    [SignalKind::ContainerCrashed, SignalKind::CrashLoop, SignalKind::ProbeFailed];
/// … for this long: without a probe a pod counts as ready between any two crashes.
const READY_CALM_NS: u64 = 60_000_000_000;

/// What a pod cannot have any more when one of its containers runs.
const OVER_BY_START: [SignalKind; 3] =
    [SignalKind::MountFailed, SignalKind::SandboxFailed, SignalKind::Stuck];

/// What a pod takes with it when it is deleted.
const GONE_WITH_POD: [SignalKind; 5] = [
    SignalKind::PodNotReady,
    SignalKind::ProbeFailed,
    SignalKind::Unschedulable,
    SignalKind::MountFailed,
    SignalKind::SandboxFailed,
];
/// What its successor may have as well …
const INHERITED: [SignalKind; 6] = [
    SignalKind::ContainerCrashed,
    SignalKind::CrashLoop,
    SignalKind::ContainerOomKilled,
    SignalKind::ImagePullFailed,
    SignalKind::ConfigMissing,
    SignalKind::CreateFailed,
];
/// … and shows within this time, so that a deleted pod alone is no recovery.
const SUCCESSOR_NS: u64 = 30_000_000_000;

/// Ends or shortens the deviations that this event shows to be over, or as good as over.
pub fn settle(step: UnixNanos, event: &UnifiedEvent, episodes: &mut Episodes, counters: &mut Counters) {
    for key in over(event) {
        episodes.end(step, key);
    }
    let (pod, at) = (&event.entity, event.timestamp);
    if is_start_of_kubelet(event) {
        episodes.kubelet_started(step, &event.entity, at, counters);
    }
    match event.kind {
        // Whatever the other end of it was.
        EventKind::K8sEndpoints | EventKind::K8sUnstuck | EventKind::K8sObjectDeleted => {
            episodes.end_all(step, &event.entity, SignalKind::NoEndpoints, at);
            episodes.end_all(step, &event.entity, SignalKind::Stuck, at);
        }
        // The scheduler has looked at it.
        EventKind::K8sPodUnschedulable => {
            episodes.end_all(step, &event.entity, SignalKind::Stuck, at);
        }
        _ => {}
    }
    if let Payload::Kubernetes(data) = &event.payload
        && (event.kind == EventKind::K8sEvent && data.reason == "SuccessfulCreate"
            || event.kind == EventKind::K8sObjectDeleted)
    {
        // Whoever refused its pods before does so no longer.
        episodes.end_all(step, &event.entity, SignalKind::CreateFailed, at);
    }
    if pod.pod.is_empty() {
        return;
    }
    match event.kind {
        EventKind::K8sPodReady => episodes.calm(step, pod, &CALMED_BY_READY, at, READY_CALM_NS),
        EventKind::K8sContainerStarted => {
            episodes.calm(step, pod, &OVER_BY_START, at, 0);
            episodes.resumed(step, pod, at);
        }
        EventKind::K8sObjectDeleted if is_pod(&event.payload) => {
            episodes.calm(step, pod, &GONE_WITH_POD, at, 0);
            episodes.calm(step, pod, &INHERITED, at, SUCCESSOR_NS);
        }
        _ => {}
    }
}

/// The first thing that a kubelet tells. Others start on machines, too, and tell it of them.
fn is_start_of_kubelet(event: &UnifiedEvent) -> bool {
    let Payload::Kubernetes(data) = &event.payload else { return false };
    event.kind == EventKind::K8sEvent
        && data.object_kind == tapio_schemas::entity::kinds::NODE
        && data.reason == "Starting"
        && data.reporter == "kubelet"
}

fn is_pod(payload: &Payload) -> bool {
    matches!(payload, Payload::Kubernetes(data) if data.object_kind == tapio_schemas::entity::kinds::POD)
}

/// Deviations of the very thing the event is about.
fn over(event: &UnifiedEvent) -> Vec<EpisodeKey> {
    let kinds: &[SignalKind] = match (event.kind, &event.payload) {
        (EventKind::K8sPodReady, _) => &[SignalKind::PodNotReady, SignalKind::Unschedulable],
        (EventKind::K8sObjectChanged, Payload::Kubernetes(data)) if !data.new_value.is_empty() => {
            let topic = hash_parts(&[data.new_value.split('=').next().unwrap_or_default()]) as u64;
            let is_bad = super::news::condition(data).is_some();
            let key = episode_key(SignalKind::ConditionBad, &event.entity, None, topic);
            return if is_bad { vec![] } else { vec![key] };
        }
        (EventKind::K8sContainerStarted, _) => {
            &[SignalKind::ImagePullFailed, SignalKind::ConfigMissing, SignalKind::CreateFailed]
        }
        (EventKind::K8sNodeCondition, Payload::Kubernetes(data)) => {
            match (data.reason.as_str(), data.new_value.as_str()) {
                ("Ready", "True") => &[SignalKind::NodeNotReady],
                (reason, "False") if reason.ends_with("Pressure") => &[SignalKind::NodePressure],
                _ => &[],
            }
        }
        (EventKind::SystemdUnitStarted | EventKind::SystemdUnitStopped, Payload::Systemd(data)) => {
            return over_unit(event, data);
        }
        // With the object goes what was wrong with it.
        (EventKind::K8sObjectDeleted, _) => &[SignalKind::NodeNotReady, SignalKind::NodePressure],
        _ => &[],
    };
    kinds.iter().map(|kind| episode_key(*kind, &event.entity, None, 0)).collect()
}

/// A unit that runs has not failed; one that systemd has started again may end again. Somebody who starts it begins the
/// count of restarts anew; somebody who stops it, or resets its failure, has seen to it.
fn over_unit(event: &UnifiedEvent, data: &SystemdData) -> Vec<EpisodeKey> {
    let is_started = event.kind == EventKind::SystemdUnitStarted;
    let is_stopped = event.kind == EventKind::SystemdUnitStopped && data.active_state == "inactive";
    let key = |topic| episode_key(SignalKind::UnitFailed, &event.entity, None, topic);
    match (is_started, is_stopped) {
        (true, _) if data.restarts == 0 => vec![key(0), key(RESTARTED)],
        (true, _) => vec![key(0)],
        (_, true) => vec![key(0), key(RESTARTED)],
        _ => vec![],
    }
}

/// Deviations that a container's new start does not end, but of which it shows that they did not last.
pub const ENDS: [SignalKind; 3] = [SignalKind::ContainerCrashed, SignalKind::ExitNonzero, SignalKind::Killed];

/// Keys of [`ENDS`] for a container.
pub fn ends_of(container: &EntityRef) -> [EpisodeKey; 3] {
    ENDS.map(|kind| episode_key(kind, container, None, 0))
}
