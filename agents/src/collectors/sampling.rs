//! The loop of collectors that look at the machine once per interval.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use super::status::{CollectorState, CollectorStates};
use crate::sink::EventSink;

/// How often a collector that waits says that it lives.
const TICK: Duration = Duration::from_secs(1);

/// What one look gave.
pub struct Look {
    /// Its samples.
    pub events: Vec<UnifiedEvent>,
    /// Things that were not sampled because a limit of the configuration left them out.
    pub left_out: usize,
    /// What the collector says of itself after it.
    pub state: CollectorState,
}

/// What looks at the machine.
pub trait Looks: Send + 'static {
    /// Key of the configuration that limits how many things are sampled.
    const LIMIT: &'static str;

    /// One look, with the time of its samples. It may block.
    fn look(&mut self, at: UnixNanos) -> Look;
}

/// What the loop needs.
#[derive(Clone)]
pub struct Parts {
    /// Name of the collector, and beginning of its metric's name.
    pub name: &'static str,
    /// Time between two looks.
    pub interval: Duration,
    /// Clock of samples.
    pub clock: SharedClock,
    /// Where events go.
    pub sink: EventSink,
    /// Where the state is told.
    pub states: CollectorStates,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// Looks until it is told to stop.
///
/// # Errors
/// When a look panics.
pub async fn run<L: Looks>(parts: Parts, mut looks: L, context: WorkerContext) -> WorkerResult {
    let Parts { name, interval, clock, sink, states, metrics } = parts;
    let left_out: Counter =
        metrics.shared(&format!("{name}_left_out"), &format!("Things not sampled because of {}", L::LIMIT));
    let mut due = clock.monotonic();
    loop {
        let now = UnixNanos(clock.now_unix_nanos());
        // The kernel's files block, though briefly, and a disk may be slow to answer: not on the async threads.
        let (back, seen) = tokio::task::spawn_blocking(move || {
            let seen = looks.look(now);
            (looks, seen)
        })
        .await?;
        looks = back;
        left_out.inc_by(seen.left_out as u64);
        states.set(name, seen.state);
        context.progress.tick();
        if sink.send(seen.events).await.is_err() {
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

/// Waits for the future, and says meanwhile that the collector lives.
pub async fn waiting<T>(context: &WorkerContext, future: impl Future<Output = T>) -> T {
    tokio::pin!(future);
    loop {
        tokio::select! {
            out = &mut future => return out,
            () = context.clock.sleep(TICK) => context.progress.tick(),
        }
    }
}
