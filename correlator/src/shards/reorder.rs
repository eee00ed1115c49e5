//! Puts events in the order of their event time, within a bound.
//!
//! Events wait in a bucket per step, in the order of arrival; a bucket is put in order once, when its step is run. Buckets are
//! used again, so an event that waits costs no allocation.

use std::collections::BTreeMap;

use tapio_schemas::{EventId, UnixNanos};

use super::record::Record;
use super::watermark::{TICK_NS, grid_ceil};

/// Empty buckets that are kept to be used again: as many as a lateness of a second needs.
const SPARE_MAX: usize = 4;
/// A bucket that is kept has room for at most so many times what it held last: after a flood it becomes small again.
const ROOM_KEPT: usize = 4;

/// Events that wait until the watermark has passed them.
pub struct Reorder {
    buckets: BTreeMap<UnixNanos, Bucket>,
    spare: Vec<Bucket>,
    waiting: usize,
    count_max: usize,
    /// Events of the same time and id as another: the same one, sent twice.
    pub duplicates: u64,
}

/// Events that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub count: u64,
    /// No later than the first of them.
    pub from: UnixNanos,
    /// No earlier than the last one.
    pub to: UnixNanos,
}

impl Waiting {
    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

/// Fewer places than this are not looked over for holes.
const HOLES_MIN: usize = 1024;

/// Events of one step.
#[derive(Default)]
struct Bucket {
    /// Time, id and place in `records`; latest first once it is in order, so that the next one is at the end.
    order: Vec<(UnixNanos, EventId, u32)>,
    records: Vec<Option<Record>>,
    /// Where holes are closed.
    closed: Vec<Option<Record>>,
    in_order: bool,
    last: Option<(UnixNanos, EventId)>,
}

impl Bucket {
    fn push(&mut self, at: UnixNanos, id: EventId, record: Record) {
        if self.records.len() >= (2 * self.order.len()).max(HOLES_MIN) {
            self.close_holes();
        }
        self.order.push((at, id, self.records.len() as u32));
        self.records.push(Some(record));
        self.in_order = false;
    }

    /// The next in order, and whether it repeats the one before.
    fn pop(&mut self) -> Option<(Record, bool)> {
        if !self.in_order {
            // Batches are in order nearly: a sort that takes up runs.
            self.order.sort_by(|a, b| b.cmp(a));
            self.in_order = true;
        }
        let (at, id, place) = self.order.pop()?;
        let record = self.records.get_mut(place as usize)?.take()?;
        let repeated = self.last == Some((at, id));
        self.last = Some((at, id));
        Some((record, repeated))
    }

    /// Forgets the places of events that are gone.
    fn close_holes(&mut self) {
        for entry in &mut self.order {
            let record = self.records.get_mut(entry.2 as usize).and_then(Option::take);
            entry.2 = self.closed.len() as u32;
            self.closed.push(record);
        }
        std::mem::swap(&mut self.records, &mut self.closed);
        self.closed.clear();
    }

    fn clear(&mut self) {
        let room = ROOM_KEPT * self.records.len().max(HOLES_MIN / ROOM_KEPT);
        self.order.clear();
        self.records.clear();
        self.order.shrink_to(room);
        self.records.shrink_to(room);
        self.closed.shrink_to(room);
        self.in_order = false;
        self.last = None;
    }
}

impl Reorder {
    /// A buffer of at most `count_max` events.
    pub fn new(count_max: usize) -> Self {
        Self {
            buckets: BTreeMap::new(),
            spare: Vec::new(),
            waiting: 0,
            count_max: count_max.max(1),
            duplicates: 0,
        }
    }

    /// Takes an event.
    pub fn admit(&mut self, at: UnixNanos, id: EventId, record: Record) {
        let spare = &mut self.spare;
        let bucket = self.buckets.entry(grid_ceil(at)).or_insert_with(|| spare.pop().unwrap_or_default());
        bucket.push(at, id, record);
        self.waiting += 1;
    }

    /// True when older events must be released before their time.
    pub fn is_over(&self) -> bool {
        self.waiting > self.count_max
    }

    /// End of the first step in which any event waits.
    pub fn oldest(&self) -> Option<UnixNanos> {
        self.buckets.first_key_value().map(|(step, _)| *step)
    }

