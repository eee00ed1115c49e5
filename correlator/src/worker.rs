//! A shard worker: one thread that owns shards, from the ring to the signal stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Headers, Outgoing, PublishReports, Publisher};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{Receiver, RecvTimeoutError};
use tapio_schemas::names::{HEADER_ORIGIN, HEADER_REASON, deadletter_subject, signals_subject};
use tapio_schemas::wire::{SignalSection, WireError, encode_signals};
use tapio_schemas::{ProducerId, UnixNanos};
use tokio::sync::mpsc;

use crate::config::{CorrelatorConfig, nanos};
use crate::metrics::CorrelatorMetrics;
use crate::shards::{ShardSet, TICK_NS, grid_floor};

/// Longest wait for work: how late acknowledgements are noticed.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Event time after the last news in which a watermark is told at each tick, so that verdicts come at once.
const NEWS_NS: u64 = 5_000_000_000;
/// Event time between two watermarks when nothing happens.
const HEARTBEAT_NS: u64 = 1_000_000_000;
/// Signals, facts, tallies and gaps in one message.
const SECTION_ITEMS_MAX: usize = 1000;
/// Checkpoints that wait for acknowledgements; when there are more, the newest replaces the last.
const CHECKPOINTS_MAX: usize = 16;

/// What a worker is given.
pub enum Work {
    /// A message of the event stream.
    Batch {
        /// Shard in its subject.
        shard: u16,
        /// Its subject.
        subject: String,
        /// Its bytes.
        payload: Bytes,
    },
    /// Event time up to which everything is known.
    Advance(UnixNanos),
    /// Asks for the oldest event time that is needed, once everything said so far is acknowledged.
    Checkpoint(u64),
}

/// Answer to [`Work::Checkpoint`].
#[derive(Debug, Clone, Copy)]
pub struct Checkpointed {
    /// Which checkpoint.
    pub id: u64,
    /// Oldest event time that its shards need.
    pub needed: UnixNanos,
}

/// What all workers share: two times, no lock.
#[derive(Default)]
pub struct Shared {
    /// Newest event time seen by any worker.
    pub newest: AtomicU64,
    /// Watermark at which any worker last had news.
    pub news: AtomicU64,
}

/// Why a worker stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkerStop {
    /// A message can never be stored.
    #[error("cannot publish signals: {0}")]
    Publish(#[from] tapio_runtime::bus::BusError),
    /// A section cannot be encoded.
    #[error("cannot encode signals: {0}")]
    Encode(#[from] WireError),
}

/// One worker.
pub struct Worker {
    /// Its number.
    pub index: usize,
    /// Its shards.
    pub shards: ShardSet,
    /// Its name in section headers.
    pub producer: ProducerId,
    /// Cluster.
    pub cluster: String,
    /// Window of outstanding acknowledgements.
    pub publisher: Publisher,
    /// Their outcome.
    pub reports: PublishReports,
    /// Times shared with the others.
    pub shared: Arc<Shared>,
    /// Where answers to checkpoints go.
    pub answers: mpsc::Sender<Checkpointed>,
    /// Clock.
    pub clock: SharedClock,
    /// Metrics.
    pub metrics: CorrelatorMetrics,
    /// How far ahead of the clock an event may lie.
    pub future_max_ns: u64,
    sequence: u64,
    /// Tickets submitted and acknowledged.
    submitted: u64,
    acknowledged: u64,
    said: UnixNanos,
    checkpoints: VecDeque<(Checkpointed, u64)>,
}

impl Worker {
    /// A worker with the shards `index mod workers`.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        index: usize,
        workers: usize,
        producer: ProducerId,
        config: &CorrelatorConfig,
        (publisher, reports): (Publisher, PublishReports),
        shared: Arc<Shared>,
        answers: mpsc::Sender<Checkpointed>,
        clock: SharedClock,
        metrics: CorrelatorMetrics,
    ) -> Self {
        let ids = (0..tapio_schemas::names::SHARD_COUNT).filter(|id| usize::from(*id) % workers == index);
        Self {
            index,
            shards: ShardSet::new(&config.cluster, ids, config),
            producer,
            cluster: config.cluster.clone(),
            publisher,
            reports,
            shared,
            answers,
            clock,
            metrics,
            future_max_ns: nanos(config.future_max),
            sequence: 0,
            submitted: 0,
            acknowledged: 0,
            said: UnixNanos(0),
            checkpoints: VecDeque::new(),
        }
    }

    /// Works until the ring is closed and empty and everything said is acknowledged.
    pub fn run(mut self, mut ring: Receiver<Work>) -> Result<(), WorkerStop> {
        loop {
            match ring.recv_timeout(IDLE_WAIT) {
                Ok(item) => self.work(item.value)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Closed) => break,
            }
            while let Some(report) = self.reports.try_next() {
                self.acknowledge(report.result.map(|_| ()))?;
            }
            self.answer();
        }
        while self.acknowledged < self.submitted {
            let Some(report) = self.reports.next_blocking() else { break };
            self.acknowledge(report.result.map(|_| ()))?;
        }
        self.answer();
        Ok(())
    }

    fn work(&mut self, work: Work) -> Result<(), WorkerStop> {
        match work {
            Work::Batch { shard, subject, payload } => self.batch(shard, &subject, &payload),
            Work::Advance(watermark) => self.advance(watermark),
            Work::Checkpoint(id) => {
                let needed = self.shards.low_water();
                let answer = Checkpointed { id, needed };
                if self.checkpoints.len() >= CHECKPOINTS_MAX {
                    self.checkpoints.pop_back();
                }
                self.checkpoints.push_back((answer, self.submitted));
                self.metrics.set_open(self.index, &self.shards.open());
                Ok(())
            }
        }
    }

    fn batch(&mut self, shard: u16, subject: &str, payload: &Bytes) -> Result<(), WorkerStop> {
        self.metrics.batches.inc();
        let newest_allowed = UnixNanos(self.clock.now_unix_nanos()).plus(self.future_max_ns);
        match self.shards.take(payload, Some(shard), newest_allowed) {
            Ok(taken) => {
                self.shared.newest.fetch_max(taken.newest.0, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.metrics.reject(error.reason());
                tracing::warn!(%subject, %error, "a batch of events is refused");
                let headers =
                    Headers::new().with(HEADER_REASON, error.to_string()).with(HEADER_ORIGIN, subject);
                self.submit(deadletter_subject("events"), None, headers, payload.clone())
            }
        }
    }

    fn advance(&mut self, watermark: UnixNanos) -> Result<(), WorkerStop> {
        if grid_floor(watermark) <= self.said {
            return Ok(());
        }
        let sections = self.shards.advance(watermark);
        for counters in self.shards.take_counters() {
            self.metrics.add(&counters);
        }
        let at = grid_floor(watermark);
        for section in sections {
            if !section.signals.is_empty() {
                self.shared.news.fetch_max(at.0, Ordering::AcqRel);
            }
            let news = UnixNanos(self.shared.news.load(Ordering::Acquire));
            let rhythm = if at.since(news) <= NEWS_NS && news.0 > 0 { TICK_NS } else { HEARTBEAT_NS };
            if section.is_heartbeat() {
                if at.since(self.said) < rhythm {
                    continue;
                }
                self.said = at;
            }
            for part in parts(section) {
                self.sequence += 1;
                let bytes = encode_signals(self.producer, 0, self.sequence, &part)?;
                let id = format!("sig-{}-{}-{}", self.producer, self.index, self.sequence);
                self.metrics.sections.inc();
                self.submit(signals_subject(&self.cluster), Some(id), Headers::new(), Bytes::from(bytes))?;
            }
        }
        Ok(())
    }

    fn submit(
        &mut self,
        subject: String,
        msg_id: Option<String>,
        headers: Headers,
        payload: Bytes,
    ) -> Result<(), WorkerStop> {
        // Reports must be read while we wait for room, or the window never opens.
        let mut outgoing = Outgoing { subject, msg_id, headers, payload };
        loop {
            match self.publisher.try_submit(outgoing) {
                Ok(_) => {
                    self.submitted += 1;
                    return Ok(());
                }
                Err(tapio_runtime::bus::TrySubmitError::Full(back)) => outgoing = back,
                Err(tapio_runtime::bus::TrySubmitError::Closed(_)) => {
                    return Err(tapio_runtime::bus::BusError::Closed.into());
                }
            }
            match self.reports.next_blocking() {
                Some(report) => self.acknowledge(report.result.map(|_| ()))?,
                None => return Err(tapio_runtime::bus::BusError::Closed.into()),
            }
        }
    }

    fn acknowledge(&mut self, result: Result<(), tapio_runtime::bus::BusError>) -> Result<(), WorkerStop> {
        result?;
        self.acknowledged += 1;
        Ok(())
    }

    fn answer(&mut self) {
        while let Some((answer, ticket)) = self.checkpoints.front().copied() {
            if ticket > self.acknowledged {
                return;
            }
            self.checkpoints.pop_front();
            // Nobody waits for it any more, or too many wait: the next checkpoint says more.
            let _ = self.answers.try_send(answer);
        }
    }
}

