//! A producer that can be killed at any time: what it sends follows from its seed, and it keeps how far it was
//! acknowledged, so that the next run goes on with the very next message.
//!
//! It stands for agents whose backlog is on disk. What was sent and not acknowledged is sent again under the same id.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tapio_runtime::bus::{PublishReports, Publisher};
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::UnixNanos;
use tapio_schemas::names::{SHARD_COUNT, events_subject};

use crate::error::LoadError;
use crate::load::PRODUCER;
use crate::load::faults::{self, Injection, Plan};
use crate::load::generator::{Cut, Generator, Templates};
use crate::load::traces::live;
use crate::load::world::World;
use crate::measure::events_per_batch;
use crate::rig::observe::unix_nanos;
use crate::rig::process::Launch;
use crate::rig::stack::{self, CLUSTER, Stack};

/// Messages sent and not yet acknowledged.
const WINDOW: usize = 128;
/// Sleeping is not more exact than this.
const AHEAD_MIN: Duration = Duration::from_millis(1);

/// What it sends and where it keeps its place.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// NATS.
    pub url: String,
    /// Wall clock at the beginning of the load; the same for every run.
    pub start: UnixNanos,
    /// Events per second.
    pub rate: f64,
    /// Oldest event of a batch.
    pub batch_age: Duration,
    /// Node agents it stands for.
    pub producers: usize,
    /// Faults; its length is the length of the load.
    pub plan: Plan,
    /// File of the place.
    pub place: PathBuf,
}

/// How far a producer is: kept in a file of some numbers, which outlives the process because it is in the kernel's hands
/// once written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Batches acknowledged, without a hole.
    pub batches: u64,
    /// Their events, counted with each acknowledgement.
    pub batched: u64,
    /// Injected events acknowledged, without a hole.
    pub injections: u64,
    /// Events of all that was made, once all is made; else zero.
    pub produced: u64,
    /// Messages of all that was made, once all is made; else zero.
    pub messages: u64,
}

/// Offsets of the numbers in the file.
const BATCHES_AT: u64 = 0;
const BATCHED_AT: u64 = 8;
const INJECTIONS_AT: u64 = 16;
const PRODUCED_AT: u64 = 32;
const MESSAGES_AT: u64 = 40;

impl Place {
    /// Events acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.batched + self.injections
    }

    /// Reads it; all zero when there is no file.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        let number = |at: u64| {
            let at = at as usize;
            bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        Self {
            batches: number(BATCHES_AT),
            batched: number(BATCHED_AT),
            injections: number(INJECTIONS_AT),
            produced: number(PRODUCED_AT),
            messages: number(MESSAGES_AT),
        }
    }
}

/// The producer as a process beside a stack: `arguments` say what it sends, URL, start and place are added.
pub fn launch(program: &Path, arguments: &[String], stack: &Stack, start: UnixNanos, place: &Path) -> Launch {
    let own = [
        ("--nats-url", stack.url()),
        ("--start-unix-nanos", start.0.to_string()),
        ("--place", place.to_string_lossy().into_owned()),
    ];
    let own = own.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    Launch {
        name: "sender".to_owned(),
        program: program.to_owned(),
        arguments: arguments.iter().cloned().chain(own).collect(),
        dir: stack.dir().to_owned(),
    }
}

/// Sends what is left of the load, and ends when all is acknowledged.
///
/// # Errors
/// When NATS refuses something for good, or the place cannot be kept.
pub async fn run(config: ProducerConfig) -> Result<(), LoadError> {
    let failed = |source| LoadError::File { path: config.place.clone(), source };
    let place = Place::read(&config.place);
    let file =
        File::options().create(true).truncate(false).write(true).open(&config.place).map_err(failed)?;
    let world = World::new(CLUSTER, config.plan.seed);
    let faults = faults::plan(&world, &config.plan);
    let injections = faults::injections(&world, &config.plan, &faults, config.start)?;
    let injected = injections.len() as u64;
    let events = Some(events_per_batch(config.rate, config.batch_age));
    let cut = Cut { producers: config.producers, events, live: live(Some(config.rate)) };
    let generator = Generator::new(&Templates::new(&world, config.plan.seed, cut)?, PRODUCER, config.start);
    let bus = stack::connect(&config.url, "loadtest-producer").await?;

    let keep = |at, messages, events| Keep { file: file.try_clone(), at, messages, events };
    let (publisher, reports) = bus.publisher(WINDOW, Shutdown::new());
    let (counts, sent) = std::sync::mpsc::sync_channel(2 * WINDOW);
    let events = move || sent.try_recv().unwrap_or(0);
    let acknowledged =
        tokio::spawn(acknowledge(reports, keep(BATCHES_AT, place.batches, place.batched), events));
    let sender = Sender {
        generator,
        publisher,
        counts,
        rate: config.rate,
        start: config.start,
        length: config.plan.length,
    };
    let sending = tokio::task::spawn_blocking(move || sender.run(place.batches));

    let (publisher, reports) = bus.publisher(WINDOW, Shutdown::new());
    let keep = keep(INJECTIONS_AT, place.injections, place.injections);
    let answered = tokio::spawn(acknowledge(reports, keep, || 1));
    inject(publisher, injections, config.start, place.injections).await?;
    answered.await.map_err(ended)??;
    let (batches, events) = sending.await.map_err(ended)??;
    acknowledged.await.map_err(ended)??;
    file.write_all_at(&(events + injected).to_le_bytes(), PRODUCED_AT).map_err(failed)?;
    file.write_all_at(&(batches + injected).to_le_bytes(), MESSAGES_AT).map_err(failed)
}

