//! Serializer, validator and deserializer contexts that carry a batch's tables.
//!
//! The unsafe code only forwards to rkyv's own serializer and validator.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::collections::HashMap as StdHashMap;

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use rkyv::rancor::Strategy;
use rkyv::ser::allocator::Arena;
use rkyv::ser::{Allocator, Positional, Writer};
use rkyv::validation::ArchiveContext;
use rkyv::validation::archive::ArchiveValidator;
use smol_str::SmolStr;

use super::strings::Strings;
use crate::entity::EntityRef;

type HashMap<K, V> = StdHashMap<K, V, foldhash::fast::RandomState>;

/// Tables that grow while a batch is written.
#[derive(Default)]
pub(super) struct Tables {
    strings: HashMap<SmolStr, u32>,
    string_order: Vec<SmolStr>,
    entities: HashMap<Arc<EntityRef>, u32>,
    /// The same entity is usually the same allocation: found by address without hashing its text.
    entity_addresses: HashMap<usize, u32>,
    pub(super) entity_order: Vec<Arc<EntityRef>>,
    last_entity: Option<(usize, u32)>,
}

impl Tables {
    pub(super) fn clear(&mut self) {
        self.strings.clear();
        self.string_order.clear();
        self.entities.clear();
        self.entity_addresses.clear();
        self.entity_order.clear();
        self.last_entity = None;
    }

    fn string(&mut self, text: &SmolStr) -> u32 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.string_order.len() as u32;
        self.strings.insert(text.clone(), index);
        self.string_order.push(text.clone());
        index
    }

    fn entity(&mut self, entity: &Arc<EntityRef>) -> u32 {
        let address = Arc::as_ptr(entity) as usize;
        if let Some((last, index)) = self.last_entity
            && last == address
        {
            return index;
        }
        let index = match self.entity_addresses.get(&address) {
            Some(index) => *index,
            None => self.new_entity(entity, address),
        };
        self.last_entity = Some((address, index));
        index
    }

    fn new_entity(&mut self, entity: &Arc<EntityRef>, address: usize) -> u32 {
        let next = self.entity_order.len() as u32;
        let index = *self.entities.entry(Arc::clone(entity)).or_insert(next);
        if index == next {
            self.entity_order.push(Arc::clone(entity));
            // Only addresses that `entity_order` keeps alive may be remembered: a freed one can be reused.
            self.entity_addresses.insert(address, index);
        }
        index
    }

    pub(super) fn string_count(&self) -> usize {
        self.string_order.len()
    }

    pub(super) fn write_strings(&self, out: &mut Vec<u8>) {
        let mut end = 0u32;
        for text in &self.string_order {
            end += text.len() as u32;
            out.extend_from_slice(&end.to_le_bytes());
        }
        for text in &self.string_order {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Where field adapters put text and entities.
pub trait InternTables {
    /// Index of `text`, added when new.
    fn intern_string(&mut self, text: &SmolStr) -> u32;
    /// Index of `entity`, added when new.
    fn intern_entity(&mut self, entity: &Arc<EntityRef>) -> u32;
}

/// rkyv serializer plus tables.
pub(super) struct BatchSerializer<'a> {
    pub(super) writer: Vec<u8>,
    /// Offset of the archive inside the message: positions are relative to the archive.
    pub(super) base: usize,
    pub(super) arena: rkyv::ser::allocator::ArenaHandle<'a>,
    pub(super) tables: &'a mut Tables,
}

impl<'a> BatchSerializer<'a> {
    pub(super) fn new(writer: Vec<u8>, arena: &'a mut Arena, tables: &'a mut Tables) -> Self {
        Self { base: writer.len(), writer, arena: arena.acquire(), tables }
    }
}

impl<E> InternTables for Strategy<BatchSerializer<'_>, E> {
    fn intern_string(&mut self, text: &SmolStr) -> u32 {
        self.tables.string(text)
    }
    fn intern_entity(&mut self, entity: &Arc<EntityRef>) -> u32 {
        self.tables.entity(entity)
    }
}

impl Positional for BatchSerializer<'_> {
    fn pos(&self) -> usize {
        self.writer.len() - self.base
    }
}

impl<E> Writer<E> for BatchSerializer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.writer.extend_from_slice(bytes);
        Ok(())
    }
}

// SAFETY: forwards to rkyv's arena, which upholds the contract.
unsafe impl<E: rkyv::rancor::Source> Allocator<E> for BatchSerializer<'_> {
    unsafe fn push_alloc(&mut self, layout: Layout) -> Result<NonNull<[u8]>, E> {
        // SAFETY: same contract.
        unsafe { self.arena.push_alloc(layout) }
    }
    unsafe fn pop_alloc(&mut self, ptr: NonNull<u8>, layout: Layout) -> Result<(), E> {
        // SAFETY: same contract.
        unsafe { self.arena.pop_alloc(ptr, layout) }
    }
}

/// Table sizes that indices are checked against.
pub trait IndexBounds {
    /// Strings in the batch.
    fn string_count(&self) -> u32;
    /// Entities in the batch.
    fn entity_count(&self) -> u32;
}

/// rkyv validator plus table sizes.
pub(super) struct BatchValidator<'a> {
    pub(super) archive: ArchiveValidator<'a>,
    pub(super) strings: u32,
    pub(super) entities: u32,
}

impl<E> IndexBounds for Strategy<BatchValidator<'_>, E> {
    fn string_count(&self) -> u32 {
        self.strings
    }
    fn entity_count(&self) -> u32 {
        self.entities
    }
}

// SAFETY: forwards to rkyv's validator, which upholds the contract.
unsafe impl<'a, E> ArchiveContext<E> for BatchValidator<'a>
where
    ArchiveValidator<'a>: ArchiveContext<E>,
{
    fn check_subtree_ptr(&mut self, ptr: *const u8, layout: &Layout) -> Result<(), E> {
        self.archive.check_subtree_ptr(ptr, layout)
    }
    unsafe fn push_subtree_range(&mut self, root: *const u8, end: *const u8) -> Result<Range<usize>, E> {
        // SAFETY: same contract.
        unsafe { self.archive.push_subtree_range(root, end) }
    }
    unsafe fn pop_subtree_range(&mut self, range: Range<usize>) -> Result<(), E> {
        // SAFETY: same contract.
        unsafe { self.archive.pop_subtree_range(range) }
    }
}

/// Where field adapters find text and entities again.
pub trait LookUp {
    /// Text at an index.
    fn string(&self, index: u32) -> &str;
    /// Entity at an index.
    fn entity(&self, index: u32) -> Arc<EntityRef>;
}

/// Deserializer context.
pub(super) struct BatchReader<'a> {
    pub(super) strings: Strings<'a>,
    pub(super) entities: &'a [Arc<EntityRef>],
}

impl<E> LookUp for Strategy<BatchReader<'_>, E> {
    fn string(&self, index: u32) -> &str {
        self.strings.get(index)
    }
    fn entity(&self, index: u32) -> Arc<EntityRef> {
        self.entities.get(index as usize).cloned().unwrap_or_default()
    }
}
