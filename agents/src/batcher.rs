//! Events into batches, one per shard, finished by size, number or age, or because one of them is urgent.

use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::attribute::{Attribute, AttributeValue};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{ProducerId, UnixNanos};
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::payload::Payload;
use tapio_schemas::wire::{BATCH_EVENTS_MAX, EventBatch, Packer};

use crate::config::BatchConfig;
use crate::ledger::{DropReason, Ledger, Place};
use crate::outbox::Frame;
use crate::urgent::{Pace, is_urgent};

/// Batches of all shards.
pub struct Batcher {
    shards: Vec<ShardBatch>,
    producer: ProducerId,
    epoch: u32,
    bytes_max: u64,
    events_max: usize,
    age_max: Duration,
    pace: Pace,
    message_bytes_max: usize,
    packer: Packer,
    pending_bytes: u64,
    ledger: Ledger,
}

struct ShardBatch {
    batch: EventBatch,
    estimated_bytes: u64,
    /// Monotonic time of the first event.
    began: Option<Duration>,
    /// One of them does not wait for the batch's age.
    is_urgent: bool,
    /// When a batch of this shard last left early.
    urgent_sent: Option<Duration>,
    next_sequence: u64,
}

impl Batcher {
    /// Empty batches. `message_bytes_max` is what the server takes; a larger batch is dropped and counted.
    pub fn new(
        config: &BatchConfig,
        producer: ProducerId,
        epoch: u32,
        message_bytes_max: usize,
        ledger: Ledger,
    ) -> Self {
        let shard = |shard| ShardBatch {
            batch: EventBatch::new(producer, epoch, shard),
            estimated_bytes: 0,
            began: None,
            is_urgent: false,
            urgent_sent: None,
            next_sequence: 0,
        };
        Self {
            shards: (0..SHARD_COUNT).map(shard).collect(),
            producer,
            epoch,
            bytes_max: config.bytes.bytes(),
            events_max: config.events.clamp(1, BATCH_EVENTS_MAX),
            age_max: config.age.get(),
            pace: Pace::new(config.urgent_age.get()),
            message_bytes_max,
            packer: Packer::default(),
            pending_bytes: 0,
            ledger,
        }
    }

    /// Adds an event to its shard's batch; gives the batch when this finishes it.
    pub fn push(&mut self, event: UnifiedEvent, monotonic: Duration) -> Option<Frame> {
        let shard = event.key().shard();
        let slot = &mut self.shards[usize::from(shard)];
        let size = estimated_bytes(&event);
        self.pending_bytes += size;
        slot.estimated_bytes += size;
        slot.began.get_or_insert(monotonic);
        slot.is_urgent |= is_urgent(&event);
        slot.batch.push(event);
        if slot.batch.len() >= self.events_max || slot.estimated_bytes >= self.bytes_max {
            return self.finish(shard);
        }
        None
    }

    /// Estimated size of all batches that are being filled.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Finishes batches that are old enough or urgent, or all of them.
    pub fn flush(&mut self, monotonic: Duration, all: bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        for shard in 0..SHARD_COUNT {
            let slot = &mut self.shards[usize::from(shard)];
            let Some(began) = slot.began else { continue };
            let is_old = all || monotonic.saturating_sub(began) >= self.age_max;
            let leaves_early = slot.is_urgent && self.pace.due(slot.urgent_sent, monotonic) <= monotonic;
            if leaves_early && !is_old {
                slot.urgent_sent = Some(monotonic);
                self.pace.leaves(monotonic);
            }
            if is_old || leaves_early {
                frames.extend(self.finish(shard));
            }
        }
        frames
    }

    /// Time until the next batch is old enough or leaves early; `None` when all are empty.
    pub fn next_due(&self, monotonic: Duration) -> Option<Duration> {
        let due = |slot: &ShardBatch| {
            let old = slot.began? + self.age_max;
            Some(if slot.is_urgent { old.min(self.pace.due(slot.urgent_sent, monotonic)) } else { old })
        };
        Some(self.shards.iter().filter_map(due).min()?.saturating_sub(monotonic))
    }