fn ended(error: tokio::task::JoinError) -> LoadError {
    LoadError::Generator(error.to_string())
}

/// Where an acknowledgement is noted, and how many there were before.
struct Keep {
    file: std::io::Result<File>,
    at: u64,
    messages: u64,
    events: u64,
}

/// Reports come in the order of sending, so their number is the place. `events`: those of the next message.
async fn acknowledge(
    mut reports: PublishReports,
    mut keep: Keep,
    mut events: impl FnMut() -> u64,
) -> Result<(), LoadError> {
    let failed = |source| LoadError::File { path: PathBuf::from("place"), source };
    let file = keep.file.map_err(failed)?;
    while let Some(report) = reports.next().await {
        report.result?;
        keep.messages += 1;
        keep.events += events();
        // Both at once: who is killed leaves numbers of one moment.
        let mut both = [0; 16];
        both[..8].copy_from_slice(&keep.messages.to_le_bytes());
        both[8..].copy_from_slice(&keep.events.to_le_bytes());
        file.write_all_at(&both, keep.at).map_err(failed)?;
    }
    Ok(())
}

struct Sender {
    generator: Generator,
    publisher: Publisher,
    /// Events of each message that is sent, in order.
    counts: std::sync::mpsc::SyncSender<u64>,
    rate: f64,
    start: UnixNanos,
    length: Duration,
}

impl Sender {
    /// Number of batches and of events of the whole load.
    fn run(mut self, done: u64) -> Result<(u64, u64), LoadError> {
        let subjects: Vec<String> = (0..SHARD_COUNT).map(|shard| events_subject(CLUSTER, shard)).collect();
        let (mut batches, mut events) = (0u64, 0u64);
        for shard in (0..SHARD_COUNT).cycle() {
            let due = Duration::from_secs_f64(events as f64 / self.rate);
            if due >= self.length {
                break;
            }
            let until = after(self.start, due);
            if batches < done {
                events += self.generator.skip(shard, until);
            } else {
                wait_until(until);
                let batch = self.generator.batch(shard, until);
                events += batch.events;
                // Who counts the acknowledgements has failed, and says why.
                let _ = self.counts.send(batch.events);
                self.publisher.submit_blocking(batch.into_outgoing(&subjects[usize::from(shard)]))?;
            }
            batches += 1;
        }
        Ok((batches, events))
    }
}

async fn inject(
    mut publisher: Publisher,
    injections: Vec<Injection>,
    start: UnixNanos,
    done: u64,
) -> Result<(), LoadError> {
    let mut left: VecDeque<Injection> = injections.into();
    left.drain(..usize::try_from(done).unwrap_or(usize::MAX).min(left.len()));
    for injection in left {
        let due = after(start, injection.at);
        let ahead = Duration::from_nanos(due.0.saturating_sub(unix_nanos()));
        tokio::time::sleep_until((Instant::now() + ahead).into()).await;
        publisher.submit(injection.into_outgoing()).await?;
    }
    Ok(())
}

fn after(start: UnixNanos, elapsed: Duration) -> UnixNanos {
    start.plus(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

fn wait_until(at: UnixNanos) {
    let ahead = Duration::from_nanos(at.0.saturating_sub(unix_nanos()));
    if ahead >= AHEAD_MIN {
        std::thread::sleep(ahead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_was_never_kept_is_the_beginning() {
        assert_eq!(Place::read(Path::new("/nonexistent/place")), Place::default());
    }
}
