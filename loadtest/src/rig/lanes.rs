//! What the event stream holds: each producer numbers its events per shard, so a hole or an overlap in the numbers is a loss
//! or a double.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tapio_runtime::bus::{Bus, OrderedConfig, OrderedConsumer};
use tapio_schemas::names::STREAM_EVENTS;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::LoadError;
use crate::load::is_producer;

/// Offsets in the header, which stays readable when the rest is packed: see `schemas/src/wire/header.rs`.
const COUNT_AT: usize = 12;
const PRODUCER_AT: usize = 16;
const FIRST_SEQUENCE_AT: usize = 24;
const EPOCH_AT: usize = 40;
const HEADER_BYTES: usize = 80;
/// Messages taken at a time.
const READ: usize = 512;
const READ_WAIT: Duration = Duration::from_millis(100);
/// All is published: when nothing comes for so long something is missing.
const PATIENCE: Duration = Duration::from_secs(15);

/// A producer's numbers in one shard: (producer, run, shard).
pub type Lane = (u64, u32, u16);

/// First number → events, and how often that message is there.
type Batches = BTreeMap<u64, (u64, u64)>;

/// Event numbers seen, by lane.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: HashMap<Lane, Batches>,
    /// Of who is no producer of the load: the node agent, and services that tell of themselves.
    others: HashMap<Lane, Batches>,
    /// Messages of the load.
    pub messages: u64,
    /// Messages that are shorter than a header, or whose subject names no shard.
    pub unreadable: u64,
}

/// Sums over all lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Events that are there, once each.
    pub events: u64,
    /// Events that are there again.
    pub doubled: u64,
    /// Events missing before others of the same lane.
    pub holes: u64,
    /// Lanes.
    pub lanes: usize,
}

/// Reads the stream of events while it is written: it may be longer than what the server keeps of it.
#[derive(Debug)]
pub struct LaneReader {
    task: JoinHandle<Result<Lanes, LoadError>>,
    end: watch::Sender<Option<u64>>,
}

impl LaneReader {
    /// Reads from the beginning on.
    ///
    /// # Errors
    /// When NATS refuses to.
    pub async fn start(bus: &Bus) -> Result<Self, LoadError> {
        let config = OrderedConfig { batch: READ, ..OrderedConfig::new(STREAM_EVENTS) };
        let consumer = bus.ordered_consumer(config).await?;
        let (end, told) = watch::channel(None);
        Ok(Self { task: tokio::spawn(read(consumer, told)), end })
    }

    /// What was there, up to the message that is the last one now. Without a message for `PATIENCE` it gives up: what it
    /// lacks is missing.
    ///
    /// # Errors
    /// When NATS is gone for good.
    pub async fn finish(self, bus: &Bus) -> Result<Lanes, LoadError> {
        let last = bus.stream_state(STREAM_EVENTS).await?.last_sequence;
        self.end.send_replace(Some(last));
        self.task.await.map_err(|error| LoadError::Generator(error.to_string()))?
    }
}

async fn read(mut consumer: OrderedConsumer, end: watch::Receiver<Option<u64>>) -> Result<Lanes, LoadError> {
    let (mut lanes, mut sequence) = (Lanes::default(), 0);
    let mut silent_since = Instant::now();
    loop {
        let messages = consumer.next_batch(READ, READ_WAIT).await?;
        if !messages.is_empty() {
            silent_since = Instant::now();
        }
        for message in messages {
            lanes.take(&message.subject, &message.payload);
            sequence = message.sequence;
        }
        match *end.borrow() {
            Some(last) if sequence >= last || silent_since.elapsed() >= PATIENCE => return Ok(lanes),
            _ => {}
        }
    }
}

