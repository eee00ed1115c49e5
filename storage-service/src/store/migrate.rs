//! Brings an older store up to date.
//!
//! - format 0: records of version 0 only, no indexes, no format number
//! - format 1: records of version 1 with their time of storing; indexes of [`INDEX_VERSION`]
//!
//! The numbers are written last and every step can be repeated, so a crash in the middle is mended
//! by opening again.

use tapio_schemas::UnixNanos;

use super::{Store, StoreError, Totals, index, keys, record};

/// Format this version writes.
const FORMAT: u32 = 1;
/// Grows when `index::entries_of` or the keys change; older indexes are built again.
const INDEX_VERSION: u32 = 3;
/// Keys changed in one step.
const STEP_KEYS_MAX: usize = 4096;

impl Store {
    pub(super) fn bring_up_to_date(&self, now: UnixNanos) -> Result<(), StoreError> {
        let format = self.number("format")?;
        let index = self.number("index")?;
        match format {
            Some(found) if found > FORMAT => {
                let path = self.path.clone();
                return Err(StoreError::NewerFormat { path, found, known: FORMAT });
            }
            Some(FORMAT) if index == Some(INDEX_VERSION) => return Ok(()),
            _ => {}
        }
        if self.db.scan_prefix(keys::records()).next().is_some() {
            tracing::info!(from = format, to = FORMAT, "bringing the store up to date");
            self.convert_records(now)?;
            self.rebuild_indexes()?;
        }
        let mut batch = sled::Batch::default();
        batch.insert(keys::meta("format"), &FORMAT.to_be_bytes());
        batch.insert(keys::meta("index"), &INDEX_VERSION.to_be_bytes());
        self.commit(batch)
    }

    fn number(&self, name: &str) -> Result<Option<u32>, StoreError> {
        let value = self.db.get(keys::meta(name)).map_err(StoreError::Read)?;
        let Some(value) = value else { return Ok(None) };
        let bytes = value[..].try_into().map_err(|_| StoreError::CorruptKey(name.to_owned()))?;
        Ok(Some(u32::from_be_bytes(bytes)))
    }

    /// Rewrites the records that are not of the current version.
    fn convert_records(&self, now: UnixNanos) -> Result<(), StoreError> {
        let mut step = Step::new(self);
        for item in self.db.scan_prefix(keys::records()) {
            let (key, value) = item.map_err(StoreError::Read)?;
            if record::is_current(&value) {
                continue;
            }
            let (id, revision) = keys::parse_record(&key)?;
            let (_, json) =
                record::split(&value).map_err(|reason| StoreError::Corrupt { id, revision, reason })?;
            step.batch.insert(key, record::encode(now, json));
            step.changed(1)?;
        }
        step.finish()
    }

    /// Throws the derived keys away and builds them from the records.
    fn rebuild_indexes(&self) -> Result<(), StoreError> {
        let mut step = Step::new(self);
        for part in keys::DERIVED {
            for key in self.db.scan_prefix([part]).keys() {
                step.batch.remove(key.map_err(StoreError::Read)?);
                step.changed(1)?;
            }
        }
        let mut totals = Totals::default();
        let mut records = self.db.scan_prefix(keys::records()).peekable();
        while let Some(item) = records.next() {
            let (key, value) = item.map_err(StoreError::Read)?;
            let (id, revision) = keys::parse_record(&key)?;
            let stored = record::decode(id, revision, &value)?;
            totals.add(value.len());
            step.batch.insert(keys::stored(stored.stored_at, id, revision), &[]);
            // Revisions of one finding lie side by side, the newest last.
            let next = records.peek().and_then(|next| next.as_ref().ok());
            let is_latest = next
                .and_then(|(key, _)| keys::parse_record(key).ok())
                .is_none_or(|(next_id, _)| next_id != id);
            let mut keys_changed = 1;
            if is_latest {
                step.batch.insert(keys::latest(id), &revision.to_be_bytes());
                for (key, value) in index::entries_of(&stored.finding) {
                    step.batch.insert(key, value);
                    keys_changed += 1;
                }
            }
            step.changed(keys_changed)?;
        }
        totals.write(&mut step.batch);
        step.finish()
    }
}

/// A batch that is committed whenever it is large enough.
struct Step<'a> {
    store: &'a Store,
    batch: sled::Batch,
    keys: usize,
}

impl<'a> Step<'a> {
    fn new(store: &'a Store) -> Self {
        Self { store, batch: sled::Batch::default(), keys: 0 }
    }

    fn changed(&mut self, keys: usize) -> Result<(), StoreError> {
        self.keys += keys;
        if self.keys < STEP_KEYS_MAX {
            return Ok(());
        }
        self.keys = 0;
        self.store.commit(std::mem::take(&mut self.batch))
    }

    fn finish(self) -> Result<(), StoreError> {
        self.store.commit(self.batch)
    }
}
