//! Removes what is too old, and the oldest when it is too much. By the time of storing, not by event
//! time: a replayed recording of last year must not vanish at once.

use std::collections::HashSet;
use std::time::Duration;

use tapio_schemas::{FindingId, UnixNanos};

use super::{Store, StoreError, Totals, index, keys, record};

/// Records removed in one step, so that the writer is not held up.
const REMOVED_PER_STEP_MAX: usize = 1024;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest time since storing.
    pub age_max: Duration,
    /// Most bytes of records, without indexes.
    pub bytes_max: u64,
}

/// What one step removed, in records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Because of their age.
    pub by_age: u64,
    /// Because of the bytes.
    pub by_bytes: u64,
    /// There is more to remove.
    pub more: bool,
}

struct Removal<'a> {
    store: &'a Store,
    batch: sled::Batch,
    totals: Totals,
    gone: HashSet<(FindingId, u32)>,
}

impl Store {
    /// One bounded step; call again while the report says `more`.
    ///
    /// # Errors
    /// [`StoreError::Write`], after which the store is poisoned.
    pub fn enforce(&self, limits: Limits, now: UnixNanos) -> Result<RetentionReport, StoreError> {
        self.refuse_when_poisoned()?;
        let age_max = u64::try_from(limits.age_max.as_nanos()).unwrap_or(u64::MAX);
        let oldest_kept = now.minus(age_max);
        let batch = sled::Batch::default();
        let totals = self.totals()?;
        let mut removal = Removal { store: self, batch, totals, gone: HashSet::new() };
        let mut report = RetentionReport::default();
        for item in self.db.scan_prefix(keys::stored_all()) {
            let (key, _) = item.map_err(StoreError::Read)?;
            let (stored_at, id, revision) = keys::parse_stored(&key)?;
            let too_old = stored_at < oldest_kept;
            if !too_old && removal.totals.bytes <= limits.bytes_max {
                break;
            }
            if removal.gone.len() >= REMOVED_PER_STEP_MAX {
                report.more = true;
                break;
            }
            let before = removal.gone.len();
            removal.remove(id, revision)?;
            let count = (removal.gone.len() - before) as u64;
            *(if too_old { &mut report.by_age } else { &mut report.by_bytes }) += count;
        }
        if removal.gone.is_empty() {
            return Ok(report);
        }
        let Removal { mut batch, totals, gone, .. } = removal;
        totals.write(&mut batch);
        self.commit(batch)?;
        for (id, revision) in gone {
            self.cache.remove(id, revision);
        }
        self.metrics.removed("age", report.by_age);
        self.metrics.removed("bytes", report.by_bytes);
        self.observe_totals();
        Ok(report)
    }
}

impl Removal<'_> {
    /// Removes a revision; with the newest goes the whole finding, so that nothing is left that no
    /// index leads to.
    fn remove(&mut self, id: FindingId, revision: u32) -> Result<(), StoreError> {
        if self.gone.contains(&(id, revision)) {
            return Ok(());
        }
        let is_latest = self.store.latest_revision(id)?.is_none_or(|latest| latest == revision);
        if !is_latest {
            return self.remove_one(id, revision);
        }
        if let Ok(Some(stored)) = self.store.load(id, revision) {
            for key in index::all_keys_of(&stored.finding) {
                self.batch.remove(key);
            }
        }
        self.batch.remove(keys::latest(id));
        for item in self.store.db.scan_prefix(keys::records_of(id)).keys() {
            let (id, revision) = keys::parse_record(&item.map_err(StoreError::Read)?)?;
            self.remove_one(id, revision)?;
        }
        Ok(())
    }

    fn remove_one(&mut self, id: FindingId, revision: u32) -> Result<(), StoreError> {
        let key = keys::record(id, revision);
        let Some(value) = self.store.db.get(&key).map_err(StoreError::Read)? else { return Ok(()) };
        if !self.gone.insert((id, revision)) {
            return Ok(());
        }
        let stored_at = record::split(&value).map(|(at, _)| at).unwrap_or_default();
        self.totals.remove(value.len());
        self.batch.remove(keys::stored(stored_at, id, revision));
        self.batch.remove(key);
        Ok(())
    }
}
