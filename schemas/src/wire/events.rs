//! Batches of events.

use std::sync::Arc;

use rkyv::rancor::Error;
use rkyv::vec::ArchivedVec;

use super::context::BatchReader;
use super::frame::{self, Frame, FrameWriter};
use super::header::{FrameKind, Header, SCHEMA_VERSION};
use super::strings::Strings;
use super::{ArchivedStringIndex, BATCH_EVENTS_MAX, WireError};
use crate::entity::{ArchivedEntityRef, EntityRef};
use crate::event::{ArchivedUnifiedEvent, UnifiedEvent};
use crate::ids::{ProducerId, UnixNanos};
use crate::shard::ShardKey;

/// Collects events of one shard and writes them as one message.
pub struct EventBatch {
    producer: ProducerId,
    epoch: u32,
    shard: u16,
    next_sequence: u64,
    events: Vec<UnifiedEvent>,
    writer: FrameWriter,
}

impl EventBatch {
    /// An empty batch of `producer` for `shard`; sequences count from zero per producer, epoch and shard.
    pub fn new(producer: ProducerId, epoch: u32, shard: u16) -> Self {
        Self { producer, epoch, shard, next_sequence: 0, events: Vec::new(), writer: FrameWriter::default() }
    }

    /// Adds an event; the caller has chosen the shard by [`crate::shard::shard`].
    pub fn push(&mut self, event: UnifiedEvent) {
        self.events.push(event);
    }

    /// Events waiting.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Writes the message and starts the next batch. `watermark`: nothing older will follow; zero = no promise.
    ///
    /// On an error the events are dropped and returned in number by [`WireError::TooMany`] or
    /// [`WireError::TooLarge`]; keep batches below [`BATCH_EVENTS_MAX`].
    pub fn finish(&mut self, watermark: UnixNanos) -> Result<Vec<u8>, WireError> {
        let events = std::mem::take(&mut self.events);
        if events.len() > BATCH_EVENTS_MAX {
            return Err(WireError::TooMany(events.len()));
        }
        let header = Header {
            version: SCHEMA_VERSION,
            kind: FrameKind::Events,
            shard: self.shard,
            count: events.len() as u32,
            producer: self.producer,
            first_sequence: self.next_sequence,
            watermark,
            epoch: self.epoch,
            body_bytes: 0,
            entities_bytes: 0,
            entities: 0,
            strings: 0,
            strings_bytes: 0,
        };
        let bytes = self.writer.write(header, &events)?;
        self.next_sequence += events.len() as u64;
        self.events = events;
        self.events.clear();
        Ok(bytes)
    }
}

/// A checked batch, read in place.
pub struct EventBatchView<'a> {
    frame: Frame<'a, ArchivedVec<ArchivedUnifiedEvent>>,
}

impl<'a> EventBatchView<'a> {
    /// Checks the bytes once. Cost is linear in their number.
    pub fn check(bytes: &'a [u8]) -> Result<Self, WireError> {
        let frame: Frame<'a, ArchivedVec<ArchivedUnifiedEvent>> = frame::check(bytes, FrameKind::Events)?;
        if frame.body.len() != frame.header.count as usize {
            return Err(WireError::Header("event count differs from the body"));
        }
        if frame.body.len() > BATCH_EVENTS_MAX {
            return Err(WireError::TooMany(frame.body.len()));
        }
        if frame.header.shard >= crate::names::SHARD_COUNT {
            return Err(WireError::Header("shard out of range"));
        }
        Ok(Self { frame })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.frame.header
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.frame.body.len()
    }

    /// True for a batch that only carries a watermark.
    pub fn is_empty(&self) -> bool {
        self.frame.body.is_empty()
    }

    /// The string table.
    pub fn strings(&self) -> Strings<'a> {
        self.frame.strings
    }

    /// Entity table in place.
    pub fn entities(&self) -> &'a [ArchivedEntityRef] {
        self.frame.entities.as_slice()
    }

    /// Owned copies of the entity table, in table order; one per batch, shared by its events.
    pub fn own_entities(&self) -> Vec<Arc<EntityRef>> {
        self.frame.own_entities()
    }

    /// Owned copy of one entity of the table; the default for an index outside of it.
    pub fn own_entity(&self, index: usize) -> Arc<EntityRef> {
        let mut reader = BatchReader { strings: self.frame.strings, entities: &[] };
        let owned = self.frame.entities.get(index).map(|archived| {
            let owned: Result<EntityRef, Error> = rkyv::api::deserialize_using(archived, &mut reader);
            owned.unwrap_or_default()
        });
        Arc::new(owned.unwrap_or_default())
    }

    /// Hash of all that an entity of the table says, the same in every batch; zero for an index outside of it.
    pub fn entity_identity(&self, index: usize) -> u128 {
        let Some(entity) = self.frame.entities.get(index) else { return 0 };
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for text in entity.texts() {
            let text = self.frame.strings.get(text.index());
            hash.update(&(text.len() as u32).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&entity.lineage.to_native().to_le_bytes());
        hash.digest128()
    }

    /// Events in place.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = EventView<'a>> + '_ {
        let (strings, entities) = (self.frame.strings, self.frame.entities.as_slice());
        self.frame.body.iter().map(move |event| EventView { event, strings, entities })
    }

    /// Owned copies of all events (tests, replay, JSON); the hot path uses [`Self::iter`].
    pub fn to_events(&self) -> Vec<UnifiedEvent> {
        let entities = self.own_entities();
        self.iter().map(|view| view.to_owned(&entities)).collect()
    }
}

/// One event in place.
#[derive(Clone, Copy)]
pub struct EventView<'a> {
    /// The archived event; text fields are indices, see [`EventView::text`].
    pub event: &'a ArchivedUnifiedEvent,
    strings: Strings<'a>,
    entities: &'a [ArchivedEntityRef],
}

impl<'a> EventView<'a> {
    /// Resolves a text field.
    pub fn text(&self, index: &ArchivedStringIndex) -> &'a str {
        self.strings.get(index.index())
    }

    /// Event time.
    pub fn timestamp(&self) -> UnixNanos {
        UnixNanos(self.event.timestamp.0.to_native())
    }

    /// The entity in place.
    pub fn entity(&self) -> Option<&'a ArchivedEntityRef> {
        self.entities.get(self.entity_index())
    }

    /// Index of the entity in the batch's entity table (see [`EventBatchView::own_entities`]).
    pub fn entity_index(&self) -> usize {
        self.event.entity.index() as usize
    }

    /// Trace id when the event carries one, else the entity's lineage.
    pub fn key(&self) -> ShardKey {
        match self.event.trace.as_ref() {
            Some(trace) => ShardKey::trace(trace.trace_id.0.to_native()),
            None => ShardKey::derived(self.entity().map_or(0, |e| e.lineage.to_native())),
        }
    }

    /// Owned copy, with this entity.
    pub fn to_owned_with(&self, entity: &Arc<EntityRef>) -> UnifiedEvent {
        let mut owned = self.to_owned(&[]);
        owned.entity = Arc::clone(entity);
        owned
    }

    /// Owned copy. `entities` is [`EventBatchView::own_entities`] of the same batch.
    pub fn to_owned(&self, entities: &[Arc<EntityRef>]) -> UnifiedEvent {
        let mut reader = BatchReader { strings: self.strings, entities };
        let owned: Result<UnifiedEvent, Error> = rkyv::api::deserialize_using(self.event, &mut reader);
        // Deserialising a checked archive only allocates; the adapters have no failing path.
        owned.unwrap_or_default()
    }
}
