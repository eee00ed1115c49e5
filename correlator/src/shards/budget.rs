//! How long one piece of work may hold up the others: the clock is looked at once per chunk of work, not per event.

use std::time::Duration;

use tapio_runtime::clock::Clock;
use tapio_runtime::memory::Pressure;
use tapio_schemas::UnixNanos;
use tapio_schemas::wire::EventBatchView;

use super::reorder::Waiting;

/// Units of work between two looks at the clock: an event taken in, or one judged.
pub const CHUNK_UNITS: u32 = 512;
/// A step of event time counts as so many units.
const STEP_UNITS: u32 = 16;

/// The time that a piece of work has left. Work stops between two units, after one at the least.
pub struct Budget<'a> {
    clock: Option<&'a dyn Clock>,
    until: Duration,
    chunk: u32,
    left: u32,
}

impl Budget<'static> {
    /// As long as it takes.
    pub fn unlimited() -> Self {
        Self { clock: None, until: Duration::MAX, chunk: u32::MAX, left: u32::MAX }
    }
}

impl<'a> Budget<'a> {
    /// Until this time of the clock; looked at after each `chunk` of units.
    pub fn until(clock: &'a dyn Clock, until: Duration, chunk: u32) -> Self {
        Self { clock: Some(clock), until, chunk, left: chunk }
    }

    /// A unit is done. True when the time is over.
    pub(super) fn is_over(&mut self) -> bool {
        self.spend(1)
    }

    /// A step is done. True when the time is over.
    pub(super) fn is_over_after_step(&mut self) -> bool {
        self.spend(STEP_UNITS)
    }

    fn spend(&mut self, units: u32) -> bool {
        match self.left.checked_sub(units) {
            Some(left) if left > 0 => {
                self.left = left;
                false
            }
            _ => self.look(),
        }
    }

    #[cold]
    fn look(&mut self) -> bool {
        self.left = self.chunk;
        self.clock.is_some_and(|clock| clock.monotonic() >= self.until)
    }
}

/// How far the work on a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Events taken in.
    pub next: usize,
    /// Events after this are refused, as it was when the work began.
    pub newest_allowed: UnixNanos,
    /// What is shed because memory runs out.
    pub pressure: Pressure,
    /// The time by the clock, when news is to be told at once.
    pub live: Option<UnixNanos>,
}

impl Cursor {
    /// Nothing is taken in yet.
    pub fn new(newest_allowed: UnixNanos) -> Self {
        Self { next: 0, newest_allowed, pressure: Pressure::Calm, live: None }
    }

    /// Events of the batch that are not taken in yet; `None` for none.
    pub fn rest(&self, batch: &EventBatchView<'_>) -> Option<Waiting> {
        let rest = batch.iter().skip(self.next);
        let times = rest.inspect(|_view| {
            #[cfg(test)]
            super::trap::given_up(tapio_schemas::EventId(_view.event.id.0.to_native()));
        });
        let each = times.map(|view| Waiting { count: 1, from: view.timestamp(), to: view.timestamp() });
        each.reduce(Waiting::and)
    }
}
