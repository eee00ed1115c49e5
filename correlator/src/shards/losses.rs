//! Losses that a producer tells itself: what its collectors or its backlog could not keep; and what this process had no time
//! or no memory for.

use tapio_runtime::memory::Pressure;
use tapio_schemas::attribute::find;
use tapio_schemas::kind::ArchivedEventSeverity;
use tapio_schemas::names::EVENT_GAP;
use tapio_schemas::payload::CustomData;
use tapio_schemas::wire::EventView;
use tapio_schemas::{AttributeValue, EventSeverity, Gap, ProducerId, SmolStr, UnifiedEvent, UnixNanos};

/// The hole a custom event tells: events that were lost, or a time in which its source saw nothing (`gap.lost` is zero and
/// `gap.reason` says why). `None` for any other custom event, or when nothing was lost.
pub fn told(event: &UnifiedEvent, data: &CustomData) -> Option<Gap> {
    if data.name != EVENT_GAP {
        return None;
    }
    let number = |key: &str| match find(&data.attributes, key) {
        Some(AttributeValue::Int(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    let text = |key: &str| find(&data.attributes, key).and_then(AttributeValue::as_text).map(SmolStr::new);
    let lost = number("gap.lost")?;
    let reason = text("gap.reason").unwrap_or_default();
    if lost == 0 && reason.is_empty() {
        return None;
    }
    let to = number("gap.to").map_or(event.timestamp, UnixNanos);
    Some(Gap {
        // It is about the machine; the batch's producer says nothing about which collector lost it.
        producer: ProducerId(0),
        source: text("gap.source").unwrap_or_default(),
        node: event.entity.node.clone(),
        lost,
        from: number("gap.from").filter(|from| *from > 0).map_or(to, UnixNanos),
        to,
        reason,
    })
}

/// True for an event that is shed because memory runs out.
#[cold]
pub fn sheds(view: &EventView<'_>, pressure: Pressure) -> bool {
    let severity = match view.event.severity {
        ArchivedEventSeverity::Debug => EventSeverity::Debug,
        ArchivedEventSeverity::Info => EventSeverity::Info,
        ArchivedEventSeverity::Warning => EventSeverity::Warning,
        ArchivedEventSeverity::Error => EventSeverity::Error,
        ArchivedEventSeverity::Critical => EventSeverity::Critical,
    };
    pressure.sheds_up_to().is_some_and(|most| severity <= most) && view.event.payload.is_routine()
}

/// What this process did not use of a producer's events.
pub fn unused(
    producer: ProducerId,
    node: SmolStr,
    lost: u64,
    (from, to): (UnixNanos, UnixNanos),
    reason: &str,
) -> Gap {
    Gap { producer, source: "correlator".into(), node, lost, from, to, reason: reason.into() }
}

/// Notes what was not used, with what is noted of the same producer for the same reason already.
pub fn note(gaps: &mut Vec<Gap>, more: Gap) {
    match gaps.iter_mut().find(|gap| (gap.producer, &gap.reason) == (more.producer, &more.reason)) {
        Some(gap) => {
            gap.lost += more.lost;
            (gap.from, gap.to) = (gap.from.min(more.from), gap.to.max(more.to));
        }
        None => gaps.push(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::Attribute;

    fn event(name: &str, lost: i64) -> (UnifiedEvent, CustomData) {
        let attributes = vec![
            Attribute::new("gap.source", "ebpf"),
            Attribute::new("gap.reason", "kernel.ring_full"),
            Attribute::new("gap.lost", lost),
            Attribute::new("gap.to", 9_i64),
        ];
        let event = UnifiedEvent { timestamp: UnixNanos(9), ..UnifiedEvent::default() };
        (event, CustomData { name: name.into(), attributes, tags: Vec::new() })
    }

    #[test]
    fn a_told_loss_is_a_gap_and_nothing_else_is() {
        let (told_event, data) = event(EVENT_GAP, 120);
        let gap = told(&told_event, &data).expect("a gap");
        assert_eq!(
            (gap.lost, gap.source.as_str(), gap.from, gap.to),
            (120, "ebpf", UnixNanos(9), UnixNanos(9))
        );
        let (blind, data) = event(EVENT_GAP, 0);
        assert_eq!(told(&blind, &data).map(|gap| gap.lost), Some(0), "nothing was seen, and why");
        let without_reason = CustomData { attributes: data.attributes[2..].to_vec(), ..data };
        assert_eq!(told(&blind, &without_reason), None);
        let (other, data) = event("deploy.finished", 3);
        assert_eq!(told(&other, &data), None);
    }
}
