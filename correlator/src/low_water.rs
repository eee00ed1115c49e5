//! Where to read on after a restart.
//!
//! State is not stored but made again from the stream. For that each stage keeps, in the key-value bucket, the
//! stream sequence from which on it needs to read: the newest one before which everything is older than the oldest
//! event time that anything open rests on.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use tapio_runtime::bus::{Bus, BusError, StartAt};
use tapio_schemas::UnixNanos;

/// Marks kept, at most one per second of event time. Above it every second one of the older half goes: so they are the
/// farther apart the older they are, and a restart for something old reads a little more than it needs.
const MARKS_MAX: usize = 4096;
/// Event time between two marks.
const MARK_EVERY_NS: u64 = 1_000_000_000;

/// What is kept per stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LowWater {
    /// First stream sequence that is needed.
    pub sequence: u64,
    /// Oldest event time that is needed.
    pub from: UnixNanos,
    /// Of a shard: event time up to which all it says was stored when this was kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub said: UnixNanos,
}

fn is_zero(at: &UnixNanos) -> bool {
    at.0 == 0
}

/// For sequences read: the newest event time up to there, and how things stood then.
#[derive(Debug)]
pub struct Marks<T = ()> {
    marks: VecDeque<(u64, UnixNanos, T)>,
}

impl<T> Default for Marks<T> {
    fn default() -> Self {
        Self { marks: VecDeque::new() }
    }
}

impl Marks<()> {
    /// Everything up to `sequence` is read, and none of it is newer than `newest`.
    pub fn record(&mut self, sequence: u64, newest: UnixNanos) {
        self.record_with(sequence, newest, || ());
    }
}

impl<T> Marks<T> {
    /// As `record`, with how things stand after `sequence`.
    pub fn record_with(&mut self, sequence: u64, newest: UnixNanos, stands: impl FnOnce() -> T) {
        let last = self.marks.back();
        let newest = last.map_or(newest, |(_, before, _)| newest.max(*before));
        if last.is_some_and(|(last, before, _)| *last >= sequence || newest.since(*before) < MARK_EVERY_NS) {
            return;
        }
        self.marks.push_back((sequence, newest, stands()));
        if self.marks.len() > MARKS_MAX {
            let mut place = 0..;
            self.marks.retain(|_| place.next().is_none_or(|at| at > MARKS_MAX / 2 || at % 2 == 0));
        }
    }

    /// First sequence that may hold anything of `needed` or later; forgets what lies before. `None` when not known.
    pub fn sequence_for(&mut self, needed: UnixNanos) -> Option<u64> {
        self.place_for(needed).map(|(sequence, _)| sequence)
    }

    /// As [`Self::sequence_for`], with how things stood before that sequence.
    pub fn place_for(&mut self, needed: UnixNanos) -> Option<(u64, &T)> {
        let covered = self.marks.iter().take_while(|(_, newest, _)| *newest < needed).count();
        if covered == 0 {
            return None;
        }
        self.marks.drain(..covered - 1);
        self.marks.front().map(|(sequence, _, stood)| (sequence + 1, stood))
    }
}

/// Where to begin to read `stream`: at the mark; at `otherwise` when there is none, or it is of another stream.
pub async fn start_at(
    bus: &Bus,
    stream: &str,
    low_water: Option<LowWater>,
    otherwise: UnixNanos,
) -> Result<StartAt, BusError> {
    let state = bus.stream_state(stream).await?;
    Ok(start_in(state.last_sequence, low_water, otherwise))
}

/// Where to begin in a stream that ends with `last_sequence`.
pub fn start_in(last_sequence: u64, low_water: Option<LowWater>, otherwise: UnixNanos) -> StartAt {
    match low_water {
        // A stream that is shorter than the mark was made anew.
        Some(mark) if mark.sequence <= last_sequence + 1 => StartAt::Sequence(mark.sequence),
        Some(_) => StartAt::Beginning,
        None => StartAt::UnixNanos(otherwise.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> UnixNanos {
        UnixNanos(s * MARK_EVERY_NS)
    }

    #[test]
    fn everything_needed_lies_at_or_after_the_mark() {
        let mut marks = Marks::default();
        for (sequence, newest) in [(10, 100), (20, 90), (30, 200), (40, 300)] {
            marks.record(sequence, secs(newest));
        }
        assert_eq!(marks.sequence_for(secs(100)), None);
        assert_eq!(marks.sequence_for(secs(101)), Some(11));
        assert_eq!(marks.sequence_for(secs(250)), Some(31));
        // Forgotten: the mark kept before stays.
        assert_eq!(marks.sequence_for(secs(150)), None);
    }

    #[test]
    fn marks_are_bounded() {
        let mut marks = Marks::default();
        for i in 0..100_000u64 {
            marks.record(i, secs(i));
        }
        assert!((MARKS_MAX / 2..=MARKS_MAX).contains(&marks.marks.len()));
        // What is open for a day is still after a mark, which is not much older than it.
        let at = marks.sequence_for(secs(13_600)).expect("a mark before it");
        assert!((1..=13_600).contains(&at) && 13_600 - at <= 50_000, "{at}");
        assert_eq!(marks.sequence_for(secs(99_000)), Some(99_000));
        assert_eq!(marks.sequence_for(secs(50_000)), None, "forgotten");
    }
}
