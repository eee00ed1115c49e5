//! Tallies of one window, added up over all shards. Adding is commutative, so it does not matter who is heard first.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tapio_schemas::service::{CallGapTally, Histogram, Measure, OperationTally, ServiceMeter, Shape};
use tapio_schemas::{Entity, EventId, UnixNanos};

/// Different keys of one window; further ones are refused and counted.
const KEYS_MAX: usize = 65_536;
/// Ways of one operation in one window, of all shards: those with the smallest identities, so that it does not matter who is
/// heard first. The others are refused and counted.
const WAYS_MAX: usize = 64;
/// Ways of all operations of a window. When there are more, each operation may have a quarter of what it might before.
const WAYS_OF_WINDOW_MAX: usize = 32_768;
/// Ways of all operations of a window that is kept; every operation has its share, and its most frequent ones stay.
const WAYS_KEPT_MAX: usize = 16_384;
/// Ways that an operation keeps in any case.
const WAYS_KEPT_MIN: usize = 4;

/// Of so many requests of an operation at most one may have gone a way that is not known, or the others say nothing.
const UNKNOWN_SHARE: u64 = 10;
/// Of so many requests at most one event may be lost, or the window is doubtful.
const LOST_SHARE: u64 = 100;

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
    /// Requests on ways for which there was no room.
    unshaped: u64,
}

impl Requests {
    /// True when the ways stand for what the requests did: of those for which there was no room nobody knows whether they
    /// were like the others.
    pub fn are_known(&self) -> bool {
        let known: u64 = self.ways.values().map(|way| u64::from(way.count)).sum();
        self.unshaped <= (known + self.unshaped) / UNKNOWN_SHARE
    }

    /// Leaves the `count` ways with the smallest identities; how many others there were.
    fn keep(&mut self, count: usize) -> usize {
        let mut gone = 0;
        while self.ways.len() > count
            && let Some((_, way)) = self.ways.pop_last()
        {
            self.unshaped += u64::from(way.count);
            gone += 1;
        }
        gone
    }
}

/// Calls of an edge, or requests of a service.
#[derive(Debug, Default, Clone, Copy)]
pub struct Calls {
    /// All of them.
    pub count: u64,
    /// Those that failed.
    pub failed: u64,
}

impl Calls {
    /// Those that did not fail.
    pub fn well(self) -> u64 {
        self.count.saturating_sub(self.failed)
    }

    /// Adds more of the same.
    pub fn add(&mut self, more: Self) {
        self.count = self.count.saturating_add(more.count);
        self.failed = self.failed.saturating_add(more.failed);
    }
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
    /// By caller and callee; a service as its own caller: the requests that it answered.
    pub calls: BTreeMap<(Entity, Entity), Calls>,
    /// Who answers under a name.
    pub same: BTreeMap<Entity, Entity>,
    /// Events of its time that were lost.
    pub lost: u64,
    /// Ways of all operations.
    ways: usize,
    /// Each operation may have a quarter of this often fewer ways.
    quartered: u32,
}

impl Window {
    /// Nothing is told of it yet.
    pub fn new(start: UnixNanos) -> Self {
        Self { start, ..Self::default() }
    }

    fn is_full(&self) -> bool {
        let spans = self.requests.len() + self.gaps.len() + self.calls.len() + self.same.len();
        spans + self.meters.len() >= KEYS_MAX
    }

    /// Adds counted calls; false when there is no room.
    pub fn add_calls(&mut self, from: &Entity, to: &Entity, calls: Calls) -> bool {
        let key = (from.clone(), to.clone());
        if self.is_full() && !self.calls.contains_key(&key) {
            return false;
        }
        self.calls.entry(key).or_default().add(calls);
        true
    }

    /// Adds who answers under a name; false when there is no room. Of several it is the first in order.
    pub fn add_same(&mut self, name: &Entity, is: &Entity) -> bool {
        if self.is_full() && !self.same.contains_key(name) {
            return false;
        }
        let known = self.same.entry(name.clone()).or_insert_with(|| is.clone());
        if is < known {
            *known = is.clone();
        }
        true
    }

    /// Of the calls of an edge of which both ends were seen, the one that waited longest beside its callee.
    pub fn slowest_gap(&self, edge: &(Entity, Entity)) -> Option<EventId> {
        let from = (edge.clone(), SmolStr::default());
        let gaps = self.gaps.range(from..).take_while(|((of, _), _)| of == edge);
        gaps.max_by_key(|(_, gap)| gap.longest).map(|(_, gap)| gap.evidence)
    }

    /// Adds a tally; false when there is no room.
    pub fn add_requests(&mut self, tally: OperationTally) -> bool {
        let key = (tally.service, tally.operation);
        if self.is_full() && !self.requests.contains_key(&key) {
            return false;
        }
        let count_max = WAYS_MAX >> (2 * self.quartered);
        let requests = self.requests.entry(key).or_default();
        requests.own.add(&tally.own_time, tally.evidence);
        requests.unshaped += tally.unshaped;
        let before = requests.ways.len();
        let mut gone = 0;
        for shape in tally.shapes {
            if let Some(known) = requests.ways.get_mut(&shape.id) {
                known.count = known.count.saturating_add(shape.count);
                known.evidence = known.evidence.min(shape.evidence);
            } else {
                requests.ways.insert(shape.id, shape);
                // One that was taken out has a larger identity than all that stay, and is taken out again.
                gone += requests.keep(count_max);
            }
        }
        self.ways += requests.ways.len() - before.min(requests.ways.len());
        gone += self.quarter();
        gone == 0
    }

