//! The store of the process: shared by the writer and the readers, opened again after a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tapio_runtime::clock::SharedClock;
use tapio_schemas::UnixNanos;

use crate::store::{Store, StoreError, StoreMetrics, StoreOptions};

/// Where the open store is. Clones share it.
#[derive(Clone)]
pub struct StoreCell {
    inner: Arc<Inner>,
}

struct Inner {
    current: Mutex<Option<Arc<Store>>>,
    options: StoreOptions,
    metrics: StoreMetrics,
    clock: SharedClock,
}

impl StoreCell {
    /// Opens the store.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(
        options: StoreOptions,
        metrics: StoreMetrics,
        clock: SharedClock,
    ) -> Result<Self, StoreError> {
        let inner = Inner { current: Mutex::new(None), options, metrics, clock };
        let cell = Self { inner: Arc::new(inner) };
        cell.healthy()?;
        Ok(cell)
    }

    /// The store as it is, for readers.
    ///
    /// # Errors
    /// [`StoreError::NotOpen`] while it is being opened again.
    pub fn get(&self) -> Result<Arc<Store>, StoreError> {
        self.lock().clone().ok_or(StoreError::NotOpen)
    }

    /// A store that can be written: the open one, or, after a failed write, the directory opened
    /// again once the last reader has let go of the old one.
    ///
    /// # Errors
    /// [`StoreError::NotOpen`] while readers hold the old one, or as [`Store::open`]; try again later.
    pub fn healthy(&self) -> Result<Arc<Store>, StoreError> {
        let mut current = self.lock();
        if let Some(store) = current.as_ref().filter(|store| !store.is_poisoned()) {
            return Ok(Arc::clone(store));
        }
        if let Some(old) = current.take()
            && let Err(old) = Arc::try_unwrap(old)
        {
            *current = Some(old);
            return Err(StoreError::NotOpen);
        }
        let Inner { options, metrics, clock, .. } = &*self.inner;
        let now = UnixNanos(clock.now_unix_nanos());
        let store = Arc::new(Store::open(options, metrics.clone(), now)?);
        *current = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Distrusts the store after a panic: it is opened again before the next write.
    pub fn distrust(&self) {
        if let Some(store) = self.lock().as_ref() {
            store.distrust();
        }
    }

    /// Counters of the store.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    pub(crate) fn now(&self) -> UnixNanos {
        UnixNanos(self.inner.clock.now_unix_nanos())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Store>>> {
        // The cell is only ever whole: a panic while opening leaves it empty.
        self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
