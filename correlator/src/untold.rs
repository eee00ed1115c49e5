//! What a step that is told again says for the first time.
//!
//! Two owners of a shard say the same of a step, as long as no event of it came later than the lateness bound. One that did
//! come too late is said by the owner that reads it in the step it is at by then. Its successor, who reads the events
//! again and is led by their times, says it in the step that it is about: one that was told without it. When the owner
//! before died first, nobody else says it. So a deviation in a repeated step that nobody told since it began is let in,
//! with the time behind the last step that was told.

use std::collections::HashMap;

use tapio_schemas::entity::Entity;
use tapio_schemas::{Signal, SignalId, UnixNanos};

use crate::shards::{hash_parts, is_change, stamped};

/// Deviations remembered per shard. Above it the half told longest ago is forgotten; what began before that counts as told.
const TOLD_MAX: usize = 1024;
/// Deviations let in behind per shard of which later revisions are let in, too. Above it the one let in longest ago is
/// forgotten.
const BEHIND_MAX: usize = 64;
/// Between the times of two revisions let in behind one step: two of one time have the same number.
const APART_NS: u64 = 1_000_000;

/// A deviation that was let in behind.
#[derive(Debug, Clone, Copy)]
struct Behind {
    /// What its newest revision says that it was last seen.
    seen: UnixNanos,
    /// When it was let in, event time.
    at: UnixNanos,
}

/// What was told of one shard.
#[derive(Debug, Default)]
pub struct Told {
    /// What began after this and was told is known; `None`: nothing of the shard was heard.
    known_from: Option<UnixNanos>,
    /// When a deviation, of whatever onset, was last told to be seen.
    seen: HashMap<u128, UnixNanos>,
    behind: HashMap<SignalId, Behind>,
}

impl Told {
    /// The shard was heard up to here; of what was told before, nothing is known.
    pub fn begin(&mut self, at: UnixNanos) {
        self.known_from.get_or_insert(at);
    }

    /// These are let in as what they are.
    pub fn note(&mut self, signals: &[Signal]) {
        for signal in signals {
            self.saw(signal);
            if let Some(behind) = self.behind.get_mut(&signal.id) {
                behind.seen = behind.seen.max(signal.last_seen);
            }
        }
    }

    /// Of a step that was told before: what is new, stamped with a time after `heard`, up to which the shard was heard.
    pub fn untold(&mut self, signals: Vec<Signal>, heard: UnixNanos) -> Vec<Signal> {
        signals.into_iter().filter_map(|signal| self.let_in(signal, heard)).collect()
    }

    fn let_in(&mut self, signal: Signal, heard: UnixNanos) -> Option<Signal> {
        let before = self.behind.get(&signal.id).copied();
        let is_new = match before {
            Some(before) => signal.last_seen > before.seen,
            None => self.is_untold(&signal),
        };
        if !is_new {
            return None;
        }
        let at = heard.plus(1).max(before.map_or(UnixNanos(0), |before| before.at.plus(APART_NS)));
        self.behind.insert(signal.id, Behind { seen: signal.last_seen, at });
        self.saw(&signal);
        if self.behind.len() > BEHIND_MAX
            && let Some(oldest) = self.behind.iter().min_by_key(|(id, b)| (b.at, **id)).map(|(id, _)| *id)
        {
            self.behind.remove(&oldest);
        }
        Some(stamped(signal, at))
    }

    /// Nobody told it since it began. A change has no end, and a later owner may know its second half only: it is new when
    /// none of its kind was told.
    fn is_untold(&self, signal: &Signal) -> bool {
        let begins_later = self.known_from.is_some_and(|known_from| signal.onset > known_from);
        begins_later
            && match self.seen.get(&subject(signal)) {
                None => true,
                Some(last) => *last < signal.onset && !is_change(signal.kind),
            }
    }

    fn saw(&mut self, signal: &Signal) {
        let seen = self.seen.entry(subject(signal)).or_default();
        *seen = (*seen).max(signal.last_seen);
        if self.seen.len() > TOLD_MAX {
            self.forget_older_half();
        }
    }

    fn forget_older_half(&mut self) {
        let mut times: Vec<UnixNanos> = self.seen.values().copied().collect();
        let (_, middle, _) = times.select_nth_unstable(TOLD_MAX / 2);
        let middle = *middle;
        self.seen.retain(|_, seen| *seen > middle);
        self.known_from = self.known_from.max(Some(middle));
    }
}

