//! Stage one live: owns shards by lease, and reads each from where its owner before left it.
//!
//! ```text
//! lease of a shard ─ mod.rs ─ Own / Release / Lost ─▶ lane (shard mod lanes)
//! tapio.v1.events.<cluster>.<shard> ─ intake.rs ─ SPSC ring ─ worker.rs ─▶ tapio.v1.signals.<cluster>
//! ```
//!
//! A lane is a task that reads and a thread that works. What a new owner says again of steps that were said before is
//! left out by stage two, and so is what an owner says that has lost its lease: each step of a shard counts once.

mod batches;
#[cfg(test)]
mod control_tests;
#[cfg(test)]
mod deferral_tests;
mod deferred;
#[cfg(test)]
mod handover_tests;
mod intake;
mod memory;
pub(crate) mod owned;
#[cfg(test)]
mod panic_tests;
mod panics;
mod parts;
#[cfg(test)]
mod poison_tests;
pub(crate) mod readings;
pub(crate) mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tapio_runtime::bus::{Bus, ConnectionState};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::lease::{Lease, LeaseConfig, LeaseEvent, LeaseEvents, Leases};
use tapio_runtime::ring;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_runtime::threads;
use tapio_schemas::ProducerId;
use tapio_schemas::names::{SHARD_COUNT, lease_group};
use tokio::sync::mpsc;

use crate::config::{CorrelatorConfig, nanos};
use crate::low_water::LowWater;
use crate::metrics::CorrelatorMetrics;
use crate::outbox::BusOutlet;
use intake::{Command, Intake};
use memory::Memory;
use worker::{Answer, Shared, Worker, WorkerParts, WorkerStop};

/// Signal messages of one worker without acknowledgement.
const PUBLISH_WINDOW: usize = 64;
/// Answers that wait to be read.
const ANSWERS_MAX: usize = 256;
/// Commands that wait for a lane: each shard can be taken on and given up in it.
const COMMANDS_MAX: usize = 4 * SHARD_COUNT as usize;
/// Time between two looks at whether the workers turn.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What stage one needs.
#[derive(Clone)]
pub struct StageOne {
    /// Settings.
    pub config: CorrelatorConfig,
    /// Bus.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Registry, for the rings and leases.
    pub registry: Metrics,
    /// Own metrics.
    pub metrics: CorrelatorMetrics,
}

impl StageOne {
    /// Runs until the context is shut down (then it gives its shards back) or something fails (then it is built anew).
    ///
    /// # Errors
    /// When the bus refuses something for good, or a worker stops.
    pub async fn run(self, context: WorkerContext) -> WorkerResult {
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        let shared = Arc::new(Shared::new(self.config.worker_count()));
        let lanes = self.lanes(&shared, &answers)?;
        drop(answers);
        let resources = (0..SHARD_COUNT).map(|shard| format!("shard.{shard}")).collect();
        let group = lease_group("shards", &self.config.cluster);
        let replica = self.config.replica_name(self.clock.now_unix_nanos());
        self.metrics.board.name(&replica);
        let config = LeaseConfig::new(group, replica, resources);
        let (leases, events) =
            Leases::join(&self.bus, config, self.clock.clone(), &self.registry, Shutdown::new()).await?;
        tracing::info!(cluster = %self.config.cluster, lanes = lanes.len(), "reading events");
        let memory = Memory::new(&self.config, &self.metrics);
        let mut control =
            Control { bus: self.bus, lanes, leases, held: HashMap::new(), shared, turns: Vec::new(), memory };
        let controlled = control.run(events, answered, &context).await;
        let closed = control.close().await;
        controlled?;
        closed
    }

    fn lanes(
        &self,
        shared: &Arc<Shared>,
        answers: &mpsc::Sender<Answer>,
    ) -> Result<Vec<Lane>, std::io::Error> {
        let started = self.clock.now_unix_nanos();
        let run = format!("{} {started}", self.config.replica_name(started));
        (0..self.config.worker_count())
            .map(|index| {
                let name = format!("shards-{index}");
                let batches = self.config.ring_batches.max(1);
                let (sender, receiver) = ring::ring(&name, batches, self.clock.clone(), &self.registry);
                let parts = WorkerParts {
                    index,
                    producer: worker_id(&run, index),
                    config: self.config.clone(),
                    shared: Arc::clone(shared),
                    answers: answers.clone(),
                    clock: self.clock.clone(),
                    metrics: self.metrics.clone(),
                };
                let worker = Worker::new(parts, BusOutlet::new(&self.bus, PUBLISH_WINDOW, None));
                let pin_workers = self.config.pin_workers;
                let thread = std::thread::Builder::new().name(name).spawn(move || {
                    if pin_workers {
                        threads::pin(index);
                    }
                    worker.run(receiver)
                })?;
                let (commands, told) = mpsc::channel(COMMANDS_MAX);
                let intake = Intake::new(
                    self.bus.clone(),
                    self.clock.clone(),
                    self.config.cluster.clone(),
                    nanos(self.config.replay_max),
                    sender,
                    told,
                );
                Ok(Lane {
                    commands: Some(commands),
                    intake: tokio::spawn(intake.run()),
                    thread: Some(thread),
                })
            })
            .collect()
    }
}

/// A task that reads and a thread that works.
struct Lane {
    commands: Option<mpsc::Sender<Command>>,
    intake: tokio::task::JoinHandle<WorkerResult>,
    thread: Option<JoinHandle<Result<(), WorkerStop>>>,
}

