//! What the agent sheds so that it is not killed for its memory.

use std::sync::Arc;
use std::time::Duration;

use tapio_runtime::config::ByteSize;
use tapio_runtime::memory::{MemoryFigure, MemoryWatch, Pressure};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::status::MemoryStatus;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Follows the memory of the process.
pub struct MemoryShed {
    watch: MemoryWatch,
    pressure: Pressure,
    next_look: Duration,
}

impl MemoryShed {
    /// At most so many bytes, or what the control group allows when that is less; 0 = the group's.
    pub fn new(figure: Arc<dyn MemoryFigure>, bytes_max: ByteSize) -> Self {
        let watch = MemoryWatch::new(figure, bytes_max);
        Self { watch, pressure: Pressure::Calm, next_look: Duration::ZERO }
    }

    /// Looks, when it is time to.
    pub fn look(&mut self, monotonic: Duration) {
        if monotonic < self.next_look {
            return;
        }
        self.next_look = monotonic + LOOK_INTERVAL;
        self.pressure = self.watch.look();
    }

    /// Whether an event must not enter now.
    pub fn sheds(&self, event: &UnifiedEvent) -> bool {
        self.pressure.sheds_up_to().is_some_and(|most| event.severity <= most) && event.payload.is_routine()
    }

    /// How things stood when it last looked.
    pub fn status(&self) -> MemoryStatus {
        MemoryStatus::new(self.watch.bytes(), self.watch.bytes_max(), self.pressure.sheds_up_to())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tapio_schemas::kind::EventSeverity;
    use tapio_schemas::payload::Payload;

    struct Told(AtomicU64);

    impl MemoryFigure for Told {
        fn resident_bytes(&self) -> Option<u64> {
            Some(self.0.load(Ordering::Relaxed))
        }
    }

    fn event(severity: EventSeverity, payload: Payload) -> UnifiedEvent {
        UnifiedEvent { severity, payload, ..UnifiedEvent::default() }
    }

    #[test]
    fn routine_is_shed_by_severity_and_news_of_objects_never() {
        const MAX: u64 = 1 << 20;
        let told = Arc::new(Told(AtomicU64::new(0)));
        let mut shed = MemoryShed::new(Arc::clone(&told) as Arc<dyn MemoryFigure>, ByteSize(MAX));
        let severities =
            [EventSeverity::Debug, EventSeverity::Info, EventSeverity::Warning, EventSeverity::Error];
        let mut now = Duration::ZERO;
        let mut shed_at = |share: u64| {
            told.0.store(MAX * share / 100, Ordering::Relaxed);
            now += LOOK_INTERVAL;
            shed.look(now);
            let objects = event(EventSeverity::Debug, Payload::Kubernetes(Box::default()));
            assert!(!shed.sheds(&objects));
            severities.map(|severity| shed.sheds(&event(severity, Payload::Kernel(Box::default()))))
        };
        assert_eq!(shed_at(79), [false; 4]);
        assert_eq!(shed_at(81), [true, true, false, false]);
        assert_eq!(shed_at(91), [true, true, true, false]);
        assert_eq!(shed_at(76), [true, true, false, false]);
        assert_eq!(shed_at(74), [false; 4]);
    }
}
