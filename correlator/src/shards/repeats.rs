//! Spans that are delivered again: who exports at least once sends a request anew when its answer got lost, and then each span of
//! it comes twice, seconds apart. A span that is counted twice is a request that nobody made, and one without children,
//! which the first one has taken.
//!
//! Ids of events are functions of what they are of, so a repetition has the time and the id of the first. Repetitions that wait
//! together are told by the reorder buffer; those that come later, here.

use foldhash::HashSet;
use tapio_schemas::{EventId, UnixNanos};

/// A span is known for at least so long, and for at most twice as long: an exporter that tries again does so sooner.
const KNOWN_NS: u64 = 30_000_000_000;
/// Spans known of each of the two stretches of time; when more come, they are known for a shorter time.
const KNOWN_MAX: usize = 16_384;

/// Spans of a shard that were judged lately.
#[derive(Default)]
pub struct Repeats {
    since: UnixNanos,
    /// Hashes of time and id: of this stretch of time, and of the one before.
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Repeats {
    /// Notes a span; true when it was noted before.
    pub fn is_again(&mut self, at: UnixNanos, id: EventId) -> bool {
        if self.young.len() >= KNOWN_MAX || at.since(self.since) >= KNOWN_NS {
            self.old.clear();
            std::mem::swap(&mut self.young, &mut self.old);
            self.since = at;
        }
        let key = xxhash_rust::xxh3::xxh3_64_with_seed(&id.0.to_le_bytes(), at.0);
        self.old.contains(&key) || !self.young.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn at(s: u64) -> UnixNanos {
        UnixNanos((1_000_000 + s) * SECOND_NS)
    }

    #[test]
    fn a_span_is_known_for_half_a_minute_at_least_and_not_for_ever() {
        let mut repeats = Repeats::default();
        assert!(!repeats.is_again(at(0), EventId(7)) && repeats.is_again(at(0), EventId(7)));
        assert!(!repeats.is_again(at(29), EventId(8)) && !repeats.is_again(at(29), EventId(7)));
        assert!(!repeats.is_again(at(40), EventId(9)));
        assert!(repeats.is_again(at(0), EventId(7)) && repeats.is_again(at(29), EventId(8)));
        assert!(!repeats.is_again(at(71), EventId(10)));
        assert!(!repeats.is_again(at(29), EventId(8)));
    }

    #[test]
    fn of_a_flood_the_newest_are_known_and_no_more_than_there_is_room_for() {
        let mut repeats = Repeats::default();
        for id in 1..=200_000u128 {
            assert!(!repeats.is_again(at(0), EventId(id)));
            assert!(repeats.young.len() <= KNOWN_MAX && repeats.old.len() <= KNOWN_MAX);
        }
        assert!(repeats.is_again(at(0), EventId(200_000 - KNOWN_MAX as u128)));
        assert!(!repeats.is_again(at(0), EventId(1)));
    }
}
