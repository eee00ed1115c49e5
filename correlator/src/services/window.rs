//! Tallies of one window, added up over all shards. Adding is commutative, so it does not matter who is heard first.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tapio_schemas::service::{CallGapTally, Histogram, Measure, OperationTally, ServiceMeter, Shape};
use tapio_schemas::{Entity, EventId, UnixNanos};

/// Different keys of one window; further ones are refused and counted.
const KEYS_MAX: usize = 65_536;
/// Ways of one operation in one window, of all shards; further ones are refused and counted.
const WAYS_MAX: usize = 256;

/// Durations of one window with the event that shows the longest.
#[derive(Debug, Default, Clone)]
pub struct Durations {
    buckets: BTreeMap<u16, u32>,
    longest: Option<u16>,
    /// The event with the longest.
    pub evidence: EventId,
}

impl Durations {
    fn add(&mut self, durations: &Histogram, evidence: EventId) {
        for (bucket, count) in durations {
            let known = self.buckets.entry(*bucket).or_default();
            *known = known.saturating_add(*count);
        }
        let longest = durations.iter().map(|(bucket, _)| *bucket).max();
        let better = longest > self.longest || (longest == self.longest && evidence < self.evidence);
        if better || self.evidence == EventId::default() {
            self.evidence = evidence;
        }
        self.longest = self.longest.max(longest);
    }

    /// (bucket, count) in the order of buckets.
    pub fn histogram(&self) -> Histogram {
        self.buckets.iter().map(|(bucket, count)| (*bucket, *count)).collect()
    }
}

/// What the requests of an operation did.
#[derive(Debug, Default)]
pub struct Requests {
    /// Time in the service itself.
    pub own: Durations,
    /// Ways, by id.
    pub ways: BTreeMap<u64, Shape>,
}

/// Identity of a meter: pod, measure, label.
pub type MeterKey = (SmolStr, Measure, SmolStr);

/// What all shards said of one window.
#[derive(Debug, Default)]
pub struct Window {
    /// Its start.
    pub start: UnixNanos,
    /// By service and operation.
    pub requests: BTreeMap<(Entity, SmolStr), Requests>,
    /// By caller and callee, and the callee's operation.
    pub gaps: BTreeMap<((Entity, Entity), SmolStr), Durations>,
    /// By service and meter: when, value and event of the newest.
    pub meters: BTreeMap<(Entity, MeterKey), (UnixNanos, f64, EventId)>,
}

impl Window {
    fn is_full(&self) -> bool {
        self.requests.len() + self.gaps.len() + self.meters.len() >= KEYS_MAX
    }

    /// Adds a tally; false when there is no room.
    pub fn add_requests(&mut self, tally: OperationTally) -> bool {
        let key = (tally.service, tally.operation);
        if self.is_full() && !self.requests.contains_key(&key) {
            return false;
        }
        let requests = self.requests.entry(key).or_default();
        requests.own.add(&tally.own_time, tally.evidence);
        let mut fits = true;
        for shape in tally.shapes {
            if let Some(known) = requests.ways.get_mut(&shape.id) {
                known.count = known.count.saturating_add(shape.count);
                known.evidence = known.evidence.min(shape.evidence);
            } else if requests.ways.len() < WAYS_MAX {
                requests.ways.insert(shape.id, shape);
            } else {
                fits = false;
            }
        }
        fits
    }

    /// Adds a tally; false when there is no room.
    pub fn add_gaps(&mut self, tally: CallGapTally) -> bool {
        let key = ((tally.from, tally.to), tally.operation);
        if self.is_full() && !self.gaps.contains_key(&key) {
            return false;
        }
        self.gaps.entry(key).or_default().add(&tally.gap, tally.evidence);
        true
    }

    /// Adds a meter; false when there is no room or it is no number.
    pub fn add_meter(&mut self, meter: ServiceMeter) -> bool {
        let key = (meter.service, (meter.pod, meter.measure, meter.label));
        if !meter.value.is_finite() || (self.is_full() && !self.meters.contains_key(&key)) {
            return false;
        }
        let said = (meter.at, meter.value, meter.evidence);
        let order = |m: &(UnixNanos, f64, EventId)| (m.0, m.2);
        let known = self.meters.entry(key).or_insert(said);
        if order(&said) > order(known) {
            *known = said;
        }
        true
    }
}
