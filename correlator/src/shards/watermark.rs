//! Event time: the grid on which both stages work, and the watermark.
//!
//! A shard works in steps of [`TICK_NS`]. A step `g` covers the half-open interval `(g − TICK, g]`; it is run
//! when the watermark has passed `g`, over everything with a time in it. So what a shard says is a function
//! of the set of its events, not of the order in which they arrived or of how often the watermark moved.

use tapio_schemas::UnixNanos;

/// Length of a step of event time. Law between the stages: stage two decides on the same grid.
pub const TICK_NS: u64 = 250_000_000;

/// Last grid point at or before `at`.
pub fn grid_floor(at: UnixNanos) -> UnixNanos {
    UnixNanos(at.0 - at.0 % TICK_NS)
}

/// First grid point at or after `at`: the step that covers it.
pub fn grid_ceil(at: UnixNanos) -> UnixNanos {
    match at.0 % TICK_NS {
        0 => at,
        past => UnixNanos(at.0.saturating_add(TICK_NS - past)),
    }
}

/// Follows the newest event, or the clock when there is nothing left to read.
#[derive(Debug, Clone)]
pub struct Watermark {
    lateness_ns: u64,
    at: UnixNanos,
}

impl Watermark {
    /// A watermark that stays `lateness_ns` behind what it follows.
    pub fn new(lateness_ns: u64) -> Self {
        Self { lateness_ns, at: UnixNanos(0) }
    }

    /// An event of time `newest` was seen.
    pub fn observe(&mut self, newest: UnixNanos) {
        self.at = self.at.max(newest.minus(self.lateness_ns));
    }

    /// Everything that was published is read, and it is `now`.
    pub fn caught_up(&mut self, now: UnixNanos) {
        self.observe(now);
    }

    /// Event time up to which everything is known.
    pub fn at(&self) -> UnixNanos {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_covers_what_lies_before_its_end() {
        assert_eq!(grid_ceil(UnixNanos(TICK_NS)), UnixNanos(TICK_NS));
        assert_eq!(grid_ceil(UnixNanos(TICK_NS + 1)), UnixNanos(2 * TICK_NS));
        assert_eq!(grid_floor(UnixNanos(2 * TICK_NS - 1)), UnixNanos(TICK_NS));
    }

    #[test]
    fn a_watermark_never_goes_back() {
        let mut watermark = Watermark::new(500);
        watermark.observe(UnixNanos(2_000));
        watermark.observe(UnixNanos(1_000));
        assert_eq!(watermark.at(), UnixNanos(1_500));
        watermark.caught_up(UnixNanos(3_000));
        assert_eq!(watermark.at(), UnixNanos(2_500));
    }
}
