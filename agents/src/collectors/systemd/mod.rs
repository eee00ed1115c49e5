//! Units of systemd: failures, restarts and starts, as the manager tells them over D-Bus.
//!
//! It asks the manager over the system bus, follows the properties of all units and lists
//! those that have failed, at the start and after each reconnection. A failure is told once, with the manager's
//! own time. A machine without systemd is said once and looked at again.

mod config;
mod connection;
mod follower;
mod properties;

use std::time::Duration;

use smol_str::SmolStr;
use tapio_runtime::backoff::Backoff;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use super::{CollectorState, CollectorStates};
use crate::sink::EventSink;
use connection::{Listed, Manager, Notice, Unreachable};

pub use config::SystemdConfig;
pub use follower::{Follower, UNITS_MAX};
pub use properties::{UNIT_INTERFACE, Values};

/// How often the collector says that it lives.
const TICK: Duration = Duration::from_secs(1);
/// First wait after a lost connection: a manager that starts anew is back within a moment.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// What the manager says while its units are listed; beyond it, the list begins again with a new connection.
const WAITING_MAX: usize = 16_384;

/// What the collector needs.
#[derive(Clone)]
pub struct Parts {
    /// Configuration.
    pub config: SystemdConfig,
    /// Older failures are not told at the start; they would be dropped as too old.
    pub history: Duration,
    /// Name of the cluster.
    pub cluster: SmolStr,
    /// Name of this machine.
    pub node: SmolStr,
    /// Where events go.
    pub sink: EventSink,
    /// Where it says what it does.
    pub states: CollectorStates,
}

/// What is known before the first attempt: that there is nothing to connect to.
pub fn state_at_start(config: &SystemdConfig) -> Option<CollectorState> {
    let nothing = || state(&Unreachable::NoBus(config.bus_socket.display().to_string()));
    (!config.bus_socket.exists()).then(nothing)
}

/// Follows the manager until it is told to stop.
///
/// # Errors
/// When the node agent takes no more events.
pub async fn run(parts: Parts, context: WorkerContext) -> WorkerResult {
    let mut follower = Follower::new(&parts.cluster, &parts.node);
    let backoff = Backoff::new(RETRY_MIN, parts.config.retry_max.get().max(RETRY_MIN));
    let mut failures = 0;
    loop {
        let ended = tokio::select! {
            () = context.shutdown.wait() => return Ok(()),
            ended = follow(&parts, &context, &mut follower, &mut failures) => ended?,
        };
        parts.states.set("systemd", state(&ended));
        let wait = context.clock.sleep(backoff.delay(failures));
        failures = failures.saturating_add(1);
        tokio::select! {
            () = context.shutdown.wait() => return Ok(()),
            () = ticking(&context, wait) => {}
        }
    }
}

fn state(ended: &Unreachable) -> CollectorState {
    match ended {
        // Nothing to collect is no defect.
        Unreachable::NoBus(_) | Unreachable::NoManager(_) => CollectorState::Disabled(ended.to_string()),
        Unreachable::Refused { .. } | Unreachable::Closed => CollectorState::Degraded(ended.to_string()),
    }
}

/// Waits for the future, and says meanwhile that the collector lives.
async fn ticking<T>(context: &WorkerContext, future: impl Future<Output = T>) -> T {
    tokio::pin!(future);
    loop {
        context.progress.tick();
        tokio::select! {
            done = &mut future => return done,
            () = context.clock.sleep(TICK) => {}
        }
    }
}

/// One connection, from its begin to its end; gives the reason of the end.
async fn follow(
    parts: &Parts,
    context: &WorkerContext,
    follower: &mut Follower,
    failures: &mut u32,
) -> Result<Unreachable, crate::sink::Closed> {
    let mut manager = match ticking(context, Manager::connect(&parts.config.bus_socket)).await {
        Ok(manager) => manager,
        Err(error) => return Ok(error),
    };
    let mut waiting = Vec::new();
    let listed = ticking(context, list(&mut manager, follower, &mut waiting)).await;
    let failed = match listed {
        Ok(failed) => failed,
        Err(source) => return Ok(Unreachable::because(&parts.config.bus_socket, source)),
    };
    // Only now is anything sent: a manager that cannot be listed is none.
    let now = now(&context.clock);
    let history = u64::try_from(parts.history.as_nanos()).unwrap_or(u64::MAX);
    let news_after = now.minus(history);
    let mut events: Vec<UnifiedEvent> = Vec::new();
    for (unit, values) in &failed {
        events.extend(follower.listed_failed(now, news_after, unit, values));
    }
    events.extend(waiting.into_iter().flat_map(|notice| apply(follower, now, notice)));
    parts.sink.send(events).await?;
    parts.states.set("systemd", CollectorState::Running);
    *failures = 0;
    loop {
        let wait = follower.next_due(self::now(&context.clock)).unwrap_or(TICK);
        let notice = tokio::select! {
            notice = manager.next() => match notice {
                Some(notice) => Some(notice),
                None => return Ok(Unreachable::Closed),
            },
            () = context.clock.sleep(wait.min(TICK)) => None,
        };
        context.progress.tick();
        let now = self::now(&context.clock);
        let mut events = follower.due(now);
        events.extend(notice.into_iter().flat_map(|notice| apply(follower, now, notice)));
        parts.sink.send(events).await?;
    }
}

fn now(clock: &SharedClock) -> UnixNanos {
    UnixNanos(clock.now_unix_nanos())
}

fn apply(follower: &mut Follower, now: UnixNanos, notice: Notice) -> Vec<UnifiedEvent> {
    match notice {
        Notice::Changed { unit, interface, values } => follower.changed(now, &unit, &interface, &values),
        Notice::Removed(unit) => {
            follower.removed(&unit);
            Vec::new()
        }
    }
}

/// Lists all units and reads those that have failed, or had before the connection was lost. The manager's
/// messages are taken meanwhile, so that its answers are not stuck behind them.
async fn list(
    manager: &mut Manager,
    follower: &mut Follower,
    waiting: &mut Vec<Notice>,
) -> zbus::Result<Vec<(SmolStr, Values)>> {
    let had_failed = follower.had_failed();
    let caller = manager.caller();
    let asking = async {
        let units = caller.list().await?;
        let mut failed = Vec::new();
        let wanted = |listed: &&Listed| listed.active == "failed" || had_failed.contains(&listed.unit);
        for listed in units.iter().filter(wanted) {
            match caller.properties(listed).await {
                Ok(values) => failed.push((listed.unit.clone(), values)),
                // Forgotten since it was listed.
                Err(zbus::Error::MethodError(..) | zbus::Error::FDO(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((units, failed))
    };
    tokio::pin!(asking);
    let (units, failed) = loop {
        tokio::select! {
            answer = &mut asking => break answer?,
            notice = manager.next() => match notice {
                Some(notice) if waiting.len() < WAITING_MAX => waiting.push(notice),
                _ => return Err(zbus::Error::Failure("the connection ended while units were listed".to_owned())),
            }
        }
    };
    for listed in &units {
        if listed.active != "failed" {
            follower.listed(&listed.unit, &listed.active, &listed.sub);
        }
    }
    Ok(failed)
}