    /// Too many ways: every operation keeps fewer, those with the smallest identities. Whether it comes to this depends on
    /// the window alone, not on the order in which it is told.
    fn quarter(&mut self) -> usize {
        let mut gone = 0;
        while self.ways > WAYS_OF_WINDOW_MAX && WAYS_MAX >> (2 * self.quartered) > WAYS_KEPT_MIN {
            self.quartered += 1;
            let count_max = WAYS_MAX >> (2 * self.quartered);
            gone += self.requests.values_mut().map(|requests| requests.keep(count_max)).sum::<usize>();
            self.ways = self.requests.values().map(|requests| requests.ways.len()).sum();
        }
        gone
    }

    /// True when so much of its time was lost that its requests say nothing: a step that was not seen is no step that was
    /// not done.
    pub fn is_doubtful(&self) -> bool {
        let seen = self.requests.values().flat_map(|requests| requests.own.buckets.values());
        self.lost > seen.map(|count| u64::from(*count)).sum::<u64>() / LOST_SHARE
    }

    /// All shards have passed it: leaves out ways until the window is small enough to be kept. Returns how many.
    pub fn trim(&mut self) -> u64 {
        let count =
            |window: &Self| window.requests.values().map(|requests| requests.ways.len()).sum::<usize>();
        let before = count(self);
        if before <= WAYS_KEPT_MAX {
            return 0;
        }
        let share = (WAYS_KEPT_MAX / self.requests.len()).max(WAYS_KEPT_MIN);
        for requests in self.requests.values_mut().filter(|requests| requests.ways.len() > share) {
            let mut order: Vec<(std::cmp::Reverse<u32>, u64)> =
                requests.ways.values().map(|way| (std::cmp::Reverse(way.count), way.id)).collect();
            order.sort_unstable();
            for (_, id) in &order[share..] {
                let way = requests.ways.remove(id);
                requests.unshaped += way.map_or(0, |way| u64::from(way.count));
            }
        }
        (before - count(self)) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(operation: &str, ids: impl IntoIterator<Item = u64>) -> OperationTally {
        let shapes = ids.into_iter().map(|id| Shape { id, count: id as u32 % 7 + 1, ..Shape::default() });
        OperationTally { operation: operation.into(), shapes: shapes.collect(), ..OperationTally::default() }
    }

    fn ways(window: &Window) -> Vec<(u64, u32)> {
        window.requests.values().flat_map(|r| r.ways.values().map(|way| (way.id, way.count))).collect()
    }

    #[test]
    fn which_ways_find_room_does_not_depend_on_who_is_heard_first() {
        let parts = [tally("a", 0..50), tally("a", 30..120), tally("a", (40..90).rev())];
        let add = |order: [usize; 3]| {
            let mut window = Window::default();
            let fits: Vec<bool> = order.iter().map(|i| window.add_requests(parts[*i].clone())).collect();
            assert!(fits.contains(&false));
            ways(&window)
        };
        let first = add([0, 1, 2]);
        assert_eq!(first.len(), WAYS_MAX);
        assert_eq!((first, add([2, 0, 1])), (add([1, 2, 0]), add([0, 1, 2])));
    }

    #[test]
    fn what_ways_without_room_were_like_nobody_knows() {
        let mut window = Window::default();
        window.add_requests(OperationTally { unshaped: 10, ..tally("a", 0..20) });
        assert!(!window.requests.values().all(Requests::are_known), "10 of 78 requests");
        let mut window = Window::default();
        window.add_requests(OperationTally { unshaped: 5, ..tally("a", 0..20) });
        assert!(window.requests.values().all(Requests::are_known), "5 of 73 requests");
        window.add_requests(tally("a", 100..200));
        assert!(
            !window.requests.values().all(Requests::are_known),
            "the ways of the other shard find no room"
        );
    }

    #[test]
    fn a_window_of_many_ways_is_bounded_while_it_is_told_and_in_any_order() {
        let parts: Vec<OperationTally> = (0..4096)
            .map(|n| tally(&format!("op {}", n % 1024), n as u64 / 1024 * 16..n as u64 / 1024 * 16 + 16))
            .collect();
        let add = |parts: &mut dyn Iterator<Item = &OperationTally>| {
            let mut window = Window::default();
            for part in parts {
                window.add_requests(part.clone());
                assert!(window.ways <= WAYS_OF_WINDOW_MAX);
            }
            ways(&window)
        };
        let first = add(&mut parts.iter());
        assert_eq!(first.len(), 1024 * WAYS_MAX / 4);
        assert_eq!(first, add(&mut parts.iter().rev()));
    }

    #[test]
    fn a_window_that_is_kept_has_a_bound_and_keeps_what_is_frequent() {
        let mut window = Window::default();
        for operation in 0..1024 {
            assert!(window.add_requests(tally(&format!("op {operation}"), 0..30)));
        }
        assert_eq!(window.trim(), 1024 * (30 - 16));
        assert_eq!(ways(&window).len(), WAYS_KEPT_MAX);
        let least = ways(&window).iter().map(|(_, count)| *count).min();
        assert_eq!(least, Some(4), "of 30 ways four each have the counts 4 to 7");
        assert_eq!(window.trim(), 0);
    }
}
