//! Compression of messages on their way: events repeat each other, so a stream of them shrinks to a fourth.
//!
//! A packed message is the header of the plain one, with the flag [`PACKED`] and version [`PACKED_VERSION`], and the rest as one
//! zstd frame (RFC 8878). The sizes in the header are those of the plain message.

use super::header::{HEADER_BYTES, Header};
use super::{MESSAGE_BYTES_MAX, WireError};

/// Version of a packed message.
pub const PACKED_VERSION: u16 = 2;
/// Flag of a packed message.
const PACKED: u8 = 1;
/// Where the header keeps its flags.
const FLAGS_AT: usize = 7;
/// Where it keeps the version.
const VERSION_AT: usize = 4;
/// Smaller bodies stay as they are: there is little to gain.
const PACK_BYTES_MIN: usize = 512;
/// Level of zstd: on batches of events a negative one is as small as the positive ones, and twice as fast (docs/adr/007).
const LEVEL: i32 = -1;

/// Packs messages, with buffers that are used again.
#[derive(Default)]
pub struct Packer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl Packer {
    /// The packed message, or the very message when it would not become smaller.
    pub fn pack(&mut self, message: Vec<u8>) -> Vec<u8> {
        if message.len() < HEADER_BYTES + PACK_BYTES_MIN || is_packed(&message) {
            return message;
        }
        let (header, body) = message.split_at(HEADER_BYTES);
        let mut packed = vec![0; message.len() - 1];
        packed[..HEADER_BYTES].copy_from_slice(header);
        if self.compressor.is_none() {
            self.compressor = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        let Some(compressor) = &mut self.compressor else { return message };
        let Ok(bytes) = compressor.compress_to_buffer(body, &mut packed[HEADER_BYTES..]) else {
            return message;
        };
        packed.truncate(HEADER_BYTES + bytes);
        packed[FLAGS_AT] |= PACKED;
        packed[VERSION_AT..VERSION_AT + 2].copy_from_slice(&PACKED_VERSION.to_le_bytes());
        packed.shrink_to_fit();
        packed
    }
}

/// Opens messages, packed or not, with a buffer that is used again.
#[derive(Default)]
pub struct Unpacker {
    plain: Vec<u8>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("plain", &self.plain.len()).finish_non_exhaustive()
    }
}

impl Unpacker {
    /// The plain message: the very bytes when they are not packed. Never larger than [`MESSAGE_BYTES_MAX`], whatever the
    /// bytes say.
    ///
    /// # Errors
    /// When the bytes do not begin with a header, or the rest is not what the header says.
    pub fn unpack<'a>(&'a mut self, bytes: &'a [u8]) -> Result<&'a [u8], WireError> {
        if !is_packed(bytes) {
            return Ok(bytes);
        }
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes[..HEADER_BYTES]);
        header[FLAGS_AT] &= !PACKED;
        header[VERSION_AT..VERSION_AT + 2].copy_from_slice(&super::SCHEMA_VERSION.to_le_bytes());
        let length = Header::decode(&header)?.message_bytes();
        if length > MESSAGE_BYTES_MAX {
            return Err(WireError::TooLarge(length));
        }
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(|error| failed(&error))?),
        };
        self.plain.resize(length, 0);
        self.plain[..HEADER_BYTES].copy_from_slice(&header);
        let body = decompressor
            .decompress_to_buffer(&bytes[HEADER_BYTES..], &mut self.plain[HEADER_BYTES..])
            .map_err(|error| failed(&error))?;
        if HEADER_BYTES + body != length {
            return Err(WireError::Truncated { have: HEADER_BYTES + body, need: length });
        }
        Ok(&self.plain)
    }
}

fn is_packed(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_BYTES
        && bytes[..4] == super::MAGIC
        && bytes[VERSION_AT..VERSION_AT + 2] == PACKED_VERSION.to_le_bytes()
        && bytes[FLAGS_AT] & PACKED != 0
}

fn failed(error: &std::io::Error) -> WireError {
    WireError::Packed(error.to_string())
}