impl Lanes {
    /// Takes a message of the stream.
    pub(crate) fn take(&mut self, subject: &str, payload: &[u8]) {
        if payload.len() < HEADER_BYTES {
            self.messages += 1;
            self.unreadable += 1;
            return;
        }
        let number = |at: usize, bytes: usize| {
            payload[at..at + bytes].iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte))
        };
        let producer = number(PRODUCER_AT, 8);
        let is_of_load = is_producer(producer);
        self.messages += u64::from(is_of_load);
        let Some(shard) = subject.rsplit('.').next().and_then(|shard| shard.parse().ok()) else {
            self.unreadable += 1;
            return;
        };
        let lane = (producer, number(EPOCH_AT, 4) as u32, shard);
        let lanes = if is_of_load { &mut self.lanes } else { &mut self.others };
        let place = lanes.entry(lane).or_default().entry(number(FIRST_SEQUENCE_AT, 8)).or_default();
        *place = (number(COUNT_AT, 4), place.1 + 1);
    }

    /// Counts what is there, once or more often, and what is not.
    pub fn stored(&self) -> Stored {
        let mut stored = Stored { lanes: self.lanes.len(), ..Stored::default() };
        for batches in self.lanes.values() {
            let lane = of_lane(batches, u64::MAX);
            stored.holes += lane.holes;
            stored.doubled += lane.doubled;
            stored.events += lane.events;
        }
        stored
    }

    /// What is there of a producer that is none of the load's, by run and shard.
    pub fn of(&self, producer: u64) -> BTreeMap<(u32, u16), Stored> {
        let its = self.others.iter().filter(|((who, ..), _)| *who == producer);
        its.map(|((_, run, shard), batches)| ((*run, *shard), of_lane(batches, u64::MAX))).collect()
    }

    /// Events with a number below `position` that are there, once each, of a lane that is none of the load's.
    pub fn below(&self, lane: Lane, position: u64) -> u64 {
        self.others.get(&lane).map_or(0, |batches| of_lane(batches, position).events)
    }

    /// Events that are there, once each, by lane.
    pub fn events(&self) -> BTreeMap<Lane, u64> {
        self.lanes.iter().map(|(lane, batches)| (*lane, of_lane(batches, u64::MAX).events)).collect()
    }
}

/// Of its events those with a number below `until`.
fn of_lane(batches: &Batches, until: u64) -> Stored {
    let mut lane = Stored { lanes: 1, ..Stored::default() };
    let mut next = 0;
    for (first, (count, times)) in batches {
        lane.holes += first.saturating_sub(next);
        lane.doubled += count * (times - 1) + next.saturating_sub(*first).min(*count);
        lane.events += (first + count).min(until).saturating_sub(next.max(*first));
        next = next.max(first + count);
    }
    lane
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tapio_schemas::wire::EventBatch;
    use tapio_schemas::{ProducerId, UnifiedEvent, UnixNanos};

    /// Four batches of 25 events, of a producer's run 1 and shard 9, of which the stream holds those named.
    pub(crate) fn lanes(producer: ProducerId, held: &[usize]) -> Lanes {
        let mut batch = EventBatch::new(producer, 1, 9);
        let mut make = || {
            (0..25).for_each(|_| batch.push(UnifiedEvent::default()));
            batch.finish(UnixNanos(0)).expect("a batch")
        };
        let batches: Vec<Vec<u8>> = (0..4).map(|_| make()).collect();
        let mut lanes = Lanes::default();
        held.iter().for_each(|at| lanes.take("tapio.v1.events.loadtest.9", &batches[*at]));
        lanes
    }

    fn batches() -> Vec<Vec<u8>> {
        let mut batch = EventBatch::new(ProducerId(crate::load::PRODUCER + 5), 3, 9);
        let make = |events: usize| {
            (0..events).for_each(|_| batch.push(UnifiedEvent::default()));
            batch.finish(UnixNanos(0)).unwrap()
        };
        [3, 5, 2].into_iter().map(make).collect()
    }

    fn stored(order: &[usize]) -> Stored {
        let (batches, mut lanes) = (batches(), Lanes::default());
        order.iter().for_each(|at| lanes.take("tapio.v1.events.x.9", &batches[*at]));
        assert_eq!(lanes.unreadable, 0);
        lanes.stored()
    }

    #[test]
    fn any_order_is_whole_and_losses_and_doubles_are_counted() {
        let whole = Stored { events: 10, lanes: 1, ..Stored::default() };
        assert_eq!(stored(&[0, 1, 2]), whole);
        assert_eq!(stored(&[2, 0, 1]), whole);
        assert_eq!(stored(&[0, 2]), Stored { events: 5, holes: 5, ..whole });
        assert_eq!(stored(&[0, 1, 1, 2]), Stored { doubled: 5, ..whole });
    }

    #[test]
    fn who_is_no_producer_of_the_load_is_counted_apart() {
        let mut batch = EventBatch::new(ProducerId(0x1234_5678_9abc), 1, 9);
        batch.push(UnifiedEvent::default());
        let mut lanes = Lanes::default();
        lanes.take("tapio.v1.events.x.9", &batch.finish(UnixNanos(0)).unwrap());
        assert_eq!((lanes.messages, lanes.stored()), (0, Stored::default()));
        let one = Stored { events: 1, lanes: 1, ..Stored::default() };
        assert_eq!(lanes.of(0x1234_5678_9abc), BTreeMap::from([((1, 9), one)]));
        assert_eq!(lanes.of(5), BTreeMap::new());
        assert_eq!([0, 1].map(|position| lanes.below((0x1234_5678_9abc, 1, 9), position)), [0, 1]);
    }
}
