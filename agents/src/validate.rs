//! The first thing the node does with an event: is it whole, and is it of now?

use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, ProducerId, UnixNanos};
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::Payload;

use crate::ledger::DropReason;

/// Bounds of event time, and the source of ids for events that come without.
pub struct Validator {
    age_max_nanos: u64,
    future_max_nanos: u64,
    producer: ProducerId,
    next_id: u64,
}

impl Validator {
    /// A validator; `producer` must differ from run to run.
    pub fn new(age_max_nanos: u64, future_max_nanos: u64, producer: ProducerId) -> Self {
        Self { age_max_nanos, future_max_nanos, producer, next_id: 0 }
    }

    /// Checks an event against the clock and fills what a collector may leave out: id, time of observation.
    ///
    /// # Errors
    /// The reason to drop it.
    pub fn check(&mut self, event: &mut UnifiedEvent, now: UnixNanos) -> Result<(), DropReason> {
        if event.timestamp.0 == 0 {
            return Err(DropReason::NoTime);
        }
        if now.since(event.timestamp) > self.age_max_nanos {
            return Err(DropReason::TooOld);
        }
        if event.timestamp.since(now) > self.future_max_nanos {
            return Err(DropReason::InFuture);
        }
        if !fits(event.kind, &event.payload) || !is_finite(&event.payload) {
            return Err(DropReason::Malformed);
        }
        // A zero trace id means "none"; as `Some` it would pull unrelated events into one shard.
        if event.trace.as_ref().is_some_and(|t| t.trace_id.0 == 0) {
            event.trace = None;
        }
        if event.kind == EventKind::Span && event.trace.is_none() {
            return Err(DropReason::Malformed);
        }
        if event.observed_at.0 == 0 {
            event.observed_at = now;
        }
        if event.id.0 == 0 {
            event.id = EventId::sequenced(event.timestamp, self.producer, self.next_id);
            self.next_id += 1;
        }
        Ok(())
    }
}

/// Whether the payload is of the type that the kind calls for.
fn fits(kind: EventKind, payload: &Payload) -> bool {
    use EventKind as K;
    match payload {
        Payload::Kernel(_) => matches!(kind, K::ProcessExec | K::ProcessExit | K::OomKill | K::SignalSent),
        Payload::Network(_) => kind.as_str().starts_with("net."),
        Payload::Metric(_) => matches!(kind, K::Metric | K::CgroupSample),
        Payload::Span(_) => kind == K::Span,
        Payload::Log(_) => matches!(kind, K::Log | K::ContainerSaid),
        Payload::Kubernetes(_) => kind.as_str().starts_with("k8s."),
        Payload::Systemd(_) => kind.as_str().starts_with("systemd."),
        Payload::Runtime(_) => kind != K::ContainerSaid && kind.as_str().starts_with("runtime."),
        Payload::Cni(_) => kind.as_str().starts_with("cni."),
        Payload::Change(_) => kind == K::Change,
        Payload::Application(_) => kind == K::AppError,
        Payload::Custom(_) => kind == K::Custom,
    }
}

fn is_finite(payload: &Payload) -> bool {
    match payload {
        Payload::Metric(m) => m.value.is_finite() && m.limit.is_finite() && m.limit >= 0.0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::event::TraceContext;
    use tapio_schemas::payload::{LogData, MetricData, RuntimeData, SpanData};

    const NOW: UnixNanos = UnixNanos(1_000_000);

    fn check(event: UnifiedEvent) -> Result<UnifiedEvent, DropReason> {
        let mut event = event;
        Validator::new(1000, 100, ProducerId(9)).check(&mut event, NOW).map(|()| event)
    }

    fn at(nanos: u64) -> UnifiedEvent {
        UnifiedEvent { timestamp: UnixNanos(nanos), ..Default::default() }
    }

    #[test]
    fn time_has_bounds() {
        assert_eq!(check(at(0)), Err(DropReason::NoTime));
        assert_eq!(check(at(NOW.0 - 1001)), Err(DropReason::TooOld));
        assert_eq!(check(at(NOW.0 + 101)), Err(DropReason::InFuture));
        let event = check(at(NOW.0 - 1000)).unwrap();
        assert_ne!(event.id, EventId(0));
        assert_eq!(event.observed_at, NOW);
    }

    #[test]
    fn kind_and_payload_must_agree() {
        let metric = |value| Payload::Metric(Box::new(MetricData { value, ..Default::default() }));
        let event = |kind, payload| UnifiedEvent { kind, payload, ..at(NOW.0) };
        assert!(check(event(EventKind::CgroupSample, metric(1.0))).is_ok());
        assert_eq!(check(event(EventKind::Span, metric(1.0))), Err(DropReason::Malformed));
        assert_eq!(check(event(EventKind::Metric, metric(f64::NAN))), Err(DropReason::Malformed));
        let log = || Payload::Log(Box::<LogData>::default());
        assert!(check(event(EventKind::ContainerSaid, log())).is_ok());
        assert_eq!(check(event(EventKind::ContainerOom, log())), Err(DropReason::Malformed));
        let runtime = Payload::Runtime(Box::<RuntimeData>::default());
        assert_eq!(check(event(EventKind::ContainerSaid, runtime)), Err(DropReason::Malformed));
        let span = Payload::Span(Box::<SpanData>::default());
        let zero_trace = Some(Box::<TraceContext>::default());
        let without_trace = UnifiedEvent { trace: zero_trace, ..event(EventKind::Span, span) };
        assert_eq!(check(without_trace), Err(DropReason::Malformed));
    }
}
