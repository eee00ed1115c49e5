//! The wire format: a fixed header, an rkyv archive, and a string table.
//!
//! ```text
//! 0..80            header, little endian (see `header.rs`)
//! 80..             archive of the body (events or a signal section), strings replaced by table indices
//! ..               archive of `Vec<EntityRef>`, each entity once
//! ..               string table: `count` end offsets (u32), then UTF-8
//! ```
//!
//! A message is checked once ([`EventBatchView::check`], [`SignalBatchView::check`]) and then read in
//! place. Arbitrary bytes give a [`WireError`], never a panic.

mod context;
mod events;
mod frame;
mod header;
mod intern;
mod packed;
mod signals;
mod strings;

pub use context::{IndexBounds, InternTables, LookUp};
pub use events::{EventBatch, EventBatchView, EventView};
pub use header::{FrameKind, HEADER_BYTES, Header, MAGIC, SCHEMA_VERSION, SIGNALS_VERSION};
pub use intern::{
    ArchivedEntityIndex, ArchivedStringIndex, EntityIndex, Interned, InternedEntity, StringIndex,
};
pub use packed::{PACKED_VERSION, Packer, Unpacker};
pub use signals::{ShardMark, SignalBatchView, SignalSection, encode_signals};
pub use strings::Strings;

/// Largest message that is decoded; larger ones are refused before anything is read.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most events in one batch.
pub const BATCH_EVENTS_MAX: usize = 65_536;

/// Why bytes are not a message of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// Shorter than a header, or than what the header says.
    #[error("message of {have} bytes is truncated, needs {need}")]
    Truncated {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The packed part is not what it should be.
    #[error("packed message cannot be unpacked: {0}")]
    Packed(String),
    /// Larger than [`MESSAGE_BYTES_MAX`].
    #[error("message of {0} bytes is larger than the limit of {MESSAGE_BYTES_MAX}")]
    TooLarge(usize),
    /// Does not begin with the magic number.
    #[error("not a tapio message: magic number missing")]
    Magic,
    /// A version this build does not read.
    #[error(
        "schema version {0} is not supported by this build (reads events up to {SCHEMA_VERSION}, signals up to {SIGNALS_VERSION})"
    )]
    Version(u16),
    /// An event batch where signals were expected, or the reverse.
    #[error("frame kind {0} is not the one expected on this subject")]
    Kind(u8),
    /// A header field contradicts another.
    #[error("inconsistent header: {0}")]
    Header(&'static str),
    /// The string table is malformed.
    #[error("malformed string table: {0}")]
    Strings(&'static str),
    /// bytecheck refused the archive.
    #[error("malformed archive: {0}")]
    Archive(String),
    /// Too much for one batch.
    #[error("batch holds {0} events, the limit is {BATCH_EVENTS_MAX}")]
    TooMany(usize),
}
