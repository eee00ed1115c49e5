//! A shard worker: one thread that owns shards, from the ring to the signal stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Headers, Outgoing};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::memory::Pressure;
use tapio_runtime::ring::{Receiver, RecvTimeoutError};
use tapio_schemas::names::{SHARD_COUNT, signals_subject};
use tapio_schemas::wire::{ShardMark, SignalSection, WireError, encode_signals};
use tapio_schemas::{ProducerId, UnixNanos};
use tokio::sync::mpsc;

use super::deferred::Deferred;
use super::owned::OwnedShard;
use super::panics::Suspects;
use super::parts::parts;
use crate::config::{CorrelatorConfig, nanos};
use crate::low_water::LowWater;
use crate::metrics::CorrelatorMetrics;
use crate::outbox::{BusOutlet, Outbox, Outlet};
use crate::shards::{CHUNK_UNITS, ShardSet, TICK_NS};

/// Longest wait for work: how late acknowledgements are noticed.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// The same while a shard is given back: its next owner waits for that.
const RELEASE_WAIT: Duration = Duration::from_millis(5);
/// Time between two looks at which marks are to be told.
const MARKS_EVERY: Duration = Duration::from_millis(50);
/// Event time after the last news in which marks are told at each step, so that verdicts come at once.
const NEWS_NS: u64 = 5_000_000_000;
/// Event time between two marks when nothing happens.
const HEARTBEAT_NS: u64 = 1_000_000_000;
/// Time between two looks at what the shards need.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Answers that wait for acknowledgements: one checkpoint of all shards, and their releases.
const ANSWERS_WAITING_MAX: usize = 4 * SHARD_COUNT as usize;

/// What a worker is given.
pub enum Work {
    /// A shard is ours from now on.
    Own {
        /// Shard.
        shard: u16,
        /// Epoch of its lease.
        epoch: u64,
        /// Where the owner before says that reading has to begin.
        from: Option<LowWater>,
    },
    /// The shard goes to another owner: everything said, and acknowledged, it is answered.
    Release(u16),
    /// The shard is another's: nothing more is said of it.
    Lost(u16),
    /// A message of the event stream.
    Batch {
        /// Shard in its subject.
        shard: u16,
        /// Its place in the stream.
        sequence: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// All of these shards' messages have been given, and it is `now`.
    CaughtUp {
        /// A bit per shard.
        shards: u64,
        /// Wall time.
        now: UnixNanos,
    },
}

/// What a worker tells the control side.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Shard.
    pub shard: u16,
    /// Epoch of the lease under which it was said.
    pub epoch: u64,
    /// Where a new owner has to begin; `None`: as said before.
    pub low_water: Option<LowWater>,
    /// The shard is given back.
    pub released: bool,
}

/// What all workers of a replica share: no lock.
#[derive(Default)]
pub struct Shared {
    /// Event time at which any worker last had news.
    pub news: AtomicU64,
    /// Shards that this replica owns.
    pub owned: AtomicU64,
    /// What is shed because memory runs out: the number of a [`Pressure`].
    pub pressure: AtomicU8,
    /// Turns of each worker's loop: no turn means no progress.
    pub turns: Vec<AtomicU64>,
}

