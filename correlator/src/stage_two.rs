//! Stage two live: reads the signal stream, decides on a thread of its own, and publishes findings.
//!
//! After a restart the signals are read again from the oldest one that an open incident rests on; findings that
//! were published before come out again with the same id and revision, and are left out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{
    Bus, BusError, ConnectionState, Headers, OrderedConfig, OrderedConsumer, Outgoing, PublishReports,
    Publisher, StartAt,
};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{self, Receiver, RecvTimeoutError, Sender, TrySendError};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{CLOUDEVENT_TYPE_FINDING, STREAM_INSIGHTS, STREAM_SIGNALS, signals_subject};
use tapio_schemas::{Finding, FindingId, UnixNanos};
use tokio::sync::mpsc;

use crate::config::{CorrelatorConfig, nanos};
use crate::engine::StageTwo;
use crate::low_water::{LowWater, LowWaterStore, Marks, start_at};
use crate::metrics::CorrelatorMetrics;
use crate::model::Model;

const READ_SECTIONS: usize = 64;
const READ_WAIT: Duration = Duration::from_millis(100);
const FULL_WAIT: Duration = Duration::from_millis(2);
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Sections that wait for the incident worker. Full means that the consumer waits.
const RING_SECTIONS: usize = 256;
/// Findings without acknowledgement.
const PUBLISH_WINDOW: usize = 64;
/// Published findings that are remembered to leave out their repetition.
const KNOWN_MAX: usize = 65_536;
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Empty reads in a row after which the insight stream counts as read.
const EMPTY_READS: usize = 3;
/// Marks that wait to be kept; when full the newer one comes a second later anyway.
const MARKS_WAITING: usize = 16;

/// What stage two needs.
#[derive(Clone)]
pub struct StageTwoParts {
    /// Settings.
    pub config: CorrelatorConfig,
    /// Causal model.
    pub model: Arc<Model>,
    /// Bus.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Registry, for the ring.
    pub registry: Metrics,
    /// Own metrics.
    pub metrics: CorrelatorMetrics,
}

struct Section {
    sequence: u64,
    payload: Bytes,
}

impl StageTwoParts {
    /// Runs until the context is shut down (then everything in the stream is still decided) or something fails.
    ///
    /// # Errors
    /// When the bus refuses something for good, or the incident worker stops.
    pub async fn run(self, context: WorkerContext) -> WorkerResult {
        let store = LowWaterStore::open(&self.bus, &self.config.cluster, "signals").await?;
        let mark = store.load().await?;
        let now = UnixNanos(self.clock.now_unix_nanos());
        let otherwise = now.minus(nanos(self.config.replay_max));
        let since = mark.map_or(otherwise, |mark| mark.from).minus(nanos(self.config.age_max));
        let known = self.published(since, &context).await?;
        let config = OrderedConfig {
            filters: vec![signals_subject(&self.config.cluster)],
            start: start_at(&self.bus, STREAM_SIGNALS, mark, otherwise).await?,
            batch: READ_SECTIONS,
            ..OrderedConfig::new(STREAM_SIGNALS)
        };
        tracing::info!(start = ?config.start, known = known.len(), "reading signals");
        let consumer = self.bus.ordered_consumer(config).await?;
        let (ring, sections) = ring::ring("incidents", RING_SECTIONS, self.clock.clone(), &self.registry);
        let (marks, to_keep) = mpsc::channel(MARKS_WAITING);
        let gone = Arc::new(AtomicBool::new(false));
        let worker = IncidentWorker::new(&self, known, marks);
        let thread =
            std::thread::Builder::new().name("incidents".to_owned()).spawn(move || worker.run(sections))?;
        let mut reader = Reader { parts: self, ring, store, to_keep, gone };
        let read = reader.read(consumer, &context).await;
        let joined = reader.close(thread).await;
        read?;
        joined
    }

