//! The publishing side: batches of the load and injected events, on the bus as node agents use it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tapio_runtime::bus::{Bus, PublishReports, Publisher};
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::UnixNanos;
use tapio_schemas::names::{SHARD_COUNT, events_subject};

use crate::error::LoadError;
use crate::load::faults::Injection;
use crate::load::generator::{Encoded, Generator};
use crate::rig::stack::CLUSTER;

/// Batches sent and not yet acknowledged.
const WINDOW: usize = 256;
/// Injected events sent and not yet acknowledged.
const INJECTION_WINDOW: usize = 64;
/// A paced sender that is ahead by less goes on: sleeping is not more exact than that.
const AHEAD_MIN: Duration = Duration::from_micros(150);
/// How often a sender that is too far ahead looks again.
const BACKLOG_WAIT: Duration = Duration::from_millis(1);

/// Where batches come from.
pub enum Batches {
    /// Made when they are due.
    Live(Box<Generator>),
    /// Made before the start: on the machine that is measured nobody does the agents' work at the same time.
    Prepared(VecDeque<Encoded>),
}

impl Batches {
    /// Makes all batches of a load of this rate and length.
    pub fn prepare(mut generator: Generator, start: Start, rate: f64, length: Duration) -> Self {
        let mut made = VecDeque::new();
        let mut events = 0;
        for shard in (0..SHARD_COUNT).cycle() {
            let due = Duration::from_secs_f64(events as f64 / rate);
            if due >= length {
                break;
            }
            let batch = generator.batch(shard, start.after(due));
            events += batch.events;
            made.push_back(batch);
        }
        Self::Prepared(made)
    }

    fn next(&mut self, shard: u16, until: UnixNanos) -> Option<Encoded> {
        match self {
            Self::Live(generator) => Some(generator.batch(shard, until)),
            Self::Prepared(made) => made.pop_front(),
        }
    }
}

/// How to publish.
#[derive(Debug, Clone, Copy)]
pub struct Drive {
    /// Events per second; `None`: as fast as the other end takes them.
    pub rate: Option<f64>,
    /// How long.
    pub length: Duration,
    /// Batches that may be published and not yet processed; then the sender waits, whatever its rate.
    pub backlog_batches: u64,
}

