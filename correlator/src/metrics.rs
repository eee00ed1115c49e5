//! What the correlator tells of itself. Label sets are closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::bus::Untold;
use tapio_runtime::telemetry::Metrics;

use crate::shards::Counters;
use crate::status::Board;

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
    /// Pieces of work put aside because a batch of their shard took too long.
    pub deferred: Count,
    /// Sections that stage one published.
    pub sections: Count,
    /// Findings that stage two published.
    pub findings: Count,
    /// Milliseconds between the clock and the event time that stage two has passed.
    pub lag_ms: Level,
    /// What the status of this replica is made of.
    pub board: Arc<Board>,
    events: Count,
    dropped: ByLabel,
    late: Count,
    duplicates: Count,
    signals: Count,
    groups: Count,
    evicted: ByLabel,
    panics: ByLabel,
    gap_events: Count,
    first_words: Count,
    unsaid: ByLabel,
    stage_two_dropped: ByLabel,
    settled: ByLabel,
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
            deferred: count(
                "correlator_deferred",
                "Pieces of work put aside because a batch of their shard took too long",
            ),
            sections: count("correlator_sections", "Messages published on the signal stream"),
            findings: count("correlator_findings", "Finding revisions published"),
            lag_ms: metrics.shared("correlator_watermark_lag_ms", "Event time not yet decided, milliseconds"),
            board: Arc::default(),
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
            panics: by_label(
                "correlator_panics",
                "Panics in the work on a shard, which is then read again, by what they were over",
            ),
            gap_events: count("correlator_gap_events", "Events missing from producers' sequences"),
            first_words: count("correlator_first_words", "News told when it was read, before its signal"),
            unsaid: by_label(
                "correlator_first_words_unsaid",
                "Events that may be news, and messages of first words, that were not told before their signal, by reason",
            ),
            stage_two_dropped: by_label(
                "correlator_stage_two_dropped",
                "What stage two did not take, or forgot because it had too much, by reason",
            ),
            settled: by_label(
                "correlator_findings_settled",
                "Finding revisions not published, or published to set right what a restart left, by reason",
            ),
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
        self.first_words.inc_by(counters.first_words);
        for (reason, count) in counters.unsaid.by_reason().into_iter().filter(|(_, count)| *count > 0) {
            self.unsaid.get_or_create(&[("reason", reason.to_owned())]).inc_by(count);
        }
        for (reason, count) in counters.dropped.by_reason().into_iter().filter(|(_, count)| *count > 0) {
            self.dropped.get_or_create(&[("reason", reason.to_owned())]).inc_by(count);
        }
        for (map, count) in counters.evicted.by_map().into_iter().filter(|(_, count)| *count > 0) {
            self.evicted.get_or_create(&[("map", map.to_owned())]).inc_by(count);
        }
    }

    /// Adds what stage two has dropped since `before`.
    pub fn add_dropped(&self, now: &[(&'static str, u64)], before: &[(&'static str, u64)]) {
        add_new(&self.stage_two_dropped, now, before);
    }

    /// Adds what the ledger has settled since `before`.
    pub fn add_settled(&self, now: &[(&'static str, u64)], before: &[(&'static str, u64)]) {
        add_new(&self.settled, now, before);
    }

    /// Counts a refused batch.
    pub fn reject(&self, reason: &str) {
        self.board.reject();
        self.rejected.get_or_create(&[("reason", reason.to_owned())]).inc();
    }

    /// Counts a panic in the work on a shard.
    pub fn panicked(&self, over: &str) {
        self.panics.get_or_create(&[("over", over.to_owned())]).inc();
    }

    /// Counts a message of first words that the bus did not take.
    pub fn untold(&self, why: Untold) {
        let reason = match why {
            Untold::Away => "bus_away",
            Untold::Full => "bus_full",
            Untold::Refused => "bus_refused",
        };
        self.unsaid.get_or_create(&[("reason", reason.to_owned())]).inc();
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

fn add_new(family: &ByLabel, now: &[(&'static str, u64)], before: &[(&'static str, u64)]) {
    for ((reason, now), (_, before)) in now.iter().zip(before).filter(|(now, before)| now.1 > before.1) {
        family.get_or_create(&[("reason", (*reason).to_owned())]).inc_by(now - before);
    }
}
