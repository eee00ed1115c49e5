//! Live traces: the ids that spans carry, by shard, because a trace belongs to one shard.

use std::collections::VecDeque;

use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::shard;

use super::random::{Random, mix};

/// Calls in a trace, deepest first on the wire; each has a client span and a server span.
pub const HOPS: usize = 4;
/// Traces that are open at a time.
pub const LIVE: usize = 50_000;

/// The open traces of all shards.
pub struct Traces {
    random: Random,
    /// For each shard and hop: traces whose next call is that hop.
    waiting: Vec<[VecDeque<u128>; HOPS]>,
    /// Ids that were drawn and fell into another shard than the one asked for.
    spare: Vec<Vec<u128>>,
}

impl Traces {
    /// `live` traces over all shards and hops.
    pub fn new(live: usize, seed: &Random) -> Self {
        let shards = usize::from(SHARD_COUNT);
        let mut traces = Self {
            random: seed.fork(2),
            waiting: (0..shards).map(|_| Default::default()).collect(),
            spare: vec![Vec::new(); shards],
        };
        for number in 0..live {
            let of_shard = number % shards;
            let id = traces.fresh(of_shard);
            traces.waiting[of_shard][(number / shards) % HOPS].push_back(id);
        }
        traces
    }

    /// The trace whose call of this hop comes next; it then waits for the hop above, or is over and replaced.
    pub fn advance(&mut self, of_shard: usize, hop: usize) -> u128 {
        let id = match self.waiting[of_shard][hop].pop_front() {
            Some(id) => id,
            None => self.fresh(of_shard),
        };
        match hop {
            0 => {
                let next = self.fresh(of_shard);
                self.waiting[of_shard][HOPS - 1].push_back(next);
            }
            _ => self.waiting[of_shard][hop - 1].push_back(id),
        }
        id
    }

    /// A trace that is at this hop, without moving it.
    pub fn at(&mut self, of_shard: usize, hop: usize) -> u128 {
        match self.waiting[of_shard][hop].front() {
            Some(id) => *id,
            None => self.fresh(of_shard),
        }
    }

    /// Open traces.
    #[cfg(test)]
    pub fn live(&self) -> usize {
        self.waiting.iter().flatten().map(VecDeque::len).sum()
    }

    fn fresh(&mut self, of_shard: usize) -> u128 {
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
        let mut traces = Traces::new(1024, &Random::new(5));
        assert_eq!(traces.live(), 1024);
        let first = traces.advance(9, HOPS - 1);
        assert_eq!(shard(first), 9);
        let mut seen = 0;
        for hop in (0..HOPS - 1).rev() {
            // Those that waited before it come first.
            while traces.advance(9, hop) != first {
                seen += 1;
                assert!(seen < 1024);
            }
        }
        assert_eq!(traces.live(), 1024);
        assert!(!traces.waiting[9].iter().flatten().any(|id| *id == first));
    }
}