    fn finish(&mut self, shard: u16) -> Option<Frame> {
        let slot = &mut self.shards[usize::from(shard)];
        let events = slot.batch.len() as u64;
        let sequence = slot.next_sequence;
        (slot.began, slot.is_urgent) = (None, false);
        self.pending_bytes -= std::mem::take(&mut slot.estimated_bytes);
        // No promise of a watermark: telemetry of applications may come late by any time up to `age_max`.
        let payload = match slot.batch.finish(UnixNanos(0)) {
            Ok(payload) => self.packer.pack(payload),
            Err(error) => {
                tracing::error!(%error, shard, events, "a batch cannot be encoded");
                self.lose(events);
                return None;
            }
        };
        slot.next_sequence += events;
        if payload.len() > self.message_bytes_max {
            tracing::error!(bytes = payload.len(), shard, events, "a batch is larger than the server takes");
            self.lose(events);
            return None;
        }
        let msg_id = Frame::id(self.producer, self.epoch, shard, sequence);
        Some(Frame {
            payload: Bytes::from(payload),
            shard,
            events,
            epoch: self.epoch,
            first_sequence: sequence,
            msg_id,
            spool_file: None,
        })
    }

    fn lose(&self, events: u64) {
        self.ledger.leave(Place::Batch, events);
        self.ledger.dropped(DropReason::TooLarge, events);
    }
}

/// Encoded size of an event, roughly and rather too large: shared texts are counted each time.
fn estimated_bytes(event: &UnifiedEvent) -> u64 {
    const FIXED: usize = 96;
    let texts = match &event.payload {
        Payload::Span(s) => 128 + s.status_message.len() + s.error_message.len() + attributes(&s.attributes),
        Payload::Log(l) => 48 + l.body.len() + attributes(&l.attributes),
        Payload::Metric(m) => 96 + (m.bounds.len() + m.buckets.len()) * 8 + attributes(&m.attributes),
        Payload::Kubernetes(k) => {
            128 + k.message.len() + k.old_value.len() + k.new_value.len() + k.relations.len() * 24
        }
        Payload::Application(a) => 32 + a.message.len() + a.stack.len(),
        Payload::Custom(c) => 32 + attributes(&c.attributes),
        Payload::Network(_) => 96,
        _ => 64,
    };
    (FIXED + texts) as u64
}

