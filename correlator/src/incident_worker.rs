//! The deciding side of stage two: one thread that owns the whole state of the cluster, from sections of signals to
//! published findings.

use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Fence, Headers, Outgoing, PublishReports, Publisher, TrySubmitError};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{Receiver, RecvTimeoutError};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::WorkerResult;
use tapio_schemas::names::{
    CLOUDEVENT_TYPE_FINDING, HEADER_ORIGIN, HEADER_REASON, deadletter_subject, signals_subject,
};
use tapio_schemas::{Finding, UnixNanos};
use tokio::sync::{mpsc, watch};

use crate::checkpoint::{Checkpoint, Fresh};
use crate::decider::{Decider, DeciderCounters};
use crate::metrics::CorrelatorMetrics;
use crate::stage_two::{StageTwoParts, not_the_owner};

const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Findings without acknowledgement.
const PUBLISH_WINDOW: usize = 64;
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

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
    decider: Decider,
    publisher: Publisher,
    reports: PublishReports,
    /// Findings are stored only while this is the newest owner.
    fence: Fence,
    to_keep: mpsc::Sender<Checkpoint>,
    fresh: watch::Sender<Fresh>,
    clock: SharedClock,
    metrics: CorrelatorMetrics,
    submitted: u64,
    acknowledged: u64,
    waiting: Option<Waiting>,
    checkpoint_due: Duration,
    /// Version of the memory that was handed over last.
    remembered: u64,
    /// What the metrics know of.
    counted: DeciderCounters,
}

impl IncidentWorker {
    /// A worker that goes on where `decider` stands.
    pub fn new(
        parts: &StageTwoParts,
        decider: Decider,
        fence: Fence,
        to_keep: mpsc::Sender<Checkpoint>,
        fresh: watch::Sender<Fresh>,
    ) -> Self {
        let (publisher, reports) = parts.bus.publisher(PUBLISH_WINDOW, Shutdown::new());
        Self {
            cluster: parts.config.cluster.clone(),
            remembered: decider.memory_version(),
            decider,
            publisher,
            reports,
            fence,
            to_keep,
            fresh,
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
            submitted: 0,
            acknowledged: 0,
            waiting: None,
            checkpoint_due: Duration::ZERO,
            counted: DeciderCounters::default(),
        }
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
        // The last word: who goes on has nothing to decide again.
        self.checkpoint_due = Duration::ZERO;
        self.checkpoint();
        self.hand_over();
        Ok(())
    }

    fn section(&mut self, section: &Section) -> WorkerResult {
        match self.decider.apply(section.sequence, &section.payload) {
            Ok(findings) => findings.iter().try_for_each(|finding| self.publish(finding))?,
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
        self.checkpoint();
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
        let headers = self.fence.stamp(headers);
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
        match result {
            Err(BusError::Fenced { .. }) => Err(not_the_owner(&self.cluster)),
            result => {
                result?;
                self.acknowledged += 1;
                Ok(())
            }
        }
    }

    fn checkpoint(&mut self) {
        if self.clock.monotonic() < self.checkpoint_due || self.waiting.is_some() {
            return;
        }
        self.checkpoint_due = self.clock.monotonic() + CHECKPOINT_EVERY;
        self.count();
        self.fresh.send_replace(self.decider.fresh());
        let Some(standing) = self.decider.standing() else { return };
        let version = self.decider.memory_version();
        let memory = (version != self.remembered).then(|| self.decider.memory());
        let checkpoint = Checkpoint { standing, memory };
        self.waiting = Some(Waiting { checkpoint, ticket: self.submitted, version });
    }

    fn count(&mut self) {
        let lag = UnixNanos(self.clock.now_unix_nanos()).since(self.decider.watermark()) / 1_000_000;
        self.metrics.lag_ms.set(i64::try_from(lag).unwrap_or(i64::MAX));
        let now = self.decider.counters();
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
