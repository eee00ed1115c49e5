//! Counters of the machine's network: what was dropped, where and why. Cumulative, as the kernel keeps them.
//!
//! | metric | attributes | source |
//! |---|---|---|
//! | `system.network.io`, `.packets`, `.errors`, `.dropped` | `network.interface.name`, `network.io.direction` (`receive`, `transmit`) | `net/dev` |
//! | `system.network.stack.dropped` | `reason` | `net/snmp`, `net/netstat`, `net/softnet_stat`, `net/stat/{arp_cache,ndisc_cache,nf_conntrack}` |
//! | `system.network.tcp.segments.{sent,retransmitted}`, `system.network.tcp.connections.{reset,failed}` | | `net/snmp` |
//!
//! Reasons: `listen_overflow` (a program does not accept fast enough), `listen_other`, `request_queue_full`,
//! `tcp_backlog_full`, `tcp_receive_queue_full`, `udp_receive_buffer_full`, `ip_receive`, `ip_transmit`,
//! `softnet_backlog_full`, `packet_too_big` (it would have to be split, and says that it must not be),
//! `neighbour_table_full`, `neighbour6_table_full`, `conntrack_full`. `net/dev` has the counters of `/sys/class/net/*/statistics` in one file, and of the namespace
//! whose directory is read, not of the mount. What a kernel does not count is absent, never zero.

mod config;
mod parse;
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

pub use config::NetworkConfig;
pub use sampler::Sampler;

/// What the collector needs.
#[derive(Clone)]
pub struct Parts {
    /// Configuration.
    pub config: NetworkConfig,
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

/// Samples until it is told to stop. Without a sight of the machine's counters, or with more interfaces than are sampled,
/// it is degraded.
///
/// # Errors
/// When a sampling run panics.
pub async fn run(parts: Parts, context: WorkerContext) -> WorkerResult {
    let Parts { config, node, clock, sink, states, metrics } = parts;
    let left_out: Counter =
        metrics.shared("network_left_out", "Samples of interfaces beyond network.interfaces_max");
    let mut sampler = Sampler::new(&config, node);
    let interval = config.interval.get();
    let mut due = clock.monotonic();
    loop {
        let now = UnixNanos(clock.now_unix_nanos());
        // Reading files of the kernel blocks, though briefly: not on the async threads.
        let (back, events) = tokio::task::spawn_blocking(move || {
            let events = sampler.sample(now);
            (sampler, events)
        })
        .await?;
        sampler = back;
        left_out.inc_by(sampler.left_out() as u64);
        states.set("network", state(&sampler));
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

/// What it says of itself; a change for the worse is logged once.
fn state(sampler: &Sampler) -> CollectorState {
    match (sampler.blind(), sampler.left_out()) {
        (Some(reason), _) => CollectorState::Degraded(reason.to_owned()),
        (None, 0) => CollectorState::Running,
        // Without the number: interfaces come and go with containers.
        (None, _) => {
            CollectorState::Degraded("some interfaces are left out: raise network.interfaces_max".to_owned())
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
