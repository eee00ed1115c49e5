//! The fixed header. Little endian, 80 bytes (a multiple of 16, so archives that follow stay aligned).

use super::WireError;
use crate::ids::{ProducerId, UnixNanos};

/// First bytes of every message.
pub const MAGIC: [u8; 4] = *b"TPIO";
/// Version of batches of events: header, string table and archived types. Older versions stay readable for ever.
pub const SCHEMA_VERSION: u16 = 1;
/// Version of batches of signals. 1: marks without lease epochs; 2: without what requests did.
pub const SIGNALS_VERSION: u16 = 3;
/// Size of the encoded header.
pub const HEADER_BYTES: usize = 80;

/// What the body of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A batch of events.
    Events = 1,
    /// A batch of signals, facts and tallies.
    Signals = 2,
}

impl FrameKind {
    /// Newest version of this kind that this build reads, and the one it writes.
    fn version(self) -> u16 {
        match self {
            Self::Events => SCHEMA_VERSION,
            Self::Signals => SIGNALS_VERSION,
        }
    }
}

/// Decoded header.
///
/// ```text
///  0 magic[4]       4 version u16     6 kind u8        7 flags u8
///  8 shard u16     10 reserved u16   12 count u32     16 producer u64
/// 24 first_sequence u64              32 watermark u64
/// 40 epoch u32     44 body_bytes u32 48 entities_bytes u32  52 entities u32
/// 56 strings u32   60 strings_bytes u32                     64 reserved[16]
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Schema version of the message.
    pub version: u16,
    /// What the body is.
    pub kind: FrameKind,
    /// Shard, 0..64.
    pub shard: u16,
    /// Events (or signals) in the body.
    pub count: u32,
    /// Who made the batch.
    pub producer: ProducerId,
    /// Sequence of the first event, counted per producer, epoch and shard.
    pub first_sequence: u64,
    /// The producer promises to send nothing older than this to this shard; zero = no promise.
    pub watermark: UnixNanos,
    /// Restart count or lease epoch of the producer.
    pub epoch: u32,
    pub(super) body_bytes: u32,
    pub(super) entities_bytes: u32,
    pub(super) entities: u32,
    pub(super) strings: u32,
    pub(super) strings_bytes: u32,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6] = self.kind as u8;
        out[8..10].copy_from_slice(&self.shard.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.producer.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        out[32..40].copy_from_slice(&self.watermark.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.epoch.to_le_bytes());
        out[44..48].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[48..52].copy_from_slice(&self.entities_bytes.to_le_bytes());
        out[52..56].copy_from_slice(&self.entities.to_le_bytes());
        out[56..60].copy_from_slice(&self.strings.to_le_bytes());
        out[60..64].copy_from_slice(&self.strings_bytes.to_le_bytes());
        out
    }

    /// Size of the plain message.
    pub(super) fn message_bytes(&self) -> usize {
        let entities_start = (HEADER_BYTES + self.body_bytes as usize).next_multiple_of(16);
        entities_start + self.entities_bytes as usize + self.strings_bytes as usize
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() < HEADER_BYTES {
            return Err(WireError::Truncated { have: bytes.len(), need: HEADER_BYTES });
        }
        if bytes[0..4] != MAGIC {
            return Err(WireError::Magic);
        }
        let version = u16_at(bytes, 4);
        let kind = match bytes[6] {
            1 => FrameKind::Events,
            2 => FrameKind::Signals,
            other => return Err(WireError::Kind(other)),
        };
        if version == 0 || version > kind.version() {
            return Err(WireError::Version(version));
        }
        Ok(Self {
            version,
            kind,
            shard: u16_at(bytes, 8),
            count: u32_at(bytes, 12),
            producer: ProducerId(u64_at(bytes, 16)),
            first_sequence: u64_at(bytes, 24),
            watermark: UnixNanos(u64_at(bytes, 32)),
            epoch: u32_at(bytes, 40),
            body_bytes: u32_at(bytes, 44),
            entities_bytes: u32_at(bytes, 48),
            entities: u32_at(bytes, 52),
            strings: u32_at(bytes, 56),
            strings_bytes: u32_at(bytes, 60),
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}
