//! Supervision by factory, generation and progress.
//!
//! `actix::Supervisor` does not restart after a panic and keeps the same value. Here a worker is
//! built anew by its factory each time: after an error, after a panic, and when it makes no
//! progress. Restarts wait with a capped, jittered backoff and have a budget; when it is spent the
//! component is failed and the process is unhealthy.
//!
//! A thread cannot be killed. One that is stuck is asked to stop, then abandoned and counted, and
//! the next generation starts beside it: workers that own something outside the process use their
//! generation as a fence.

mod actor;
mod policy;
mod slot;
mod worker;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::health::Health;
use crate::telemetry::Metrics;

pub use policy::RestartPolicy;
pub use slot::ActorSlot;
pub use worker::{WorkerContext, WorkerError, WorkerResult};

use actor::{Add, GetStatus, Quit, StopOne, Supervisor};
use worker::Launcher;

/// What a component is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentState {
    /// A generation runs.
    Running,
    /// A generation makes no progress and was asked to stop.
    Stuck,
    /// Waiting to be built anew.
    BackingOff,
    /// Ended well, as its policy allows.
    Finished,
    /// The restart budget is spent.
    Failed,
    /// Stopped on request.
    Stopped,
}

/// A component and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentStatus {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: ComponentState,
    /// How many times it was built, from 1.
    pub generation: u64,
    /// How many of these were restarts.
    pub restarts: u64,
    /// Why the last generation ended.
    pub last_error: Option<String>,
    /// Time since its last progress.
    pub progress_age: Duration,
}

/// How a stop went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopReport {
    /// Components that ended, in the order of stopping.
    pub stopped: Vec<String>,
    /// Components that had not ended at the deadline.
    pub abandoned: Vec<String>,
}

/// Why supervision could not do something.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The supervisor's thread cannot be started.
    #[error("cannot start the supervisor: {0}")]
    Start(io::Error),
    /// It is not inside a tokio runtime.
    #[error("supervision starts inside a tokio runtime, where its tasks will run")]
    NoRuntime,
    /// The supervisor is gone.
    #[error("the supervisor is gone")]
    Gone,
    /// Two components of one name.
    #[error("component {0} is already supervised")]
    Duplicate(String),
}

/// Handle of the supervisor, an actix actor on a thread of its own. Clones are the same supervisor;
/// when the last one is dropped every component is asked to stop.
#[derive(Clone)]
pub struct Supervision {
    inner: Arc<Inner>,
}

struct Inner {
    addr: Addr<Supervisor>,
    runtime: tokio::runtime::Handle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Full means that it is busy with the dying process; then the process ends it.
        let _ = self.addr.try_send(Quit);
    }
}

impl fmt::Debug for Supervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Supervision")
    }
}

impl Supervision {
    /// Starts the supervisor. Tasks will run on the current tokio runtime.
    ///
    /// # Errors
    /// [`SuperviseError::NoRuntime`], [`SuperviseError::Start`].
    pub fn start(clock: SharedClock, health: Health, metrics: &Metrics) -> Result<Self, SuperviseError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| SuperviseError::NoRuntime)?;
        let supervisor = Supervisor::new(clock, health, metrics);
        let addr = actor::start(supervisor).map_err(SuperviseError::Start)?;
        Ok(Self { inner: Arc::new(Inner { addr, runtime }) })
    }

    /// Supervises a worker that runs on an OS thread of its own.
    ///
    /// # Errors
    /// [`SuperviseError::Duplicate`], [`SuperviseError::Gone`].
    pub async fn add_thread<F>(
        &self,
        name: &str,
        policy: RestartPolicy,
        factory: F,
    ) -> Result<(), SuperviseError>
    where
        F: Fn(WorkerContext) -> WorkerResult + Send + Sync + 'static,
    {
        self.add(name, policy, worker::on_thread(factory)).await
    }

    /// Supervises a worker that runs as a tokio task.
    ///
    /// # Errors
    /// [`SuperviseError::Duplicate`], [`SuperviseError::Gone`].
    pub async fn add_task<F, Fut>(
        &self,
        name: &str,
        policy: RestartPolicy,
        factory: F,
    ) -> Result<(), SuperviseError>
    where
        F: Fn(WorkerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = WorkerResult> + Send + 'static,
    {
        self.add(name, policy, worker::as_task(self.inner.runtime.clone(), factory)).await
    }

    /// Supervises an actor that runs on an arbiter thread of its own; the slot always gives the
    /// address of the current generation. The actor should watch `context.shutdown` and stop itself
    /// when it has drained; after the policy's `stop_grace` it is dropped.
    ///
    /// # Errors
    /// [`SuperviseError::Duplicate`], [`SuperviseError::Gone`].
    pub async fn add_actor<A, F>(
        &self,
        name: &str,
        policy: RestartPolicy,
        factory: F,
    ) -> Result<ActorSlot<A>, SuperviseError>
    where
        A: actix::Actor<Context = actix::Context<A>>,
        F: Fn(WorkerContext) -> A + Send + Sync + 'static,
    {
        let slot = ActorSlot::new();
        let launcher = worker::as_actor(slot.clone(), policy.stop_grace, factory);
        self.add(name, policy, launcher).await?;
        Ok(slot)
    }

    /// All components, in the order of adding.
    ///
    /// # Errors
    /// [`SuperviseError::Gone`].
    pub async fn status(&self) -> Result<Vec<ComponentStatus>, SuperviseError> {
        self.inner.addr.send(GetStatus).await.map_err(|_| SuperviseError::Gone)
    }

    /// Stops the components one after the other, the last added first: add in the direction of the
    /// flow from the end, and sources stop before what they feed. What has not ended at the
    /// deadline (real time, over all) is abandoned. Nothing restarts any more.
    ///
    /// # Errors
    /// [`SuperviseError::Gone`].
    pub async fn stop(&self, deadline: Duration) -> Result<StopReport, SuperviseError> {
        let deadline = Instant::now() + deadline;
        let mut report = StopReport::default();
        for component in self.status().await?.into_iter().rev() {
            let name = component.name;
            let stop = StopOne { name: name.clone() };
            let ended: oneshot::Receiver<()> =
                self.inner.addr.send(stop).await.map_err(|_| SuperviseError::Gone)?;
            match tokio::time::timeout_at(deadline, ended).await {
                Ok(_) => report.stopped.push(name),
                Err(_) => {
                    tracing::warn!(component = name, "did not stop in time and is abandoned");
                    report.abandoned.push(name);
                }
            }
        }
        Ok(report)
    }

    async fn add(&self, name: &str, policy: RestartPolicy, launcher: Launcher) -> Result<(), SuperviseError> {
        let add = Add { name: Arc::from(name), policy, launcher };
        self.inner.addr.send(add).await.map_err(|_| SuperviseError::Gone)?
    }
}

#[cfg(test)]
mod tests;