/// Cuts a section into messages of bounded size. All but the last say that more of the step follows.
fn parts(section: SignalSection) -> Vec<SignalSection> {
    let items = section.signals.len() + section.facts.len() + section.tallies.len() + section.gaps.len();
    if items <= SECTION_ITEMS_MAX {
        return vec![section];
    }
    let mut parts = Vec::new();
    let SignalSection { marks, mut facts, mut signals, mut tallies, mut gaps, .. } = section;
    let take = |room: &mut usize, len: usize| {
        let n = len.min(*room);
        *room -= n;
        n
    };
    while !(facts.is_empty() && signals.is_empty() && tallies.is_empty() && gaps.is_empty()) {
        let mut room = SECTION_ITEMS_MAX;
        parts.push(SignalSection {
            marks: marks.clone(),
            partial: true,
            facts: facts.drain(..take(&mut room, facts.len())).collect(),
            signals: signals.drain(..take(&mut room, signals.len())).collect(),
            tallies: tallies.drain(..take(&mut room, tallies.len())).collect(),
            gaps: gaps.drain(..take(&mut room, gaps.len())).collect(),
        });
    }
    if let Some(last) = parts.last_mut() {
        last.partial = false;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::wire::ShardMark;
    use tapio_schemas::{EntityRef, Signal, SignalKind};

    #[test]
    fn large_sections_are_cut_and_promise_only_at_the_end() {
        let signals: Vec<Signal> = (0..2500u64)
            .map(|i| Signal::new(SignalKind::OomKill, Arc::new(EntityRef::default()), None, UnixNanos(i)))
            .collect();
        let section = SignalSection {
            marks: vec![ShardMark { shard: 3, epoch: 1, at: UnixNanos(9) }],
            signals: signals.clone(),
            ..SignalSection::default()
        };
        let cut = parts(section);
        assert_eq!(cut.iter().map(|p| p.partial).collect::<Vec<_>>(), [true, true, false]);
        assert!(cut.iter().all(|p| p.marks.len() == 1));
        let ids = |all: Vec<Signal>| all.into_iter().map(|s| s.id).collect::<Vec<_>>();
        assert_eq!(ids(cut.into_iter().flat_map(|p| p.signals).collect()), ids(signals));
    }
}
