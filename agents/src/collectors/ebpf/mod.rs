//! The kernel's own events: processes, signals, out-of-memory kills, TCP connections.
//!
//! One thread sleeps on the kernel's ring, resolves the cgroups of each record and hands on events. When the
//! path behind it is full it waits, the kernel's ring fills, and the kernel programs count what they lose; the
//! loss is accounted, and told as a `tapio.gap` event, so that a finding can say what it did not see.

mod config;
mod convert;
mod init;
mod losses;
mod pace;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tapio_bpf::{Batch, BpfConfig, BpfError, Loaded, Loader, ProgramState, SocketScan};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::ProducerId;

use crate::attribution::Attribution;
use crate::collectors::status::{CollectorState, CollectorStates};
use crate::sink::EventSink;

pub use config::EbpfConfig;
pub use convert::Converter;

use losses::Losses;
use pace::Pace;

/// Records taken from the ring at once.
const BATCH_RECORDS_MAX: usize = 1024;
/// Longest sleep: how late the thread sees a stop.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// Time between two readings of the kernel's counters.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// What the collector's thread needs; its factory clones it.
#[derive(Clone)]
pub struct Parts {
    /// Loader configuration, for a restart.
    pub config: BpfConfig,
    /// Programs that are attached already, for the first generation.
    pub loaded: Arc<Mutex<Option<Loaded>>>,
    /// Resolves cgroup ids.
    pub attribution: Arc<Attribution>,
    /// Clock.
    pub clock: SharedClock,
    /// Where events go.
    pub sink: EventSink,
    /// Part of event ids; differs from run to run.
    pub producer: ProducerId,
    /// Metrics.
    pub metrics: Metrics,
    /// Where a restart that fails is told.
    pub states: CollectorStates,
}

/// Loads and attaches the programs.
///
/// # Errors
/// When none can be: the collector is then degraded.
pub fn load(config: &BpfConfig) -> Result<Loaded, BpfError> {
    Loader::new(config.clone()).load()
}

/// What the loaded programs can see.
pub fn state_of(loaded: &Loaded) -> CollectorState {
    let mut missing: Vec<String> = loaded
        .programs()
        .iter()
        .filter_map(|status| match &status.state {
            ProgramState::Failed { reason } => Some(format!("{}: {reason}", status.program)),
            _ => None,
        })
        .collect();
    if let SocketScan::Failed { reason } = loaded.socket_scan() {
        missing.push(format!("older sockets: {reason}"));
    }
    if missing.is_empty() { CollectorState::Running } else { CollectorState::Degraded(missing.join("; ")) }
}

/// Reads the ring until it is told to stop; then what is still in it.
///
/// # Errors
/// When the programs cannot be loaded again after a restart, or the kernel refuses to wait on the ring.
pub fn run(parts: &Parts, context: &WorkerContext) -> WorkerResult {
    let ready = parts.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut loaded = match ready {
        Some(loaded) => loaded,
        None => {
            let again = load(&parts.config);
            let state = again.as_ref().map_or_else(|e| CollectorState::Degraded(e.to_string()), state_of);
            parts.states.set("ebpf", state);
            again?
        }
    };
    let mut reader = loaded.reader()?;
    let waker = reader.waker();
    let mut losses = Losses::new(&parts.metrics, reader.failures());
    let mut converter = Converter::new(Arc::clone(&parts.attribution), parts.producer);
    let mut records = Vec::with_capacity(BATCH_RECORDS_MAX);
    let mut next_count = Duration::ZERO;
    let mut pace = Pace::default();
    loop {
        context.progress.tick();
        if context.shutdown.is_triggered() {
            waker.close();
        }
        let batch = reader.next_batch(&mut records, BATCH_RECORDS_MAX, Some(WAIT_MAX))?;
        let now = parts.clock.monotonic();
        converter.begin(now);
        let mut events: Vec<UnifiedEvent> =
            records.drain(..).filter_map(|record| converter.event(&record)).collect();
        if now >= next_count || batch == Batch::Closed {
            next_count = now + COUNT_INTERVAL;
            let gap = losses.count(&loaded, &parts.sink, parts.clock.now_unix_nanos());
            events.extend(gap.map(|gap| converter.gap(&gap)));
        }
        if parts.sink.send_blocking(events).is_err() || batch == Batch::Closed {
            return Ok(());
        }
        if let Batch::Records(count) = batch
            && let Some(rest) = pace.rest(now, count >= BATCH_RECORDS_MAX)
        {
            std::thread::sleep(rest);
        }
    }
}
