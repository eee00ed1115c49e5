//! Writing and checking the parts that both kinds of message share.

use std::sync::Arc;

use rkyv::api::access_pos_with_context;
use rkyv::api::{root_position, serialize_using};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Error, Strategy};
use rkyv::ser::allocator::Arena;
use rkyv::validation::archive::ArchiveValidator;
use rkyv::{Portable, SerializeUnsized};

use super::context::{BatchReader, BatchSerializer, BatchValidator, Tables};
use super::header::{HEADER_BYTES, Header};
use super::strings::Strings;
use super::{FrameKind, MESSAGE_BYTES_MAX, WireError};
use crate::entity::{ArchivedEntityRef, EntityRef};

type ArchivedEntities = rkyv::vec::ArchivedVec<ArchivedEntityRef>;

/// Depth of nested archives; the deepest of ours is five.
const DEPTH_MAX: usize = 16;

/// Reusable buffers of a batch writer.
#[derive(Default)]
pub(super) struct FrameWriter {
    tables: Tables,
    arena: Arena,
}

impl FrameWriter {
    /// Writes one message: header, body, entities, strings.
    pub(super) fn write<T>(&mut self, mut header: Header, body: &T) -> Result<Vec<u8>, WireError>
    where
        T: for<'a> SerializeUnsized<Strategy<BatchSerializer<'a>, Error>>,
    {
        self.tables.clear();
        let mut out = Vec::with_capacity(HEADER_BYTES + header.count as usize * 128);
        out.resize(HEADER_BYTES, 0);
        out = self.section(out, body)?;
        header.body_bytes = (out.len() - HEADER_BYTES) as u32;
        out.resize(out.len().next_multiple_of(16), 0);
        let entities_start = out.len();
        let entities: Vec<EntityRef> = self.tables.entity_order.iter().map(|e| EntityRef::clone(e)).collect();
        out = self.section(out, &entities)?;
        header.entities_bytes = (out.len() - entities_start) as u32;
        header.entities = entities.len() as u32;
        let strings_start = out.len();
        self.tables.write_strings(&mut out);
        header.strings = self.tables.string_count() as u32;
        header.strings_bytes = (out.len() - strings_start) as u32;
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        if out.len() > MESSAGE_BYTES_MAX {
            return Err(WireError::TooLarge(out.len()));
        }
        Ok(out)
    }

    fn section<T>(&mut self, out: Vec<u8>, value: &T) -> Result<Vec<u8>, WireError>
    where
        T: for<'a> SerializeUnsized<Strategy<BatchSerializer<'a>, Error>>,
    {
        let mut serializer = BatchSerializer::new(out, &mut self.arena, &mut self.tables);
        serialize_using::<_, Error>(value, &mut serializer).map_err(|e| WireError::Archive(e.to_string()))?;
        Ok(serializer.writer)
    }
}

/// A checked message: everything borrowed from its bytes.
pub(super) struct Frame<'a, A> {
    pub(super) header: Header,
    pub(super) body: &'a A,
    pub(super) entities: &'a ArchivedEntities,
    pub(super) strings: Strings<'a>,
}

/// Checks a message once; everything after that is reading in place.
pub(super) fn check<'a, A>(bytes: &'a [u8], kind: FrameKind) -> Result<Frame<'a, A>, WireError>
where
    A: Portable + for<'v> CheckBytes<Strategy<BatchValidator<'v>, Error>>,
{
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLarge(bytes.len()));
    }
    let header = Header::decode(bytes)?;
    if header.kind != kind {
        return Err(WireError::Kind(header.kind as u8));
    }
    let body_end = HEADER_BYTES + header.body_bytes as usize;
    let entities_start = body_end.next_multiple_of(16);
    let entities_end = entities_start + header.entities_bytes as usize;
    let strings_end = entities_end + header.strings_bytes as usize;
    if bytes.len() != strings_end {
        return Err(WireError::Truncated { have: bytes.len(), need: strings_end });
    }
    let strings = Strings::check(&bytes[entities_end..strings_end], header.strings)?;
    let body = section::<A>(&bytes[HEADER_BYTES..body_end], &header)?;
    let entities = section::<ArchivedEntities>(&bytes[entities_start..entities_end], &header)?;
    if entities.len() != header.entities as usize {
        return Err(WireError::Header("entity count differs from the entity table"));
    }
    Ok(Frame { header, body, entities, strings })
}

fn section<'a, A>(bytes: &'a [u8], header: &Header) -> Result<&'a A, WireError>
where
    A: Portable + for<'v> CheckBytes<Strategy<BatchValidator<'v>, Error>>,
{
    if bytes.len() < size_of::<A>() {
        return Err(WireError::Truncated { have: bytes.len(), need: size_of::<A>() });
    }
    let mut context = BatchValidator {
        archive: ArchiveValidator::with_max_depth(bytes, std::num::NonZeroUsize::new(DEPTH_MAX)),
        strings: header.strings,
        entities: header.entities,
    };
    access_pos_with_context::<A, _, Error>(bytes, root_position::<A>(bytes.len()), &mut context)
        .map_err(|e| WireError::Archive(e.to_string()))
}

impl<'a, A> Frame<'a, A> {
    /// Owned copies of the entity table, shared by the events of the batch.
    pub(super) fn own_entities(&self) -> Vec<Arc<EntityRef>> {
        let mut reader = BatchReader { strings: self.strings, entities: &[] };
        self.entities
            .iter()
            .map(|archived| {
                let owned: Result<EntityRef, Error> = rkyv::api::deserialize_using(archived, &mut reader);
                Arc::new(owned.unwrap_or_default())
            })
            .collect()
    }
}
