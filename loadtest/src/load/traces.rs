//! Live traces: the ids that spans carry, by shard, because a trace belongs to one shard.

use std::collections::VecDeque;

use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::shard;

use super::random::{Random, mix};
use super::world::{HOPS, PATHS};

/// Most traces that are open at a time …
pub const LIVE: usize = 50_000;
/// … as far as none takes longer than this, s: that long a request waits for others in earnest.
const LIFE_S: f64 = 20.0;
/// Share of the events that are spans of a trace.
pub const SPANS: f64 = 0.15;

/// Traces that are open at a time under so many events/s; at any rate [`LIVE`].
pub fn live(rate: Option<f64>) -> usize {
    let ended = |rate: f64| rate * SPANS / (2 * HOPS) as f64;
    rate.map_or(LIVE, |rate| (ended(rate) * LIFE_S) as usize).clamp(1, LIVE)
}

/// A call of a path: the number of the path, and of the call from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Path of the [`World`](super::world::World).
    pub path: usize,
    /// Call of it.
    pub number: usize,
}

/// The open traces of all shards.
pub struct Traces {
    random: Random,
    /// For each shard and path.
    paths: Vec<OfPath>,
    /// Ids that were drawn and fell into another shard than the one asked for.
    spare: Vec<Vec<u128>>,
}

/// The open traces of a path.
#[derive(Default)]
struct OfPath {
    /// The trace that begins next.
    next: u128,
    /// Traces whose next call is that hop; the last hop is where they begin.
    waiting: [VecDeque<u128>; HOPS - 1],
    /// So many wait for each hop.
    depth: usize,
}

impl Traces {
    /// `live` traces over all shards and the paths that are taken in each shard, in time: none is amid its way when anyone begins
    /// to listen.
    pub fn new(live: usize, seed: &Random, taken: &[Vec<usize>]) -> Self {
        let shards = usize::from(SHARD_COUNT);
        let mut traces = Self {
            random: seed.fork(2),
            paths: (0..shards * PATHS).map(|_| OfPath::default()).collect(),
            spare: vec![Vec::new(); shards],
        };
        for (of_shard, paths) in taken.iter().enumerate() {
            for path in paths {
                let next = traces.fresh(of_shard);
                let depth = live / (shards * (HOPS - 1) * paths.len());
                traces.paths[of_shard * PATHS + path] = OfPath { next, depth, ..OfPath::default() };
            }
        }
        traces
    }

    /// The trace whose call of this hop comes next; it then waits for the hop above, or is over. `None` when none has come so far.
    pub fn advance(&mut self, of_shard: usize, hop: Hop) -> Option<u128> {
        let next = if hop.number == HOPS - 1 { self.fresh(of_shard) } else { 0 };
        let of = &mut self.paths[of_shard * PATHS + hop.path];
        let id = match of.waiting.get_mut(hop.number) {
            None => std::mem::replace(&mut of.next, next),
            Some(waiting) if waiting.len() > of.depth => waiting.pop_front()?,
            Some(_) => return None,
        };
        if let Some(above) = hop.number.checked_sub(1) {
            of.waiting[above].push_back(id);
        }
        Some(id)
    }

    /// A trace that is at this hop, without moving it.
    pub fn at(&self, of_shard: usize, hop: Hop) -> Option<u128> {
        let of = &self.paths[of_shard * PATHS + hop.path];
        match of.waiting.get(hop.number) {
            Some(waiting) if of.depth > 0 => waiting.front().copied().filter(|_| waiting.len() >= of.depth),
            // Not every path is taken in every shard.
            _ => Some(of.next).filter(|id| *id > 0),
        }
    }

    /// Open traces.
    #[cfg(test)]
    pub fn live(&self) -> usize {
        self.paths.iter().flat_map(|of| &of.waiting).map(VecDeque::len).sum()
    }

    /// The id of a trace of this shard that was never given.
    pub fn fresh(&mut self, of_shard: usize) -> u128 {
        while self.spare[of_shard].is_empty() {
            let id = self.random.wide();
            self.spare[usize::from(shard(id))].push(id);
        }
        self.spare[of_shard].pop().unwrap_or(1)
    }
}

/// Id of a span of a trace: 0 the client of hop 0, 1 its server, 2 the client of hop 1, …
pub fn span_id(trace: u128, index: usize) -> u64 {
    mix(trace as u64 ^ mix(index as u64 + 1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls every path of a shard once, and says which traces were called, by hop.
    fn round(traces: &mut Traces, of_shard: usize) -> Vec<[Option<u128>; HOPS]> {
        let mut all = Vec::new();
        for path in 0..PATHS {
            let at: Vec<_> = (0..HOPS).map(|number| traces.at(of_shard, Hop { path, number })).collect();
            let mut called = [None; HOPS];
            for number in (0..HOPS).rev() {
                called[number] = traces.advance(of_shard, Hop { path, number });
            }
            assert_eq!(at, called, "a line is of the call that comes next");
            all.push(called);
        }
        all
    }

    #[test]
    fn a_trace_takes_all_its_hops_from_the_last_to_the_first_in_one_shard_and_others_are_open_meanwhile() {
        let all: Vec<Vec<usize>> = vec![(0..PATHS).collect(); 64];
        let depth = 3;
        let live = 64 * (HOPS - 1) * PATHS * depth;
        let mut traces = Traces::new(live, &Random::new(5), &all);
        let rounds: Vec<_> = (0..40).map(|_| round(&mut traces, 9)).collect();
        for (number, called) in rounds.iter().enumerate() {
            for (path, of_hop) in called.iter().enumerate() {
                let begun = of_hop[HOPS - 1].expect("one begins");
                assert_eq!(shard(begun), 9);
                for hop in 0..HOPS {
                    let later = number + (HOPS - 1 - hop) * depth;
                    let there = rounds.get(later).map(|called| called[path][hop]);
                    assert!(there.is_none_or(|there| there == Some(begun)), "hop {hop} of {begun}");
                    assert_eq!(of_hop[hop].is_none(), number < (HOPS - 1 - hop) * depth);
                }
            }
        }
        assert_eq!(traces.live(), live / 64);
    }

    #[test]
    fn where_calls_are_rare_a_trace_is_over_at_once() {
        assert!(live(None) == LIVE && live(Some(1e6)) == LIVE && live(Some(1e4)) < LIVE / 10);
        let all: Vec<Vec<usize>> = vec![(0..PATHS).collect(); 64];
        let mut traces = Traces::new(live(Some(1e3)), &Random::new(5), &all);
        for called in round(&mut traces, 9) {
            assert!(called[0].is_some() && called.iter().all(|id| *id == called[0]), "{called:?}");
        }
    }
}