/// The beginning of the load, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Wall clock.
    pub unix: UnixNanos,
    /// Monotonic clock.
    pub instant: Instant,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self { unix: UnixNanos(crate::rig::observe::unix_nanos()), instant: Instant::now() }
    }

    /// Event time after so long.
    pub fn after(&self, elapsed: Duration) -> UnixNanos {
        self.unix.plus(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// What was published.
#[derive(Debug, Clone, Default)]
pub struct Driven {
    /// Events made.
    pub produced: u64,
    /// Events that the stream acknowledged.
    pub acknowledged: u64,
    /// Messages.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the start to the last acknowledgement.
    pub took: Duration,
    /// Messages that the stream had already.
    pub duplicates: u64,
    /// Paced only: how far the sender fell behind its schedule at worst.
    pub behind_max: Duration,
}

impl Driven {
    fn and(self, other: Self) -> Self {
        Self {
            produced: self.produced + other.produced,
            acknowledged: self.acknowledged + other.acknowledged,
            batches: self.batches + other.batches,
            bytes: self.bytes + other.bytes,
            took: self.took.max(other.took),
            duplicates: self.duplicates + other.duplicates,
            behind_max: self.behind_max.max(other.behind_max),
        }
    }
}

/// Publishes for the wanted time; `processed` are the batches that the other end has taken so far.
///
/// # Errors
/// When a message is refused for good.
pub async fn drive(
    bus: &Bus,
    batches: Batches,
    injections: Vec<Injection>,
    start: Start,
    drive: Drive,
    processed: Arc<AtomicU64>,
) -> Result<Driven, LoadError> {
    let (publisher, reports) = bus.publisher(WINDOW, Shutdown::new());
    let counts = Counts::default();
    let acks = tokio::spawn(acknowledge(reports, counts.clone(), start));
    let injecting = tokio::spawn(inject(bus.clone(), injections, start));
    let sending = tokio::task::spawn_blocking(move || {
        Sender { batches, publisher, counts, start, drive, processed }.run()
    });
    let sent = sending.await.map_err(ended)??;
    let acknowledged = acks.await.map_err(ended)??;
    let injected = injecting.await.map_err(ended)??;
    Ok(Driven {
        acknowledged: acknowledged.acknowledged,
        duplicates: acknowledged.duplicates,
        took: acknowledged.took,
        ..sent
    }
    .and(injected))
}

fn ended(error: tokio::task::JoinError) -> LoadError {
    LoadError::Generator(error.to_string())
}

/// Events of each message that is sent and not yet acknowledged, in order.
type Counts = Arc<Mutex<VecDeque<u64>>>;

struct Sender {
    batches: Batches,
    publisher: Publisher,
    counts: Counts,
    start: Start,
    drive: Drive,
    processed: Arc<AtomicU64>,
}

impl Sender {
    fn run(mut self) -> Result<Driven, LoadError> {
        let subjects: Vec<String> = (0..SHARD_COUNT).map(|shard| events_subject(CLUSTER, shard)).collect();
        let mut driven = Driven::default();
        for shard in (0..SHARD_COUNT).cycle() {
            let Some(until) = self.wait(&mut driven) else { break };
            let Some(batch) = self.batches.next(shard, until) else { break };
            driven.produced += batch.events;
            driven.batches += 1;
            driven.bytes += batch.bytes.len() as u64;
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).push_back(batch.events);
            self.publisher.submit_blocking(batch.into_outgoing(&subjects[usize::from(shard)]))?;
        }
        Ok(driven)
    }

    /// Time up to which the next batch reaches; `None` when the load is over.
    fn wait(&self, driven: &mut Driven) -> Option<UnixNanos> {
        while driven.batches.saturating_sub(self.processed.load(Ordering::Relaxed))
            >= self.drive.backlog_batches
        {
            if self.start.instant.elapsed() >= self.drive.length {
                return None;
            }
            std::thread::sleep(BACKLOG_WAIT);
        }
        let elapsed = self.start.instant.elapsed();
        let Some(rate) = self.drive.rate else {
            return (elapsed < self.drive.length).then(|| self.start.after(elapsed));
        };
        // By the schedule, not by when it is really sent: a stall shows as latency of everything it delays.
        let due = Duration::from_secs_f64(driven.produced as f64 / rate);
        if due >= self.drive.length {
            return None;
        }
        if due > elapsed + AHEAD_MIN {
            std::thread::sleep(due - elapsed);
        } else {
            driven.behind_max = driven.behind_max.max(elapsed.saturating_sub(due));
        }
        Some(self.start.after(due))
    }
}

async fn acknowledge(mut reports: PublishReports, counts: Counts, start: Start) -> Result<Driven, LoadError> {
    let mut driven = Driven::default();
    while let Some(report) = reports.next().await {
        let ack = report.result?;
        let events = counts.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(0);
        driven.acknowledged += events;
        driven.duplicates += u64::from(ack.duplicate);
        driven.took = start.instant.elapsed();
    }
    Ok(driven)
}

async fn inject(bus: Bus, injections: Vec<Injection>, start: Start) -> Result<Driven, LoadError> {
    let (mut publisher, mut reports) = bus.publisher(INJECTION_WINDOW, Shutdown::new());
    let reading = tokio::spawn(async move {
        let mut driven = Driven::default();
        while let Some(report) = reports.next().await {
            driven.duplicates += u64::from(report.result?.duplicate);
            driven.acknowledged += 1;
        }
        Ok::<Driven, LoadError>(driven)
    });
    // A thread of its own: timers of tokio are a millisecond coarse, and that is not the way of the event.
    let sending = tokio::task::spawn_blocking(move || {
        let mut sent = Driven::default();
        for injection in injections {
            std::thread::sleep((start.instant + injection.at).saturating_duration_since(Instant::now()));
            sent.produced += 1;
            sent.batches += 1;
            sent.bytes += injection.bytes.len() as u64;
            publisher.submit_blocking(injection.into_outgoing())?;
        }
        Ok::<Driven, LoadError>(sent)
    });
    let sent = sending.await.map_err(ended)??;
    let acknowledged = reading.await.map_err(ended)??;
    Ok(sent.and(acknowledged))
}
