//! Losses as events, so that whoever reads the stream knows what is not in it.

use std::sync::Arc;
use std::time::Duration;

use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, UnixNanos};
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{CustomData, Payload};

use crate::ledger::{DropReason, Ledger};

/// Name of the event.
pub const GAP_EVENT: &str = tapio_schemas::names::EVENT_GAP;
/// Time between two looks at the losses.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Losses of events that were good: the agent had no room, or the server would not take them. What was not valid
/// is not missed, and what the kernel lost is told by its collector.
const LOSSES: [DropReason; 7] = [
    DropReason::ShedInfo,
    DropReason::ShedWarning,
    DropReason::ShedError,
    DropReason::BacklogFull,
    DropReason::TooLarge,
    DropReason::SpoolIo,
    DropReason::Rejected,
];

/// Events that were lost between two times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Which collector or stage lost them: `ebpf`, `agent`.
    pub source: &'static str,
    /// Why: stage and reason of the ledger, joined by a dot.
    pub reason: String,
    /// How many.
    pub lost: u64,
    /// They were lost after this; zero when unknown.
    pub from: UnixNanos,
    /// They were lost before this.
    pub to: UnixNanos,
}

impl Gap {
    /// The event: kind `custom`, name `tapio.gap`, attributes `gap.source`, `gap.reason`, `gap.lost`, and `gap.from`
    /// and `gap.to` in unix nanoseconds. `node` is the machine it happened on.
    pub fn event(&self, node: &Arc<EntityRef>) -> UnifiedEvent {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let attributes = vec![
            Attribute::new("gap.source", self.source),
            Attribute::new("gap.reason", self.reason.as_str()),
            Attribute::new("gap.lost", number(self.lost)),
            Attribute::new("gap.from", number(self.from.0)),
            Attribute::new("gap.to", number(self.to.0)),
        ];
        let custom = CustomData { name: GAP_EVENT.into(), attributes, tags: Vec::new() };
        UnifiedEvent {
            id: EventId::derive(
                self.to,
                format!("{}{}{}{}", node.node, self.source, self.reason, self.from.0).as_bytes(),
            ),
            timestamp: self.to,
            observed_at: self.to,
            kind: EventKind::Custom,
            source: Source::Tapio,
            severity: EventSeverity::Error,
            entity: Arc::clone(node),
            payload: Payload::Custom(Box::new(custom)),
            ..UnifiedEvent::default()
        }
    }
}

/// Looks at the ledger for losses that have not been told.
pub struct LossWatch {
    told: [u64; LOSSES.len()],
    since: UnixNanos,
    next_look: Duration,
}

impl LossWatch {
    /// Nothing is lost yet.
    pub fn new(now: UnixNanos) -> Self {
        Self { told: [0; LOSSES.len()], since: now, next_look: Duration::ZERO }
    }

    /// What was lost since it was last told, by reason. Looks at most once a second, and always when it is the
    /// `last` time.
    pub fn look(&mut self, ledger: &Ledger, monotonic: Duration, now: UnixNanos, last: bool) -> Vec<Gap> {
        if monotonic < self.next_look && !last {
            return Vec::new();
        }
        self.next_look = monotonic + LOOK_INTERVAL;
        let from = std::mem::replace(&mut self.since, now);
        let mut gaps = Vec::new();
        for (reason, told) in LOSSES.into_iter().zip(&mut self.told) {
            let count = ledger.dropped_for(reason);
            let lost = count - std::mem::replace(told, count);
            if lost > 0 {
                let reason = format!("{}.{}", reason.stage(), reason.as_str());
                gaps.push(Gap { source: "agent", reason, lost, from, to: now });
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_runtime::telemetry::Metrics;
    use tapio_schemas::attribute::find;

    #[test]
    fn each_loss_is_told_once_with_its_time_and_reason() {
        let ledger = Ledger::new(&Metrics::new());
        let mut watch = LossWatch::new(UnixNanos(100));
        let second = Duration::from_secs(1);
        assert_eq!(watch.look(&ledger, second, UnixNanos(200), false), vec![]);
        ledger.dropped(DropReason::ShedInfo, 5);
        ledger.dropped(DropReason::TooOld, 9);
        assert_eq!(watch.look(&ledger, second, UnixNanos(250), false), vec![], "it has just looked");
        let gaps = watch.look(&ledger, second * 2, UnixNanos(300), false);
        assert_eq!(gaps.len(), 1, "what was not valid is not missed");
        assert_eq!((gaps[0].lost, gaps[0].from, gaps[0].to), (5, UnixNanos(200), UnixNanos(300)));
        assert_eq!(watch.look(&ledger, second * 3, UnixNanos(400), true), vec![]);
        let event = gaps[0].event(&Arc::new(EntityRef::default().sealed()));
        let Payload::Custom(custom) = &event.payload else { panic!("{event:?}") };
        assert_eq!(custom.name, GAP_EVENT);
        assert_eq!(find(&custom.attributes, "gap.lost").and_then(|v| v.as_f64()), Some(5.0));
        assert_eq!(find(&custom.attributes, "gap.reason").and_then(|v| v.as_text()), Some("shed.info"));
    }
}
