//! Findings on disk: the only code that names sled.
//!
//! One ordered key space (see `keys`): the records of all revisions by id, and indexes over the
//! newest revision of each finding by time, entity, cause and severity. A batch is applied in one
//! atomic step and flushed before [`Store::put`] returns; putting the same revision again changes
//! nothing. One writer, any number of readers.

mod cache;
mod embedding;
mod error;
mod index;
mod keys;
mod metrics;
mod migrate;
mod outcomes;
mod query;
mod record;
mod retention;
mod scan;
mod similar;
mod totals;
mod transfer;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tapio_schemas::{FindingId, UnixNanos};

pub use error::StoreError;
pub use keys::Position;
pub use metrics::StoreMetrics;
pub use query::{Filter, Page, PageSize, SCANNED_PER_PAGE_MAX};
pub use record::StoredFinding;
pub use retention::{Limits, RetentionReport};
pub use similar::Similar;
pub use totals::Totals;
pub use transfer::ImportReport;
pub use write::{Incoming, PutReport};

/// How often a locked store is tried, about a second in all.
const LOCK_ATTEMPTS_MAX: u32 = 50;
/// Time between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Directory; made when it does not exist.
    pub path: PathBuf,
    /// Bytes of decoded findings kept in memory.
    pub cache_bytes: usize,
    /// Bytes of pages sled keeps in memory.
    pub page_cache_bytes: u64,
}

impl StoreOptions {
    /// With the default caches: 16 MiB of findings, 32 MiB of pages.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), cache_bytes: 16 << 20, page_cache_bytes: 32 << 20 }
    }
}

/// Left free on the disk for what the database writes of its own accord: segments, snapshots.
const DISK_RESERVE_BYTES: u64 = 8 << 20;
/// Bytes that a byte of a document may take on disk, with indexes and what is not yet cleaned up.
const DISK_BYTES_PER_BYTE: u64 = 8;

/// An open store.
pub struct Store {
    db: sled::Db,
    outcomes: sled::Tree,
    path: PathBuf,
    id: u64,
    cache: cache::Cache,
    metrics: StoreMetrics,
    poisoned: AtomicBool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

impl Store {
    /// Opens or makes the store, and brings an older format up to date. `now` dates what is migrated.
    ///
    /// # Errors
    /// [`StoreError::Open`] (another process has it, no permission, damaged),
    /// [`StoreError::NewerFormat`], or a failed migration.
    pub fn open(options: &StoreOptions, metrics: StoreMetrics, now: UnixNanos) -> Result<Self, StoreError> {
        let db = open_db(options)?;
        let outcomes = db
            .open_tree(outcomes::TREE)
            .map_err(|source| StoreError::Open { path: options.path.clone(), source })?;
        let mut store = Self {
            db,
            outcomes,
            path: options.path.clone(),
            id: 0,
            cache: cache::Cache::new(options.cache_bytes),
            metrics,
            poisoned: AtomicBool::new(false),
        };
        store.bring_up_to_date(now)?;
        store.id = store.identity()?;
        store.observe_totals();
        Ok(store)
    }

    /// A number made when the store was made. A store that was thrown away comes back with another.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it holds.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn totals(&self) -> Result<Totals, StoreError> {
        Totals::read(&self.db)
    }

    /// True after a failed write: what is in memory may not be on disk.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Treats the store as after a failed write.
    pub fn distrust(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Newest revision of a finding.
    pub(crate) fn latest_revision(&self, id: FindingId) -> Result<Option<u32>, StoreError> {
        let key = keys::latest(id);
        let Some(value) = self.db.get(&key).map_err(StoreError::Read)? else { return Ok(None) };
        let bytes: [u8; 4] = value[..].try_into().map_err(|_| StoreError::Corrupt {
            id,
            revision: 0,
            reason: "its newest revision is not a number".to_owned(),
        })?;
        Ok(Some(u32::from_be_bytes(bytes)))
    }

    /// One record, from the cache or from disk.
    fn load(&self, id: FindingId, revision: u32) -> Result<Option<Arc<StoredFinding>>, StoreError> {
        if let Some(stored) = self.cache.get(id, revision) {
            self.metrics.cache_hits.inc();
            return Ok(Some(stored));
        }
        self.metrics.cache_misses.inc();
        let bytes = self.db.get(keys::record(id, revision)).map_err(StoreError::Read)?;
        let Some(bytes) = bytes else { return Ok(None) };
        let stored = Arc::new(record::decode(id, revision, &bytes)?);
        self.cache.put(&stored);
        Ok(Some(stored))
    }

    /// Makes a batch durable, or poisons the store.
    fn commit(&self, batch: sled::Batch) -> Result<(), StoreError> {
        let written = self.db.apply_batch(batch).and_then(|()| self.db.flush());
        written.map(|_| ()).map_err(|error| self.poison(error))
    }

    /// Refuses before anything is written when the disk may not hold it. The database does not get over a write that
    /// fails half way, so it is never asked to.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`].
    pub fn refuse_without_room(&self, batch_bytes: u64) -> Result<(), StoreError> {
        let needed = DISK_RESERVE_BYTES + batch_bytes.saturating_mul(DISK_BYTES_PER_BYTE);
        // Not known is taken for enough: then the write tells.
        let free =
            rustix::fs::statvfs(&self.path).map_or(u64::MAX, |d| d.f_bavail.saturating_mul(d.f_frsize));
        if free < needed { Err(StoreError::NoRoom { free, needed }) } else { Ok(()) }
    }

    fn poison(&self, error: sled::Error) -> StoreError {
        self.poisoned.store(true, Ordering::Release);
        StoreError::Write(error)
    }

    fn refuse_when_poisoned(&self) -> Result<(), StoreError> {
        if self.is_poisoned() { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// Reads or makes the identity.
    fn identity(&self) -> Result<u64, StoreError> {
        let key = keys::meta("id");
        if let Some(value) = self.db.get(&key).map_err(StoreError::Read)?
            && let Ok(bytes) = <[u8; 8]>::try_from(&value[..])
        {
            return Ok(u64::from_be_bytes(bytes));
        }
        let id = random_u64();
        let mut batch = sled::Batch::default();
        batch.insert(key, &id.to_be_bytes());
        self.commit(batch)?;
        Ok(id)
    }

    fn observe_totals(&self) {
        match self.totals() {
            Ok(totals) => self.metrics.observe(&totals),
            Err(error) => tracing::warn!(%error, "the totals of the store cannot be read"),
        }
        self.metrics.cache_bytes.set(i64::try_from(self.cache.bytes()).unwrap_or(i64::MAX));
        if let Ok(bytes) = self.db.size_on_disk() {
            self.metrics.disk_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

/// Opens the database. One that was closed in this process lets go of its lock only when its
/// background threads have ended, so a lock is tried a few times.
fn open_db(options: &StoreOptions) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new()
        .path(&options.path)
        .cache_capacity(options.page_cache_bytes)
        // Every batch is flushed here, before it is acknowledged.
        .flush_every_ms(None);
    let mut attempts = 1;
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(error) if is_locked(&error) && attempts < LOCK_ATTEMPTS_MAX => {
                attempts += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(source) => return Err(StoreError::Open { path: options.path.clone(), source }),
        }
    }
}

/// sled has no kind of its own for it.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// The standard library seeds its hashers from the operating system.
fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests;
