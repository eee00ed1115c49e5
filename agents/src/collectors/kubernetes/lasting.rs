//! States that go on are told again for as long as they do: to whoever listens, a state that nobody mentions any more is over.
//!
//! By event time, so that a recording tells what the live watches told, as often.

use tapio_schemas::ids::UnixNanos;

use super::due::Due;
use super::stock::Key;

/// Time between two tellings of a state, ns: less than half of the shortest silence that ends one (ten minutes).
pub(super) const REPEAT_NS: u64 = 240_000_000_000;
/// Objects told again in one turn; the others have the next one.
const TURN_MAX: usize = 200;

/// The objects that something is wrong with, by when they are to be told again.
#[derive(Debug, Default)]
pub(super) struct Lasting(Due);

impl Lasting {
    /// An object whose state goes on was told at `at`.
    pub fn add(&mut self, at: UnixNanos, key: &Key) {
        self.0.add(at.plus(REPEAT_NS), key.clone());
    }

    /// Objects that are to be looked at by `now`; who is still in such a state is added anew.
    pub fn turn(&mut self, now: UnixNanos) -> Vec<Key> {
        std::iter::from_fn(|| self.0.pop(now)).take(TURN_MAX).collect()
    }

    /// States that were told once only, because too many go on.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::stock::numbered as key;
    use super::*;

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
}
