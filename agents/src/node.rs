//! The node agent: the path of an event in flow order.
//!
//! ```text
//! collectors  ── SPSC ring each ──▶  node thread: validate → complete → key → batch per shard
//!                                        │ outbox: memory, then spool
//!                                        ▼
//!                                    publisher ──▶ tapio.v1.events.<cluster>.<shard>
//! ```
//!
//! The supervisor (an actor) owns publisher, node thread and collectors, restarts each alone, and stops them
//! in the reverse order of this list, so that a stop drains the path from its source to its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tapio_runtime::bus::Bus;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::health::Health;
use tapio_runtime::memory::OwnMemory;
use tapio_runtime::supervise::{
    RestartPolicy, StopReport, SuperviseError, Supervision, WorkerContext, WorkerResult,
};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventSeverity;

use crate::attribution::Attribution;
use crate::batcher::Batcher;
use crate::collectors::kubernetes::PodIndex;
use crate::collectors::{self, CollectorState, CollectorStates, Collectors, Wiring};
use crate::config::AgentConfig;
use crate::gap::LossWatch;
use crate::identity::{EpochError, next_epoch, producer, run_id};
use crate::ledger::{DropReason, Ledger, Place};
use crate::memory::MemoryShed;
use crate::outbox::Outbox;
use crate::publish::{self, DRAIN_PUBLISH_MAX, PublishParts};
use crate::sink::{self, EventSink, Intake, Wake};
use crate::spool::{Spool, SpoolError};
use crate::status::{self, Word};
use crate::trouble::TroubleWatch;
use crate::validate::Validator;

