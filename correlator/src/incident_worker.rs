//! The deciding side of stage two: one thread that owns the whole state of the cluster, from sections of signals to
//! published findings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Headers, Outgoing, PublishReports, Publisher, TrySubmitError};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{Receiver, RecvTimeoutError};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::WorkerResult;
use tapio_schemas::names::{
    CLOUDEVENT_TYPE_FINDING, HEADER_ORIGIN, HEADER_REASON, deadletter_subject, signals_subject,
};
use tapio_schemas::{Entity, Finding, Signal, UnixNanos};
use tokio::sync::{mpsc, watch};

use crate::checkpoint::{Checkpoint, Fresh, Memory, Standing};
use crate::config::nanos;
use crate::engine::{StageTwo, StageTwoCounters};
use crate::fence::Heard;
use crate::ledger::{Ledger, LedgerCounters};
use crate::low_water::{LowWater, Marks};
use crate::metrics::CorrelatorMetrics;
use crate::shards::grid_floor;
use crate::stage_two::StageTwoParts;

const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Findings without acknowledgement.
const PUBLISH_WINDOW: usize = 64;
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Holes that are told with the freshness.
const GAPS_TOLD_MAX: usize = 16;

/// A message of the signal stream.
pub struct Section {
    /// Its sequence.
    pub sequence: u64,
    /// Its bytes.
    pub payload: Bytes,
}

/// A checkpoint that may be kept once so many messages are acknowledged.
struct Waiting {
    checkpoint: Checkpoint,
    ticket: u64,
    /// Version of the memory in it.
    version: u64,
}

/// The thread's state.
pub struct IncidentWorker {
    cluster: String,
    stage_two: StageTwo,
    ledger: Ledger,
    publisher: Publisher,
    reports: PublishReports,
    marks: Marks<Vec<Heard>>,
    to_keep: mpsc::Sender<Checkpoint>,
    fresh: watch::Sender<Fresh>,
    clock: SharedClock,
    metrics: CorrelatorMetrics,
    topology_ns: u64,
    submitted: u64,
    acknowledged: u64,
    waiting: Option<Waiting>,
    checkpoint_due: Duration,
    /// Version of the memory that was handed over last.
    remembered: u64,
    counted: Counted,
}

/// What the metrics know of.
#[derive(Default, Clone, Copy)]
struct Counted {
    stage_two: StageTwoCounters,
    ledger: LedgerCounters,
}

impl IncidentWorker {
    /// A worker that knows nothing but what was published.
    pub fn new(
        parts: &StageTwoParts,
        ledger: Ledger,
        to_keep: mpsc::Sender<Checkpoint>,
        fresh: watch::Sender<Fresh>,
    ) -> Self {
        let (publisher, reports) = parts.bus.publisher(PUBLISH_WINDOW, Shutdown::new());
        Self {
            cluster: parts.config.cluster.clone(),
            stage_two: StageTwo::new(&parts.config, Arc::clone(&parts.model)),
            ledger,
            publisher,
            reports,
            marks: Marks::default(),
            to_keep,
            fresh,
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
            topology_ns: nanos(parts.config.signals.topology_refresh),
            submitted: 0,
            acknowledged: 0,
            waiting: None,
            checkpoint_due: Duration::ZERO,
            remembered: 0,
            counted: Counted::default(),
        }
    }

    /// Goes on where an earlier process was.
    pub fn resume(&mut self, heard: &[Heard], changes: Vec<Signal>, machines: Vec<Entity>) {
        self.stage_two.resume(heard);
        self.stage_two.remember(changes, machines);
        self.remembered = self.stage_two.incidents().memory_version();
    }

