//! Spans and lines that are delivered again: who exports at least once sends a request anew when its answer got lost, and then
//! all of it comes twice, seconds apart. A span that is counted twice is a request that nobody made, and one without children,
//! which the first one has taken; an error that is counted three times is certain. Lines that only are a step of their span are
//! one step however often they come, and are not asked for here.
//!
//! Ids of events are functions of what they are of, so a repetition has the time and the id of the first. Repetitions that wait
//! together are told by the reorder buffer; those that come later, here.

use foldhash::HashSet;
use tapio_schemas::{EventId, UnixNanos};

use super::counters::Counters;

/// One is known for at least so long, and for at most twice as long: an exporter that tries again does so sooner.
const KNOWN_NS: u64 = 30_000_000_000;
/// How many are known of each of the two stretches of time; when more come, they are known for a shorter time, which is counted.
const KNOWN_MAX: usize = 16_384;

/// Spans and lines of a shard that were judged lately.
#[derive(Default)]
pub struct Repeats {
    since: UnixNanos,
    /// Hashes of time and id: of this stretch of time, and of the one before.
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Repeats {
    /// Notes a span or a line; true when it was noted before.
    pub fn is_again(&mut self, at: UnixNanos, id: EventId, counters: &mut Counters) -> bool {
        let is_old = at.since(self.since) >= KNOWN_NS;
        if self.young.len() >= KNOWN_MAX || is_old {
            counters.evicted.repeats += if is_old { 0 } else { self.old.len() as u64 };
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
        let (mut repeats, mut counters) = (Repeats::default(), Counters::default());
        let mut again = |s: u64, id: u128| repeats.is_again(at(s), EventId(id), &mut counters);
        assert!(!again(0, 7) && again(0, 7));
        assert!(!again(29, 8) && !again(29, 7));
        assert!(!again(40, 9));
        assert!(again(0, 7) && again(29, 8));
        assert!(!again(71, 10));
        assert!(!again(29, 8));
        assert_eq!(counters.evicted.repeats, 0, "each was known for as long as it is to be");
    }

    #[test]
    fn of_a_flood_the_newest_are_known_and_no_more_than_there_is_room_for() {
        let (mut repeats, mut counters) = (Repeats::default(), Counters::default());
        for id in 1..=200_000u128 {
            assert!(!repeats.is_again(at(0), EventId(id), &mut counters));
            assert!(repeats.young.len() <= KNOWN_MAX && repeats.old.len() <= KNOWN_MAX);
        }
        let known = (repeats.young.len() + repeats.old.len()) as u64;
        assert_eq!(counters.evicted.repeats + known, 200_000, "what is forgotten too soon is counted");
        assert!(repeats.is_again(at(0), EventId(200_000 - KNOWN_MAX as u128), &mut counters));
        assert!(!repeats.is_again(at(0), EventId(1), &mut counters));
    }
}
