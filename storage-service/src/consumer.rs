//! Takes findings from the stream, hands them to the writer in batches, and acknowledges what is on
//! disk. What is not acknowledged comes again; what came twice is stored once.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::backoff::Backoff;
use tapio_runtime::bus::{Bus, BusError, ConnectionState, DurableConfig, DurableConsumer, Message};
use tapio_runtime::supervise::{ActorSlot, WorkerContext, WorkerResult};
use tapio_schemas::finding::FINDING_SCHEMA;
use tapio_schemas::{UnixNanos, names};

use crate::condition::Condition;
use crate::store::{Incoming, StoreMetrics};
use crate::writer::{Persist, Writer};

/// Findings delivered and not acknowledged.
const ACK_PENDING_MAX: usize = 512;
/// Largest document of a finding.
pub const FINDING_BYTES_MAX: usize = 1 << 20;
/// A batch is not made larger than this and a few findings, so that a slow disk writes it in a time that is no standstill.
const BATCH_BYTES: usize = 256 << 10;
/// Findings taken between two looks at how large the batch is.
const TAKEN_AT_ONCE: usize = 8;
/// Name of this stage in dead-letter subjects.
const STAGE: &str = "storage";
/// Longest reason in a dead letter's header, in characters.
const REASON_CHARS_MAX: usize = 200;
/// Waits before what could not be stored is asked for again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// An idle consumer shows at least this often that it lives.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Once stopping, how long to look for findings already on their way.
const DRAIN_WAIT: Duration = Duration::from_millis(20);
/// Batches stored after the stop was asked for.
const DRAIN_BATCHES_MAX: usize = 64;

/// Settings of the consumer.
#[derive(Debug, Clone)]
pub struct Intake {
    /// Durable name.
    pub name: String,
    /// A finding that is not acknowledged in this time comes again.
    pub ack_wait: Duration,
    /// A batch goes to the writer so long after its first finding,
    pub flush_interval: Duration,
    /// or when it has so many.
    pub flush_findings: usize,
}

/// What the consumer works with.
pub struct Consumer {
    /// Bus.
    pub bus: Bus,
    /// Settings.
    pub intake: Intake,
    /// Where batches go.
    pub writer: ActorSlot<Writer>,
    /// Counters.
    pub metrics: StoreMetrics,
    /// Where failures and the distance to the end of the stream are told.
    pub condition: Condition,
}

impl Consumer {
    /// Runs until asked to stop; then stores what was on its way.
    pub async fn run(&self, context: WorkerContext) -> WorkerResult {
        let config = DurableConfig {
            ack_wait: self.intake.ack_wait,
            max_ack_pending: ACK_PENDING_MAX,
            ..DurableConfig::new(names::STREAM_INSIGHTS, &self.intake.name)
        };
        let mut stream = self.bus.durable_consumer(config).await?;
        let at_hand = AtomicBool::new(false);
        let failures = tokio::select! {
            failures = self.store_until_stop(&mut stream, &context, &at_hand) => failures?,
            never = self.look(&context, &at_hand) => match never {},
        };
        let Some(failures) = failures else { return Ok(()) };
        for _ in 0..DRAIN_BATCHES_MAX {
            let batch = stream.next_batch(self.intake.flush_findings, DRAIN_WAIT).await?;
            if batch.is_empty() || !self.handle(&batch, failures).await {
                break;
            }
        }
        // Acknowledgements are only written so far.
        self.bus.flush().await?;
        Ok(())
    }

    /// Stores batch after batch until a stop is asked for; how many times in a row it has failed by then, `None` when the
    /// writer did not answer in time.
    async fn store_until_stop(
        &self,
        stream: &mut DurableConsumer,
        context: &WorkerContext,
        at_hand: &AtomicBool,
    ) -> Result<Option<u32>, BusError> {
        let mut failures = 0;
        while !context.shutdown.is_triggered() {
            context.progress.tick();
            let batch = self.collect(stream, context).await?;
            let Some((first, last)) = batch.first().zip(batch.last()) else {
                failures = 0;
                continue;
            };
            let count = batch.len() as u64;
            at_hand.store(true, Ordering::Relaxed);
            self.tell_behind(self.condition.behind().max(count + last.pending), Some(first));
            let stored = tokio::select! {
                stored = self.handle(&batch, failures) => stored,
                // The writer may be away; what is not acknowledged comes again after the restart.
                () = gave_up(context) => return Ok(None),
            };
            at_hand.store(false, Ordering::Relaxed);
            if stored {
                // What is next came after the last one.
                self.tell_behind(self.condition.behind().saturating_sub(count).max(last.pending), Some(last));
            }
            failures = if stored { 0 } else { failures + 1 };
        }
        Ok(Some(failures))
    }

    /// So many wait; `oldest` is the oldest of them, or the one before it. `None`: as known.
    fn tell_behind(&self, behind: u64, oldest: Option<&Message>) {
        self.condition.set_behind(behind, oldest.map(|first| UnixNanos(first.published_at_unix_nanos)));
        self.metrics.waiting(behind);
    }