fn attributes(list: &[Attribute]) -> usize {
    let text = |a: &Attribute| match &a.value {
        AttributeValue::Text(text) => text.len(),
        _ => 0,
    };
    list.iter().map(|a| 24 + text(a)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tapio_runtime::config::ByteSize;
    use tapio_runtime::telemetry::Metrics;
    use tapio_schemas::payload::LogData;

    use tapio_schemas::entity::EntityRef;
    use tapio_schemas::kind::{EventKind, EventSeverity};
    use tapio_schemas::wire::{EventBatchView, Unpacker};

    use crate::urgent::URGENT_BATCHES_PER_S_MAX;

    fn batcher(message_bytes_max: usize) -> (Batcher, Ledger) {
        let ledger = Ledger::new(&Metrics::new());
        let config = BatchConfig { events: 10, bytes: ByteSize(64 << 10), ..Default::default() };
        (Batcher::new(&config, ProducerId(1), 2, message_bytes_max, ledger.clone()), ledger)
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_batch_ends_by_number_or_age_and_sequences_go_on() {
        let (mut batcher, _) = batcher(1 << 20);
        let by_number: Vec<Frame> =
            (0..25).filter_map(|_| batcher.push(UnifiedEvent::default(), at(0))).collect();
        assert_eq!(by_number.iter().map(|f| f.events).collect::<Vec<_>>(), vec![10, 10]);
        assert_eq!(batcher.next_due(at(40)), Some(at(60)));
        assert!(batcher.flush(at(99), false).is_empty());
        let by_age = batcher.flush(at(100), false);
        assert_eq!(by_age.len(), 1);
        assert_eq!(batcher.next_due(at(100)), None);
        let mut unpacker = Unpacker::default();
        let header = *EventBatchView::check(unpacker.unpack(&by_age[0].payload).unwrap()).unwrap().header();
        assert_eq!((header.first_sequence, header.count), (20, 5));
        assert_eq!(Frame::from_payload(by_age[0].payload.clone(), None).unwrap().msg_id, by_age[0].msg_id);
    }

    /// An event of the shard `key`, of the kind.
    fn of(kind: EventKind, severity: EventSeverity, key: u128) -> UnifiedEvent {
        let entity = EntityRef { lineage: key, ..EntityRef::default() };
        UnifiedEvent { kind, severity, entity: Arc::new(entity), ..UnifiedEvent::default() }
    }

    fn kill(key: u128) -> UnifiedEvent {
        of(EventKind::OomKill, EventSeverity::Critical, key)
    }

    #[test]
    fn an_urgent_event_leaves_at_once_and_takes_along_what_waits() {
        let (mut batcher, _) = batcher(1 << 20);
        let exec = of(EventKind::ProcessExec, EventSeverity::Info, 1);
        let span = of(EventKind::Span, EventSeverity::Critical, 1);
        assert!(batcher.push(exec, at(0)).is_none() && batcher.push(span, at(1)).is_none());
        assert!(batcher.flush(at(10), false).is_empty());
        assert!(batcher.push(kill(1), at(20)).is_none());
        assert_eq!(batcher.next_due(at(20)), Some(Duration::ZERO));
        let frames = batcher.flush(at(20), false);
        assert_eq!(frames.iter().map(|f| f.events).collect::<Vec<_>>(), [3]);
        assert_eq!(batcher.next_due(at(20)), None);
    }

    #[test]
    fn a_flood_of_errors_leaves_in_few_batches() {
        let (mut batcher, _) = batcher(1 << 20);
        // Ten errors a millisecond in one shard, looked at each time.
        let mut frames = Vec::new();
        for millis in 0..100 {
            for _ in 0..10 {
                frames.extend(batcher.push(of(EventKind::ProcessExit, EventSeverity::Error, 1), at(millis)));
                frames.extend(batcher.flush(at(millis), false));
            }
        }
        // At the beginning, then each 5 ms; and each tenth event ends a batch by number.
        let early = frames.iter().filter(|f| f.events < 10).count();
        assert_eq!(early, 20, "{:?}", frames.iter().map(|f| f.events).collect::<Vec<_>>());
        assert!(batcher.next_due(at(100)).is_none_or(|due| due <= at(5)));
    }

    #[test]
    fn all_shards_together_leave_early_so_often_and_then_by_age() {
        let (mut batcher, _) = batcher(1 << 20);
        let key_of = |shard| (0u128..).find(|key| tapio_schemas::shard(*key) == shard).unwrap();
        let keys: Vec<u128> = (0..SHARD_COUNT).map(key_of).collect();
        let mut frames = Vec::new();
        for millis in (1000..1045).step_by(5) {
            keys.iter().for_each(|key| assert!(batcher.push(kill(*key), at(millis)).is_none()));
            frames.extend(batcher.flush(at(millis), false));
        }
        assert_eq!(frames.len(), URGENT_BATCHES_PER_S_MAX as usize);
        let (waiting, due) = (batcher.pending_bytes(), batcher.next_due(at(1045)).unwrap());
        assert!(waiting > 0 && due > at(80) && due < at(100), "by age: {due:?}");
        assert_eq!(batcher.flush(at(1045) + due, false).len(), 12);
    }

    #[test]
    fn size_ends_a_batch_and_what_no_server_takes_is_counted() {
        let (mut batcher, ledger) = batcher(100_000);
        // Text that does not pack.
        let text = |bytes: usize| {
            let mut state = 1u32;
            let letter = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                char::from(b' ' + (state >> 24) as u8 % 95)
            };
            (0..bytes).map(letter).collect::<String>()
        };
        let log = |bytes: usize| UnifiedEvent {
            payload: Payload::Log(Box::new(LogData { body: text(bytes).into(), ..Default::default() })),
            ..Default::default()
        };
        ledger.enter(Place::Batch, 3);
        assert!(batcher.push(log(40_000), at(0)).is_none());
        assert!(batcher.push(log(40_000), at(0)).is_some());
        assert!(batcher.push(log(200_000), at(0)).is_none());
        assert_eq!(ledger.snapshot().dropped, vec![(DropReason::TooLarge, 1)]);
    }
}
