//! Changes of a pod and its containers.

use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::KubernetesData;

use super::{Changes, Fact};
use crate::collectors::kubernetes::pod::{ContainerState, Ended, PodState};
use crate::collectors::kubernetes::summary::{Condition, Summary};

/// Waiting for these is normal.
const ORDINARY_WAITS: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];
/// A pod that was bound is said to be not ready at once.
const BOUND_NS: u64 = 2_000_000_000;

pub(super) fn changes(out: &mut Changes<'_>, pod: &PodState, previous: Option<&Summary>) {
    let pod_before = previous.and_then(Summary::pod);
    for container in &pod.containers {
        let before = pod_before.and_then(|pod| pod.container(&container.name));
        for end in &container.ended {
            if before.is_none_or(|before| !before.ended.iter().any(|old| same_end(old, end)))
                && out.is_news(end.at, previous)
                && !was_asked_for(end, out.new, previous)
            {
                out.push(EventKind::K8sContainerTerminated, end_severity(end), ended(container, end));
            }
        }
        waiting(out, container, before);
        if container.running_since.is_some()
            && before.is_none_or(|before| before.running_since != container.running_since)
            && out.is_news(container.running_since, previous)
        {
            out.push(EventKind::K8sContainerStarted, EventSeverity::Info, started(container));
        }
    }
    scheduling(out, previous);
    evicted(out, pod, previous);
    readiness(out, pod, previous);
}

fn same_end(a: &Ended, b: &Ended) -> bool {
    (&a.id, a.at) == (&b.id, b.at)
}

/// A failure that follows from the deletion of the pod: few programs end with zero when they are told to.
fn was_asked_for(end: &Ended, new: &Summary, previous: Option<&Summary>) -> bool {
    // The last update of a pod may say that the grace period is over and begins now.
    let deleted_from = [previous.and_then(|p| p.deleted_from), new.deleted_from].into_iter().flatten().min();
    let after = deleted_from.is_some_and(|from| end.at.is_none_or(|at| at >= from));
    after && end.exit_code != 0 && end.reason != "OOMKilled"
}

fn end_severity(end: &Ended) -> EventSeverity {
    match (end.exit_code, end.reason.as_str()) {
        (_, "OOMKilled") => EventSeverity::Critical,
        (0, _) => EventSeverity::Info,
        _ => EventSeverity::Error,
    }
}

fn ended<'a>(container: &'a ContainerState, end: &Ended) -> Fact<'a> {
    Fact {
        at: end.at,
        container: &container.name,
        container_id: end.id.clone(),
        distinct: end.id.clone(),
        data: KubernetesData {
            reason: end.reason.clone(),
            message: end.message.clone(),
            exit_code: end.exit_code,
            signal: end.signal,
            restart_count: container.restarts,
            ..KubernetesData::default()
        },
    }
}

fn started(container: &ContainerState) -> Fact<'_> {
    Fact {
        at: container.running_since,
        container: &container.name,
        distinct: container.id.clone(),
        data: KubernetesData { restart_count: container.restarts, ..KubernetesData::default() },
        ..Fact::default()
    }
}

/// True when something is wrong with a pod that its kubelet may not mention again.
pub(super) fn lasts(object: &Summary, pod: &PodState) -> bool {
    pod.containers.iter().any(|container| held_up(container).is_some())
        || unschedulable(object).is_some()
        || unready(object, pod).is_some()
}

/// What is wrong with a pod, as of now.
pub(super) fn lasting(out: &mut Changes<'_>, pod: &PodState) {
    for container in &pod.containers {
        push_waiting(out, container);
    }
    if let Some(condition) = unschedulable(out.new) {
        let fact = Fact { at: None, ..of_condition(condition) };
        out.push(EventKind::K8sPodUnschedulable, EventSeverity::Error, fact);
    }
    if let Some(condition) = unready(out.new, pod) {
        let fact = Fact { at: None, ..of_condition(condition) };
        out.push(EventKind::K8sPodNotReady, EventSeverity::Warning, fact);
    }
}

/// The readiness that a pod has lost. One that never was ready is still starting.
pub fn lost_readiness(pod: &Summary) -> Option<&Condition> {
    let ready = pod.condition("Ready").filter(|ready| ready.status != "True")?;
    let bound = pod.condition("PodScheduled").and_then(|bound| bound.since)?;
    (ready.since?.since(bound) > BOUND_NS).then_some(ready)
}

fn unready<'a>(object: &'a Summary, pod: &PodState) -> Option<&'a Condition> {
    lost_readiness(object).filter(|_| is_wanted(object, pod))
}

