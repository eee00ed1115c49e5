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
const SPANS: f64 = 0.15;

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
    /// For each shard, path and hop: traces whose next call is that hop.
    waiting: Vec<[VecDeque<u128>; HOPS]>,
    /// Ids that were drawn and fell into another shard than the one asked for.
    spare: Vec<Vec<u128>>,
}

impl Traces {
    /// `live` traces over all shards and the paths that are taken in each shard: on another one a trace would be open
    /// without ever being heard of. All begin with their last call, the first to end: none is amid its way when anyone begins
    /// to listen.
    pub fn new(live: usize, seed: &Random, taken: &[Vec<usize>]) -> Self {
        let shards = usize::from(SHARD_COUNT);
        let mut traces = Self {
            random: seed.fork(2),
            waiting: (0..shards * PATHS).map(|_| Default::default()).collect(),
            spare: vec![Vec::new(); shards],
        };
        for number in 0..live {
            let (of_shard, turn) = (number % shards, number / shards);
            let paths = &taken[of_shard];
            if paths.is_empty() {
                continue;
            }
            let id = traces.fresh(of_shard);
            let hop = Hop { path: paths[turn / HOPS % paths.len()], number: HOPS - 1 };
            traces.waiting(of_shard, hop).push_back(id);
        }
        traces
    }

    /// The trace whose call of this hop comes next; it then waits for the hop above, or is over and replaced. `None` when none
    /// has come so far.
    pub fn advance(&mut self, of_shard: usize, hop: Hop) -> Option<u128> {
        let id = self.waiting(of_shard, hop).pop_front()?;
        match hop.number {
            0 => {
                let next = self.fresh(of_shard);
                self.waiting(of_shard, Hop { number: HOPS - 1, ..hop }).push_back(next);
            }
            number => self.waiting(of_shard, Hop { number: number - 1, ..hop }).push_back(id),
        }
        Some(id)
    }

    /// A trace that is at this hop, without moving it.
    pub fn at(&mut self, of_shard: usize, hop: Hop) -> Option<u128> {
        self.waiting(of_shard, hop).front().copied()
    }

    fn waiting(&mut self, of_shard: usize, hop: Hop) -> &mut VecDeque<u128> {
        &mut self.waiting[of_shard * PATHS + hop.path][hop.number]
    }

    /// Open traces.
    #[cfg(test)]
    pub fn live(&self) -> usize {
        self.waiting.iter().flatten().map(VecDeque::len).sum()
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

    #[test]
    fn a_trace_stays_in_its_shard_and_ends_at_the_top() {
        let live = 64 * HOPS * PATHS;
        let all: Vec<Vec<usize>> = vec![(0..PATHS).collect(); 64];
        let mut traces = Traces::new(live, &Random::new(5), &all);
        assert_eq!(traces.live(), live);
        let hop = |number| Hop { path: 7, number };
        let first = traces.advance(9, hop(HOPS - 1)).unwrap();
        assert_eq!(shard(first), 9);
        let mut seen = 0;
        for number in (0..HOPS - 1).rev() {
            // Those that waited before it come first.
            while traces.advance(9, hop(number)) != Some(first) {
                seen += 1;
                assert!(seen < live);
            }
        }
        assert_eq!(traces.live(), live);
        assert!(!traces.waiting.iter().flatten().flatten().any(|id| *id == first));
    }
}