/// Longest sleep of the node thread: how late it sees a stop, and how often it says that it lives.
const IDLE_WAIT_MAX: Duration = Duration::from_millis(100);
/// Batches taken from one collector before the next has its turn.
const TURN_BATCHES_MAX: usize = 16;
/// How long the whole agent may take to stop.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Restart counter.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// Supervisor.
    #[error("cannot supervise the node agent: {0}")]
    Supervise(#[from] SuperviseError),
    /// A collector whose start must not fail silently, such as a port in use.
    #[error("cannot start the {collector} collector: {source}")]
    Collector {
        /// Which.
        collector: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the agent gets from its process.
#[derive(Clone)]
pub struct AgentParts {
    /// Connected, with streams ensured.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Health registry.
    pub health: Health,
    /// Metrics registry.
    pub metrics: Metrics,
}

/// The node agent.
pub struct NodeAgent;

/// A running agent. Dropping it does not stop it; [`AgentHandle::drain`] does.
pub struct AgentHandle {
    supervision: Supervision,
    ledger: Ledger,
    attribution: Arc<Attribution>,
    collectors: Collectors,
    node_name: String,
}

impl NodeAgent {
    /// Starts publisher, node thread and the configured collectors.
    ///
    /// # Errors
    /// [`AgentError`]; a collector that lacks rights or a kernel feature is no error but `degraded`.
    pub async fn start(config: AgentConfig, parts: AgentParts) -> Result<AgentHandle, AgentError> {
        Self::start_with(config, parts, &[]).await.map(|(handle, _)| handle)
    }

    /// As [`NodeAgent::start`], with a sink for each of `others`: sources that the caller runs itself. It
    /// stops them before [`AgentHandle::drain`]; what they send later is refused and counted.
    ///
    /// # Errors
    /// As [`NodeAgent::start`].
    pub async fn start_with(
        config: AgentConfig,
        parts: AgentParts,
        others: &[&str],
    ) -> Result<(AgentHandle, Vec<EventSink>), AgentError> {
        let node_name = config.node_name();
        let ledger = Ledger::new(&parts.metrics);
        let supervision = Supervision::start(parts.clock.clone(), parts.health.clone(), &parts.metrics)?;
        let epoch = next_epoch(config.data_dir.as_deref(), parts.clock.now_unix_nanos())?;
        let outbox = Outbox::new(config.backlog.memory.bytes(), open_spool(&config)?, ledger.clone());
        let producer = producer(&config.cluster, &node_name);
        let states = CollectorStates::new(&parts.metrics);
        let word = Word {
            node: node_name.clone(),
            producer,
            epoch,
            started: UnixNanos(parts.clock.now_unix_nanos()),
            ledger: ledger.clone(),
            outbox: Arc::clone(&outbox),
            states: states.clone(),
            parts: parts.clone(),
        };
        status::add(&supervision, &config.cluster, word).await?;
        add_publisher(&supervision, &config, &parts.bus, &outbox).await?;

        let wake = Arc::new(Wake::default());
        let pods = PodIndex::new(parts.clock.clone());
        let attribution = collectors::attribution(&config, &node_name, &pods, &parts.clock);
        let mut intakes = Vec::new();
        let mut open = |name: &str| -> EventSink {
            let (sink, intake) = sink::channel(name, &wake, &ledger, parts.clock.clone(), &parts.metrics);
            intakes.push(intake);
            sink
        };
        let sinks = collectors::Sinks::open(&mut open);
        let other_sinks = others.iter().map(|name| open(name)).collect();
        let run = run_id(producer, epoch);
        let node = NodeThread {
            intakes,
            validator: Validator::new(
                nanos(config.age_max.get()),
                nanos(config.future_max.get()),
                run_id(run, 0),
            ),
            attribution: Arc::clone(&attribution),
            batcher: Batcher::new(&config.batch, producer, epoch, parts.bus.max_payload(), ledger.clone()),
            outbox,
            ledger: ledger.clone(),
            wake,
            clock: parts.clock.clone(),
            losses: LossWatch::new(UnixNanos(parts.clock.now_unix_nanos())),
            own: ledger.collector("agent"),
            memory: MemoryShed::new(Arc::new(OwnMemory), config.memory_max),
            troubles: TroubleWatch::new(&node_name, parts.bus.clone(), backlog_bytes(&config)),
            cluster: config.cluster.clone(),
        };
        add_node_thread(&supervision, node).await?;
        let wiring = Wiring {
            config: &config,
            parts: &parts,
            attribution: &attribution,
            pods: &pods,
            node: &node_name,
            states: &states,
            run,
        };
        let collectors = collectors::start(wiring, &supervision, sinks).await?;
        Ok((AgentHandle { supervision, ledger, attribution, collectors, node_name }, other_sinks))
    }
}

impl AgentHandle {
    /// Counts of events by fate.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Addresses and states of the collectors.
    pub fn collectors(&self) -> &Collectors {
        &self.collectors
    }

    /// Where audit events are received; `None` when it is disabled.
    pub fn audit(&self) -> Option<SocketAddr> {
        self.collectors.audit()
    }

    /// Where OTLP is received over gRPC; `None` when it is disabled.
    pub fn otlp_grpc(&self) -> Option<SocketAddr> {
        self.collectors.otlp_grpc()
    }

    /// Where OTLP is received over HTTP; `None` when it is disabled.
    pub fn otlp_http(&self) -> Option<SocketAddr> {
        self.collectors.otlp_http()
    }

    /// Collectors that work with less or not at all, and why.
    pub fn degraded(&self) -> Vec<(String, String)> {
        let reason = |(name, state)| match state {
            CollectorState::Degraded(reason) => Some((name, reason)),
            CollectorState::Running | CollectorState::Disabled(_) => None,
        };
        self.collectors.states().into_iter().filter_map(reason).collect()
    }

    /// Resolves control groups on this machine.
    pub fn attribution(&self) -> &Arc<Attribution> {
        &self.attribution
    }

    /// Name of this machine in entities.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Stops the collectors, then empties rings and batches, then publishes what is left; what the stream
    /// does not take in time goes to the spool.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn drain(self) -> Result<(StopReport, crate::ledger::LedgerSnapshot), SuperviseError> {
        let report = self.supervision.stop(DRAIN_MAX).await?;
        Ok((report, self.ledger.snapshot()))
    }
}

/// Bytes that may wait in memory and on disk as configured.
fn backlog_bytes(config: &AgentConfig) -> u64 {
    let spool = if config.data_dir.is_some() { config.backlog.spool.bytes() } else { 0 };
    config.backlog.memory.bytes() + spool
}

fn open_spool(config: &AgentConfig) -> Result<Option<Spool>, SpoolError> {
    let Some(dir) = &config.data_dir else { return Ok(None) };
    if config.backlog.spool.bytes() == 0 {
        return Ok(None);
    }
    let (bytes, file_bytes) = (config.backlog.spool.bytes(), config.backlog.spool_file.bytes());
    Spool::open(&dir.join("spool"), bytes, file_bytes).map(Some)
}

async fn add_publisher(
    supervision: &Supervision,
    config: &AgentConfig,
    bus: &Bus,
    outbox: &Arc<Outbox>,
) -> Result<(), SuperviseError> {
    let publish = PublishParts {
        bus: bus.clone(),
        outbox: Arc::clone(outbox),
        cluster: config.cluster.as_str().into(),
        window: config.backlog.window.max(1),
    };
    let policy =
        RestartPolicy { stop_grace: DRAIN_PUBLISH_MAX + Duration::from_secs(3), ..RestartPolicy::default() };
    supervision.add_task("agent-publisher", policy, move |ctx| publish::run(publish.clone(), ctx)).await
}

async fn add_node_thread(supervision: &Supervision, node: NodeThread) -> Result<(), SuperviseError> {
    // What is in rings and batches must outlive a panic, so the thread borrows it for a generation.
    let node = Arc::new(Mutex::new(node));
    let policy = RestartPolicy::default();
    supervision
        .add_thread("agent-node", policy, move |ctx| {
            node.lock().unwrap_or_else(PoisonError::into_inner).run(&ctx)
        })
        .await
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Everything between the rings and the outbox.
struct NodeThread {
    intakes: Vec<Intake>,
    validator: Validator,
    attribution: Arc<Attribution>,
    batcher: Batcher,
    outbox: Arc<Outbox>,
    ledger: Ledger,
    wake: Arc<Wake>,
    clock: SharedClock,
    losses: LossWatch,
    /// Counts the gaps it tells.
    own: Counter,
    troubles: TroubleWatch,
    memory: MemoryShed,
    cluster: String,
}

impl NodeThread {
    fn run(&mut self, context: &WorkerContext) -> WorkerResult {
        loop {
            context.progress.tick();
            // Read before the rings are: what came before the stop is then surely seen.
            let stopping = context.shutdown.is_triggered();
            if stopping {
                self.intakes.iter().for_each(Intake::close);
            }
            self.memory.look(self.clock.monotonic());
            let took = self.turn();
            let monotonic = self.clock.monotonic();
            self.tell_losses(monotonic, stopping && !took);
            self.tell_troubles(monotonic, stopping && !took);
            for frame in self.batcher.flush(monotonic, stopping && !took) {
                self.outbox.push(frame);
            }
            if took {
                continue;
            }
            if stopping {
                return Ok(());
            }
            let due = self.batcher.next_due(monotonic).unwrap_or(IDLE_WAIT_MAX);
            self.wake.wait(due.min(IDLE_WAIT_MAX));
        }
    }

    /// One turn around all rings; true when there was something.
    fn turn(&mut self) -> bool {
        let mut took = false;
        for index in 0..self.intakes.len() {
            for _ in 0..TURN_BATCHES_MAX {
                let Some(events) = self.intakes[index].take() else { break };
                took = true;
                self.accept(events);
            }
        }
        took
    }

    fn accept(&mut self, events: Vec<UnifiedEvent>) {
        let now = UnixNanos(self.clock.now_unix_nanos());
        let monotonic = self.clock.monotonic();
        // Events of one request or sample share their entity: most look-ups are of the one before.
        let mut last: Option<(Arc<EntityRef>, Arc<EntityRef>)> = None;
        for mut event in events {
            if let Err(reason) = self.validator.check(&mut event, now) {
                self.drop_one(reason);
                continue;
            }
            if self.memory.sheds(&event) {
                self.drop_one(DropReason::MemoryPressure);
                continue;
            }
            if let Some(reason) = self.outbox.sheds(event.severity, self.batcher.pending_bytes()) {
                self.drop_one(reason);
                continue;
            }
            event.entity = match &last {
                Some((given, full)) if Arc::ptr_eq(given, &event.entity) => Arc::clone(full),
                _ => {
                    let full = self.attribution.complete(&event.entity);
                    last = Some((event.entity, Arc::clone(&full)));
                    full
                }
            };
            if let Some(frame) = self.batcher.push(event, monotonic) {
                self.outbox.push(frame);
            }
        }
    }

    /// Says what this agent itself lost, once there is room again to say it.
    fn tell_losses(&mut self, monotonic: Duration, last: bool) {
        if self.outbox.sheds(EventSeverity::Info, self.batcher.pending_bytes()).is_some() && !last {
            return;
        }
        let now = UnixNanos(self.clock.now_unix_nanos());
        for gap in self.losses.look(&self.ledger, monotonic, now, last) {
            self.push_own(gap.event(&self.attribution.node()), monotonic);
        }
    }

    /// Also while others are shed: these are few, and say why.
    fn tell_troubles(&mut self, monotonic: Duration, last: bool) {
        let now = UnixNanos(self.clock.now_unix_nanos());
        let memory = self.memory.status();
        for trouble in self.troubles.look(&self.ledger, &self.outbox, &memory, monotonic, last) {
            tracing::warn!(kind = trouble.kind.as_str(), "{}", trouble.says);
            self.push_own(trouble.event(&self.cluster, now), monotonic);
        }
    }

    fn push_own(&mut self, event: UnifiedEvent, monotonic: Duration) {
        self.ledger.produced(&self.own, 1);
        self.ledger.enter(Place::Batch, 1);
        if let Some(frame) = self.batcher.push(event, monotonic) {
            self.outbox.push(frame);
        }
    }

    fn drop_one(&self, reason: DropReason) {
        self.ledger.leave(Place::Batch, 1);
        self.ledger.dropped(reason, 1);
    }
}
