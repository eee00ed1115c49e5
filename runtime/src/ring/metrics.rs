//! What a ring tells: read from its counters when someone asks, so that the hot path pays nothing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Counts;
use crate::telemetry::Metrics;

type Labels = [(&'static str, String); 1];

/// One ring's series.
#[derive(Debug, Clone)]
pub(super) struct RingMetrics {
    depth: Gauge,
    sent: Counter,
    received: Counter,
    discarded: Counter,
    blocked_nanos: Counter,
    /// Counts of earlier rings of the same name, which the series already contain.
    base: Base,
}

#[derive(Debug, Clone, Copy)]
struct Base {
    sent: u64,
    received: u64,
    blocked_nanos: u64,
}

impl RingMetrics {
    pub(super) fn register(name: &str, metrics: &Metrics) -> Self {
        let labels: Labels = [("ring", name.to_owned())];
        let counter = |metric: &str, help: &str| {
            let family: Family<Labels, Counter> = metrics.shared(metric, help);
            family.get_or_create(&labels).clone()
        };
        let depths: Family<Labels, Gauge> = metrics.shared("ring_depth", "Items waiting in a ring");
        let depth = depths.get_or_create(&labels).clone();
        let sent = counter("ring_sent", "Items put into a ring");
        let received = counter("ring_received", "Items taken from a ring");
        let discarded = counter("ring_discarded", "Items in a ring when both its ends were gone");
        let blocked_nanos =
            counter("ring_send_blocked_nanoseconds", "Time senders waited for room in a ring");
        let base = Base { sent: sent.get(), received: received.get(), blocked_nanos: blocked_nanos.get() };
        Self { depth, sent, received, discarded, blocked_nanos, base }
    }

    /// Refreshes the series whenever metrics are read, as long as the ring lives.
    pub(super) fn observe(&self, counts: &Arc<Counts>, metrics: &Metrics) {
        let (series, counts): (Self, Weak<Counts>) = (self.clone(), Arc::downgrade(counts));
        metrics.before_encode(move || match counts.upgrade() {
            Some(counts) => {
                series.copy(&counts);
                true
            }
            None => false,
        });
    }

    pub(super) fn finish(&self, counts: &Counts) {
        self.copy(counts);
        self.discarded.inc_by(counts.depth());
        self.depth.set(0);
    }

    fn copy(&self, counts: &Counts) {
        self.depth.set(i64::try_from(counts.depth()).unwrap_or(i64::MAX));
        let copy = |series: &Counter, base: u64, count: &std::sync::atomic::AtomicU64| {
            series.inner().store(base + count.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        copy(&self.sent, self.base.sent, &counts.sent);
        copy(&self.received, self.base.received, &counts.received);
        copy(&self.blocked_nanos, self.base.blocked_nanos, &counts.blocked_nanos);
    }
}
