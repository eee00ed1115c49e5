//! The deciding side of stage two: one thread that owns the whole state of the cluster, from sections of signals to
//! published findings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Headers, Outgoing};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{Receiver, RecvTimeoutError};
use tapio_runtime::supervise::{WorkerError, WorkerResult};
use tapio_schemas::learning::PriorHistory;
use tapio_schemas::names::{
    CLOUDEVENT_TYPE_FINDING, HEADER_ORIGIN, HEADER_REASON, deadletter_subject, signals_subject,
};
use tapio_schemas::{Finding, UnixNanos};
use tokio::sync::{mpsc, watch};

use crate::checkpoint::{Checkpoint, Fresh};
use crate::decider::{Decider, DeciderCounters};
use crate::metrics::CorrelatorMetrics;
use crate::outbox::{BusOutlet, Outbox, Outlet};
use crate::own_patterns::Patterns;
use crate::questions::Question;
use crate::stage_two::not_the_owner;

const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Findings without acknowledgement.
pub const PUBLISH_WINDOW: usize = 64;
/// Behind the clock by no more than this, what happened is known.
const CAUGHT_UP: Duration = Duration::from_secs(60);
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

/// What the worker gets.
pub struct IncidentParts {
    /// Cluster.
    pub cluster: String,
    /// Where checkpoints go.
    pub to_keep: mpsc::Sender<Checkpoint>,
    /// Where it is told how fresh the verdicts are.
    pub fresh: watch::Sender<Fresh>,
    /// What outcomes say of the causes, as it was read last.
    pub priors: watch::Receiver<Arc<PriorHistory>>,
    /// What is decided with, as it is now.
    pub patterns: watch::Receiver<Patterns>,
    /// What is asked of what it knows.
    pub questions: mpsc::Receiver<Question>,
    /// Clock.
    pub clock: SharedClock,
    /// Metrics.
    pub metrics: CorrelatorMetrics,
}

/// The thread's state.
pub struct IncidentWorker<O> {
    parts: IncidentParts,
    decider: Decider,
    outbox: Outbox<O>,
    waiting: Option<Waiting>,
    checkpoint_due: Duration,
    /// Tick of what was published last.
    tick: UnixNanos,
    /// Version of the memory that was handed over last.
    remembered: u64,
    /// What the metrics know of.
    counted: DeciderCounters,
}

impl IncidentWorker<BusOutlet> {
    /// Works until the ring is closed and empty and every finding is acknowledged.
    ///
    /// # Errors
    /// When a message can never be stored, or another replica owns the incidents.
    pub fn run(mut self, mut sections: Receiver<Section>) -> WorkerResult {
        loop {
            match sections.recv_timeout(IDLE_WAIT) {
                Ok(item) => self.section(&item.value)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Closed) => break,
            }
            self.turn()?;
            while !self.is_ready() {
                if !self.outbox.wait().map_err(|error| self.stopped(error))? {
                    return Err(BusError::Closed.into());
                }
                self.turn()?;
            }
        }
        while !self.is_settled() && self.outbox.wait().map_err(|error| self.stopped(error))? {
            self.turn()?;
        }
        self.finish();
        Ok(())
    }
}

impl<O: Outlet> IncidentWorker<O> {
    /// A worker that goes on where `decider` stands. Findings are stored only while `outlet` has the newest fence.
    pub fn new(mut parts: IncidentParts, mut decider: Decider, outlet: O) -> Self {
        decider.set_priors(Arc::clone(&parts.priors.borrow_and_update()));
        decider.set_patterns(&parts.patterns.borrow_and_update());
        Self {
            parts,
            remembered: decider.memory_version(),
            decider,
            outbox: Outbox::new(outlet),
            waiting: None,
            checkpoint_due: Duration::ZERO,
            tick: UnixNanos(0),
            counted: DeciderCounters::default(),
        }
    }

    /// Whether it takes a section: everything said is on its way.
    pub fn is_ready(&self) -> bool {
        self.outbox.is_clear()
    }

    /// Everything said is stored.
    pub fn is_settled(&self) -> bool {
        self.outbox.is_settled()
    }

    /// What is to be done between two sections: answers, sends, takes acknowledgements, hands a checkpoint over.
    ///
    /// # Errors
    /// When a message can never be stored, or another replica owns the incidents.
    pub fn turn(&mut self) -> WorkerResult {
        while let Ok(question) = self.parts.questions.try_recv() {
            // Who is still reading what happened before does not know yet: the question is dropped, and who asks is told so.
            if self.lag() < CAUGHT_UP {
                // Nobody waits for it any more.
                let _ = question.answer.send(self.decider.has_heard_of(&question.of));
            }
        }
        self.outbox.turn().map_err(|error| self.stopped(error))?;
        self.hand_over();
        Ok(())
    }

