//! Stage two live: reads the signal stream, lets a thread of its own decide, and keeps where to read on.
//!
//! After a restart the signals are read again from the oldest one that an open incident rests on. What was published
//! before is read from the insight stream: the ledger (`ledger.rs`) leaves out what comes out again, and tells what
//! has come out otherwise.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tapio_runtime::bus::{Bus, BusError, ConnectionState, OrderedConfig, OrderedConsumer, StartAt};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::lease::Lease;
use tapio_runtime::ring::{self, Sender, TrySendError};
use tapio_runtime::supervise::{WorkerContext, WorkerError, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::learning::PriorHistory;
use tapio_schemas::names::{STREAM_INSIGHTS, STREAM_SIGNALS, insights_fence_subject, signals_subject};
use tapio_schemas::{Finding, UnixNanos};
use tokio::sync::{mpsc, watch};

use crate::checkpoint::{Checkpoint, Fresh, Kept, StageTwoStore};
use crate::config::{CorrelatorConfig, nanos};
use crate::decider::Decider;
use crate::incident_worker::{IncidentParts, IncidentWorker, PUBLISH_WINDOW, Section};
use crate::ledger::Ledger;
use crate::low_water::{LowWater, start_in};
use crate::metrics::CorrelatorMetrics;
use crate::outbox::BusOutlet;
use crate::own_patterns::Patterns;
use crate::questions::{self, QUESTIONS_MAX};

const READ_SECTIONS: usize = 64;
const READ_WAIT: Duration = Duration::from_millis(100);
const FULL_WAIT: Duration = Duration::from_millis(2);
/// Sections that wait for the incident worker. Full means that the consumer waits.
const RING_SECTIONS: usize = 256;
/// Checkpoints that wait to be kept; when full the newer one comes a second later anyway.
const CHECKPOINTS_WAITING: usize = 16;
/// Time between two tellings of how fresh the verdicts are.
const FRESH_EVERY: Duration = Duration::from_secs(1);
/// Least time for which a telling stands: one may be late.
const FORGET_AFTER_MIN: Duration = Duration::from_secs(2);

/// What stage two needs.
#[derive(Clone)]
pub struct StageTwoParts {
    /// Settings.
    pub config: CorrelatorConfig,
    /// Causal model, as it is now.
    pub patterns: watch::Receiver<Patterns>,
    /// Bus.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Registry, for the ring.
    pub registry: Metrics,
    /// Own metrics.
    pub metrics: CorrelatorMetrics,
}

impl StageTwoParts {
    /// Runs for the time of the lease: until the context is shut down or something fails. At a shutdown what was said during
    /// this term of office is still decided; who has not yet read all that was said before it leaves the rest, also what stage one
    /// said last, to the next owner, who reads it again anyway.
    ///
    /// # Errors
    /// When the bus refuses something for good, or the incident worker stops.
    pub async fn run(self, context: WorkerContext, lease: Lease) -> WorkerResult {
        // First of all: what an owner before publishes from here on is refused, so what is read now is all there is.
        let fence = self.bus.fence(&insights_fence_subject(&self.config.cluster), &lease).await?;
        let (store, kept) = StageTwoStore::take_over(&self.bus, &self.config.cluster).await?;
        let resume = Resume::new(&self.config, &kept, UnixNanos(self.clock.now_unix_nanos()));
        // Handed over before everything was read: without all of it, what was said would be said again.
        let Some(mut ledger) = self.published(resume.told_since, &context).await? else { return Ok(()) };
        resume.begin(&mut ledger);
        // What is there now was said before this term of office.
        let told_before = self.bus.stream_state(STREAM_SIGNALS).await?.last_sequence;
        let start = start_in(told_before, resume.mark, resume.from);
        let goes_on = resume.goes_on(&start);
        let config = OrderedConfig {
            filters: vec![signals_subject(&self.config.cluster)],
            start,
            batch: READ_SECTIONS,
            ..OrderedConfig::new(STREAM_SIGNALS)
        };
        tracing::info!(?start, known = ledger.len(), changes = kept.changes.len(), "reading signals");
        let (consumer, read) = futures::try_join!(self.bus.ordered_consumer(config), store.priors())?;
        let (ring, sections) = ring::ring("incidents", RING_SECTIONS, self.clock.clone(), &self.registry);
        let (checkpoints, to_keep) = mpsc::channel(CHECKPOINTS_WAITING);
        let (fresh, told_fresh) = watch::channel(Fresh::default());
        let (priors, read_priors) = watch::channel(Arc::new(read));
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let _answering = questions::serve(&self.bus, self.clock.clone(), &self.config.cluster, ask).await?;
        let model = Arc::clone(&self.patterns.borrow().model);
        let decider = Decider::new(&self.config, model, ledger, kept, goes_on);
        let parts = IncidentParts {
            cluster: self.config.cluster.clone(),
            to_keep: checkpoints,
            fresh,
            priors: read_priors,
            patterns: self.patterns.clone(),
            questions,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        };
        let worker =
            IncidentWorker::new(parts, decider, BusOutlet::new(&self.bus, PUBLISH_WINDOW, Some(fence)));
        let thread = std::thread::Builder::new().name("incidents".to_owned()).spawn(move || {
            // A verdict takes some seconds anyway; the first word of what happens must not wait for it.
            tapio_runtime::threads::lower_priority();
            worker.run(sections)
        })?;
        let mut reader = Reader {
            parts: self,
            ring: Some(ring),
            store,
            to_keep,
            unkept: None,
            told_fresh,
            priors,
            fresh_due: Duration::ZERO,
            told_before,
        };
        let read = reader.read(consumer, &context).await;
        let joined = reader.close(thread).await;
        read?;
        joined
    }

    /// What was published since `since`; `None` when the context is shut down before all of it is read.
    async fn published(&self, since: UnixNanos, context: &WorkerContext) -> Result<Option<Ledger>, BusError> {
        let mut ledger = Ledger::new(nanos(self.config.incidents.stale));
        let config = OrderedConfig {
            start: StartAt::UnixNanos(since.0),
            batch: READ_SECTIONS,
            ..OrderedConfig::new(STREAM_INSIGHTS)
        };
        let mut consumer = self.bus.ordered_consumer(config).await?;
        loop {
            context.progress.tick();
            let message = tokio::select! {
                biased;
                () = context.shutdown.wait() => return Ok(None),
                () = self.clock.sleep(READ_WAIT) => continue,
                message = consumer.next_or_current() => message?,
            };
            // All that was there is read: the fence keeps an owner before from adding to it.
            let Some(message) = message else { return Ok(Some(ledger)) };
            let finding = serde_json::from_slice::<Finding>(&message.payload).ok();
            if let Some(finding) = finding.filter(|f| f.cluster == self.config.cluster.as_str()) {
                ledger.read(finding);
            }
        }
    }
}

/// Where a term of office begins, by what was kept and the clock.
pub struct Resume {
    /// Where to read the signals on; `None` when nothing was kept.
    pub mark: Option<LowWater>,
    /// Event time from which on the signals are read.
    pub from: UnixNanos,
    /// Time from which on it is to be known what was published.
    pub told_since: UnixNanos,
    decided: UnixNanos,
    now: UnixNanos,
}

impl Resume {
    /// After what was `kept`, at `now`.
    pub fn new(config: &CorrelatorConfig, kept: &Kept, now: UnixNanos) -> Self {
        let mark = kept.standing.as_ref().map(|standing| standing.mark);
        let from = mark.map_or(now.minus(nanos(config.replay_max)), |mark| mark.from);
        let decided = kept.standing.as_ref().map_or(UnixNanos(0), |standing| standing.decided);
        Self { mark, from, told_since: from.minus(nanos(config.age_max)), decided, now }
    }

    /// All that was published is in the ledger.
    pub fn begin(&self, ledger: &mut Ledger) {
        ledger.begin(self.from, self.decided, self.now);
    }

    /// Marks are of the place that is read from; from another place all of it is heard.
    pub fn goes_on(&self, start: &StartAt) -> bool {
        self.mark.is_some_and(|mark| *start == StartAt::Sequence(mark.sequence))
    }
}

/// The reading side: one task.
struct Reader {
    parts: StageTwoParts,
    /// `None` once it is closed.
    ring: Option<Sender<Section>>,
    store: StageTwoStore,
    to_keep: mpsc::Receiver<Checkpoint>,
    /// One that could not be kept yet.
    unkept: Option<Checkpoint>,
    told_fresh: watch::Receiver<Fresh>,
    priors: watch::Sender<Arc<PriorHistory>>,
    fresh_due: Duration,
    /// Last message that was in the stream before this term of office.
    told_before: u64,
}

impl Reader {
    async fn read(&mut self, mut consumer: OrderedConsumer, context: &WorkerContext) -> WorkerResult {
        let (mut read, mut end) = (0, None);
        loop {
            context.progress.tick();
            if end.is_none() && context.shutdown.is_triggered() {
                // What the owner before left, and is not read yet, is for the next one, which reads it again anyway.
                let all_before = read >= self.told_before;
                end = Some(if all_before { end_of_signals(&self.parts.bus).await } else { read });
            }
            if end.is_some_and(|end| read >= end) {
                return Ok(());
            }
            let messages = tokio::select! {
                messages = consumer.next_batch(READ_SECTIONS, READ_WAIT) => messages?,
                () = context.shutdown.wait(), if end.is_none() => continue,
            };
            // The last one may be of another cluster.
            if messages.is_empty() && end.is_some() {
                return Ok(());
            }
            for message in messages {
                read = message.sequence;
                let section = Section { sequence: message.sequence, payload: message.payload };
                self.give(section, context).await?;
            }
            if self.parts.bus.state() == ConnectionState::Connected {
                self.keep().await?;
                self.tell_fresh().await;
            }
        }
    }

    async fn give(&mut self, mut section: Section, context: &WorkerContext) -> WorkerResult {
        loop {
            let Some(ring) = &mut self.ring else { return Ok(()) };
            match ring.try_send(section) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err("the incident worker stopped".into()),
                Err(TrySendError::Full(back)) => section = back,
            }
            if self.parts.bus.state() != ConnectionState::Connected {
                context.progress.tick();
            }
            self.parts.clock.sleep(FULL_WAIT).await;
        }
    }

    /// Keeps the newest checkpoint. A bucket that does not answer is tried again: a restart reads more until then.
    async fn keep(&mut self) -> WorkerResult {
        while let Ok(checkpoint) = self.to_keep.try_recv() {
            self.unkept = Some(checkpoint.after(self.unkept.take()));
        }
        let Some(checkpoint) = &self.unkept else { return Ok(()) };
        match self.store.save(checkpoint).await {
            Ok(()) => self.unkept = None,
            Err(BusError::Conflict { .. }) => return Err(not_the_owner(&self.parts.config.cluster)),
            Err(error) => tracing::warn!(%error, "where a restart goes on is not kept yet"),
        }
        Ok(())
    }

    /// Also when nothing comes: who reads it sees that the correlator lives, and how far it is.
    async fn tell_fresh(&mut self) {
        let now = self.parts.clock.monotonic();
        if now < self.fresh_due {
            return;
        }
        self.fresh_due = now + FRESH_EVERY;
        let fresh = self.told_fresh.borrow().clone();
        let at = UnixNanos(self.parts.clock.now_unix_nanos());
        let ttl = self.parts.config.forget_after.get().max(FORGET_AFTER_MIN);
        if let Err(error) = self.store.tell_fresh(&fresh, at, ttl).await {
            tracing::debug!(%error, "how fresh the verdicts are is not told");
        }
        self.read_priors().await;
    }

    /// Read as often as freshness is told, which is sooner than a version begins to hold.
    async fn read_priors(&mut self) {
        match self.store.priors().await {
            Ok(read) => {
                self.priors.send_if_modified(|known| {
                    let is_news = **known != read;
                    *known = Arc::new(read);
                    is_news
                });
            }
            Err(error) => tracing::warn!(%error, "what was learnt from outcomes is not read"),
        }
    }

    /// Closes the ring, waits until every finding is acknowledged, and keeps the last checkpoint.
    async fn close(mut self, thread: JoinHandle<WorkerResult>) -> WorkerResult {
        self.ring.take();
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        self.keep().await?;
        match joined {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err("the incident worker panicked".into()),
        }
    }
}

/// Up to where a stop still decides: stage one has ended before, so all that it said is in the stream. What other replicas go
/// on to say is not waited for.
async fn end_of_signals(bus: &Bus) -> u64 {
    if bus.state() != ConnectionState::Connected {
        return u64::MAX;
    }
    bus.stream_state(STREAM_SIGNALS).await.map_or(u64::MAX, |state| state.last_sequence)
}

/// What stage two ends with when another replica has taken over.
pub fn not_the_owner(cluster: &str) -> WorkerError {
    format!("another replica owns the incidents of {cluster} by now").into()
}
