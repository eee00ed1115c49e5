//! Producers number their events; a hole in the numbers is an exact loss, a number twice is a repetition.
//!
//! Batches that are sent again may overtake each other, so a hole is told only when it has stayed open for
//! [`GRACE_NS`] of event time.

use std::collections::HashMap;

use tapio_schemas::wire::Header;
use tapio_schemas::{Gap, ProducerId, SmolStr, UnixNanos};

use super::context::Rate;
use super::counters::{Counters, Dropped};

/// How long a hole may stay open before it is told.
const GRACE_NS: u64 = 5_000_000_000;
/// Holes kept open per producer; more are told at once.
const HOLES_MAX: usize = 16;

/// One producer's numbering in one shard.
#[derive(Debug)]
pub struct Producer {
    epoch: u32,
    next: u64,
    holes: Vec<Hole>,
    last: UnixNanos,
    last_event: UnixNanos,
    node: SmolStr,
    /// Events of the batch at hand that are not looked at yet.
    open: u64,
    /// Its rate.
    pub rate: Rate,
    /// What became of its events.
    pub account: Account,
}

/// What became of the events of one run of a producer, from the first one read on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Number of the first event read.
    pub from: u64,
    /// Events used.
    pub processed: u64,
    /// Events refused.
    pub dropped: Dropped,
    /// Events behind the watermark, used all the same.
    pub late: u64,
    /// Events that never came, as far as told.
    missing: u64,
    /// Batches read before.
    pub duplicate_batches: u64,
}

/// One line of a shard's balance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountLine {
    /// Who.
    pub producer: ProducerId,
    /// Where its events come from.
    pub node: SmolStr,
    /// Its run.
    pub epoch: u32,
    /// Number after the last event read.
    pub next: u64,
    /// Events that never came, also those of holes that may still close.
    pub missing: u64,
    /// Event time of its newest event.
    pub last: UnixNanos,
    /// The rest.
    pub account: Account,
}

#[derive(Debug, Clone)]
struct Hole {
    first: u64,
    end: u64,
    from: UnixNanos,
    seen: UnixNanos,
    /// What it lacks is nowhere before the place from which is read.
    is_ours: bool,
}

/// All producers of a shard.
pub struct Sequences {
    producers: HashMap<ProducerId, Producer>,
    count_max: usize,
    /// Everything of this time or later is read.
    read_from: UnixNanos,
    /// First moment at which an open hole is told.
    due: Option<UnixNanos>,
}

/// What a batch is.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// New events.
    New,
    /// Read before.
    Duplicate,
}

impl Sequences {
    /// No producers.
    pub fn new(count_max: usize) -> Self {
        Self { producers: HashMap::new(), count_max: count_max.max(1), read_from: UnixNanos(0), due: None }
    }

    /// Who begins amid a stream has read all that is of `from` or later. Of what is older he may read a batch again that is stored
    /// twice, and not the next one, which is stored between the two.
    pub fn read_from(&mut self, from: UnixNanos) {
        self.read_from = from;
    }

    /// Notes a batch. `newest` is the time of its newest event, `node` where it comes from.
    pub fn observe(
        &mut self,
        header: &Header,
        newest: UnixNanos,
        node: &str,
        counters: &mut Counters,
    ) -> (Order, &mut Producer) {
        if self.producers.len() >= self.count_max && !self.producers.contains_key(&header.producer) {
            self.forget_longest_silent(counters);
        }
        // Whoever numbers them: a number may be anything.
        let end = header.first_sequence.saturating_add(u64::from(header.count));
        let producer = self.producers.entry(header.producer).or_insert_with(|| Producer {
            epoch: header.epoch,
            // What came before the first batch we read is not ours to judge.
            next: header.first_sequence,
            holes: Vec::new(),
            last: newest,
            last_event: newest,
            node: SmolStr::new(node),
            open: 0,
            rate: Rate::default(),
            account: Account { from: header.first_sequence, ..Account::default() },
        });
        let order = producer.place(header, end, newest, self.read_from);
        producer.last = producer.last.max(newest);
        if let Some(first) = producer.holes.iter().map(|h| h.seen.plus(GRACE_NS)).min() {
            self.due = Some(self.due.map_or(first, |due| due.min(first)));
        }
        (order, producer)
    }

    /// The producer of a batch that was noted.
    pub fn of(&mut self, header: &Header) -> Option<&mut Producer> {
        self.producers.get_mut(&header.producer)
    }

    /// When the next hole is to be told.
    pub fn due(&self) -> Option<UnixNanos> {
        self.due
    }

    /// Tells the holes that have stayed open.
    pub fn tell(&mut self, now: UnixNanos, out: &mut Vec<Gap>, counters: &mut Counters) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let mut told: Vec<Gap> = Vec::new();
        for (id, producer) in &mut self.producers {
            let node = producer.node.clone();
            let crowded = producer.holes.len() > HOLES_MAX;
            producer.holes.retain(|hole| {
                let open = !crowded && hole.seen.plus(GRACE_NS) > now;
                let lost = hole.end - hole.first;
                if !open && !hole.is_ours {
                    producer.account.from += lost;
                } else if !open {
                    counters.gap_events = counters.gap_events.saturating_add(lost);
                    producer.account.missing = producer.account.missing.saturating_add(lost);
                    told.push(Gap {
                        producer: *id,
                        source: "transport".into(),
                        node: node.clone(),
                        lost,
                        from: hole.from,
                        to: hole.seen,
                        reason: "sequence_gap".into(),
                    });
                }
                open
            });
        }
        told.sort_by_key(|gap| (gap.from, gap.producer));
        out.append(&mut told);
        self.due = self.producers.values().flat_map(|p| p.holes.iter().map(|h| h.seen.plus(GRACE_NS))).min();
    }

    /// The balance of each producer.
    pub fn accounts(&self) -> impl Iterator<Item = AccountLine> + '_ {
        self.producers.iter().map(|(id, producer)| AccountLine {
            producer: *id,
            node: producer.node.clone(),
            epoch: producer.epoch,
            next: producer.next.saturating_sub(producer.open),
            missing: producer.holes.iter().fold(producer.account.missing, |missing, hole| {
                missing.saturating_add(hole.end - hole.first)
            }),
            last: producer.last,
            account: producer.account.clone(),
        })
    }

    fn forget_longest_silent(&mut self, counters: &mut Counters) {
        let oldest = self.producers.iter().min_by_key(|(id, p)| (p.last, **id)).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.producers.remove(&id);
            counters.evicted.producers += 1;
        }
    }
}

