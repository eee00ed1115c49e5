//! rkyv field adapters that replace text and entities by indices into the batch's tables.

use std::sync::Arc;

use rkyv::bytecheck::Verify;
use rkyv::rancor::{Fallible, Source};
use rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use rkyv::{Archive, Place, Resolver};
use smol_str::SmolStr;

use super::context::{IndexBounds, InternTables, LookUp};
use crate::entity::EntityRef;

/// Index into the batch's string table.
#[derive(Archive, Clone, Copy)]
#[rkyv(bytecheck(verify), derive(Clone, Copy))]
pub struct StringIndex(u32);

/// Index into the batch's entity table.
#[derive(Archive, Clone, Copy)]
#[rkyv(bytecheck(verify), derive(Clone, Copy))]
pub struct EntityIndex(u32);

impl ArchivedStringIndex {
    /// The index, below the string count in a checked batch.
    pub fn index(self) -> u32 {
        self.0.to_native()
    }
}

impl ArchivedEntityIndex {
    /// The index, below the entity count in a checked batch.
    pub fn index(self) -> u32 {
        self.0.to_native()
    }
}

/// An index that points outside its table.
#[derive(Debug, thiserror::Error)]
#[error("{table} index {index} is outside the table of {count}")]
struct OutOfTable {
    table: &'static str,
    index: u32,
    count: u32,
}

fn within<E: Source>(table: &'static str, index: u32, count: u32) -> Result<(), E> {
    if index < count { Ok(()) } else { Err(E::new(OutOfTable { table, index, count })) }
}

#[allow(unsafe_code)]
// SAFETY: the only invariant is the bound that is checked here.
unsafe impl<C> Verify<C> for ArchivedStringIndex
where
    C: Fallible + IndexBounds + ?Sized,
    C::Error: Source,
{
    fn verify(&self, context: &mut C) -> Result<(), C::Error> {
        within("string", self.index(), context.string_count())
    }
}

#[allow(unsafe_code)]
// SAFETY: the only invariant is the bound that is checked here.
unsafe impl<C> Verify<C> for ArchivedEntityIndex
where
    C: Fallible + IndexBounds + ?Sized,
    C::Error: Source,
{
    fn verify(&self, context: &mut C) -> Result<(), C::Error> {
        within("entity", self.index(), context.entity_count())
    }
}

/// Archives a [`SmolStr`] as an index into the batch's string table.
pub struct Interned;

impl ArchiveWith<SmolStr> for Interned {
    type Archived = ArchivedStringIndex;
    type Resolver = (u32, Resolver<StringIndex>);

    fn resolve_with(_: &SmolStr, resolver: Self::Resolver, out: Place<Self::Archived>) {
        StringIndex(resolver.0).resolve(resolver.1, out);
    }
}

impl<S: Fallible + InternTables + ?Sized> SerializeWith<SmolStr, S> for Interned {
    fn serialize_with(field: &SmolStr, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let index = serializer.intern_string(field);
        Ok((index, StringIndexResolver(())))
    }
}

impl<D: Fallible + LookUp + ?Sized> DeserializeWith<ArchivedStringIndex, SmolStr, D> for Interned {
    fn deserialize_with(field: &ArchivedStringIndex, d: &mut D) -> Result<SmolStr, D::Error> {
        Ok(SmolStr::new(d.string(field.index())))
    }
}

/// Archives an `Arc<EntityRef>` as an index into the batch's entity table.
pub struct InternedEntity;

impl ArchiveWith<Arc<EntityRef>> for InternedEntity {
    type Archived = ArchivedEntityIndex;
    type Resolver = (u32, Resolver<EntityIndex>);

    fn resolve_with(_: &Arc<EntityRef>, resolver: Self::Resolver, out: Place<Self::Archived>) {
        EntityIndex(resolver.0).resolve(resolver.1, out);
    }
}

impl<S: Fallible + InternTables + ?Sized> SerializeWith<Arc<EntityRef>, S> for InternedEntity {
    fn serialize_with(field: &Arc<EntityRef>, s: &mut S) -> Result<Self::Resolver, S::Error> {
        let index = s.intern_entity(field);
        Ok((index, EntityIndexResolver(())))
    }
}

impl<D: Fallible + LookUp + ?Sized> DeserializeWith<ArchivedEntityIndex, Arc<EntityRef>, D>
    for InternedEntity
{
    fn deserialize_with(field: &ArchivedEntityIndex, d: &mut D) -> Result<Arc<EntityRef>, D::Error> {
        Ok(d.entity(field.index()))
    }
}
