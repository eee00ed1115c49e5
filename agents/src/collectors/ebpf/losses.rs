//! What the kernel programs could not hand over.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tapio_bpf::{DecodeFailures, Loaded};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::ids::UnixNanos;

use crate::gap::Gap;
use crate::ledger::DropReason;
use crate::sink::EventSink;

type Labels = [(&'static str, &'static str); 2];

pub(super) struct Losses {
    records: Family<Labels, Gauge>,
    failures: Arc<DecodeFailures>,
    seen_lost: HashMap<&'static str, u64>,
    seen_undecoded: u64,
    last: UnixNanos,
}

impl Losses {
    pub(super) fn new(metrics: &Metrics, failures: Arc<DecodeFailures>) -> Self {
        let records = metrics.shared(
            "agent_ebpf_records",
            "Records of the kernel programs since they were loaded, by program and fate",
        );
        Self { records, failures, seen_lost: HashMap::new(), seen_undecoded: 0, last: UnixNanos(0) }
    }

    /// Reads the counters, accounts the losses since the last reading, and gives them when there are any.
    pub(super) fn count(&mut self, loaded: &Loaded, sink: &EventSink, now: u64) -> Option<Gap> {
        let now = UnixNanos(now);
        let from = std::mem::replace(&mut self.last, now);
        let mut lost = 0;
        match loaded.counters() {
            Ok(counters) => {
                for counter in counters {
                    let name = counter.program.name();
                    self.show(name, "submitted", counter.submitted);
                    self.show(name, "lost", counter.lost - counter.shed.min(counter.lost));
                    self.show(name, "shed", counter.shed);
                    self.show(name, "missed", counter.missed);
                    // A missed run would mostly have been of no interest, so it is shown and not counted as an event.
                    let seen = self.seen_lost.entry(name).or_default();
                    lost += counter.lost.saturating_sub(*seen);
                    *seen = counter.lost;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the counters of the kernel programs"),
        }
        sink.lost(DropReason::KernelRingFull, lost);
        let undecoded: u64 = self.failures.by_reason().iter().map(|(_, count)| count).sum();
        sink.lost(DropReason::Malformed, undecoded - self.seen_undecoded);
        lost += undecoded - self.seen_undecoded;
        self.seen_undecoded = undecoded;
        let reason =
            format!("{}.{}", DropReason::KernelRingFull.stage(), DropReason::KernelRingFull.as_str());
        (lost > 0).then_some(Gap { source: "ebpf", reason, lost, from, to: now })
    }

    fn show(&self, program: &'static str, fate: &'static str, count: u64) {
        let labels = [("program", program), ("fate", fate)];
        self.records.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
