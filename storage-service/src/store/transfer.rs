//! Export and import as JSON lines: one published document per line, in the order of storing, then what was said of
//! them.

use std::io::{BufRead, Read, Write};

use bytes::Bytes;
use serde::Deserialize;
use tapio_schemas::learning::{FEEDBACK_SCHEMA, Feedback};
use tapio_schemas::{SmolStr, UnixNanos};

use super::{Incoming, Store, StoreError, keys, record};

/// Longest line of an import.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Findings made durable at a time.
const IMPORT_BATCH: usize = 256;

/// What an import did, in revisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// New.
    pub stored: u64,
    /// There before, or another document under the same id and revision.
    pub known: u64,
    /// Not sure enough to be stored.
    pub low_confidence: u64,
    /// What was said of findings, new or newer than what was there.
    pub feedback: u64,
}

/// What a line is.
#[derive(Deserialize)]
struct Head {
    schema: SmolStr,
}

impl Store {
    /// Writes all revisions and what was said of them; returns how many revisions.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Transfer`].
    pub fn export(&self, out: &mut dyn Write) -> Result<u64, StoreError> {
        let mut count = 0;
        for key in self.db.scan_prefix(keys::stored_all()).keys() {
            let (_, id, revision) = keys::parse_stored(&key.map_err(StoreError::Read)?)?;
            let bytes = self.db.get(keys::record(id, revision)).map_err(StoreError::Read)?;
            // Removed by the retention meanwhile.
            let Some(bytes) = bytes else { continue };
            let (_, json) =
                record::split(&bytes).map_err(|reason| StoreError::Corrupt { id, revision, reason })?;
            out.write_all(json)?;
            out.write_all(b"\n")?;
            count += 1;
        }
        for said in self.all_feedback()? {
            serde_json::to_writer(&mut *out, &said).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(count)
    }

    /// Puts every line. What was put before a bad line stays.
    ///
    /// # Errors
    /// [`StoreError::Import`] with the line, [`StoreError::Transfer`], and as [`Store::put`].
    pub fn import(&self, input: &mut dyn BufRead, now: UnixNanos) -> Result<ImportReport, StoreError> {
        let mut report = ImportReport::default();
        let mut batch = Vec::with_capacity(IMPORT_BATCH);
        let mut line = 0;
        loop {
            let mut text = Vec::new();
            let read = Read::take(&mut *input, LINE_BYTES_MAX + 1).read_until(b'\n', &mut text)?;
            if read == 0 {
                self.import_batch(&mut batch, now, &mut report)?;
                return Ok(report);
            }
            line += 1;
            if read as u64 > LINE_BYTES_MAX {
                let reason = format!("it is longer than {LINE_BYTES_MAX} bytes");
                return Err(StoreError::Import { line, reason });
            }
            let text = text.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let unreadable =
                |error: serde_json::Error| StoreError::Import { line, reason: error.to_string() };
            if serde_json::from_slice::<Head>(text).map_err(unreadable)?.schema == FEEDBACK_SCHEMA {
                let said: Feedback = serde_json::from_slice(text).map_err(unreadable)?;
                if self.feedback(said.finding)?.is_none_or(|before| before.at < said.at) {
                    self.put_feedback(&said)?;
                    report.feedback += 1;
                }
                continue;
            }
            let incoming = Incoming::parse(Bytes::copy_from_slice(text)).map_err(unreadable)?;
            batch.push(incoming);
            if batch.len() == IMPORT_BATCH {
                self.import_batch(&mut batch, now, &mut report)?;
            }
        }
    }

    fn import_batch(
        &self,
        batch: &mut Vec<Incoming>,
        now: UnixNanos,
        report: &mut ImportReport,
    ) -> Result<(), StoreError> {
        let put = self.put(std::mem::take(batch), now)?;
        report.stored += put.stored.len() as u64;
        report.known += put.duplicates + put.conflicting;
        report.low_confidence += put.low_confidence;
        Ok(())
    }
}