impl Shared {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { turns: (0..workers).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    /// What is shed.
    pub fn pressure(&self) -> Pressure {
        Pressure::from_number(self.pressure.load(Ordering::Relaxed))
    }
}

/// Why a worker stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkerStop {
    /// A message can never be stored.
    #[error("cannot publish signals: {0}")]
    Publish(#[from] BusError),
    /// A section cannot be encoded.
    #[error("cannot encode signals: {0}")]
    Encode(#[from] WireError),
}

/// What a worker gets.
pub struct WorkerParts {
    /// Its number.
    pub index: usize,
    /// Its name in section headers.
    pub producer: ProducerId,
    /// Settings.
    pub config: CorrelatorConfig,
    /// Shared with the other workers.
    pub shared: Arc<Shared>,
    /// Where answers go.
    pub answers: mpsc::Sender<Answer>,
    /// Clock.
    pub clock: SharedClock,
    /// Metrics.
    pub metrics: CorrelatorMetrics,
}

/// One worker.
pub struct Worker<O> {
    pub(super) parts: WorkerParts,
    pub(super) outbox: Outbox<O>,
    pub(super) shards: ShardSet,
    owned: Vec<Option<OwnedShard>>,
    pub(super) sections: Vec<SignalSection>,
    pub(super) deferred: Deferred,
    /// What panics were over.
    pub(super) suspects: Suspects,
    /// Units of work between two looks at the clock.
    pub(super) chunk: u32,
    /// Nothing waits to be read.
    pub(super) is_idle: bool,
    sequence: u64,
    /// Answers, and how many messages must be acknowledged before they are true.
    waiting: VecDeque<(Answer, u64)>,
    pub(super) marks_due: Duration,
    checkpoint_due: Duration,
    status_due: Duration,
}

impl Worker<BusOutlet> {
    /// Works until the ring is closed and empty and everything said is acknowledged.
    ///
    /// # Errors
    /// [`WorkerStop`].
    pub fn run(mut self, mut ring: Receiver<Work>) -> Result<(), WorkerStop> {
        loop {
            if let Some(turns) = self.parts.shared.turns.get(self.parts.index) {
                turns.fetch_add(1, Ordering::Relaxed);
            }
            let received = ring.recv_timeout(self.wait());
            self.is_idle = received.is_err();
            match received {
                Ok(item) => self.work(item.value)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Closed) => break,
            }
            self.turn()?;
            while !self.is_ready() {
                if !self.outbox.wait()? {
                    return Err(BusError::Closed.into());
                }
                self.outbox.turn()?;
            }
        }
        while !self.outbox.is_settled() && self.outbox.wait()? {
            self.outbox.turn()?;
        }
        self.answer();
        self.count();
        Ok(())
    }
}

impl<O: Outlet> Worker<O> {
    /// A worker without shards.
    pub fn new(parts: WorkerParts, outlet: O) -> Self {
        Self {
            shards: ShardSet::new(&parts.config.cluster, [], &parts.config),
            outbox: Outbox::new(outlet),
            owned: (0..SHARD_COUNT).map(|_| None).collect(),
            sections: Vec::new(),
            deferred: Deferred::new(&parts.config),
            suspects: Suspects::default(),
            chunk: CHUNK_UNITS,
            is_idle: true,
            sequence: 0,
            waiting: VecDeque::new(),
            marks_due: Duration::ZERO,
            checkpoint_due: Duration::ZERO,
            status_due: Duration::ZERO,
            parts,
        }
    }

    /// With so many units of work between two looks at the clock.
    #[cfg(test)]
    pub fn with_chunk(self, chunk: u32) -> Self {
        Self { chunk, ..self }
    }

    /// Batches put aside.
    #[cfg(test)]
    pub fn put_aside_now(&self) -> usize {
        self.deferred.batches()
    }

    /// How long to wait for work.
    pub fn wait(&self) -> Duration {
        if !self.deferred.is_empty() {
            return Duration::ZERO;
        }
        let gives_back = self.waiting.iter().any(|(answer, _)| answer.released);
        if gives_back { RELEASE_WAIT } else { IDLE_WAIT }
    }

    /// Whether it takes work: everything said is on its way.
    pub fn is_ready(&self) -> bool {
        self.outbox.is_clear()
    }

    /// What is to be done between two pieces of work: sends, takes acknowledgements, tells marks and answers.
    ///
    /// # Errors
    /// [`WorkerStop`].
    pub fn turn(&mut self) -> Result<(), WorkerStop> {
        let now = self.parts.clock.monotonic();
        if now >= self.marks_due {
            self.marks_due = now + MARKS_EVERY;
            self.tell_marks()?;
            self.count();
        }
        if now >= self.status_due {
            self.status_due = now + tapio_schemas::status::EVERY / 2;
            let owned = self.owned.iter().flatten().map(OwnedShard::status).collect();
            let deferred = (self.deferred.batches(), self.deferred.age(now));
            self.parts.metrics.board.set(self.parts.index, owned, deferred, self.shards.accounts());
        }
        self.outbox.turn()?;
        if self.is_ready() && !self.deferred.is_empty() {
            self.work_off()?;
            self.outbox.turn()?;
        }
        if now >= self.checkpoint_due {
            self.checkpoint_due = now + CHECKPOINT_EVERY;
            self.checkpoint();
        }
        self.answer();
        Ok(())
    }