    /// What waits; `None` for nothing.
    pub fn waiting(&self) -> Option<Waiting> {
        let (to, _) = self.buckets.last_key_value().filter(|_| self.waiting > 0)?;
        Some(Waiting { count: self.waiting as u64, from: self.oldest()?.minus(TICK_NS), to: *to })
    }

    /// Time and id of what was taken out last, until its step is over.
    pub fn last(&self) -> Option<(UnixNanos, EventId)> {
        self.buckets.first_key_value()?.1.last
    }

    /// The oldest, when its time is not after `step`, a point of the grid.
    pub fn pop_until(&mut self, step: UnixNanos) -> Option<Record> {
        loop {
            let mut first = self.buckets.first_entry().filter(|first| *first.key() <= step)?;
            match first.get_mut().pop() {
                Some((_, true)) => {
                    self.waiting -= 1;
                    self.duplicates += 1;
                }
                Some((record, false)) => {
                    self.waiting -= 1;
                    return Some(record);
                }
                None => {
                    let mut empty = first.remove();
                    empty.clear();
                    if self.spare.len() < SPARE_MAX {
                        self.spare.push(empty);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::EventRecord;
    use super::*;
    use tapio_schemas::UnifiedEvent;

    const TICK: u64 = super::super::TICK_NS;

    fn event(at: u64, id: u128) -> (UnixNanos, EventId, Record) {
        let event = UnifiedEvent { timestamp: UnixNanos(at), id: EventId(id), ..UnifiedEvent::default() };
        (UnixNanos(at), EventId(id), Record::Event(Box::new(EventRecord { event, fault: None })))
    }

    fn ids(reorder: &mut Reorder, step: u64) -> Vec<u128> {
        std::iter::from_fn(|| reorder.pop_until(UnixNanos(step)))
            .map(|record| match record {
                Record::Event(record) => record.event.id.0,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn events_come_in_order_of_time_and_id_once() {
        let mut reorder = Reorder::new(100);
        for (at, id) in [(5, 1), (3, 2), (3, 1), (TICK + 1, 9), (5, 1), (1, 7)] {
            let (at, id, record) = event(at, id);
            reorder.admit(at, id, record);
        }
        assert_eq!(ids(&mut reorder, TICK), [7, 1, 2, 1]);
        assert_eq!(reorder.duplicates, 1);
        assert_eq!(reorder.oldest(), Some(UnixNanos(2 * TICK)));
        assert_eq!(ids(&mut reorder, 2 * TICK), [9]);
        assert_eq!(reorder.oldest(), None);
    }

    #[test]
    fn a_bucket_that_is_being_emptied_takes_more() {
        let mut reorder = Reorder::new(1);
        for id in [1, 3, 5] {
            let (at, id, record) = event(id as u64, id);
            reorder.admit(at, id, record);
        }
        assert!(reorder.is_over());
        assert!(reorder.pop_until(UnixNanos::MAX).is_some());
        let (at, id, record) = event(2, 2);
        reorder.admit(at, id, record);
        assert_eq!(ids(&mut reorder, TICK), [2, 3, 5]);
    }

    #[test]
    fn a_flood_in_one_step_takes_no_more_room_than_what_waits() {
        let mut reorder = Reorder::new(10);
        let mut out = Vec::new();
        for id in 1..20_000u128 {
            let (at, id, record) = event(1 + id as u64, id);
            reorder.admit(at, id, record);
            while reorder.is_over() {
                out.extend(reorder.pop_until(UnixNanos::MAX));
            }
        }
        assert_eq!(out.len(), 19_989);
        let places = reorder.buckets.values().map(|b| b.records.capacity()).sum::<usize>();
        assert!(places <= 4 * HOLES_MIN, "{places} places for ten events");
        assert_eq!(ids(&mut reorder, TICK).len(), 10);
    }

    #[test]
    fn what_is_used_again_becomes_small_after_a_flood() {
        let mut reorder = Reorder::new(100_000);
        let mut fill = |step: u64, count: u128| {
            for id in 0..count {
                let (at, id, record) = event(step * TICK + 1 + id as u64, id);
                reorder.admit(at, id, record);
            }
            while reorder.pop_until(UnixNanos((step + 1) * TICK)).is_some() {}
            reorder.spare.iter().map(|b| b.records.capacity()).sum::<usize>()
        };
        assert!(fill(0, 50_000) >= 50_000);
        fill(1, 100);
        let kept = fill(2, 100);
        assert!(kept <= 2 * HOLES_MIN, "{kept} places kept");
    }
}
