//! The correlator live: the path from events to findings, in flow order.
//!
//! ```text
//! lease of a shard                      one owner among the replicas (stage_one/mod.rs)
//! tapio.v1.events.<cluster>.<shard>     ordered consumer, from the low water kept with the lease (stage_one/intake.rs)
//!     │  SPSC ring per worker
//! shard worker thread                   check the batch, or dead-letter it (stage_one/worker.rs, shards/set.rs)
//!     │  shard state in event time      shards/shard.rs → SignalSection
//! lease of the incidents                one owner among the replicas (partition.rs)
//! tapio.v1.signals.<cluster>            ordered consumer, from the low water (stage_two.rs)
//!     │  SPSC ring
//! incident worker thread                unite the parts (unite.rs), decide (incidents/)
//!     │
//! tapio.v1.insights.<severity>.<cluster>.<namespace>.<kind>.<name>     Nats-Msg-Id, CloudEvents headers
//! ```
//!
//! The supervisor (an actor) owns both stages. A stage that fails is built anew as a whole and makes its state again from
//! its stream; so does a restart of the process, and so does another replica that takes over. A panic in the work on one shard
//! fails that shard alone (stage_one/panics.rs). Stage one stops first, so that what it said is still decided, unless stage two
//! is behind with what was said before it began: that, and what follows it, is for the next run.

use std::sync::Arc;
use std::time::Duration;

use tapio_runtime::bus::Bus;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::health::Health;
use tapio_runtime::supervise::{ComponentStatus, RestartPolicy, StopReport, SuperviseError, Supervision};
use tapio_runtime::telemetry::Metrics;
use tokio::sync::watch;

use crate::config::CorrelatorConfig;
use crate::metrics::CorrelatorMetrics;
use crate::model::Model;
use crate::own_patterns::{self, OwnPatterns, Patterns};
use crate::partition::Partition;
use crate::stage_one::StageOne;
use crate::stage_two::StageTwoParts;
use crate::status;

/// How long the correlator may take to stop.
const DRAIN_MAX: Duration = Duration::from_secs(15);
/// How long one stage may take to stop.
const STAGE_GRACE: Duration = Duration::from_secs(7);

/// The correlator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CorrelatorError {
    /// The causal model.
    #[error("the causal model does not load: {0}")]
    Model(String),
    /// Supervisor.
    #[error("cannot supervise the correlator: {0}")]
    Supervise(#[from] SuperviseError),
}

/// The correlator did not stop in time; what it did not acknowledge is done again at the next start.
#[derive(Debug, thiserror::Error)]
#[error("the correlator did not stop within {} s: {} still running", DRAIN_MAX.as_secs(), .abandoned.join(", "))]
pub struct DrainError {
    /// Stages that were left behind.
    pub abandoned: Vec<String>,
}

/// What the correlator gets from its process.
#[derive(Clone)]
pub struct CorrelatorParts {
    /// Connected, with streams ensured.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Health registry.
    pub health: Health,
    /// Metrics registry.
    pub metrics: Metrics,
}

/// Both stages, for all shards of one cluster.
pub struct Correlator;

/// A running correlator. Dropping it does not stop it; [`CorrelatorHandle::drain`] does.
pub struct CorrelatorHandle {
    supervision: Supervision,
}

impl Correlator {
    /// Starts both stages with the built-in causal model.
    ///
    /// # Errors
    /// [`CorrelatorError`].
    pub async fn start(
        config: CorrelatorConfig,
        parts: CorrelatorParts,
    ) -> Result<CorrelatorHandle, CorrelatorError> {
        let model = Model::builtin().map_err(|error| CorrelatorError::Model(error.to_string()))?;
        Self::start_with(config, parts, Arc::new(model)).await
    }

    /// Starts both stages with a causal model.
    ///
    /// # Errors
    /// [`CorrelatorError`].
    pub async fn start_with(
        config: CorrelatorConfig,
        parts: CorrelatorParts,
        model: Arc<Model>,
    ) -> Result<CorrelatorHandle, CorrelatorError> {
        let supervision = Supervision::start(parts.clock.clone(), parts.health.clone(), &parts.metrics)?;
        let metrics = CorrelatorMetrics::new(&parts.metrics);
        let policy = RestartPolicy { stop_grace: STAGE_GRACE, ..RestartPolicy::default() };

        status::add(&supervision, &config, &parts, &metrics).await?;
        let two = StageTwoParts {
            config: config.clone(),
            patterns: add_patterns(&supervision, &config, &parts, model).await?,
            bus: parts.bus.clone(),
            clock: parts.clock.clone(),
            registry: parts.metrics.clone(),
            metrics: metrics.clone(),
        };
        let partition = Partition { parts: two };
        supervision
            .add_task("correlator.incidents", policy, move |context| partition.clone().run(context))
            .await?;

        let one = StageOne { config, bus: parts.bus, clock: parts.clock, registry: parts.metrics, metrics };
        supervision.add_task("correlator.shards", policy, move |context| one.clone().run(context)).await?;
        Ok(CorrelatorHandle { supervision })
    }
}

/// What is decided with: `model`, and over it the patterns of the configured directory, as they are at any time.
async fn add_patterns(
    supervision: &Supervision,
    config: &CorrelatorConfig,
    parts: &CorrelatorParts,
    model: Arc<Model>,
) -> Result<watch::Receiver<Patterns>, SuperviseError> {
    let Some(directory) = &config.patterns_dir else {
        return Ok(watch::channel(Patterns::of(model)).1);
    };
    let own = OwnPatterns::new(directory, model);
    let first = own.read();
    own_patterns::log(directory, &first);
    let (patterns, read) = watch::channel(first);
    let metrics = parts.metrics.clone();
    supervision
        .add_task("correlator.patterns", RestartPolicy::default(), move |context| {
            own.clone().run(patterns.clone(), metrics.clone(), context)
        })
        .await?;
    Ok(read)
}

impl CorrelatorHandle {
    /// State of both stages.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn status(&self) -> Result<Vec<ComponentStatus>, SuperviseError> {
        self.supervision.status().await
    }

    /// Stops reading events, decides what was read (unless it is behind with what an owner before said), and waits until every
    /// finding is acknowledged.
    ///
    /// # Errors
    /// [`DrainError`] when a stage does not stop in time.
    pub async fn drain(self) -> Result<(), DrainError> {
        match self.supervision.stop(DRAIN_MAX).await {
            Ok(StopReport { abandoned, .. }) if abandoned.is_empty() => Ok(()),
            Ok(StopReport { abandoned, .. }) => Err(DrainError { abandoned }),
            Err(error) => Err(DrainError { abandoned: vec![error.to_string()] }),
        }
    }
}
