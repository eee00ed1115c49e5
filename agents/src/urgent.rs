//! Events that do not wait for their batch to fill: which they are, and how often a batch leaves for them.
//!
//! The first leaves at once. While more come, a shard's batch leaves for them every `urgent_age`, so that a flood makes
//! fuller messages and not one each; and all shards together at most [`URGENT_BATCHES_PER_S_MAX`] times a second.

use std::time::Duration;

use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::{EventKind, EventSeverity};

/// Batches of an agent that leave early in a second; beyond it they wait for their age. An agent whose shards are all busy
/// sends 640 a second by age alone.
pub const URGENT_BATCHES_PER_S_MAX: u32 = 500;

/// True for what may be news by itself, and for errors. Telemetry of applications is judged by many, so that one span or
/// record gains nothing by haste, however bad it says it is.
pub fn is_urgent(event: &UnifiedEvent) -> bool {
    match event.kind {
        EventKind::Span
        | EventKind::Log
        | EventKind::AppError
        | EventKind::Metric
        | EventKind::CgroupSample
        | EventKind::NetRetransmit
        | EventKind::NetDrop => false,
        EventKind::OomKill
        | EventKind::NetConnectRefused
        | EventKind::NetConnectTimeout
        | EventKind::NetConnectUnreachable
        | EventKind::K8sContainerTerminated
        | EventKind::K8sContainerWaiting
        | EventKind::K8sPodUnschedulable
        | EventKind::K8sPodEvicted
        | EventKind::K8sImageChanged
        | EventKind::K8sRollout
        | EventKind::K8sScaled
        | EventKind::K8sConfigChanged
        | EventKind::K8sNodeCondition
        | EventKind::SystemdUnitFailed
        | EventKind::ContainerOom
        | EventKind::CniFailed
        | EventKind::Change => true,
        _ => event.severity >= EventSeverity::Error,
    }
}

/// How often batches leave early.
#[derive(Debug)]
pub struct Pace {
    age: Duration,
    /// Second of the monotonic clock that the count is of.
    second: u64,
    sent: u32,
}

impl Pace {
    /// With this time between two early batches of a shard.
    pub fn new(age: Duration) -> Self {
        Self { age, second: 0, sent: 0 }
    }

    /// When a batch with urgent events may leave, given when the last of its shard left early.
    pub fn due(&self, last: Option<Duration>, now: Duration) -> Duration {
        let due = last.map_or(Duration::ZERO, |last| last + self.age);
        if self.is_spent(now) { due.max(Duration::from_secs(now.as_secs() + 1)) } else { due }
    }

    /// One leaves early.
    pub fn leaves(&mut self, now: Duration) {
        if self.second != now.as_secs() {
            (self.second, self.sent) = (now.as_secs(), 0);
        }
        self.sent += 1;
    }

    fn is_spent(&self, now: Duration) -> bool {
        self.second == now.as_secs() && self.sent >= URGENT_BATCHES_PER_S_MAX
    }
}
