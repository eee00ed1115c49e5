//! The bytes of a stored finding. The first byte is the version; every version is read for ever.
//!
//! - version 0: `00`, then the published JSON
//! - version 1: `01`, time stored (8 bytes, big endian, unix nanoseconds), then the published JSON

use bytes::Bytes;
use tapio_schemas::{Finding, FindingId, UnixNanos};

use super::error::StoreError;

const VERSION_0: u8 = 0;
const VERSION_1: u8 = 1;

/// A finding as it lies in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFinding {
    /// The finding.
    pub finding: Finding,
    /// The document as it was published.
    pub json: Bytes,
    /// When it was stored; zero for a record of version 0 that was not migrated.
    pub stored_at: UnixNanos,
}

/// Encodes the current version.
pub(super) fn encode(stored_at: UnixNanos, json: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + json.len());
    bytes.push(VERSION_1);
    bytes.extend_from_slice(&stored_at.0.to_be_bytes());
    bytes.extend_from_slice(json);
    bytes
}

/// Time stored and document, without reading the document.
pub(super) fn split(bytes: &[u8]) -> Result<(UnixNanos, &[u8]), String> {
    match bytes.split_first() {
        Some((&VERSION_0, json)) => Ok((UnixNanos(0), json)),
        Some((&VERSION_1, rest)) => {
            let (at, json) = rest.split_first_chunk::<8>().ok_or("it is truncated")?;
            Ok((UnixNanos(u64::from_be_bytes(*at)), json))
        }
        Some((version, _)) => Err(format!("record version {version} is unknown")),
        None => Err("it is empty".to_owned()),
    }
}

/// Decodes any known version.
pub(super) fn decode(id: FindingId, revision: u32, bytes: &[u8]) -> Result<StoredFinding, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { id, revision, reason };
    let (stored_at, json) = split(bytes).map_err(corrupt)?;
    let finding = serde_json::from_slice(json).map_err(|error| corrupt(error.to_string()))?;
    Ok(StoredFinding { finding, json: Bytes::copy_from_slice(json), stored_at })
}

/// True when the record is of the current version.
pub(super) fn is_current(bytes: &[u8]) -> bool {
    bytes.first() == Some(&VERSION_1)
}
