//! Samples of control groups: memory, cpu, pids, io, pressure; v1, v2 and hybrid.
//!
//! | metric | unit | v2 | v1 |
//! |---|---|---|---|
//! | `container.memory.usage` (limit) | By | `memory.current` − `inactive_file` | `memory.usage_in_bytes` − `total_inactive_file` |
//! | `container.memory.raw_usage` (limit) | By | `memory.current` | `memory.usage_in_bytes` |
//! | `container.memory.events` {event} | 1, sum | `memory.events`: `oom_kill oom max high` | `memory.oom_control`: `oom_kill`; `memory.failcnt` as `max` |
//! | `container.memory.pressure`, `container.cpu.pressure`, `container.io.pressure` {total} | %, `some avg10`; total in s | `*.pressure` | `*.pressure` of the same path in the v2 tree, if there is one |
//! | `container.cpu.time` | s, sum | `cpu.stat` `usage_usec` | `cpuacct.usage` |
//! | `container.cpu.periods`, `container.cpu.throttled.periods` | 1, sum | `cpu.stat` | `cpu.stat` |
//! | `container.cpu.throttled.time` | s, sum | `cpu.stat` | `cpu.stat` |
//! | `container.pids.count` (limit) | 1 | `pids.current`, `pids.max` | the same |
//! | `container.io.bytes` {direction} | By, sum | `io.stat` | `blkio.throttle.io_service_bytes` |
//!
//! The usage is the working set, as the kubelet defines it: what the kernel cannot take back without effort.
//! The limit is the smallest of the group and its ancestors. What a kernel does not offer is absent, never zero.

mod config;
mod discover;
mod events;
mod parse;
mod read;
mod sampler;

use std::sync::Arc;

use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_schemas::ids::UnixNanos;

use super::sampling::waiting;
use crate::attribution::Attribution;
use crate::sink::EventSink;

pub use config::CgroupConfig;
pub use read::{IoSample, MemorySample, PidsSample, Psi, Sample};
pub use sampler::Sampler;

/// Samples until it is told to stop.
///
/// # Errors
/// When a sampling run panics.
pub async fn run(
    config: CgroupConfig,
    attribution: Arc<Attribution>,
    clock: SharedClock,
    sink: EventSink,
    context: WorkerContext,
) -> WorkerResult {
    let Some(trees) = attribution.trees().cloned() else { return Ok(()) };
    let mut sampler = Sampler::new(config, trees, attribution);
    loop {
        let now = clock.clone();
        // Reading files of the kernel blocks, though briefly: not on the async threads.
        let (back, events) = tokio::task::spawn_blocking(move || {
            let events = sampler.tick(now.monotonic(), &|| UnixNanos(now.now_unix_nanos()));
            (sampler, events)
        })
        .await?;
        sampler = back;
        context.progress.tick();
        if sink.send(events).await.is_err() {
            return Ok(());
        }
        let wait = sampler.next_due().saturating_sub(clock.monotonic());
        tokio::select! {
            () = context.shutdown.wait() => return Ok(()),
            () = waiting(&context, clock.sleep(wait)) => {}
        }
    }
}