    /// The last word, once everything said is stored: who goes on has nothing to decide again.
    pub fn finish(&mut self) {
        self.hand_over();
        self.checkpoint_due = Duration::ZERO;
        self.checkpoint();
        self.hand_over();
    }

    /// Takes a section. What it says waits for the next turn.
    ///
    /// # Errors
    /// When a finding cannot be written as JSON.
    pub fn section(&mut self, section: &Section) -> WorkerResult {
        self.take_priors();
        match self.decider.apply(section.sequence, &section.payload) {
            Ok(findings) => findings.iter().try_for_each(|finding| self.publish(finding))?,
            Err(error) => {
                self.parts.metrics.reject("signals");
                tracing::warn!(%error, sequence = section.sequence, "a section of signals is refused");
                let headers = Headers::new()
                    .with(HEADER_REASON, error.to_string())
                    .with(HEADER_ORIGIN, signals_subject(&self.parts.cluster));
                let subject = deadletter_subject("signals");
                self.outbox.say(Outgoing {
                    subject,
                    msg_id: None,
                    headers,
                    payload: section.payload.clone(),
                });
            }
        }
        self.checkpoint();
        Ok(())
    }

    fn take_priors(&mut self) {
        // Closed: the last ones stand.
        if self.parts.priors.has_changed().unwrap_or(false) {
            self.decider.set_priors(Arc::clone(&self.parts.priors.borrow_and_update()));
        }
        if self.parts.patterns.has_changed().unwrap_or(false) {
            self.decider.set_patterns(&self.parts.patterns.borrow_and_update());
        }
    }

    /// A tick's findings go out once those of the ticks before are stored: who goes on takes the newest one stored for the
    /// tick up to which nothing is missing.
    fn publish(&mut self, finding: &Finding) -> WorkerResult {
        if finding.emitted_at > self.tick {
            self.tick = finding.emitted_at;
            self.outbox.settle_first();
        }
        let id = finding.message_id();
        let headers = Headers::new()
            .with("content-type", "application/json")
            .with("ce-specversion", "1.0")
            .with("ce-type", CLOUDEVENT_TYPE_FINDING)
            .with("ce-source", format!("/tapio/correlator/{}", self.parts.cluster))
            .with("ce-id", id.clone())
            .with("ce-time", finding.emitted_at.to_string())
            .with("ce-subject", finding.entity().map(ToString::to_string).unwrap_or_default());
        let headers = self.outbox.stamp(headers);
        let payload = Bytes::from(serde_json::to_vec(finding)?);
        self.parts.metrics.findings.inc();
        self.outbox.say(Outgoing { subject: finding.subject(), msg_id: Some(id), headers, payload });
        Ok(())
    }

    fn stopped(&self, error: BusError) -> WorkerError {
        match error {
            BusError::Fenced { .. } => not_the_owner(&self.parts.cluster),
            error => error.into(),
        }
    }

    fn checkpoint(&mut self) {
        if self.parts.clock.monotonic() < self.checkpoint_due || self.waiting.is_some() {
            return;
        }
        self.checkpoint_due = self.parts.clock.monotonic() + CHECKPOINT_EVERY;
        self.count();
        self.parts.fresh.send_replace(self.decider.fresh());
        let Some((standing, budgets)) = self.decider.standing() else { return };
        let version = self.decider.memory_version();
        let memory = (version != self.remembered).then(|| self.decider.memory());
        let checkpoint = Checkpoint { standing, memory, budgets };
        self.waiting = Some(Waiting { checkpoint, ticket: self.outbox.said(), version });
    }

    /// How far it is behind the clock.
    fn lag(&self) -> Duration {
        let now = UnixNanos(self.parts.clock.now_unix_nanos());
        Duration::from_nanos(now.since(self.decider.watermark()))
    }

    fn count(&mut self) {
        self.parts.metrics.lag_ms.set(i64::try_from(self.lag().as_millis()).unwrap_or(i64::MAX));
        let now = self.decider.counters();
        let before = std::mem::replace(&mut self.counted, now);
        self.parts.metrics.add_dropped(&now.stage_two.by_reason(), &before.stage_two.by_reason());
        self.parts.metrics.add_settled(&now.ledger.by_reason(), &before.ledger.by_reason());
    }

    fn hand_over(&mut self) {
        let acknowledged = self.outbox.acknowledged();
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.ticket <= acknowledged) else { return };
        // Full: the next one says more.
        if self.parts.to_keep.try_send(waiting.checkpoint).is_ok() {
            self.remembered = waiting.version;
        }
    }
}
