//! How many times one thing is told: a collector that exports twice, a caller that asks thrice for each of its own requests.
//! What is told together counts once, or twice the telling would be twice the evidence.
//!
//! It is the design effect of a cluster sample (Kish 1965, "Survey Sampling", §5.4), taken from what is rare: on ways that are
//! seen in fewer than every other window independent requests nearly always come alone, and what is told `k` times comes `k` at
//! a time. So it is the median number of requests on such a way in a window in which there are any.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tapio_schemas::{Entity, UnixNanos};

use super::make_room;
use super::window::Window;

/// Operations of which it is known; the longest silent are forgotten.
const OPERATIONS_MAX: usize = 4096;
/// Ways remembered of an operation; any other one is rare.
const WAYS_MAX: usize = 64;
/// Counts are halved above so many windows.
const WINDOWS_MAX: u32 = 240;
/// A rare way is seen in fewer than one of so many windows.
const RARE: u32 = 2;
/// So often is not known what is rare.
const WINDOWS_MIN: u32 = 6;
/// Most often that one thing is told.
const REPEATS_MAX: usize = 8;
/// Sights of rare ways without which an operation is taken to be like the others, and these to be told once.
const SIGHTS_MIN: u32 = 12;

/// Service and operation.
type Key = (Entity, SmolStr);

/// Sights of rare ways by how many requests came together, and one entry for more.
type Sights = [u32; REPEATS_MAX + 1];

#[derive(Debug, Default)]
struct Operation {
    windows: u32,
    /// Windows in which the way was seen.
    ways: BTreeMap<u64, u32>,
    sights: Sights,
    seen: UnixNanos,
}

/// How many times the requests of each operation are told.
#[derive(Debug, Default)]
pub struct Repeats {
    operations: BTreeMap<Key, Operation>,
    all: Sights,
    /// Operations forgotten because there were too many.
    pub evicted: u64,
}

impl Operation {
    fn count(&mut self, at: UnixNanos, counts: impl Iterator<Item = (u64, u32)>, all: &mut Sights) {
        for (id, count) in counts {
            let seen = self.ways.get(&id).copied().unwrap_or(0);
            if self.windows >= WINDOWS_MIN && seen * RARE < self.windows {
                let place = (count as usize).min(REPEATS_MAX + 1) - 1;
                self.sights[place] += 1;
                all[place] += 1;
            }
            if seen > 0 || self.ways.len() < WAYS_MAX {
                self.ways.insert(id, seen + 1);
            }
        }
        if self.sights.iter().sum::<u32>() > WINDOWS_MAX {
            self.sights.iter_mut().for_each(|n| *n /= 2);
        }
        self.seen = at;
    }

    /// A window has passed, with or without requests.
    fn pass(&mut self) {
        self.windows += 1;
        if self.windows > WINDOWS_MAX {
            self.windows /= 2;
            self.ways.values_mut().for_each(|n| *n /= 2);
            self.ways.retain(|_, n| *n > 0);
        }
    }
}

/// The median of the sights; `None` of too few.
fn median(sights: &Sights) -> Option<u32> {
    let total: u32 = sights.iter().sum();
    let mut below = 0;
    let place = sights.iter().position(|n| {
        below += n;
        2 * below > total
    })?;
    (total >= SIGHTS_MIN).then(|| place.min(REPEATS_MAX - 1) as u32 + 1)
}

impl Repeats {
    /// Counts what came together in a window, and leaves of it what happened once.
    pub fn thin(&mut self, window: &mut Window) {
        for operation in self.operations.values_mut() {
            operation.pass();
        }
        for (key, requests) in &window.requests {
            let operation = self.operations.entry(key.clone()).or_default();
            let counts = requests.ways.iter().map(|(id, shape)| (*id, shape.count));
            operation.count(window.start, counts, &mut self.all);
        }
        if self.all.iter().sum::<u32>() > 16 * WINDOWS_MAX {
            self.all.iter_mut().for_each(|n| *n /= 2);
        }
        self.evicted += make_room(&mut self.operations, OPERATIONS_MAX, |o| o.seen);
        let usual = median(&self.all).unwrap_or(1);
        let of = |key: &Key| {
            let known = self.operations.get(key);
            known.and_then(|operation| median(&operation.sights)).unwrap_or(usual)
        };
        for (key, requests) in &mut window.requests {
            requests.thin(of(key));
        }
        for (((_, to), operation), gaps) in &mut window.gaps {
            gaps.thin(of(&(to.clone(), operation.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::service::{OperationTally, Shape};

    use super::*;

    /// A window of an operation with these ways, and what is left of it.
    fn left(repeats: &mut Repeats, s: u64, ways: &[(u64, u32)]) -> Vec<u32> {
        let mut window = Window::new(UnixNanos(s * super::super::STEP_NS));
        let shapes = ways.iter().map(|(id, count)| Shape { id: *id, count: *count, ..Shape::default() });
        let own_time = vec![(100, ways.iter().map(|(_, count)| count).sum())];
        window.add_requests(OperationTally {
            shapes: shapes.collect(),
            own_time,
            ..OperationTally::default()
        });
        repeats.thin(&mut window);
        window.requests.values().flat_map(|r| r.ways.values().map(|way| way.count)).collect()
    }

    #[test]
    fn what_is_told_twice_counts_once_and_a_rush_counts_in_full() {
        for times in [1, 2] {
            let mut repeats = Repeats::default();
            for s in 0..60 {
                left(&mut repeats, s, &[(1, 9 * times), (100 + s % 20, times)]);
            }
            assert_eq!(
                left(&mut repeats, 60, &[(1, 10 * times), (7, 6 * times)]),
                [10, 6],
                "told {times} times"
            );
        }
    }

    #[test]
    fn of_few_rare_ways_nothing_follows() {
        let mut repeats = Repeats::default();
        for s in 0..10 {
            left(&mut repeats, s, &[(1, 8), (100 + s, 2)]);
        }
        assert_eq!(left(&mut repeats, 10, &[(1, 8)]), [8]);
    }
}
