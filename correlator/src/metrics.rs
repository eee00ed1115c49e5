//! What the correlator tells of itself. Label sets are closed.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::telemetry::Metrics;

use crate::shards::Counters;

type ByLabel = Family<[(&'static str, String); 1], Counter<u64, AtomicU64>>;
type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

/// All of the correlator's series; clones count into the same ones.
#[derive(Clone)]
pub struct CorrelatorMetrics {
    /// Batches read from the event stream.
    pub batches: Count,
    /// Batches refused, by reason; each is in the dead-letter stream.
    pub rejected: ByLabel,
    /// Sections that stage one published.
    pub sections: Count,
    /// Findings that stage two published.
    pub findings: Count,
    /// Findings that were published before a restart and are not published again.
    pub findings_known: Count,
    /// Milliseconds between the clock and the event time that stage two has passed.
    pub lag_ms: Level,
    events: Count,
    dropped: ByLabel,
    late: Count,
    duplicates: Count,
    signals: Count,
    groups: Count,
    evicted: ByLabel,
    gap_events: Count,
    open: Family<[(&'static str, String); 2], Level>,
}

impl CorrelatorMetrics {
    /// Registers them, or takes up the registered ones.
    pub fn new(metrics: &Metrics) -> Self {
        let count = |name: &str, help: &str| metrics.shared::<Count>(name, help);
        let by_label = |name: &str, help: &str| metrics.shared::<ByLabel>(name, help);
        Self {
            batches: count("correlator_batches", "Batches read from the event stream"),
            rejected: by_label("correlator_batches_rejected", "Batches refused and dead-lettered, by reason"),
            sections: count("correlator_sections", "Messages published on the signal stream"),
            findings: count("correlator_findings", "Finding revisions published"),
            findings_known: count(
                "correlator_findings_known",
                "Finding revisions made again after a restart and not published twice",
            ),
            lag_ms: metrics.shared("correlator_watermark_lag_ms", "Event time not yet decided, milliseconds"),
            events: count("correlator_events", "Events read from batches"),
            dropped: by_label("correlator_events_dropped", "Events not used, by reason"),
            late: count(
                "correlator_events_late",
                "Events that came behind the watermark (used all the same)",
            ),
            duplicates: count("correlator_batches_duplicate", "Batches read before"),
            signals: count("correlator_signals", "Signal revisions made by stage one"),
            groups: count("correlator_groups", "Semantic groups opened"),
            evicted: by_label("correlator_evicted", "Things forgotten because their map was full, by map"),
            gap_events: count("correlator_gap_events", "Events missing from producers' sequences"),
            open: metrics.shared("correlator_open", "Things held open by stage one, by worker"),
        }
    }

    /// Adds a shard's counts.
    pub fn add(&self, counters: &Counters) {
        self.events.inc_by(counters.events);
        self.late.inc_by(counters.late);
        self.duplicates.inc_by(counters.duplicate_batches);
        self.signals.inc_by(counters.signals);
        self.groups.inc_by(counters.groups);
        self.gap_events.inc_by(counters.gap_events);
        for (reason, count) in counters.dropped.by_reason().into_iter().filter(|(_, count)| *count > 0) {
            self.dropped.get_or_create(&[("reason", reason.to_owned())]).inc_by(count);
        }
        for (map, count) in counters.evicted.by_map().into_iter().filter(|(_, count)| *count > 0) {
            self.evicted.get_or_create(&[("map", map.to_owned())]).inc_by(count);
        }
    }

    /// Counts a refused batch.
    pub fn reject(&self, reason: &str) {
        self.rejected.get_or_create(&[("reason", reason.to_owned())]).inc();
    }

    /// Sets what a worker holds open.
    pub fn set_open(&self, worker: usize, open: &[(&'static str, usize)]) {
        for (kind, count) in open {
            let level =
                self.open.get_or_create(&[("worker", worker.to_string()), ("kind", (*kind).to_owned())]);
            level.set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }
}
