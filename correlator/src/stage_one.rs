//! Stage one live: reads the event stream, hands batches to the shard workers, and moves event time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use tapio_runtime::bus::{Bus, ConnectionState, Message, OrderedConfig, OrderedConsumer};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{self, Sender, TrySendError};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{SHARD_COUNT, STREAM_EVENTS, events_filter};
use tapio_schemas::{ProducerId, UnixNanos};
use tokio::sync::mpsc;

use crate::config::{CorrelatorConfig, nanos};
use crate::low_water::{LowWater, LowWaterStore, Marks, start_at};
use crate::metrics::CorrelatorMetrics;
use crate::shards::{TICK_NS, Watermark};
use crate::worker::{Checkpointed, Shared, Work, Worker, WorkerStop};

/// Messages taken from the stream at a time.
const READ_BATCHES: usize = 256;
/// Longest wait for a message: how late a stop or an idle clock is noticed.
const READ_WAIT: Duration = Duration::from_millis(50);
/// Time between two attempts to put a batch into a full ring.
const FULL_WAIT: Duration = Duration::from_millis(2);
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Signal messages of one worker without acknowledgement.
const PUBLISH_WINDOW: usize = 64;
/// After a lost connection the clock is not followed for this long: events from before may still come.
const RECONNECT_GRACE: Duration = Duration::from_secs(2);
/// Answers to checkpoints that wait to be read.
const ANSWERS_MAX: usize = 256;
/// Checkpoints under way; older ones are given up.
const CHECKPOINTS_MAX: usize = 16;

/// What stage one needs.
#[derive(Clone)]
pub struct StageOne {
    /// Settings.
    pub config: CorrelatorConfig,
    /// Bus.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Registry, for the rings.
    pub registry: Metrics,
    /// Own metrics.
    pub metrics: CorrelatorMetrics,
}

impl StageOne {
    /// Runs until the context is shut down (then it drains) or something fails (then it is built anew).
    ///
    /// # Errors
    /// When the bus refuses something for good, or a worker stops.
    pub async fn run(self, context: WorkerContext) -> WorkerResult {
        let store = LowWaterStore::open(&self.bus, &self.config.cluster, "events").await?;
        let now = UnixNanos(self.clock.now_unix_nanos());
        let otherwise = now.minus(nanos(self.config.replay_max));
        let start = start_at(&self.bus, STREAM_EVENTS, store.load().await?, otherwise).await?;
        let config = OrderedConfig {
            filters: vec![events_filter(&self.config.cluster)],
            start,
            batch: READ_BATCHES,
            ..OrderedConfig::new(STREAM_EVENTS)
        };
        let consumer = self.bus.ordered_consumer(config).await?;
        tracing::info!(?start, cluster = %self.config.cluster, "reading events");
        let mut intake = self.intake(store)?;
        let read = intake.read(consumer, &context).await;
        let joined = intake.close().await;
        read?;
        joined?;
        Ok(())
    }

    fn intake(&self, store: LowWaterStore) -> Result<Intake, std::io::Error> {
        let workers = self.config.worker_count();
        let shared = Arc::new(Shared::default());
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        // A name of this run: acknowledged messages of an earlier run are not taken for ours.
        let producer = ProducerId(self.clock.now_unix_nanos());
        let mut rings = Vec::new();
        let mut threads = Vec::new();
        for index in 0..workers {
            let (sender, receiver) = ring::ring(
                &format!("shards-{index}"),
                self.config.ring_batches.max(1),
                self.clock.clone(),
                &self.registry,
            );
            let worker = Worker::new(
                index,
                workers,
                producer,
                &self.config,
                // Not stopped by the context: what stage one has said is sent before it ends.
                self.bus.publisher(PUBLISH_WINDOW, Shutdown::new()),
                Arc::clone(&shared),
                answers.clone(),
                self.clock.clone(),
                self.metrics.clone(),
            );
            rings.push(sender);
            let thread = std::thread::Builder::new().name(format!("shards-{index}"));
            threads.push(thread.spawn(move || worker.run(receiver))?);
        }
        Ok(Intake {
            bus: self.bus.clone(),
            clock: self.clock.clone(),
            rings,
            threads,
            shared,
            answered,
            store,
            watermark: Watermark::new(nanos(self.config.lateness)),
            advanced: UnixNanos(0),
            read_up_to: 0,
            nothing_pending: false,
            away_until: Duration::ZERO,
            checkpoints: VecDeque::new(),
            next_checkpoint: 0,
            checkpoint_due: Duration::ZERO,
            marks: Marks::default(),
            saved: 0,
            replay_max_ns: nanos(self.config.replay_max),
        })
    }
}

/// A checkpoint under way.
struct Pending {
    id: u64,
    sequence: u64,
    /// Oldest event time that the workers which have answered need.
    needed: UnixNanos,
    answers: usize,
}

/// The reading side: one task.
struct Intake {
    bus: Bus,
    clock: SharedClock,
    rings: Vec<Sender<Work>>,
    threads: Vec<JoinHandle<Result<(), WorkerStop>>>,
    shared: Arc<Shared>,
    answered: mpsc::Receiver<Checkpointed>,
    store: LowWaterStore,
    watermark: Watermark,
    advanced: UnixNanos,
    read_up_to: u64,
    nothing_pending: bool,
    /// Until then the connection counts as away.
    away_until: Duration,
    checkpoints: VecDeque<Pending>,
    next_checkpoint: u64,
    checkpoint_due: Duration,
    marks: Marks,
    saved: u64,
    replay_max_ns: u64,
}

