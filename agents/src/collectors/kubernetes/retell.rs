//! Which objects are told again when: each once per interval, evenly spread, so that whoever began to listen later
//! learns what belongs to what.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::stock::Key;

/// Objects told again at once; with a turn each second and five minutes, 60,000 objects have their turn in time, more
/// of them later.
pub const TURN_MAX: usize = 200;

/// The objects in the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Retell {
    queue: VecDeque<Key>,
    queued: HashSet<Key>,
    last: Option<Duration>,
    /// Fraction of an object that is due.
    owed: f64,
}

impl Retell {
    /// An object is there; it was told just now.
    pub(super) fn add(&mut self, key: &Key) {
        if self.queued.insert(key.clone()) {
            self.queue.push_back(key.clone());
        }
    }

    /// Objects whose turn it is at `now`; `is_there` says whether an object still is, else it is forgotten.
    pub(super) fn turn(
        &mut self,
        now: Duration,
        interval: Duration,
        is_there: impl Fn(&Key) -> bool,
    ) -> Vec<Key> {
        let elapsed = now.saturating_sub(self.last.replace(now).unwrap_or(now));
        let share = elapsed.as_secs_f64() / interval.as_secs_f64().max(1.0);
        self.owed = (self.owed + self.queue.len() as f64 * share).min(self.queue.len() as f64);
        let mut due = Vec::new();
        while self.owed >= 1.0 && due.len() < TURN_MAX {
            self.owed -= 1.0;
            let Some(key) = self.queue.pop_front() else { break };
            if is_there(&key) {
                due.push(key.clone());
                self.queue.push_back(key);
            } else {
                self.queued.remove(&key);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::stock::numbered as key;
    use super::*;

    #[test]
    fn each_has_one_turn_per_interval_evenly_spread() {
        let mut retell = Retell::default();
        (0..600).for_each(|n| retell.add(&key(n)));
        retell.add(&key(5));
        let interval = Duration::from_secs(300);
        let turns: Vec<Vec<Key>> =
            (0..=300).map(|s| retell.turn(Duration::from_secs(s), interval, |_| true)).collect();
        assert!(turns[0].is_empty() && turns[1..].iter().all(|turn| (1..=3).contains(&turn.len())));
        let told: Vec<&Key> = turns.iter().flatten().collect();
        assert!((599..=600).contains(&told.len()), "{}", told.len());
        assert_eq!(told.iter().collect::<HashSet<_>>().len(), told.len(), "none twice");
    }

    #[test]
    fn a_turn_is_bounded_and_what_is_gone_is_forgotten() {
        let mut retell = Retell::default();
        (0..1000).for_each(|n| retell.add(&key(n)));
        let interval = Duration::from_secs(300);
        retell.turn(Duration::ZERO, interval, |_| true);
        assert_eq!(retell.turn(Duration::from_secs(3000), interval, |_| true).len(), TURN_MAX);
        for s in 0..20 {
            retell.turn(Duration::from_secs(6000 + s * 300), interval, |_| false);
        }
        assert!(retell.queue.is_empty() && retell.queued.is_empty());
    }
}