    /// Newest revision of each finding published since `since`.
    async fn published(
        &self,
        since: UnixNanos,
        context: &WorkerContext,
    ) -> Result<HashMap<FindingId, u32>, BusError> {
        let mut known = HashMap::new();
        let last = self.bus.stream_state(STREAM_INSIGHTS).await?;
        if last.messages == 0 {
            return Ok(known);
        }
        let config = OrderedConfig {
            start: StartAt::UnixNanos(since.0),
            batch: READ_SECTIONS,
            ..OrderedConfig::new(STREAM_INSIGHTS)
        };
        let mut consumer = self.bus.ordered_consumer(config).await?;
        let mut empty = 0;
        while empty < EMPTY_READS && !context.shutdown.is_triggered() {
            context.progress.tick();
            let messages = consumer.next_batch(READ_SECTIONS, READ_WAIT).await?;
            empty = if messages.is_empty() && self.bus.state() == ConnectionState::Connected {
                empty + 1
            } else {
                0
            };
            for message in messages {
                if let Ok(finding) = serde_json::from_slice::<Finding>(&message.payload)
                    && finding.cluster == self.config.cluster.as_str()
                    && known.len() < KNOWN_MAX
                {
                    let revision = known.entry(finding.id).or_insert(0);
                    *revision = finding.revision.max(*revision);
                }
                if message.sequence >= last.last_sequence {
                    return Ok(known);
                }
            }
        }
        Ok(known)
    }
}

/// The reading side: one task.
struct Reader {
    parts: StageTwoParts,
    ring: Sender<Section>,
    store: LowWaterStore,
    to_keep: mpsc::Receiver<LowWater>,
    gone: Arc<AtomicBool>,
}

impl Reader {
    async fn read(&mut self, mut consumer: OrderedConsumer, context: &WorkerContext) -> WorkerResult {
        loop {
            context.progress.tick();
            let messages = consumer.next_batch(READ_SECTIONS, READ_WAIT).await?;
            // On a stop, what stage one has said is still decided: it has ended before.
            if messages.is_empty() && context.shutdown.is_triggered() {
                return Ok(());
            }
            for message in messages {
                let section = Section { sequence: message.sequence, payload: message.payload };
                self.give(section, context).await?;
            }
            self.keep().await?;
        }
    }

    async fn give(&mut self, mut section: Section, context: &WorkerContext) -> WorkerResult {
        loop {
            match self.ring.try_send(section) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => {
                    self.gone.store(true, Ordering::Relaxed);
                    return Err("the incident worker stopped".into());
                }
                Err(TrySendError::Full(back)) => section = back,
            }
            if self.parts.bus.state() != ConnectionState::Connected {
                context.progress.tick();
            }
            self.parts.clock.sleep(FULL_WAIT).await;
        }
    }

    async fn keep(&mut self) -> Result<(), BusError> {
        let mut newest = None;
        while let Ok(mark) = self.to_keep.try_recv() {
            newest = Some(mark);
        }
        match newest {
            Some(mark) if self.parts.bus.state() == ConnectionState::Connected => self.store.save(mark).await,
            _ => Ok(()),
        }
    }

    /// Closes the ring, waits until every finding is acknowledged, and keeps the last mark.
    async fn close(mut self, thread: JoinHandle<WorkerResult>) -> WorkerResult {
        let (ring, _) = (self.ring, &self.gone);
        drop(ring);
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        let mut newest = None;
        while let Ok(mark) = self.to_keep.try_recv() {
            newest = Some(mark);
        }
        if let Some(mark) = newest {
            self.store.save(mark).await?;
        }
        match joined {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err("the incident worker panicked".into()),
        }
    }
}

