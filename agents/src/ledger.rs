//! Where events went. `produced = published + dropped{stage,reason} + in flight` holds at every moment at
//! which no event is between two stages; tests assert it, `tapio_agent_events_*` shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::telemetry::Metrics;

/// Why an event did not reach the stream. Closed, so that it can be a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum DropReason {
    /// The kernel's ring was full (counted by the kernel programs).
    KernelRingFull,
    /// The node agent had stopped when the collector sent.
    IntakeClosed,
    /// No event time.
    NoTime,
    /// Older than `age_max`.
    TooOld,
    /// Further in the future than `future_max`.
    InFuture,
    /// A score, size or payload that contradicts the event's kind.
    Malformed,
    /// `debug` or `info`, while the backlog was near its limit.
    ShedInfo,
    /// `warning`, while the backlog was nearer to its limit.
    ShedWarning,
    /// `error`, while the backlog was almost at its limit.
    ShedError,
    /// `debug`, `info` or `warning`, while the process had nearly all the memory it may have.
    MemoryPressure,
    /// Anything, while the backlog was at its limit.
    BacklogFull,
    /// The batch could not be encoded or is larger than the server takes.
    TooLarge,
    /// The disk refused it.
    SpoolIo,
    /// The server refused it for good.
    Rejected,
}

impl DropReason {
    /// All reasons.
    pub const ALL: [Self; 14] = [
        Self::KernelRingFull,
        Self::IntakeClosed,
        Self::NoTime,
        Self::TooOld,
        Self::InFuture,
        Self::Malformed,
        Self::ShedInfo,
        Self::ShedWarning,
        Self::ShedError,
        Self::MemoryPressure,
        Self::BacklogFull,
        Self::TooLarge,
        Self::SpoolIo,
        Self::Rejected,
    ];

    /// Stage of the path at which it happens.
    pub fn stage(self) -> &'static str {
        match self {
            Self::KernelRingFull => "kernel",
            Self::IntakeClosed => "intake",
            Self::NoTime | Self::TooOld | Self::InFuture | Self::Malformed => "validate",
            Self::ShedInfo | Self::ShedWarning | Self::ShedError | Self::MemoryPressure => "shed",
            Self::TooLarge => "batch",
            Self::BacklogFull | Self::SpoolIo => "spool",
            Self::Rejected => "publish",
        }
    }

    /// The reason as a label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KernelRingFull => "ring_full",
            Self::IntakeClosed => "closed",
            Self::NoTime => "no_time",
            Self::TooOld => "too_old",
            Self::InFuture => "in_future",
            Self::Malformed => "malformed",
            Self::ShedInfo => "info",
            Self::ShedWarning => "warning",
            Self::ShedError => "error",
            Self::MemoryPressure => "memory_pressure",
            Self::BacklogFull => "full",
            Self::TooLarge => "too_large",
            Self::SpoolIo => "io",
            Self::Rejected => "rejected",
        }
    }
}

/// Where an event can be while it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Place {
    /// In a collector's ring.
    Ring,
    /// In a batch that is being filled.
    Batch,
    /// In a finished batch in memory, waiting to be sent.
    Memory,
    /// In a finished batch on disk.
    Spool,
    /// Sent, not yet acknowledged.
    Window,
}

impl Place {
    /// All places, in flow order.
    pub const ALL: [Self; 5] = [Self::Ring, Self::Batch, Self::Memory, Self::Spool, Self::Window];

    /// The place as a label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Batch => "batch",
            Self::Memory => "memory",
            Self::Spool => "spool",
            Self::Window => "window",
        }
    }
}

/// Counts of one agent. Clones share them.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    produced: AtomicU64,
    published: Counter,
    dropped: Vec<Counter>,
    places: Vec<Gauge>,
    by_collector: Family<[(&'static str, String); 1], Counter>,
}

/// A reading of the [`Ledger`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerSnapshot {
    /// Events that collectors handed over, with those that the kernel lost before, and those recovered
    /// from the spool of an earlier run.
    pub produced: u64,
    /// Events acknowledged by the stream.
    pub published: u64,
    /// Events dropped, by reason; zero counts are left out.
    pub dropped: Vec<(DropReason, u64)>,
    /// Events under way, by place.
    pub in_flight: Vec<(Place, u64)>,
}

impl LedgerSnapshot {
    /// All drops.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, n)| n).sum()
    }

    /// Everything under way.
    pub fn in_flight_total(&self) -> u64 {
        self.in_flight.iter().map(|(_, n)| n).sum()
    }

    /// `produced = published + dropped + in flight`.
    pub fn balances(&self) -> bool {
        self.produced == self.published + self.dropped_total() + self.in_flight_total()
    }
}

impl Ledger {
    /// An empty ledger whose counts are registered as metrics.
    pub fn new(metrics: &Metrics) -> Self {
        let published: Counter =
            metrics.shared("agent_events_published", "Events acknowledged by the event stream");
        let drops: Family<[(&'static str, &'static str); 2], Counter> = metrics
            .shared("agent_events_dropped", "Events that did not reach the stream, by stage and reason");
        let places: Family<[(&'static str, &'static str); 1], Gauge> =
            metrics.shared("agent_events_in_flight", "Events under way in the agent, by place");
        let dropped = DropReason::ALL
            .iter()
            .map(|r| drops.get_or_create(&[("stage", r.stage()), ("reason", r.as_str())]).clone())
            .collect();
        let places = Place::ALL
            .iter()
            .map(|place| places.get_or_create(&[("place", place.as_str())]).clone())
            .collect();
        let by_collector = metrics.shared("agent_events_produced", "Events handed over by a collector");
        Self(Arc::new(Inner { produced: AtomicU64::new(0), published, dropped, places, by_collector }))
    }

    /// The series of one collector; [`Ledger::produced`] takes it.
    pub fn collector(&self, name: &str) -> Counter {
        self.0.by_collector.get_or_create(&[("collector", name.to_owned())]).clone()
    }

    /// `count` new events of a collector.
    pub fn produced(&self, collector: &Counter, count: u64) {
        self.0.produced.fetch_add(count, Ordering::Relaxed);
        collector.inc_by(count);
    }

    /// `count` events acknowledged.
    pub fn published(&self, count: u64) {
        self.0.published.inc_by(count);
    }

    /// `count` events gone for `reason`.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        if count > 0 {
            self.0.dropped[reason as usize].inc_by(count);
        }
    }

    /// Events gone for `reason` so far.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.0.dropped[reason as usize].get()
    }

    /// `count` events came to `place`.
    pub fn enter(&self, place: Place, count: u64) {
        self.0.places[place as usize].inc_by(count as i64);
    }

    /// `count` events left `place`.
    pub fn leave(&self, place: Place, count: u64) {
        self.0.places[place as usize].dec_by(count as i64);
    }

    /// `count` events went from one place to the next.
    pub fn transfer(&self, from: Place, to: Place, count: u64) {
        self.leave(from, count);
        self.enter(to, count);
    }

    /// The counts now. Exact when the agent rests; while it moves, off by what is between two stages.
    pub fn snapshot(&self) -> LedgerSnapshot {
        let count = |r: &DropReason| (*r, self.0.dropped[*r as usize].get());
        let place = |p: &Place| (*p, u64::try_from(self.0.places[*p as usize].get()).unwrap_or(0));
        LedgerSnapshot {
            produced: self.0.produced.load(Ordering::Relaxed),
            published: self.0.published.get(),
            dropped: DropReason::ALL.iter().map(count).filter(|(_, n)| *n > 0).collect(),
            in_flight: Place::ALL.iter().map(place).collect(),
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.snapshot().fmt(f)
    }
}
