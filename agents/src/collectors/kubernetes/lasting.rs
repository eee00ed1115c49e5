//! States that go on are told again for as long as they do: to whoever listens, a state that nobody mentions any more is over.
//!
//! By event time, so that a recording tells what the live watches told, as often.

use std::collections::{BTreeSet, HashSet};

use tapio_schemas::ids::UnixNanos;

use super::stock::Key;

/// Time between two tellings of a state, ns: less than half of the shortest silence that ends one (ten minutes).
pub(super) const REPEAT_NS: u64 = 240_000_000_000;
/// Objects in such a state that are remembered; further ones are told once, and counted.
const LASTING_MAX: usize = 20_000;
/// Objects told again in one turn; the others have the next one.
const TURN_MAX: usize = 200;

/// The objects that something is wrong with, by when they are to be told again.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    due: BTreeSet<(UnixNanos, Key)>,
    queued: HashSet<Key>,
    dropped: u64,
}

impl Lasting {
    /// An object whose state goes on was told at `at`.
    pub fn add(&mut self, at: UnixNanos, key: &Key) {
        if self.queued.contains(key) {
            return;
        }
        if self.queued.len() >= LASTING_MAX {
            self.dropped += 1;
            return;
        }
        self.queued.insert(key.clone());
        self.due.insert((at.plus(REPEAT_NS), key.clone()));
    }

    /// Objects that are to be looked at by `now`; who is still in such a state is added anew.
    pub fn turn(&mut self, now: UnixNanos) -> Vec<Key> {
        let mut turn = Vec::new();
        while turn.len() < TURN_MAX && self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.due.pop_first() else { break };
            self.queued.remove(&key);
            turn.push(key);
        }
        turn
    }

    /// States that were told once only, because too many go on.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        ("Pod".into(), "shop".into(), n.to_string().into())
    }

    #[test]
    fn each_has_its_turn_once_and_a_turn_is_bounded() {
        let mut lasting = Lasting::default();
        let start = UnixNanos(1_900_000_000_000_000_000);
        (0..=TURN_MAX).for_each(|n| lasting.add(start, &key(n)));
        lasting.add(start.plus(1), &key(3));
        assert!(lasting.turn(start.plus(REPEAT_NS - 1)).is_empty());
        let first = lasting.turn(start.plus(REPEAT_NS));
        let second = lasting.turn(start.plus(REPEAT_NS));
        assert_eq!((first.len(), second.len()), (TURN_MAX, 1));
        let all: HashSet<Key> = first.into_iter().chain(second).collect();
        assert_eq!(all.len(), TURN_MAX + 1);
        assert!(lasting.turn(start.plus(REPEAT_NS * 9)).is_empty(), "over unless it is added anew");
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut lasting = Lasting::default();
        (0..LASTING_MAX + 7).for_each(|n| lasting.add(UnixNanos(1), &key(n)));
        assert_eq!(lasting.dropped(), 7);
    }
}