    /// Does a piece of work. What it says waits for the next turn.
    ///
    /// # Errors
    /// [`WorkerStop`].
    pub fn work(&mut self, work: Work) -> Result<(), WorkerStop> {
        match work {
            Work::Batch { shard, sequence, payload } => self.batch(shard, sequence, payload),
            Work::CaughtUp { shards, now } => {
                for shard in (0..SHARD_COUNT).filter(|shard| shards & (1 << shard) != 0) {
                    // What was put aside is not read: who has something waiting does not follow the clock.
                    if self.deferred.has(shard) {
                        continue;
                    }
                    if let Some(owned) = self.of(shard) {
                        owned.caught_up(now);
                        self.advance(shard)?;
                    }
                }
                Ok(())
            }
            Work::Own { shard, epoch, from } => {
                self.disown(shard);
                let config = &self.parts.config;
                let (lateness, replay_max) = (nanos(config.lateness), nanos(config.replay_max));
                let mut owned = OwnedShard::new(shard, epoch, from, lateness, replay_max);
                owned.since = UnixNanos(self.parts.clock.now_unix_nanos());
                self.shards.own(shard, epoch, config);
                self.shards.read_from(shard, from.map_or(UnixNanos(0), |mark| mark.from));
                if let Some(slot) = self.owned.get_mut(usize::from(shard)) {
                    *slot = Some(owned);
                    self.parts.shared.owned.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
            Work::Release(shard) => {
                self.tell_marks()?;
                self.release(shard);
                Ok(())
            }
            Work::Lost(shard) => {
                self.disown(shard);
                Ok(())
            }
        }
    }

    pub(super) fn of(&mut self, shard: u16) -> Option<&mut OwnedShard> {
        self.owned.get_mut(usize::from(shard))?.as_mut()
    }

    pub(super) fn disown(&mut self, shard: u16) -> Option<OwnedShard> {
        self.deferred.forget(shard);
        let owned = self.owned.get_mut(usize::from(shard))?.take()?;
        self.suspects.leave(shard, self.parts.clock.monotonic());
        self.parts.shared.owned.fetch_sub(1, Ordering::Relaxed);
        if let Some(counters) = self.shards.disown(shard) {
            self.parts.metrics.add(&counters);
        }
        Some(owned)
    }

    fn release(&mut self, shard: u16) {
        let needed = self.shards.low_water_of(shard);
        let Some(mut owned) = self.disown(shard) else { return };
        self.suspects.forget(shard);
        let low_water = needed.and_then(|needed| owned.last_low_water(needed));
        self.answer_later(Answer { shard, epoch: owned.epoch, low_water, released: true });
    }

    /// Once everything said so far is acknowledged.
    pub(super) fn answer_later(&mut self, answer: Answer) {
        self.waiting.push_back((answer, self.outbox.said()));
    }

    /// Tells how far the shards are that had nothing to say. Stage two decides when all are past a step, so after news each
    /// step is told. Who does not own all shards cannot know what the others heard.
    fn tell_marks(&mut self) -> Result<(), WorkerStop> {
        let news = UnixNanos(self.parts.shared.news.load(Ordering::Acquire));
        let alone = self.parts.shared.owned.load(Ordering::Relaxed) == u64::from(SHARD_COUNT);
        let mut marks = Vec::new();
        for owned in self.owned.iter_mut().flatten() {
            let at = owned.advanced();
            let calm = alone && (news.0 == 0 || at.since(news) > NEWS_NS);
            if at > owned.said && at.since(owned.said) >= if calm { HEARTBEAT_NS } else { TICK_NS } {
                owned.said = at;
                marks.push(ShardMark { shard: owned.shard, epoch: owned.epoch, at });
            }
        }
        if marks.is_empty() {
            return Ok(());
        }
        self.say(SignalSection { marks, ..SignalSection::default() })
    }

    pub(super) fn say(&mut self, section: SignalSection) -> Result<(), WorkerStop> {
        for part in parts(section) {
            self.sequence += 1;
            let bytes = encode_signals(self.parts.producer, 0, self.sequence, &part)?;
            let msg_id = Some(format!("sig-{}-{}-{}", self.parts.producer, self.parts.index, self.sequence));
            self.parts.metrics.sections.inc();
            let subject = signals_subject(&self.parts.config.cluster);
            self.outbox.say(Outgoing {
                subject,
                msg_id,
                headers: Headers::new(),
                payload: Bytes::from(bytes),
            });
        }
        Ok(())
    }

    fn count(&mut self) {
        for counters in self.shards.take_counters() {
            self.parts.metrics.add(&counters);
        }
    }

    /// What the shards need, to be kept with their leases once everything said so far is acknowledged.
    fn checkpoint(&mut self) {
        let mut open = self.shards.open();
        open.push(("deferred", self.deferred.batches()));
        self.parts.metrics.set_open(self.parts.index, &open);
        if self.waiting.len() >= ANSWERS_WAITING_MAX {
            return;
        }
        for owned in self.owned.iter_mut().flatten() {
            let low_water = self.shards.low_water_of(owned.shard).and_then(|needed| owned.low_water(needed));
            if low_water.is_some() {
                self.suspects.forget_passed(owned);
                let answer = Answer { shard: owned.shard, epoch: owned.epoch, low_water, released: false };
                self.waiting.push_back((answer, self.outbox.said()));
            }
        }
    }

    fn answer(&mut self) {
        while let Some((answer, ticket)) = self.waiting.front().copied() {
            if ticket > self.outbox.acknowledged() {
                return;
            }
            match self.parts.answers.try_send(answer) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                // Read later; a release must not be lost.
                Err(mpsc::error::TrySendError::Full(_)) => return,
                Err(mpsc::error::TrySendError::Closed(_)) => self.waiting.clear(),
            }
        }
    }
}
