//! Puts in order again what a run of stage one says.
//!
//! A worker numbers its messages and sends many without waiting. One that is lost on its way is repeated, and arrives
//! after messages that were said later: a mark of theirs would promise what has not been heard yet. So what comes after a
//! missing number waits for it. When the worker is dead the number never comes; then another one owns its shards, tells
//! their steps again, and what waits is of no owner any more.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use tapio_schemas::ProducerId;
use tapio_schemas::wire::{ShardMark, SignalSection};

/// Sections of one worker that wait for a missing one: twice what it can have under way. Above it they are let through.
const HELD_MAX: usize = 256;
/// Workers known. Above it the one not heard for longest is forgotten.
const PRODUCERS_MAX: usize = 512;

/// How far a worker was heard, as kept for a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The worker.
    pub producer: ProducerId,
    /// Number of its next message.
    pub next: u64,
}

/// What was not put in order, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OrderCounters {
    /// Sections that waited for one said before them.
    pub held: u64,
    /// Sections let through although one before them is missing: too many waited.
    pub overtook: u64,
    /// Sections that waited for a dead owner's missing one.
    pub abandoned: u64,
    /// Sections heard before.
    pub repeated: u64,
}

#[derive(Debug, Default)]
struct Producer {
    /// First number that was heard.
    first: u64,
    next: u64,
    /// What came after a missing number; `None`: it came, and was let go.
    held: BTreeMap<u64, Option<SignalSection>>,
    heard: u64,
}

/// The order of every worker.
#[derive(Debug, Default)]
pub struct Order {
    producers: HashMap<ProducerId, Producer>,
    /// Every worker that spoke before is known, so an unknown one begins with its first message.
    knows_all: bool,
    turn: u64,
    counters: OrderCounters,
}

impl Order {
    /// Goes on where an earlier process was. With nothing known of the past, a worker begins where it is first heard.
    pub fn restore(&mut self, told: &[Told]) {
        self.knows_all = !told.is_empty();
        for told in told {
            self.producers.insert(told.producer, Producer { next: told.next, ..Producer::default() });
        }
    }

    /// How far each worker was heard.
    pub fn told(&self) -> Vec<Told> {
        let mut told: Vec<Told> =
            self.producers.iter().map(|(id, p)| Told { producer: *id, next: p.next }).collect();
        told.sort_by_key(|told| told.producer);
        told
    }

    /// True when something waits: no place to begin to read from.
    pub fn is_amid_a_hole(&self) -> bool {
        self.producers.values().any(|producer| producer.held.values().any(Option::is_some))
    }

    /// What was not put in order so far.
    pub fn counters(&self) -> OrderCounters {
        self.counters
    }

    /// Takes a message of a worker; gives what can be heard now, in its order.
    pub fn take(&mut self, id: ProducerId, number: u64, section: SignalSection) -> Vec<SignalSection> {
        self.turn += 1;
        if self.producers.len() >= PRODUCERS_MAX && !self.producers.contains_key(&id) {
            self.forget_longest_silent();
        }
        let first = if self.knows_all { 1 } else { number };
        let producer = self.producers.entry(id).or_insert_with(|| Producer {
            first,
            next: first,
            ..Producer::default()
        });
        producer.heard = self.turn;
        if number > producer.next {
            self.counters.held += 1;
            producer.held.insert(number, Some(section));
            if producer.held.len() <= HELD_MAX {
                return Vec::new();
            }
            self.counters.overtook += producer.held.len() as u64;
            producer.next = producer.held.keys().next_back().map_or(number, |last| last + 1);
            return std::mem::take(&mut producer.held).into_values().flatten().collect();
        }
        if number < producer.next && number >= producer.first {
            self.counters.repeated += 1;
            return Vec::new();
        }
        let mut out = vec![section];
        producer.next = producer.next.max(number + 1);
        while let Some(section) = producer.held.remove(&producer.next) {
            out.extend(section);
            producer.next += 1;
        }
        out
    }

    /// Lets go of what waits and is of no owner any more. That it came is remembered: its worker may live, and go on.
    pub fn abandon(&mut self, is_of_the_owner: impl Fn(&ShardMark) -> bool) {
        let held = self.producers.values_mut().flat_map(|producer| producer.held.values_mut());
        for slot in held {
            let over = slot.take_if(|section| !section.marks.iter().any(&is_of_the_owner));
            self.counters.abandoned += u64::from(over.is_some());
        }
    }

    fn forget_longest_silent(&mut self) {
        let oldest = self.producers.iter().min_by_key(|(id, p)| (p.heard, **id)).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.producers.remove(&id);
            // It may speak again, and not with its first message.
            self.knows_all = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::UnixNanos;

    const WORKER: ProducerId = ProducerId(1);

    fn said(at: u64) -> SignalSection {
        let mark = ShardMark { shard: 3, epoch: 1, at: UnixNanos(at) };
        SignalSection { marks: vec![mark], ..SignalSection::default() }
    }

    fn heard(order: &mut Order, number: u64) -> Vec<u64> {
        order.take(WORKER, number, said(number)).iter().map(|section| section.marks[0].at.0).collect()
    }

    #[test]
    fn what_overtook_waits_for_what_was_said_before_it() {
        let mut order = Order::default();
        assert_eq!(heard(&mut order, 1), [1]);
        assert_eq!((heard(&mut order, 3), heard(&mut order, 4)), (vec![], vec![]));
        assert!(order.is_amid_a_hole());
        assert_eq!(heard(&mut order, 2), [2, 3, 4]);
        assert!(!order.is_amid_a_hole());
        assert_eq!((heard(&mut order, 2), order.counters().repeated), (vec![], 1));
        assert_eq!(order.told(), [Told { producer: WORKER, next: 5 }]);
    }

    #[test]
    fn after_a_restart_a_new_worker_begins_with_its_first_message() {
        let mut order = Order::default();
        order.restore(&[Told { producer: ProducerId(9), next: 7 }]);
        assert!(heard(&mut order, 2).is_empty());
        assert_eq!(heard(&mut order, 1), [1, 2]);
        let mut unknowing = Order::default();
        assert_eq!(heard(&mut unknowing, 5), [5]);
        assert_eq!(heard(&mut unknowing, 4), [4], "said before the first one heard");
    }

    #[test]
    fn what_waits_for_a_dead_owner_is_let_go() {
        let mut order = Order::default();
        heard(&mut order, 1);
        heard(&mut order, 3);
        order.abandon(|mark| mark.epoch >= 1);
        assert!(order.is_amid_a_hole());
        order.abandon(|mark| mark.epoch >= 2);
        assert!(!order.is_amid_a_hole());
        assert_eq!(order.counters().abandoned, 1);
        // It was not dead, and goes on.
        assert_eq!((heard(&mut order, 2), heard(&mut order, 4)), (vec![2], vec![4]));
    }

    #[test]
    fn what_waits_is_bounded_and_so_is_who_is_known() {
        let mut order = Order::default();
        heard(&mut order, 1);
        for number in 3..3 + HELD_MAX as u64 {
            assert!(heard(&mut order, number).is_empty());
        }
        assert_eq!(heard(&mut order, 2000).len(), HELD_MAX + 1);
        assert_eq!(heard(&mut order, 2001), [2001]);
        (0..2000).for_each(|id| drop(order.take(ProducerId(id), 1, said(1))));
        assert_eq!(order.told().len(), PRODUCERS_MAX);
    }
}