impl Producer {
    /// Where its events come from.
    pub fn node(&self) -> &SmolStr {
        &self.node
    }

    /// Notes what became of events of the batch at hand, and how many of them are not looked at yet.
    pub fn account(&mut self, header: &Header, events: u64, late: u64, dropped: &Dropped, open: u64) {
        if header.epoch == self.epoch {
            self.account.processed += events - dropped.total();
            self.account.late += late;
            self.account.dropped.add(dropped);
            self.open = open;
        }
    }

    fn place(&mut self, header: &Header, end: u64, newest: UnixNanos, read_from: UnixNanos) -> Order {
        if header.epoch != self.epoch {
            if header.epoch < self.epoch {
                // A late batch of an earlier run: its numbers say nothing about this one.
                return Order::New;
            }
            self.epoch = header.epoch;
            self.next = header.first_sequence;
            self.holes.clear();
            self.account = Account { from: header.first_sequence, ..Account::default() };
        }
        if header.first_sequence >= self.next {
            if header.first_sequence > self.next {
                self.holes.push(Hole {
                    first: self.next,
                    end: header.first_sequence,
                    from: self.last_event,
                    seen: newest,
                    is_ours: self.last_event >= read_from,
                });
            }
            self.next = end;
            self.last_event = newest;
            return Order::New;
        }
        if self.fill(header.first_sequence, end) || header.count == 0 { Order::New } else { Order::Duplicate }
    }

    /// True when the batch closes (part of) a hole.
    fn fill(&mut self, first: u64, end: u64) -> bool {
        let Some(at) = self.holes.iter().position(|h| h.first <= first && end <= h.end) else { return false };
        let hole = self.holes.remove(at);
        if hole.first < first {
            self.holes.push(Hole { end: first, ..hole.clone() });
        }
        if end < hole.end {
            self.holes.push(Hole { first: end, ..hole });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::UnifiedEvent;
    use tapio_schemas::wire::{EventBatch, EventBatchView};

    use super::*;
    use crate::aligned::Aligned;

    fn a_header() -> Header {
        let mut batch = EventBatch::new(ProducerId(1), 1, 0);
        batch.push(UnifiedEvent::default());
        let bytes = batch.finish(UnixNanos(0)).expect("a batch");
        let mut aligned = Aligned::default();
        *EventBatchView::check(aligned.of(&bytes)).expect("a batch").header()
    }

    #[test]
    fn what_may_have_been_read_by_the_owner_before_is_no_loss() {
        // (read from here on, time of the first batch that is read, events lost)
        for (read_from, first, lost) in [(0, 4, 1), (20, 4, 0), (20, 21, 1)] {
            let (mut sequences, mut counters) = (Sequences::new(4), Counters::default());
            sequences.read_from(UnixNanos(read_from * GRACE_NS));
            let mut hear = |number: u64, at: u64| {
                let mut header = a_header();
                header.first_sequence = number;
                sequences.observe(&header, UnixNanos(at * GRACE_NS), "n1", &mut counters).0
            };
            assert_eq!([hear(7, first), hear(9, 44), hear(10, 45)], [Order::New, Order::New, Order::New]);
            let mut gaps = Vec::new();
            sequences.tell(UnixNanos(60 * GRACE_NS), &mut gaps, &mut counters);
            assert_eq!((gaps.iter().map(|gap| gap.lost).sum(), counters.gap_events), (lost, lost));
            // The balance holds: from the first one read to the last, processed ones and missing ones.
            let line = sequences.accounts().next().expect("one");
            assert_eq!((line.next - line.account.from, line.missing), (3 + lost, lost), "{line:?}");
        }
    }

    #[test]
    fn numbers_that_nobody_can_have_counted_up_to_do_no_harm() {
        let mut sequences = Sequences::new(4);
        let (mut counters, mut gaps) = (Counters::default(), Vec::new());
        let given = a_header();
        let header = |producer: u64, first_sequence: u64, count: u32| {
            let mut header = given;
            (header.producer, header.first_sequence, header.count) =
                (ProducerId(producer), first_sequence, count);
            header
        };
        let mut hear = |producer: u64, first: u64, count: u32, at: u64| {
            let at = UnixNanos(at);
            sequences.observe(&header(producer, first, count), at, "n1", &mut counters).0
        };
        for producer in [1, 2] {
            assert_eq!(hear(producer, 0, 1, 1), Order::New);
            assert_eq!(hear(producer, u64::MAX - 2, 7, 2), Order::New);
            assert_eq!(hear(producer, u64::MAX - 2, 7, 3), Order::Duplicate);
        }
        assert!(sequences.accounts().all(|line| line.missing == u64::MAX - 3));
        sequences.tell(UnixNanos(10 * GRACE_NS), &mut gaps, &mut counters);
        assert_eq!(gaps.iter().map(|gap| gap.lost).collect::<Vec<_>>(), [u64::MAX - 3; 2]);
        assert_eq!(counters.gap_events, u64::MAX);
    }
}
