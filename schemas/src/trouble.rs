//! Tapio's own troubles, as events about itself: what it loses, delays or cannot keep.
//!
//! An event is told again every [`REPEAT`] while the trouble lasts, so that silence ends it.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::attribute::{Attribute, find};
use crate::entity::{EntityRef, kinds};
use crate::event::UnifiedEvent;
use crate::ids::{EventId, UnixNanos};
use crate::kind::{EventKind, EventSeverity, Source};
use crate::payload::{CustomData, Payload};
use crate::signal::SignalKind;

/// Name of the custom event, with the attributes `trouble.kind`, `trouble.part` and `trouble.says`.
pub const EVENT_TROUBLE: &str = "tapio.trouble";
/// Time between two words on the same trouble.
pub const REPEAT: Duration = Duration::from_secs(10);
/// A correlator whose event time is further behind than this is in trouble.
pub const LAG_MAX: Duration = Duration::from_secs(30);
/// A correlator that has had work put aside for longer than this is in trouble.
pub const DEFERRED_SECONDS_MAX: u64 = 10;

/// A store that has findings waiting for longer than this is in trouble.
pub const STORE_WAIT_SECONDS_MAX: u64 = 10;

/// A trouble of one part on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// `agent`, `correlator` or `storage`.
    pub part: &'static str,
    /// Machine or replica.
    pub place: SmolStr,
    /// What it is: one of the `tapio.*` kinds.
    pub kind: SignalKind,
    /// In words, with its numbers.
    pub says: String,
}

impl Trouble {
    /// The event: about an entity of kind `Tapio`, which no workload is related to.
    pub fn event(&self, cluster: &str, now: UnixNanos) -> UnifiedEvent {
        let name = format!("{} on {}", self.part, self.place);
        let entity = EntityRef {
            cluster: cluster.into(),
            object_kind: kinds::TAPIO.into(),
            object: name.as_str().into(),
            ..EntityRef::default()
        };
        let attributes = vec![
            Attribute::new("trouble.kind", self.kind.as_str()),
            Attribute::new("trouble.part", self.part),
            Attribute::new("trouble.says", self.says.as_str()),
        ];
        let custom = CustomData { name: EVENT_TROUBLE.into(), attributes, tags: Vec::new() };
        UnifiedEvent {
            id: EventId::derive(now, format!("{cluster}{name}{}", self.kind.as_str()).as_bytes()),
            timestamp: now,
            observed_at: now,
            kind: EventKind::Custom,
            source: Source::Tapio,
            severity: EventSeverity::Warning,
            entity: Arc::new(entity.sealed()),
            payload: Payload::Custom(Box::new(custom)),
            ..UnifiedEvent::default()
        }
    }
}

/// Kind and words of a custom event that tells a trouble; `None` for any other.
pub fn told(data: &CustomData) -> Option<(SignalKind, &str)> {
    if data.name != EVENT_TROUBLE {
        return None;
    }
    let text = |key: &str| find(&data.attributes, key).and_then(|value| value.as_text());
    let kind: SignalKind = text("trouble.kind")?.parse().ok()?;
    let is_ours = matches!(
        kind,
        SignalKind::TapioLoss
            | SignalKind::TapioSpooling
            | SignalKind::TapioCircuitOpen
            | SignalKind::TapioLag
            | SignalKind::TapioDiskRefuses
            | SignalKind::TapioDeferring
            | SignalKind::TapioMemory
    );
    is_ours.then(|| (kind, text("trouble.says").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_about_tapio_and_no_other_event_is_one() {
        let trouble =
            Trouble { part: "agent", place: "n1".into(), kind: SignalKind::TapioLoss, says: "5 lost".into() };
        let event = trouble.event("c", UnixNanos(7));
        assert_eq!(event.entity.subject().to_string(), "Tapio agent on n1");
        let Payload::Custom(data) = &event.payload else { panic!("{event:?}") };
        assert_eq!(told(data), Some((SignalKind::TapioLoss, "5 lost")));
        // An application cannot make its own failures out of it.
        let attributes = vec![Attribute::new("trouble.kind", "memory.oom_kill")];
        let foreign = CustomData { name: EVENT_TROUBLE.into(), attributes, tags: Vec::new() };
        assert_eq!(told(&foreign), None);
    }
}
