//! Findings read or written last, decoded. Bounded in number and in bytes.

use std::sync::{Arc, Mutex};

use lru::LruCache;
use tapio_schemas::FindingId;

use super::record::StoredFinding;

/// Decoded findings take about this many times the bytes of their document.
const DECODED_FACTOR: usize = 3;

pub(super) struct Cache {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

struct Inner {
    entries: LruCache<(FindingId, u32), Arc<StoredFinding>>,
    bytes: usize,
}

impl Cache {
    /// A cache of about `bytes_max` bytes; zero turns it off.
    pub(super) fn new(bytes_max: usize) -> Self {
        let inner = Inner { entries: LruCache::unbounded(), bytes: 0 };
        Self { inner: Mutex::new(inner), bytes_max }
    }

    pub(super) fn get(&self, id: FindingId, revision: u32) -> Option<Arc<StoredFinding>> {
        self.lock().entries.get(&(id, revision)).cloned()
    }

    pub(super) fn put(&self, stored: &Arc<StoredFinding>) {
        let key = (stored.finding.id, stored.finding.revision);
        let mut inner = self.lock();
        let old = inner.entries.put(key, Arc::clone(stored));
        inner.bytes += cost(stored);
        inner.bytes -= old.as_ref().map_or(0, |old| cost(old));
        while inner.bytes > self.bytes_max {
            let Some((_, evicted)) = inner.entries.pop_lru() else { break };
            inner.bytes -= cost(&evicted);
        }
    }

    pub(super) fn remove(&self, id: FindingId, revision: u32) {
        let mut inner = self.lock();
        if let Some(old) = inner.entries.pop(&(id, revision)) {
            inner.bytes -= cost(&old);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("cache lock")
    }
}

fn cost(stored: &StoredFinding) -> usize {
    stored.json.len() * DECODED_FACTOR + size_of::<StoredFinding>()
}