/// The deciding side: one thread that owns the whole state of the cluster.
struct IncidentWorker {
    cluster: String,
    stage_two: StageTwo,
    publisher: Publisher,
    reports: PublishReports,
    known: HashMap<FindingId, u32>,
    marks: Marks,
    to_keep: mpsc::Sender<LowWater>,
    clock: SharedClock,
    metrics: CorrelatorMetrics,
    topology_ns: u64,
    submitted: u64,
    acknowledged: u64,
    /// A mark that may be kept once so many messages are acknowledged.
    waiting_mark: Option<(LowWater, u64)>,
    checkpoint_due: Duration,
}

impl IncidentWorker {
    fn new(parts: &StageTwoParts, known: HashMap<FindingId, u32>, to_keep: mpsc::Sender<LowWater>) -> Self {
        let (publisher, reports) = parts.bus.publisher(PUBLISH_WINDOW, Shutdown::new());
        Self {
            cluster: parts.config.cluster.clone(),
            stage_two: StageTwo::new(&parts.config, Arc::clone(&parts.model)),
            publisher,
            reports,
            known,
            marks: Marks::default(),
            to_keep,
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
            topology_ns: nanos(parts.config.signals.topology_refresh),
            submitted: 0,
            acknowledged: 0,
            waiting_mark: None,
            checkpoint_due: Duration::ZERO,
        }
    }

    fn run(mut self, mut sections: Receiver<Section>) -> WorkerResult {
        loop {
            match sections.recv_timeout(IDLE_WAIT) {
                Ok(item) => self.section(&item.value)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Closed) => break,
            }
            while let Some(report) = self.reports.try_next() {
                self.acknowledge(report.result.map(|_| ()))?;
            }
            self.hand_over_mark();
        }
        while self.acknowledged < self.submitted {
            let Some(report) = self.reports.next_blocking() else { break };
            self.acknowledge(report.result.map(|_| ()))?;
        }
        self.hand_over_mark();
        Ok(())
    }

    fn section(&mut self, section: &Section) -> WorkerResult {
        match self.stage_two.apply_bytes(&section.payload) {
            Ok(findings) => {
                for finding in findings {
                    self.publish(&finding)?;
                }
            }
            Err(error) => {
                self.metrics.reject("signals");
                tracing::warn!(%error, sequence = section.sequence, "a section of signals is refused");
                let headers = Headers::new()
                    .with(tapio_schemas::names::HEADER_REASON, error.to_string())
                    .with(tapio_schemas::names::HEADER_ORIGIN, signals_subject(&self.cluster));
                let subject = tapio_schemas::names::deadletter_subject("signals");
                self.submit(Outgoing { subject, msg_id: None, headers, payload: section.payload.clone() })?;
            }
        }
        self.checkpoint(section.sequence);
        Ok(())
    }

    fn publish(&mut self, finding: &Finding) -> WorkerResult {
        if self.known.get(&finding.id).is_some_and(|revision| *revision >= finding.revision) {
            self.metrics.findings_known.inc();
            return Ok(());
        }
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
        use tapio_runtime::bus::TrySubmitError;
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
        self.marks.record(sequence, self.stage_two.newest());
        if self.clock.monotonic() < self.checkpoint_due || self.waiting_mark.is_some() {
            return;
        }
        self.checkpoint_due = self.clock.monotonic() + CHECKPOINT_EVERY;
        let lag = UnixNanos(self.clock.now_unix_nanos()).since(watermark) / 1_000_000;
        self.metrics.lag_ms.set(i64::try_from(lag).unwrap_or(i64::MAX));
        // Who owns what is told again once in a while; a restart must hear one telling of it.
        let needed =
            self.stage_two.low_water().min(watermark.minus(self.topology_ns + self.topology_ns / 10));
        if let Some(sequence) = self.marks.sequence_for(needed) {
            self.waiting_mark = Some((LowWater { sequence, from: needed }, self.submitted));
        }
    }

    fn hand_over_mark(&mut self) {
        if let Some((mark, ticket)) = self.waiting_mark
            && self.acknowledged >= ticket
        {
            self.waiting_mark = None;
            // Full: the next one says more.
            let _ = self.to_keep.try_send(mark);
        }
    }
}