    /// Asks the server now and then how much waits: messages tell only what was behind them when they were delivered. While a
    /// batch waits for the writer, whose own progress is looked at, it shows that this one lives as well.
    async fn look(&self, context: &WorkerContext, at_hand: &AtomicBool) -> Infallible {
        loop {
            context.clock.sleep(IDLE_MAX).await;
            if at_hand.load(Ordering::Relaxed) {
                context.progress.tick();
            }
            let is_known = self.ask_behind().await;
            // Of a batch at hand it is known since when it waits.
            if !is_known && !at_hand.load(Ordering::Relaxed) {
                self.condition.forget_oldest();
            }
        }
    }

    /// False when nobody can say how much waits.
    async fn ask_behind(&self) -> bool {
        if self.bus.state() != ConnectionState::Connected {
            return false;
        }
        match self.bus.unacknowledged(names::STREAM_INSIGHTS, &self.intake.name).await {
            Ok(behind) => {
                self.tell_behind(behind, None);
                true
            }
            Err(error) => {
                self.metrics.unasked();
                tracing::debug!(%error, "how many findings wait is not known");
                false
            }
        }
    }

    /// A batch by number, by size or by time since its first finding; what there is when a stop is asked for.
    async fn collect(
        &self,
        stream: &mut DurableConsumer,
        context: &WorkerContext,
    ) -> Result<Vec<Message>, BusError> {
        let mut batch = Vec::new();
        let mut wait = IDLE_MAX;
        let mut full_at = None;
        loop {
            let missing = (self.intake.flush_findings - batch.len()).min(TAKEN_AT_ONCE);
            let more = tokio::select! {
                biased;
                more = stream.next_batch(missing, wait) => more?,
                () = context.shutdown.wait() => return Ok(batch),
            };
            let now = context.clock.monotonic();
            let ended = more.is_empty();
            batch.extend(more);
            let bytes: usize = batch.iter().map(|message| message.payload.len()).sum();
            let is_full = batch.len() >= self.intake.flush_findings || bytes >= BATCH_BYTES;
            let full_at = *full_at.get_or_insert(now + self.intake.flush_interval);
            if ended || is_full || now >= full_at {
                return Ok(batch);
            }
            wait = full_at.saturating_sub(now);
        }
    }

    /// True when everything of the batch is done with.
    async fn handle(&self, batch: &[Message], failures: u32) -> bool {
        self.metrics.received(batch.len() as u64);
        let mut findings = Vec::with_capacity(batch.len());
        let mut good = Vec::with_capacity(batch.len());
        for message in batch {
            match parse(&message.payload) {
                Ok(finding) => {
                    findings.push(finding);
                    good.push(message);
                }
                Err(reason) => self.reject(message, &reason).await,
            }
        }
        if findings.is_empty() {
            return true;
        }
        let writer = self.writer.wait().await;
        let refused = match writer.send(Persist { findings }).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(format!("the writer is gone: {error}")),
        };
        match refused {
            None => {
                for message in good {
                    acknowledged(message.ack().await);
                }
                true
            }
            Some(reason) => {
                self.condition.fail(&reason);
                self.metrics.retried(good.len() as u64);
                let delay = RETRY.delay(failures);
                tracing::warn!(count = good.len(), ?delay, reason, "findings not stored; asked for again");
                for message in good {
                    acknowledged(message.nak(Some(delay)).await);
                }
                false
            }
        }
    }

    /// To the dead letters with the reason, then off the stream; in this order, so that it is never
    /// in neither.
    async fn reject(&self, message: &Message, reason: &str) {
        self.metrics.not_stored("malformed", 1);
        let reason: String =
            reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect();
        tracing::warn!(subject = message.subject, sequence = message.sequence, reason, "not a finding");
        let sent = self.bus.dead_letter(STAGE, &reason, &message.subject, message.payload.clone()).await;
        match sent {
            Ok(_) => acknowledged(message.term().await),
            Err(error) => tracing::warn!(%error, "the dead letter is not stored; it will be tried again"),
        }
    }
}

/// When a stop was asked for and the writer has had its time.
async fn gave_up(context: &WorkerContext) {
    /// Less than the time the supervisor gives.
    const GRACE: Duration = Duration::from_secs(3);
    context.shutdown.wait().await;
    context.clock.sleep(GRACE).await;
}

fn acknowledged(outcome: Result<(), BusError>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "an acknowledgement is lost; the finding comes again");
    }
}

/// A finding, or why the bytes are none.
fn parse(payload: &Bytes) -> Result<Incoming, String> {
    if payload.len() > FINDING_BYTES_MAX {
        return Err(format!("it has {} bytes, the limit is {FINDING_BYTES_MAX}", payload.len()));
    }
    let incoming = Incoming::parse(payload.clone()).map_err(|error| error.to_string())?;
    if incoming.finding.schema != FINDING_SCHEMA {
        return Err(format!("its schema is `{}`, expected `{FINDING_SCHEMA}`", incoming.finding.schema));
    }
    if incoming.finding.revision == 0 {
        return Err("its revision is 0, the first is 1".to_owned());
    }
    Ok(incoming)
}
