//! Puts events in the order of their event time, within a bound.

use std::collections::BTreeMap;

use tapio_schemas::{EventId, UnixNanos};

use super::record::Record;

/// Events that wait until the watermark has passed them.
pub struct Reorder {
    waiting: BTreeMap<(UnixNanos, EventId), Record>,
    count_max: usize,
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It waits.
    Waits,
    /// An event of this time and id waits already: the same one, sent twice.
    Duplicate,
}

impl Reorder {
    /// A buffer of at most `count_max` events.
    pub fn new(count_max: usize) -> Self {
        Self { waiting: BTreeMap::new(), count_max: count_max.max(1) }
    }

    /// Takes an event.
    pub fn admit(&mut self, at: UnixNanos, id: EventId, record: Record) -> Admitted {
        match self.waiting.entry((at, id)) {
            std::collections::btree_map::Entry::Occupied(_) => Admitted::Duplicate,
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(record);
                Admitted::Waits
            }
        }
    }

    /// True when older events must be released before their time.
    pub fn is_over(&self) -> bool {
        self.waiting.len() > self.count_max
    }

    /// Time of the oldest that waits.
    pub fn oldest(&self) -> Option<UnixNanos> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// The oldest, when its time is not after `step`.
    pub fn pop_until(&mut self, step: UnixNanos) -> Option<Record> {
        let entry = self.waiting.first_entry()?;
        (entry.key().0 <= step).then(|| entry.remove())
    }
}