    /// Works until the ring is closed and empty and every finding is acknowledged.
    pub fn run(mut self, mut sections: Receiver<Section>) -> WorkerResult {
        loop {
            match sections.recv_timeout(IDLE_WAIT) {
                Ok(item) => self.section(&item.value)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Closed) => break,
            }
            while let Some(report) = self.reports.try_next() {
                self.acknowledge(report.result.map(|_| ()))?;
            }
            self.hand_over();
        }
        while self.acknowledged < self.submitted {
            let Some(report) = self.reports.next_blocking() else { break };
            self.acknowledge(report.result.map(|_| ()))?;
        }
        self.hand_over();
        Ok(())
    }

    fn section(&mut self, section: &Section) -> WorkerResult {
        match self.stage_two.apply_bytes(&section.payload) {
            Ok(findings) => {
                for finding in findings {
                    if let Some(finding) = self.ledger.take(finding) {
                        self.publish(&finding)?;
                    }
                }
                let incidents = self.stage_two.incidents();
                let now = grid_floor(self.stage_two.watermark());
                for finding in self.ledger.settle(now, |id| incidents.stands_for(id)) {
                    tracing::info!(id = %finding.id, status = %finding.status, "a finding is set right");
                    self.publish(&finding)?;
                }
            }
            Err(error) => {
                self.metrics.reject("signals");
                tracing::warn!(%error, sequence = section.sequence, "a section of signals is refused");
                let headers = Headers::new()
                    .with(HEADER_REASON, error.to_string())
                    .with(HEADER_ORIGIN, signals_subject(&self.cluster));
                let subject = deadletter_subject("signals");
                self.submit(Outgoing { subject, msg_id: None, headers, payload: section.payload.clone() })?;
            }
        }
        self.checkpoint(section.sequence);
        Ok(())
    }

    fn publish(&mut self, finding: &Finding) -> WorkerResult {
        let id = finding.message_id();
        let headers = Headers::new()
            .with("content-type", "application/json")
            .with("ce-specversion", "1.0")
            .with("ce-type", CLOUDEVENT_TYPE_FINDING)
            .with("ce-source", format!("/tapio/correlator/{}", self.cluster))
            .with("ce-id", id.clone())
            .with("ce-time", finding.emitted_at.to_string())
            .with("ce-subject", finding.entity().map(ToString::to_string).unwrap_or_default());
        let payload = Bytes::from(serde_json::to_vec(finding)?);
        self.metrics.findings.inc();
        self.submit(Outgoing { subject: finding.subject(), msg_id: Some(id), headers, payload })
    }

    fn submit(&mut self, mut outgoing: Outgoing) -> WorkerResult {
        loop {
            match self.publisher.try_submit(outgoing) {
                Ok(_) => {
                    self.submitted += 1;
                    return Ok(());
                }
                Err(TrySubmitError::Full(back)) => outgoing = back,
                Err(TrySubmitError::Closed(_)) => return Err(BusError::Closed.into()),
            }
            match self.reports.next_blocking() {
                Some(report) => self.acknowledge(report.result.map(|_| ()))?,
                None => return Err(BusError::Closed.into()),
            }
        }
    }

    fn acknowledge(&mut self, result: Result<(), BusError>) -> WorkerResult {
        result?;
        self.acknowledged += 1;
        Ok(())
    }

    fn checkpoint(&mut self, sequence: u64) {
        let watermark = self.stage_two.watermark();
        if let Some(heard) = self.stage_two.heard() {
            self.marks.record_with(sequence, self.stage_two.newest(), || heard.to_vec());
        }
        if self.clock.monotonic() < self.checkpoint_due || self.waiting.is_some() {
            return;
        }
        self.checkpoint_due = self.clock.monotonic() + CHECKPOINT_EVERY;
        let lag = UnixNanos(self.clock.now_unix_nanos()).since(watermark) / 1_000_000;
        self.metrics.lag_ms.set(i64::try_from(lag).unwrap_or(i64::MAX));
        self.count();
        let gaps = self.stage_two.incidents().gaps_in_words(GAPS_TOLD_MAX);
        self.fresh.send_replace(Fresh { watermark, gaps });
        // Who owns what is told again once in a while; a restart must hear one telling of it.
        let needed =
            self.stage_two.low_water().min(watermark.minus(self.topology_ns + self.topology_ns / 10));
        let Some((sequence, heard)) = self.marks.place_for(needed) else { return };
        let standing = Standing {
            mark: LowWater { sequence, from: needed },
            decided: grid_floor(watermark),
            heard: heard.clone(),
        };
        let version = self.stage_two.incidents().memory_version();
        let memory = (version != self.remembered).then(|| {
            let (changes, machines) = self.stage_two.incidents().memory();
            Memory { changes, machines }
        });
        let checkpoint = Checkpoint { standing, memory };
        self.waiting = Some(Waiting { checkpoint, ticket: self.submitted, version });
    }

    fn count(&mut self) {
        let now = Counted { stage_two: self.stage_two.counters(), ledger: self.ledger.counters() };
        let before = std::mem::replace(&mut self.counted, now);
        self.metrics.add_dropped(&now.stage_two.by_reason(), &before.stage_two.by_reason());
        self.metrics.add_settled(&now.ledger.by_reason(), &before.ledger.by_reason());
    }

    fn hand_over(&mut self) {
        let acknowledged = self.acknowledged;
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.ticket <= acknowledged) else { return };
        // Full: the next one says more.
        if self.to_keep.try_send(waiting.checkpoint).is_ok() {
            self.remembered = waiting.version;
        }
    }
}
