//! What can go wrong in the store.

use std::path::PathBuf;

use tapio_schemas::FindingId;

/// An error of the store: what, which, and what to do where we know it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory cannot be opened.
    #[error("cannot open the store at {path}: {source}; is another process using it, and is it writable")]
    Open {
        /// `storage.path`.
        path: PathBuf,
        /// The reason.
        source: sled::Error,
    },
    /// Written by a newer version of Tapio.
    #[error("the store at {path} has format {found}, this version reads up to {known}; use a newer version")]
    NewerFormat {
        /// `storage.path`.
        path: PathBuf,
        /// Format found.
        found: u32,
        /// Newest format known.
        known: u32,
    },
    /// A record that does not decode.
    #[error("finding {id} revision {revision} cannot be read from the store: {reason}")]
    Corrupt {
        /// Which finding.
        id: FindingId,
        /// Which revision.
        revision: u32,
        /// Why not.
        reason: String,
    },
    /// A key that no version wrote.
    #[error("the store has a key that no version wrote: {0}")]
    CorruptKey(String),
    /// Reading failed.
    #[error("cannot read the store: {0}")]
    Read(sled::Error),
    /// Writing or flushing failed: nothing of the batch may be acknowledged.
    #[error("cannot write the store: {0}; is the disk full")]
    Write(sled::Error),
    /// The disk has too little left to begin a write: nothing was written, and it can be tried again.
    #[error(
        "the disk has {free} bytes left and {needed} are needed: make room, or lower storage.retention_bytes"
    )]
    NoRoom {
        /// Bytes left.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// An earlier write failed, so what is in memory may not be on disk; open the store again.
    #[error("the store refuses to work after a failed write until it is opened again")]
    Poisoned,
    /// The store is being opened again after a failure.
    #[error("the store is not open")]
    NotOpen,
    /// Reading or writing an export failed.
    #[error("export or import: {0}")]
    Transfer(#[from] std::io::Error),
    /// A line of an import is not a finding.
    #[error("line {line} of the import is not a finding: {reason}")]
    Import {
        /// From 1.
        line: u64,
        /// Why not.
        reason: String,
    },
}
