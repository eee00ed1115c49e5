//! The past findings that are most like one: every embedding of the newest ones is compared.

use std::cmp::Reverse;
use std::sync::Arc;

use tapio_schemas::Finding;
use tapio_schemas::finding::Status;

use super::embedding::Embedding;
use super::keys::{self, Position};
use super::record::StoredFinding;
use super::{Store, StoreError};

/// Findings compared, the newest ones. A few milliseconds; see docs/adr/010.
pub(super) const COMPARED_MAX: usize = 10_000;
/// What is less alike is not told.
const SIMILARITY_MIN: f64 = 0.5;

/// A finding that is like another one.
#[derive(Debug, Clone)]
pub struct Similar {
    /// The finding.
    pub stored: Arc<StoredFinding>,
    /// Cosine of their embeddings.
    pub similarity: f64,
}

impl Store {
    /// The `limit` findings that began before `finding` and are most like it; the newer one first when two are alike.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn similar(&self, finding: &Finding, limit: usize) -> Result<Vec<Similar>, StoreError> {
        let wanted = Embedding::of(finding);
        let mut nearest: Vec<(f64, Position)> = Vec::new();
        for item in self.db.scan_prefix(keys::embeddings()).rev().take(COMPARED_MAX) {
            let (key, value) = item.map_err(StoreError::Read)?;
            let position = Position::from_key(&key)?;
            let Some(embedding) = Embedding::from_bytes(&value) else { continue };
            let similarity = wanted.similarity(&embedding);
            if position.id != finding.id && similarity >= SIMILARITY_MIN {
                nearest.push((similarity, position));
            }
        }
        nearest.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| Reverse(a.1).cmp(&Reverse(b.1))));
        let mut similar = Vec::new();
        for (similarity, position) in nearest {
            if similar.len() == limit {
                break;
            }
            let Some(stored) = self.load_current(position)? else { continue };
            let other = &stored.finding;
            if other.status != Status::Superseded && other.first_bad_at < finding.first_bad_at {
                similar.push(Similar { stored, similarity });
            }
        }
        Ok(similar)
    }
}
