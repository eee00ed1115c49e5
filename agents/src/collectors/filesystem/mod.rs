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

use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_schemas::entity::EntityRef;
use tapio_schemas::ids::UnixNanos;

use crate::sink::EventSink;

pub use config::FilesystemConfig;
pub use sampler::Sampler;

/// Samples until it is told to stop.
///
/// # Errors
/// When a sampling run panics.
pub async fn run(
    config: FilesystemConfig,
    node: Arc<EntityRef>,
    clock: SharedClock,
    sink: EventSink,
    context: WorkerContext,
) -> WorkerResult {
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
