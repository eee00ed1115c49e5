//! How much the store holds, kept with every batch so that opening needs no scan.

use super::error::StoreError;
use super::keys;

/// Keys of a record beside its bytes: its own and its retention key.
const KEYS_BYTES: u64 = 21 + 29;

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records: revisions of findings.
    pub records: u64,
    /// Bytes of records and their keys, without indexes.
    pub bytes: u64,
}

impl Totals {
    pub(super) fn read(tree: &sled::Tree) -> Result<Self, StoreError> {
        let Some(value) = tree.get(keys::meta("totals")).map_err(StoreError::Read)? else {
            return Ok(Self::default());
        };
        let number = |at: usize| value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        match (number(0), number(8)) {
            (Some(records), Some(bytes)) => {
                Ok(Self { records: u64::from_be_bytes(records), bytes: u64::from_be_bytes(bytes) })
            }
            _ => Err(StoreError::CorruptKey("totals".to_owned())),
        }
    }

    pub(super) fn write(self, batch: &mut sled::Batch) {
        let value = [self.records.to_be_bytes(), self.bytes.to_be_bytes()].concat();
        batch.insert(keys::meta("totals"), value);
    }

    pub(super) fn add(&mut self, record_bytes: usize) {
        self.records += 1;
        self.bytes += record_bytes as u64 + KEYS_BYTES;
    }

    pub(super) fn remove(&mut self, record_bytes: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(record_bytes as u64 + KEYS_BYTES);
    }
}
