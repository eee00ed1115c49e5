//! Room on the machine's file systems.
//!
//! | metric | attributes | source |
//! |---|---|---|
//! | `system.filesystem.usage`, By | `system.filesystem.{mountpoint,type,state}` (`used`, `free`, `reserved`), `system.device` | statvfs(3) of each mount |
//!
//! `limit` of each is what programs can use in all: used and free, without what is reserved for root. One file system is
//! told once, however often it is mounted; what is read-only, has no size, or is on another machine is not told.

mod config;
mod mounts;
mod sampler;

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::ids::UnixNanos;

use super::status::{CollectorState, CollectorStates};
use crate::sink::EventSink;

pub use config::FilesystemConfig;
pub use sampler::Sampler;

/// What the collector needs.
#[derive(Clone)]
pub struct Parts {
    /// Configuration.
    pub config: FilesystemConfig,
    /// The machine.
    pub node: Arc<EntityRef>,
    /// Clock of samples.
    pub clock: SharedClock,
    /// Where events go.
    pub sink: EventSink,
    /// Where the state is told.
    pub states: CollectorStates,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// Samples until it is told to stop. Without a sight of the machine's mounts it is degraded.
///
/// # Errors
/// When a sampling run panics.
pub async fn run(parts: Parts, context: WorkerContext) -> WorkerResult {
    let Parts { config, node, clock, sink, states, metrics } = parts;
    let left_out: Counter =
        metrics.shared("filesystem_left_out", "Samples of file systems beyond filesystem.mounts_max");
    let mut sampler = Sampler::new(&config, node);
    let interval = config.interval.get();
    let mut due = clock.monotonic();
    loop {
        let now = UnixNanos(clock.now_unix_nanos());
        // A disk may be slow to answer: not on the async threads.
        let (back, events) = tokio::task::spawn_blocking(move || {
            let events = sampler.sample(now);
            (sampler, events)
        })
        .await?;
        sampler = back;
        left_out.inc_by(sampler.left_out() as u64);
        let reason = sampler.blind().map(str::to_owned);
        states.set("filesystem", reason.map_or(CollectorState::Running, CollectorState::Degraded));
        context.progress.tick();
        if sink.send(events).await.is_err() {
            return Ok(());
        }
        due = (due + interval).max(clock.monotonic());
        let wait = due.saturating_sub(clock.monotonic());
        tokio::select! {
            () = context.shutdown.wait() => return Ok(()),
            () = waiting(&context, clock.sleep(wait)) => {}
        }
    }
}

/// How often the collector says that it lives.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// Waits for the future, and says meanwhile that the collector lives.
async fn waiting(context: &WorkerContext, future: impl Future<Output = ()>) {
    tokio::pin!(future);
    loop {
        tokio::select! {
            () = &mut future => return,
            () = context.clock.sleep(TICK) => context.progress.tick(),
        }
    }
}