/// Leases on one side, lanes on the other.
struct Control {
    bus: Bus,
    lanes: Vec<Lane>,
    leases: Leases,
    held: HashMap<u16, Lease>,
    shared: Arc<Shared>,
    turns: Vec<u64>,
    memory: Memory,
}

impl Control {
    async fn run(
        &mut self,
        mut events: LeaseEvents,
        mut answers: mpsc::Receiver<Answer>,
        context: &WorkerContext,
    ) -> WorkerResult {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut notes = FuturesUnordered::new();
        let mut leaving = None;
        loop {
            tokio::select! {
                biased;
                () = context.shutdown.wait(), if leaving.is_none() => {
                    let leases = self.leases.clone();
                    leaving = Some(tokio::spawn(async move { leases.leave().await }));
                }
                event = events.next() => match event {
                    Some(event) => self.event(event).await?,
                    None => return Ok(()),
                },
                Some(answer) = answers.recv() => {
                    if let Some(lease) = self.held.get(&answer.shard).filter(|l| l.epoch() == answer.epoch) {
                        notes.push(keep(self.leases.clone(), lease.clone(), answer));
                    }
                    // Of an earlier lease, the answer says nothing of the one held now.
                    if answer.released && self.held.get(&answer.shard).is_some_and(|l| l.epoch() == answer.epoch) {
                        self.held.remove(&answer.shard);
                        // Given back unasked, it is still being read.
                        self.tell(answer.shard, Command::Lost(answer.shard)).await?;
                    }
                }
                Some(()) = notes.next(), if !notes.is_empty() => {}
                _ = look.tick() => self.look(context)?,
            }
        }
    }

    async fn event(&mut self, event: LeaseEvent) -> WorkerResult {
        match event {
            LeaseEvent::Acquired { lease, note } => {
                let Some(shard) = shard_of(&lease) else { return Ok(()) };
                let from = serde_json::from_slice::<LowWater>(&note).ok();
                let epoch = lease.epoch();
                self.held.insert(shard, lease);
                self.tell(shard, Command::Own { shard, epoch, from }).await
            }
            LeaseEvent::Release { lease } => match shard_of(&lease) {
                Some(shard) => self.tell(shard, Command::Release(shard)).await,
                None => Ok(()),
            },
            LeaseEvent::Lost { lease } => match shard_of(&lease) {
                Some(shard) if self.held.remove(&shard).is_some() => {
                    tracing::warn!(shard, epoch = lease.epoch(), "the lease of a shard is lost");
                    self.tell(shard, Command::Lost(shard)).await
                }
                _ => Ok(()),
            },
        }
    }

    async fn tell(&mut self, shard: u16, command: Command) -> WorkerResult {
        let lane = usize::from(shard) % self.lanes.len();
        match &self.lanes[lane].commands {
            Some(commands) => commands.send(command).await.map_err(|_| lane_gone(lane)),
            None => Err(lane_gone(lane)),
        }
    }

    /// A worker that waits for acknowledgements while the bus is away makes no turns, and is not to blame.
    fn look(&mut self, context: &WorkerContext) -> WorkerResult {
        self.shared.pressure.store(self.memory.look() as u8, Ordering::Relaxed);
        if let Some(lane) = self.lanes.iter().position(|lane| lane.intake.is_finished()) {
            return Err(lane_gone(lane));
        }
        let turns: Vec<u64> = self.shared.turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect();
        let all_turned = turns.iter().enumerate().all(|(lane, now)| self.turns.get(lane) != Some(now));
        if all_turned || self.bus.state() != ConnectionState::Connected {
            self.turns = turns;
            context.progress.tick();
        }
        Ok(())
    }

    /// Ends the lanes and waits until everything said is acknowledged. Leases that are still held (after a failure) lapse.
    async fn close(mut self) -> WorkerResult {
        for lane in &mut self.lanes {
            lane.commands = None;
        }
        let mut failed = Ok(());
        for (index, mut lane) in std::mem::take(&mut self.lanes).into_iter().enumerate() {
            failed = failed.and(lane.intake.await.unwrap_or_else(|error| Err(error.into())));
            let Some(thread) = lane.thread.take() else { continue };
            let result: WorkerResult = match tokio::task::spawn_blocking(move || thread.join()).await {
                Ok(Ok(result)) => result.map_err(Into::into),
                Ok(Err(_)) | Err(_) => Err(format!("shard worker {index} panicked").into()),
            };
            failed = failed.and(result);
        }
        failed
    }
}

fn lane_gone(lane: usize) -> Box<dyn std::error::Error + Send + Sync> {
    format!("lane {lane} of the shard workers stopped").into()
}

/// The name of a worker of this run: neither those of other replicas nor those of an earlier run have it.
fn worker_id(run: &str, index: usize) -> ProducerId {
    ProducerId(xxhash_rust::xxh3::xxh3_64(format!("{run} {index}").as_bytes()))
}

fn shard_of(lease: &Lease) -> Option<u16> {
    lease.resource().strip_prefix("shard.")?.parse().ok().filter(|shard| *shard < SHARD_COUNT)
}

/// Keeps with the lease where a new owner has to begin, or gives it back with that.
async fn keep(leases: Leases, lease: Lease, answer: Answer) {
    let note = answer.low_water.and_then(|mark| serde_json::to_vec(&mark).ok()).map(Bytes::from);
    let kept = match (answer.released, note) {
        (true, note) => leases.released(&lease, note.unwrap_or_default()).await,
        (false, Some(note)) => leases.update_note(&lease, note).await,
        (false, None) => Ok(()),
    };
    if let Err(error) = kept {
        tracing::debug!(shard = answer.shard, %error, "a mark is not kept");
    }
}
