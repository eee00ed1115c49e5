//! Objects that are to be looked at later, by when.

use std::collections::{BTreeSet, HashMap};

use tapio_schemas::ids::UnixNanos;

use super::stock::Key;

/// Objects that are waited for; further ones are not, and counted.
const DUE_MAX: usize = 20_000;

/// Each object once, at the first of the times that were asked for: who looks at it says when the next look is.
#[derive(Debug, Default)]
pub(super) struct Due {
    by_time: BTreeSet<(UnixNanos, Key)>,
    times: HashMap<Key, UnixNanos>,
    dropped: u64,
}

impl Due {
    /// The object is to be looked at by `at`.
    pub fn add(&mut self, at: UnixNanos, key: Key) {
        match self.times.get(&key) {
            Some(known) if *known <= at => return,
            Some(known) => {
                self.by_time.remove(&(*known, key.clone()));
            }
            None if self.times.len() >= DUE_MAX => {
                self.dropped += 1;
                return;
            }
            None => {}
        }
        self.times.insert(key.clone(), at);
        self.by_time.insert((at, key));
    }

    /// The object is gone: another one may get its name.
    pub fn remove(&mut self, key: &Key) {
        if let Some(at) = self.times.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    /// The next object that is to be looked at by `now`.
    pub fn pop(&mut self, now: UnixNanos) -> Option<Key> {
        self.by_time.first().filter(|(at, _)| *at <= now)?;
        let (_, key) = self.by_time.pop_first()?;
        self.times.remove(&key);
        Some(key)
    }

    /// Objects that were not waited for, because too many were.
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
    fn each_has_one_look_at_the_first_time_that_was_asked_for() {
        let mut due = Due::default();
        [30, 20, 40].into_iter().for_each(|at| due.add(UnixNanos(at), key(1)));
        due.add(UnixNanos(25), key(2));
        assert_eq!(due.pop(UnixNanos(19)), None);
        let looks: Vec<Key> = std::iter::from_fn(|| due.pop(UnixNanos(100))).collect();
        assert_eq!(looks, [key(1), key(2)]);
        due.add(UnixNanos(50), key(1));
        assert_eq!(due.pop(UnixNanos(50)), Some(key(1)), "it may be asked for anew");
        due.add(UnixNanos(60), key(1));
        due.remove(&key(1));
        due.add(UnixNanos(90), key(1));
        assert_eq!(due.pop(UnixNanos(60)), None, "the one that is gone took its time with it");
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut due = Due::default();
        (0..DUE_MAX + 7).for_each(|n| due.add(UnixNanos(1), key(n)));
        due.add(UnixNanos(2), key(3));
        assert_eq!(due.dropped(), 7);
    }
}
