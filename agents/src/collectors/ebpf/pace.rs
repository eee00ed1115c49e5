//! How often the ring is read.
//!
//! A record that comes alone is read at once. In a flood each record would wake the reader, and waking it costs more
//! than all that is then done with the record; so while wakings follow each other closely the reader rests in between,
//! and the ring gathers.

use std::time::Duration;

/// Rest between two readings in a flood: how much later a record may be seen. At 20 MB/s of records the ring gathers
/// 40 KiB in it.
const REST: Duration = Duration::from_millis(2);
/// Readings that follow each other faster than this are a flood. Above [`REST`], or a rest would end it.
const CLOSE: Duration = Duration::from_millis(5);

/// Remembers the last reading.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Duration>,
}

impl Pace {
    /// How long to rest after a reading at `now`; `is_full` when more was there than was read.
    pub(super) fn rest(&mut self, now: Duration, is_full: bool) -> Option<Duration> {
        let before = self.last.replace(now);
        let is_close = before.is_some_and(|before| now.saturating_sub(before) < CLOSE);
        (is_close && !is_full).then_some(REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flood_rests_and_not_while_it_lags() {
        let mut pace = Pace::default();
        let at = Duration::from_millis;
        assert_eq!(pace.rest(at(0), false), None, "the first");
        assert_eq!(pace.rest(at(50), false), None, "alone");
        assert_eq!(pace.rest(at(51), false), Some(REST));
        assert_eq!(pace.rest(at(53), false), Some(REST), "a rest does not end a flood");
        assert_eq!(pace.rest(at(55), true), None, "more is there");
        assert_eq!(pace.rest(at(100), false), None);
    }
}