fn unschedulable(pod: &Summary) -> Option<&Condition> {
    pod.condition("PodScheduled").filter(|c| c.status == "False" && c.reason == "Unschedulable")
}

/// Reason and message of a container that waits for what is not ordinary.
fn held_up(container: &ContainerState) -> Option<&(SmolStr, SmolStr)> {
    container.waiting.as_ref().filter(|(reason, _)| !ORDINARY_WAITS.contains(&reason.as_str()))
}

fn waiting(out: &mut Changes<'_>, container: &ContainerState, before: Option<&ContainerState>) {
    let same = match (&container.waiting, before.and_then(|before| before.waiting.as_ref())) {
        (Some((reason, _)), Some((old, _))) => reason == old,
        _ => false,
    };
    if !same {
        push_waiting(out, container);
    }
}

fn push_waiting(out: &mut Changes<'_>, container: &ContainerState) {
    let Some((reason, message)) = held_up(container) else { return };
    let fact = Fact {
        container: &container.name,
        distinct: format_smolstr!("{reason}/{}", container.restarts),
        data: KubernetesData {
            reason: reason.clone(),
            message: message.clone(),
            restart_count: container.restarts,
            ..KubernetesData::default()
        },
        ..Fact::default()
    };
    out.push(EventKind::K8sContainerWaiting, EventSeverity::Error, fact);
}

fn scheduling(out: &mut Changes<'_>, previous: Option<&Summary>) {
    if let Some(now) = unschedulable(out.new)
        && previous.and_then(unschedulable).is_none()
    {
        out.push(EventKind::K8sPodUnschedulable, EventSeverity::Error, of_condition(now));
    }
}

/// By the kubelet under pressure (the phase's reason), or by somebody through the API (the condition).
fn evicted(out: &mut Changes<'_>, pod: &PodState, previous: Option<&Summary>) {
    // `Terminated` and the two others: the machine shuts down.
    let by_kubelet =
        |pod: &PodState| ["Evicted", "Terminated", "NodeShutdown", "Shutdown"].contains(&pod.reason.as_str());
    let by_api = |pod: &Summary| pod.condition("DisruptionTarget").is_some_and(|c| c.status == "True");
    if by_kubelet(pod) && !previous.and_then(Summary::pod).is_some_and(by_kubelet) {
        let data = KubernetesData {
            reason: pod.reason.clone(),
            message: pod.message.clone(),
            ..KubernetesData::default()
        };
        out.push(EventKind::K8sPodEvicted, EventSeverity::Error, Fact { data, ..Fact::default() });
    } else if by_api(out.new) && !previous.is_some_and(by_api) {
        let condition = out.new.condition("DisruptionTarget").cloned();
        let fact = condition.as_ref().map(of_condition).unwrap_or_default();
        out.push(EventKind::K8sPodEvicted, EventSeverity::Warning, fact);
    }
}

/// Only transitions: a pod that starts is not ready either, and one that ends or is deleted need not be.
fn readiness(out: &mut Changes<'_>, pod: &PodState, previous: Option<&Summary>) {
    let status = |pod: Option<&Summary>| pod.and_then(|p| p.condition("Ready")).map(|c| c.status.clone());
    let Some(now) = out.new.condition("Ready").cloned() else { return };
    let before = status(previous);
    if previous.is_none() || before.as_ref() == Some(&now.status) {
        return;
    }
    if now.status == "True" {
        out.push(EventKind::K8sPodReady, EventSeverity::Info, of_condition(&now));
    } else if before.is_some_and(|before| before == "True") && is_wanted(out.new, pod) {
        out.push(EventKind::K8sPodNotReady, EventSeverity::Warning, of_condition(&now));
    }
}

/// Whether the pod is there to serve: neither deleted, nor done (a Job's pod is `Running` for a moment longer).
fn is_wanted(new: &Summary, pod: &PodState) -> bool {
    let is_done = |c: &ContainerState| {
        c.running_since.is_none()
            && c.waiting.is_none()
            && c.ended.last().is_some_and(|end| end.exit_code == 0)
    };
    new.deleted_from.is_none() && pod.phase == "Running" && !pod.containers.iter().all(is_done)
}

fn of_condition(condition: &Condition) -> Fact<'static> {
    Fact {
        at: condition.since,
        distinct: SmolStr::new(&condition.kind),
        data: KubernetesData {
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            new_value: format_smolstr!("{}={}", condition.kind, condition.status),
            ..KubernetesData::default()
        },
        ..Fact::default()
    }
}
