//! What the store counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::telemetry::Metrics;

use super::Totals;

/// One closed label.
type ByReason = Family<[(&'static str, &'static str); 1], Counter>;

/// Counters of one store. Clones count into the same.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    pub(super) stored: Counter,
    received: Counter,
    retried: Counter,
    waiting: Gauge,
    unasked: Counter,
    not_stored: ByReason,
    removed: ByReason,
    pub(super) unreadable: Counter,
    pub(super) cache_hits: Counter,
    pub(super) cache_misses: Counter,
    pub(super) cache_bytes: Gauge,
    pub(super) disk_bytes: Gauge,
    records: Gauge,
    bytes: Gauge,
}

impl StoreMetrics {
    /// Registers them; call once per registry.
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register("storage_findings_stored", "Finding revisions made durable", own.stored.clone());
        metrics.register(
            "storage_findings_received",
            "Finding revisions delivered by the stream, each time it delivers them",
            own.received.clone(),
        );
        metrics.register(
            "storage_findings_retried",
            "Finding revisions that could not be written and were asked for again",
            own.retried.clone(),
        );
        metrics.register(
            "storage_findings_waiting",
            "Finding revisions that the stream has and the store does not",
            own.waiting.clone(),
        );
        metrics.register(
            "storage_waiting_unknown",
            "Questions to the server how many findings wait that it did not answer",
            own.unasked.clone(),
        );
        metrics.register(
            "storage_findings_not_stored",
            "Finding revisions taken from the stream and not stored, by reason",
            own.not_stored.clone(),
        );
        metrics.register(
            "storage_findings_removed",
            "Finding revisions removed by the retention, by reason",
            own.removed.clone(),
        );
        metrics.register(
            "storage_findings_unreadable",
            "Stored findings left out of an answer because they do not decode",
            own.unreadable.clone(),
        );
        metrics.register("storage_cache_hits", "Findings read from the cache", own.cache_hits.clone());
        metrics.register("storage_cache_misses", "Findings read from disk", own.cache_misses.clone());
        metrics.register("storage_cache_bytes", "Bytes in the cache", own.cache_bytes.clone());
        metrics.register("storage_disk_bytes", "Bytes on disk", own.disk_bytes.clone());
        metrics.register("storage_records", "Finding revisions in the store", own.records.clone());
        metrics.register(
            "storage_record_bytes",
            "Bytes of finding revisions in the store",
            own.bytes.clone(),
        );
        own
    }

    /// Counts revisions that were not stored: `duplicate`, `conflicting`, `low_confidence`,
    /// `malformed`.
    pub(crate) fn not_stored(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.not_stored.get_or_create(&[("reason", reason)]).inc_by(count);
        }
    }

    /// Counts revisions that were removed: `age`, `bytes`, `revisions`.
    pub(super) fn removed(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.removed.get_or_create(&[("reason", reason)]).inc_by(count);
        }
    }

    pub(super) fn observe(&self, totals: &Totals) {
        self.records.set(i64::try_from(totals.records).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(totals.bytes).unwrap_or(i64::MAX));
    }

    /// Counts revisions that the stream delivered.
    pub(crate) fn received(&self, count: u64) {
        self.received.inc_by(count);
    }

    /// Counts revisions that are asked for again.
    pub(crate) fn retried(&self, count: u64) {
        self.retried.inc_by(count);
    }

    /// Sets how many revisions wait to be stored.
    pub(crate) fn waiting(&self, count: u64) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a question how many wait that was not answered.
    pub(crate) fn unasked(&self) {
        self.unasked.inc();
    }

    /// Revisions delivered so far.
    pub fn received_count(&self) -> u64 {
        self.received.get()
    }

    /// Revisions asked for again so far.
    pub fn retried_count(&self) -> u64 {
        self.retried.get()
    }

    /// Revisions made durable so far.
    pub fn stored_count(&self) -> u64 {
        self.stored.get()
    }

    /// Revisions not stored so far for this reason.
    pub fn not_stored_count(&self, reason: &'static str) -> u64 {
        self.not_stored.get_or_create(&[("reason", reason)]).get()
    }

    /// Why a revision is not stored.
    pub const REFUSALS: [&str; 4] = ["duplicate", "conflicting", "low_confidence", "malformed"];

    /// Revisions removed so far for this reason.
    pub fn removed_count(&self, reason: &'static str) -> u64 {
        self.removed.get_or_create(&[("reason", reason)]).get()
    }
}
