//! Changes of conditions: of nodes, and of objects that have no events of their own for them.

use smol_str::format_smolstr;
use tapio_schemas::entity::kinds;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::KubernetesData;

use super::{Changes, Fact, WatchType};
use crate::collectors::kubernetes::summary::{Condition, Summary};

/// Bad when not `True`.
const GOOD_WHEN_TRUE: [&str; 8] = [
    "Ready",
    "Available",
    "Progressing",
    "ScalingActive",
    "AbleToScale",
    // Of gateways and their routes.
    "Accepted",
    "Programmed",
    "ResolvedRefs",
];
/// Type and reason of what is as somebody wants it: scaled to nothing, or held for a while.
const WANTED: [(&str, &str); 3] = [
    ("ScalingActive", "ScalingDisabled"),
    ("Progressing", "DeploymentPaused"),
    ("Progressing", "DeploymentResumed"),
];
/// Bad when not `False`; on a node every other condition is, as problem detectors add their own.
const BAD_WHEN_TRUE: [&str; 4] = ["ReplicaFailure", "Failed", "FailureTarget", "Stalled"];

/// Of nodes, `reason` is the type of the condition, `old_value` and `new_value` are its statuses and the
/// condition's own reason begins the message. Of other objects, `reason` is the condition's and the values are
/// `Type=Status`.
pub(super) fn changes(out: &mut Changes<'_>, previous: Option<&Summary>, watch_type: WatchType) {
    let new = out.new;
    // A pod's have events of their own.
    if new.kind == kinds::POD || watch_type == WatchType::Deleted {
        return;
    }
    let on_node = new.kind == kinds::NODE;
    for condition in &new.conditions {
        let before = previous.and_then(|previous| previous.condition(&condition.kind));
        let is_bad = is_bad(condition, on_node);
        let changed = match (previous, before) {
            // Of what is seen first only what is wrong is told.
            (None, _) | (Some(_), None) => is_bad,
            (Some(_), Some(before)) => {
                // The same status may be bad for one reason and sound for another.
                let was_bad = self::is_bad(before, on_node);
                before.status != condition.status
                    || was_bad != is_bad
                    || (is_bad && before.reason != condition.reason)
            }
        };
        if !changed {
            continue;
        }
        // What has ended once is no news to who sees it first.
        let has_ended = new.kind == kinds::JOB;
        if has_ended && !out.is_news(condition.since, previous) {
            continue;
        }
        // What is wrong since long is told as of now: an old time would be dropped as old news. So is a new reason for the same
        // status, of which nobody says since when it is: the condition's time is that of its status.
        let is_as_before =
            |before: &Condition| (&before.status, before.since) == (&condition.status, condition.since);
        let is_own_time = !before.is_some_and(is_as_before) && (previous.is_some() || has_ended);
        let at = condition.since.filter(|_| is_own_time);
        push(out, condition, before, at);
    }
}

/// True when a condition is bad and goes on. That of a Job is its end: one that is kept would be heard of for ever, however well
/// those after it went.
pub(super) fn lasts(object: &Summary) -> bool {
    object.kind != kinds::JOB
        && object.conditions.iter().any(|condition| is_bad(condition, object.kind == kinds::NODE))
}

/// Every condition that is bad, as of now.
pub(super) fn lasting(out: &mut Changes<'_>) {
    let new = out.new;
    let on_node = new.kind == kinds::NODE;
    for condition in new.conditions.iter().filter(|condition| is_bad(condition, on_node)) {
        push(out, condition, None, None);
    }
}

/// A condition as it is now, at its own time or as of now.
fn push(out: &mut Changes<'_>, condition: &Condition, before: Option<&Condition>, at: Option<UnixNanos>) {
    let on_node = out.new.kind == kinds::NODE;
    let (kind, bad_severity) = if on_node {
        (EventKind::K8sNodeCondition, EventSeverity::Error)
    } else {
        (EventKind::K8sObjectChanged, EventSeverity::Warning)
    };
    let severity = if is_bad(condition, on_node) { bad_severity } else { EventSeverity::Info };
    let data = if on_node { of_node(condition, before) } else { of_object(condition, before) };
    let distinct = format_smolstr!("{}={}/{}", condition.kind, condition.status, condition.reason);
    out.push(kind, severity, Fact { at, distinct, data, ..Fact::default() });
}

fn of_node(condition: &Condition, before: Option<&Condition>) -> KubernetesData {
    KubernetesData {
        reason: condition.kind.clone(),
        message: format_smolstr!("{}: {}", condition.reason, condition.message),
        old_value: before.map(|before| before.status.clone()).unwrap_or_default(),
        new_value: condition.status.clone(),
        ..KubernetesData::default()
    }
}

fn of_object(condition: &Condition, before: Option<&Condition>) -> KubernetesData {
    let value = |c: &Condition| format_smolstr!("{}={}", c.kind, c.status);
    KubernetesData {
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        old_value: before.map(value).unwrap_or_default(),
        new_value: value(condition),
        ..KubernetesData::default()
    }
}

fn is_bad(condition: &Condition, on_node: bool) -> bool {
    let kind = condition.kind.as_str();
    if WANTED.contains(&(kind, condition.reason.as_str())) {
        return false;
    }
    if kind == "ScalingLimited" {
        // Of an autoscaler that wants more pods than it may have.
        return condition.status == "True" && condition.reason == "TooManyReplicas";
    }
    if GOOD_WHEN_TRUE.contains(&kind) {
        // `Unknown` is bad as well: nobody reports any more.
        condition.status != "True"
    } else {
        (on_node || BAD_WHEN_TRUE.contains(&kind)) && condition.status != "False"
    }
}