/// What a deviation is one of, whenever it began.
fn subject(signal: &Signal) -> u128 {
    let nobody = Entity::default();
    let (of, peer) = (signal.entity.subject(), signal.peer.as_ref().unwrap_or(&nobody));
    let mut parts = vec![signal.kind.as_str(), &signal.entity.cluster];
    for end in [&of, peer] {
        parts.extend([end.kind.as_str(), &end.namespace, &end.name, &end.node]);
    }
    hash_parts(&parts)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::{EntityRef, SignalKind};

    use super::*;

    fn of(kind: SignalKind, unit: &str, onset: u64, last_seen: u64) -> Signal {
        let entity = EntityRef { cluster: "c".into(), cgroup: unit.into(), ..EntityRef::default() };
        stamped(Signal::new(kind, Arc::new(entity.sealed()), None, UnixNanos(onset)), UnixNanos(last_seen))
    }

    fn failed(unit: &str, onset: u64, last_seen: u64) -> Signal {
        of(SignalKind::UnitFailed, unit, onset, last_seen)
    }

    fn from(at: u64) -> Told {
        let mut told = Told::default();
        told.begin(UnixNanos(at));
        told
    }

    fn let_in(told: &mut Told, signal: Signal, heard: u64) -> Option<(UnixNanos, u32)> {
        told.untold(vec![signal], UnixNanos(heard)).pop().map(|s| (s.last_seen, s.revision))
    }

    #[test]
    fn what_nobody_told_is_let_in_once_behind_what_was_heard() {
        let mut told = from(10);
        told.note(&[failed("/a", 50, 60)]);
        assert_eq!(let_in(&mut told, failed("/a", 50, 51), 100), None, "told");
        assert_eq!(let_in(&mut told, failed("/a", 40, 41), 100), None, "told as something that began later");
        assert_eq!(let_in(&mut told, failed("/b", 9, 20), 100), None, "began before anything is known");
        assert_eq!(let_in(&mut told, failed("/a", 61, 62), 100), Some((UnixNanos(101), 1)), "a new one");
        assert_eq!(let_in(&mut told, failed("/b", 50, 51), 100), Some((UnixNanos(101), 1)));
        // A third owner reads it again.
        assert_eq!(let_in(&mut told, failed("/b", 50, 51), 200), None);
        assert_eq!(let_in(&mut Told::default(), failed("/b", 50, 51), 100), None, "nothing was heard");
    }

    #[test]
    fn later_revisions_of_it_are_let_in_and_count_on() {
        let mut told = from(10);
        assert_eq!(let_in(&mut told, failed("/b", 50, 51), 100), Some((UnixNanos(101), 1)));
        let end = let_in(&mut told, failed("/b", 50, 80), 100).expect("its end");
        assert_eq!(end, (UnixNanos(101 + APART_NS), 2));
        assert_eq!(let_in(&mut told, failed("/b", 50, 80), 100), None);
        // Told as what it is, it is no news to the next owner.
        told.note(&[failed("/b", 50, 300)]);
        assert_eq!(let_in(&mut told, failed("/b", 50, 200), 400), None);
    }

    #[test]
    fn a_change_is_let_in_when_none_of_its_kind_was_told() {
        let change = |onset| of(SignalKind::ImageChanged, "/a", onset, onset);
        let mut told = from(10);
        assert!(let_in(&mut told, change(50), 100).is_some());
        assert_eq!(let_in(&mut told, change(60), 100), None);
    }

    #[test]
    fn it_is_bounded_and_what_began_before_the_forgotten_counts_as_told() {
        let mut told = from(0);
        for n in 1..=TOLD_MAX as u64 + 1 {
            told.note(&[failed(&format!("/{n}"), n, n)]);
        }
        assert_eq!(told.seen.len(), TOLD_MAX / 2);
        assert_eq!(let_in(&mut told, failed("/1", 1, 1), 5000), None, "forgotten");
        assert_eq!(let_in(&mut told, failed("/x", 513, 513), 5000), None);
        assert!(let_in(&mut told, failed("/x", 514, 514), 5000).is_some());
        for n in 0..1000 {
            let_in(&mut told, failed(&format!("/y{n}"), 2000 + n, 2000 + n), 5000);
        }
        assert_eq!(told.behind.len(), BEHIND_MAX);
    }
}