/// A worker thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("shard worker {0} stopped")]
struct WorkerGone(usize);

impl Intake {
    async fn read(&mut self, mut consumer: OrderedConsumer, context: &WorkerContext) -> WorkerResult {
        while !context.shutdown.is_triggered() {
            context.progress.tick();
            let messages = tokio::select! {
                biased;
                () = context.shutdown.wait() => break,
                messages = consumer.next_batch(READ_BATCHES, READ_WAIT) => messages?,
            };
            let idle = messages.is_empty();
            for message in messages {
                self.route(message, context).await?;
            }
            self.move_time(idle, context).await?;
            self.checkpoint(context).await?;
        }
        Ok(())
    }

    async fn route(&mut self, message: Message, context: &WorkerContext) -> WorkerResult {
        self.read_up_to = message.sequence;
        self.nothing_pending = message.pending == 0;
        let shard = message.subject.rsplit('.').next().and_then(|token| token.parse::<u16>().ok());
        let Some(shard) = shard.filter(|shard| *shard < SHARD_COUNT) else {
            let reason = "the subject names no shard";
            self.bus.dead_letter("events", reason, &message.subject, message.payload).await?;
            return Ok(());
        };
        let worker = usize::from(shard) % self.rings.len();
        let work = Work::Batch { shard, subject: message.subject, payload: message.payload };
        self.give(worker, work, context).await
    }

    /// Puts work into a ring; a full ring is waited for. While the bus is away that is no lack of progress.
    async fn give(&mut self, worker: usize, mut work: Work, context: &WorkerContext) -> WorkerResult {
        loop {
            match self.rings[worker].try_send(work) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(WorkerGone(worker).into()),
                Err(TrySendError::Full(back)) => work = back,
            }
            if self.bus.state() != ConnectionState::Connected {
                context.progress.tick();
            }
            self.clock.sleep(FULL_WAIT).await;
        }
    }

    /// Follows the newest event; the clock, when everything is read and nothing comes.
    async fn move_time(&mut self, idle: bool, context: &WorkerContext) -> WorkerResult {
        let now = UnixNanos(self.clock.now_unix_nanos());
        if self.bus.state() != ConnectionState::Connected {
            self.away_until = self.clock.monotonic() + RECONNECT_GRACE;
        }
        let newest = UnixNanos(self.shared.newest.load(Ordering::Acquire));
        self.watermark.observe(newest.min(now));
        let queued = self.rings.iter().any(|ring| ring.depth() > 0);
        if idle && self.nothing_pending && !queued && self.clock.monotonic() >= self.away_until {
            self.watermark.caught_up(now);
        }
        let at = self.watermark.at();
        if at.since(self.advanced) >= TICK_NS {
            self.advanced = crate::shards::grid_floor(at);
            for worker in 0..self.rings.len() {
                self.give(worker, Work::Advance(at), context).await?;
            }
        }
        Ok(())
    }

    /// Asks the workers what they need, and keeps where to read on.
    async fn checkpoint(&mut self, context: &WorkerContext) -> WorkerResult {
        while let Ok(answer) = self.answered.try_recv() {
            self.note(answer);
        }
        if let Some(low_water) = self.low_water()
            && low_water.sequence > self.saved
            && self.bus.state() == ConnectionState::Connected
        {
            self.store.save(low_water).await?;
            self.saved = low_water.sequence;
        }
        if self.clock.monotonic() < self.checkpoint_due {
            return Ok(());
        }
        self.checkpoint_due = self.clock.monotonic() + CHECKPOINT_EVERY;
        self.ask(context).await
    }

    async fn ask(&mut self, context: &WorkerContext) -> WorkerResult {
        self.next_checkpoint += 1;
        let id = self.next_checkpoint;
        if self.checkpoints.len() >= CHECKPOINTS_MAX {
            self.checkpoints.pop_front();
        }
        self.checkpoints.push_back(Pending {
            id,
            sequence: self.read_up_to,
            needed: UnixNanos::MAX,
            answers: 0,
        });
        for worker in 0..self.rings.len() {
            self.give(worker, Work::Checkpoint(id), context).await?;
        }
        Ok(())
    }

    fn note(&mut self, answer: Checkpointed) {
        if let Some(pending) = self.checkpoints.iter_mut().find(|p| p.id == answer.id) {
            pending.needed = pending.needed.min(answer.needed);
            pending.answers += 1;
        }
    }

    /// The mark of the newest complete checkpoint.
    fn low_water(&mut self) -> Option<LowWater> {
        let mut newest = None;
        while let Some(first) = self.checkpoints.front()
            && first.answers == self.rings.len()
        {
            // All batches up to the sequence are judged, so nothing in them is newer than this.
            let seen = UnixNanos(self.shared.newest.load(Ordering::Acquire));
            self.marks.record(first.sequence, seen);
            newest = Some(first.needed);
            self.checkpoints.pop_front();
        }
        let needed = newest?.max(self.advanced.minus(self.replay_max_ns));
        let sequence = self.marks.sequence_for(needed)?;
        Some(LowWater { sequence, from: needed })
    }

    /// Closes the rings and waits until everything said is acknowledged.
    async fn close(&mut self) -> WorkerResult {
        self.rings.clear();
        let mut failed = Ok(());
        for (index, thread) in std::mem::take(&mut self.threads).into_iter().enumerate() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            let result: WorkerResult = match joined {
                Ok(Ok(result)) => result.map_err(Into::into),
                Ok(Err(_)) | Err(_) => Err(format!("shard worker {index} panicked").into()),
            };
            failed = failed.and(result);
        }
        failed
    }
}
