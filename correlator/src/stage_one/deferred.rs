//! What a worker puts aside: the rest of a batch that takes longer than it may, and what comes for the same shard
//! meanwhile. Each shard's rest is worked off in the order in which it came, so that the shard says what it would have
//! said; the other shards go on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::UnixNanos;

use crate::config::CorrelatorConfig;
use crate::shards::Cursor;

/// A message of the event stream that is being worked on.
pub struct Batch {
    /// Its place in the stream.
    pub sequence: u64,
    /// Its bytes.
    pub payload: Bytes,
    /// Wall time at which it came.
    pub came: UnixNanos,
    /// How far it is.
    pub cursor: Cursor,
}

/// Work on a shard that is not done.
pub enum Rest {
    /// A message, from the cursor on.
    Batch(Batch),
    /// The steps up to the watermark.
    Advance,
}

impl Rest {
    fn bytes(&self) -> Option<usize> {
        match self {
            Self::Batch(batch) => Some(batch.payload.len()),
            Self::Advance => None,
        }
    }
}

/// Everything put aside, by shard.
pub struct Deferred {
    queues: BTreeMap<u16, VecDeque<Rest>>,
    batches: usize,
    bytes: usize,
    batches_max: usize,
    bytes_max: usize,
    /// The shard that had its turn last.
    last: u16,
    /// Since when something waits.
    since: Option<Duration>,
}

impl Deferred {
    /// Nothing, with the limits of the settings.
    pub fn new(config: &CorrelatorConfig) -> Self {
        Self {
            queues: BTreeMap::new(),
            batches: 0,
            bytes: 0,
            batches_max: config.deferred_batches_max,
            bytes_max: usize::try_from(config.deferred_bytes_max.bytes()).unwrap_or(usize::MAX),
            last: 0,
            since: None,
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Something of this shard waits.
    pub fn has(&self, shard: u16) -> bool {
        self.queues.contains_key(&shard)
    }

    /// Batches that wait.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// How long something has been waiting without a pause; zero for nothing.
    pub fn age(&self, now: Duration) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// Waits behind what of this shard waits already.
    pub fn put_last(&mut self, shard: u16, rest: Rest, now: Duration) {
        self.enter(&rest, now);
        self.queues.entry(shard).or_default().push_back(rest);
    }

    /// Goes back to where it was taken from.
    pub fn put_back(&mut self, shard: u16, rest: Rest, now: Duration) {
        self.enter(&rest, now);
        self.queues.entry(shard).or_default().push_front(rest);
    }

    /// What is next, of the shard whose turn it is.
    pub fn take(&mut self) -> Option<(u16, Rest)> {
        let after = self.queues.range(self.last.saturating_add(1)..).next();
        let shard = *after.or_else(|| self.queues.first_key_value())?.0;
        self.last = shard;
        let queue = self.queues.get_mut(&shard)?;
        let rest = queue.pop_front()?;
        self.leave(shard, &rest);
        Some((shard, rest))
    }

    /// Something of this shard was done: the time over which it waits begins anew.
    pub fn settled(&mut self) {
        if self.is_empty() {
            self.since = None;
        }
    }

    /// The oldest batch of the shard of which most wait, while there are more than may.
    pub fn take_surplus(&mut self) -> Option<(u16, Rest)> {
        if self.batches <= self.batches_max && self.bytes <= self.bytes_max {
            return None;
        }
        let (shard, queue) = self.queues.iter_mut().max_by_key(|(shard, q)| (q.len(), u16::MAX - **shard))?;
        // Steps that were begun cannot be given up: they hold no batch.
        let oldest = queue.iter().position(|rest| rest.bytes().is_some())?;
        let (shard, rest) = (*shard, queue.remove(oldest)?);
        self.leave(shard, &rest);
        Some((shard, rest))
    }

    /// The shard is another's: what waits is read again from the stream by its next owner.
    pub fn forget(&mut self, shard: u16) {
        for rest in self.queues.remove(&shard).into_iter().flatten() {
            self.uncount(&rest);
        }
        self.settled();
    }

    fn enter(&mut self, rest: &Rest, now: Duration) {
        self.since.get_or_insert(now);
        if let Some(bytes) = rest.bytes() {
            self.batches += 1;
            self.bytes += bytes;
        }
    }

    fn leave(&mut self, shard: u16, rest: &Rest) {
        self.uncount(rest);
        if self.queues.get(&shard).is_some_and(VecDeque::is_empty) {
            self.queues.remove(&shard);
        }
    }

    fn uncount(&mut self, rest: &Rest) {
        if let Some(bytes) = rest.bytes() {
            self.batches -= 1;
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_runtime::config::ByteSize;

    fn batch(sequence: u64, bytes: usize) -> Rest {
        let payload = Bytes::from(vec![0; bytes]);
        Rest::Batch(Batch { sequence, payload, came: UnixNanos(0), cursor: Cursor::new(UnixNanos(0)) })
    }

    fn deferred(batches_max: usize, bytes_max: u64) -> Deferred {
        Deferred::new(&CorrelatorConfig {
            deferred_batches_max: batches_max,
            deferred_bytes_max: ByteSize(bytes_max),
            ..CorrelatorConfig::default()
        })
    }

    fn number(rest: Rest) -> u64 {
        match rest {
            Rest::Batch(batch) => batch.sequence,
            Rest::Advance => 0,
        }
    }

    #[test]
    fn shards_take_turns_and_each_keeps_its_order() {
        let mut deferred = deferred(10, 1000);
        let now = Duration::from_secs(7);
        for (shard, sequence) in [(3, 1), (3, 2), (9, 3), (9, 4)] {
            deferred.put_last(shard, batch(sequence, 1), now);
        }
        let (shard, first) = deferred.take().expect("the first of shard 3");
        deferred.put_back(shard, first, now);
        let taken: Vec<_> = std::iter::from_fn(|| deferred.take()).map(|(s, r)| (s, number(r))).collect();
        assert_eq!(taken, [(9, 3), (3, 1), (9, 4), (3, 2)]);
        assert_eq!((deferred.is_empty(), deferred.batches(), deferred.bytes), (true, 0, 0));
        assert_eq!(deferred.age(now + Duration::from_secs(2)), Duration::from_secs(2));
        deferred.settled();
        assert_eq!(deferred.age(now + Duration::from_secs(2)), Duration::ZERO);
    }

    #[test]
    fn above_a_limit_the_oldest_batch_of_the_fullest_shard_goes_and_steps_stay() {
        for mut deferred in [deferred(3, 1000), deferred(10, 350)] {
            deferred.put_last(5, Rest::Advance, Duration::ZERO);
            for (shard, sequence) in [(2, 1), (5, 2), (5, 3)] {
                deferred.put_last(shard, batch(sequence, 100), Duration::ZERO);
            }
            assert!(deferred.take_surplus().is_none());
            deferred.put_last(2, batch(4, 100), Duration::ZERO);
            let (shard, rest) = deferred.take_surplus().expect("one too many");
            assert_eq!((shard, number(rest)), (5, 2));
            assert!(deferred.take_surplus().is_none());
            deferred.forget(5);
            assert_eq!((deferred.has(5), deferred.batches()), (false, 2));
        }
    }
}
