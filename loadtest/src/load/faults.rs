//! Faults with a known truth: what happens, when, and which finding has to come of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Headers, Outgoing};
use tapio_schemas::entity::{Entity, EntityRef, kinds};
use tapio_schemas::names::events_subject;
use tapio_schemas::wire::{EventBatch, WireError};
use tapio_schemas::{EventId, ProducerId, SmolStr, UnifiedEvent, UnixNanos};

use super::fault_events as make;
use super::random::Random;
use super::world::{CALM_WORKLOADS, NODES, World, node};

/// Producers of injected events: each event is a batch of a producer of its own, so that sending it again after a crash
/// neither doubles it nor leaves a hole in anybody's numbers.
pub const PRODUCER_BASE: u64 = 0x000f_a017_0000_0000;
/// Injected events of one fault at most.
const EVENTS_MAX: u64 = 256;
/// Number of the first beacon among the faults.
const BEACON_BASE: u64 = 1 << 20;

/// What can be injected: events that are simple and a cause that follows from them for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The kernel kills the main process of a container at its limit.
    OutOfMemory,
    /// The main process crashes with SIGSEGV.
    CrashSignal,
    /// The main process ends with code 1 again and again.
    CrashLoop,
    /// The image cannot be pulled.
    ImagePull,
    /// A Secret is missing.
    MissingSecret,
    /// No machine takes the pod.
    Unschedulable,
    /// A systemd unit fails.
    UnitFailed,
    /// A dependency refuses connections for eleven seconds.
    Refused,
    /// Memory grows until the kernel kills: takes `LEAK_SECONDS`.
    Leak,
}

impl Kind {
    /// Those that are over soon, in the order in which they take turns.
    pub const SHORT: [Self; 8] = [
        Self::OutOfMemory,
        Self::CrashSignal,
        Self::ImagePull,
        Self::UnitFailed,
        Self::CrashLoop,
        Self::MissingSecret,
        Self::Unschedulable,
        Self::Refused,
    ];

    /// Cause that the finding has to name.
    pub fn cause(self) -> &'static str {
        match self {
            Self::OutOfMemory => "memory.limit_exceeded",
            Self::CrashSignal => "code.crash_signal",
            Self::CrashLoop => "code.crash_exit",
            Self::ImagePull => "image.not_found",
            Self::MissingSecret => "config.missing_reference",
            Self::Unschedulable => "scheduling.insufficient_resources",
            Self::UnitFailed => "runtime.unit_failed",
            Self::Refused => "dependency.refused",
            Self::Leak => "memory.leak",
        }
    }

    /// Time from its first event to its last.
    pub fn lasts(self) -> Duration {
        match self {
            Self::Leak => Duration::from_secs(make::LEAK_SECONDS + 1),
            Self::Refused => Duration::from_secs(11),
            Self::CrashLoop => Duration::from_secs(7),
            _ => Duration::from_secs(3),
        }
    }

    /// Time from its first event to the one that the cause follows from: one end with code 1 is no loop yet.
    pub fn certain_after(self) -> Duration {
        match self {
            Self::CrashLoop => make::SECOND_END,
            _ => Duration::ZERO,
        }
    }
}

/// An event of a fault.
#[derive(Debug, Clone)]
pub struct Step {
    /// After the fault's beginning.
    pub after: Duration,
    /// Opens a deviation: a signal has to name it at once.
    pub is_news: bool,
    /// The event, without time and id.
    pub event: UnifiedEvent,
}

/// A fault and the truth about it.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Number in the plan.
    pub number: u64,
    /// What happens.
    pub kind: Kind,
    /// Where the finding has to see the cause.
    pub seat: Entity,
    /// After the beginning of the load.
    pub at: Duration,
    /// Its events, in time order.
    pub steps: Vec<Step>,
}

/// An injected event, ready to publish.
#[derive(Debug, Clone)]
pub struct Injection {
    /// When it is due after the beginning of the load.
    pub at: Duration,
    /// Subject.
    pub subject: String,
    /// De-duplication id: the same whenever it is sent again.
    pub msg_id: String,
    /// Message of one event.
    pub bytes: Vec<u8>,
    /// Id of the event.
    pub event: EventId,
    /// Time of the event.
    pub timestamp: UnixNanos,
    /// Opens a deviation.
    pub is_news: bool,
}

impl Injection {
    /// As a message for the bus.
    pub fn into_outgoing(self) -> Outgoing {
        Outgoing {
            subject: self.subject,
            msg_id: Some(self.msg_id),
            headers: Headers::new(),
            payload: Bytes::from(self.bytes),
        }
    }
}

/// How many faults, and when.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Same seed, same faults.
    pub seed: u64,
    /// Length of the load.
    pub length: Duration,
    /// Time between two faults.
    pub every: Duration,
    /// Changes per second that are news and no fault: they measure the way to the signal.
    pub beacons_per_s: f64,
}

/// No fault before this: the streams are being made.
const QUIET_START: Duration = Duration::from_millis(1500);
/// Nothing is injected in the last part of the load.
const QUIET_END: Duration = Duration::from_millis(1500);

/// The faults of a plan, by time: each on a workload, unit or address of its own. A leak comes first when there is time.
pub fn plan(world: &World, plan: &Plan) -> Vec<Fault> {
    let mut random = Random::new(plan.seed).fork(5);
    let mut workloads: Vec<usize> = (CALM_WORKLOADS..world.workloads.len()).collect();
    random.shuffle(&mut workloads);
    let end = plan.length.saturating_sub(QUIET_END);
    let mut faults = Vec::new();
    let mut kinds: Vec<Kind> = vec![Kind::Leak];
    kinds.extend(Kind::SHORT.iter().cycle().take(4 * workloads.len()));
    let mut at = QUIET_START;
    for kind in kinds {
        if at + kind.lasts() > end {
            // A shorter one may still fit.
            if Kind::SHORT.iter().all(|kind| at + kind.lasts() > end) {
                break;
            }
            continue;
        }
        let Some(workload) = workloads.pop() else { break };
        let number = faults.len() as u64;
        faults.push(fault(world, number, kind, workload, at, &mut random));
        at += plan.every;
    }
    faults
}

fn fault(
    world: &World,
    number: u64,
    kind: Kind,
    workload: usize,
    at: Duration,
    random: &mut Random,
) -> Fault {
    let workload = &world.workloads[workload];
    let container = &workload.containers[random.below(workload.containers.len())];
    let deployment = Entity::namespaced(kinds::DEPLOYMENT, &workload.namespace, &workload.name);
    let pid = 200_000 + number as u32;
    let (seat, steps) = match kind {
        Kind::OutOfMemory => (deployment, make::out_of_memory(container, pid)),
        Kind::CrashSignal => (deployment, make::crash_signal(container, pid)),
        Kind::CrashLoop => (deployment, make::crash_loop(container, pid)),
        Kind::ImagePull => (deployment, make::image_pull(container)),
        Kind::MissingSecret => (deployment, make::missing_secret(container)),
        Kind::Unschedulable => (deployment, make::unschedulable(container)),
        Kind::Leak => (deployment, make::leak(container, pid)),
        Kind::UnitFailed => {
            let entity = EntityRef {
                cluster: world.cluster.clone(),
                node: node(random.below(NODES)),
                unit: format!("worker-{number}.service").into(),
                cgroup: format!("/system.slice/worker-{number}.service").into(),
                ..EntityRef::default()
            };
            let entity = Arc::new(entity.sealed());
            (entity.owner(), make::unit_failed(&entity, pid))
        }
        Kind::Refused => {
            let address = [10, 200, (number / 250) as u8, (number % 250 + 1) as u8];
            let name = format!("{}.{}.{}.{}:5432", address[0], address[1], address[2], address[3]);
            (Entity::new(kinds::EXTERNAL, "", &name, ""), make::refused(container, pid, address))
        }
    };
    Fault { number, kind, seat, at, steps }
}

/// Every injected event in the order of time: of the faults, and the beacons.
///
/// # Errors
/// [`WireError`] when an event cannot be encoded.
pub fn injections(
    world: &World,
    plan: &Plan,
    faults: &[Fault],
    start: UnixNanos,
) -> Result<Vec<Injection>, WireError> {
    let mut all = Vec::new();
    for fault in faults {
        for (index, step) in fault.steps.iter().enumerate() {
            let number = fault.number * EVENTS_MAX + index as u64;
            all.push(injection(world, number, fault.at + step.after, step, start)?);
        }
    }
    if plan.beacons_per_s > 0.0 {
        let period = Duration::from_secs_f64(1.0 / plan.beacons_per_s);
        let last = plan.length.saturating_sub(QUIET_END);
        let mut random = Random::new(plan.seed).fork(6);
        let mut at = QUIET_START;
        for number in 0u64.. {
            // Not on a grid: the time on the correlator's grid must be any.
            at += period.mul_f64(0.5 + random.unit());
            if at >= last {
                break;
            }
            let workload = &world.workloads[random.below(CALM_WORKLOADS)];
            let event = make::scaled(&workload.containers[0], number);
            let step = Step { after: Duration::ZERO, is_news: true, event };
            all.push(injection(world, BEACON_BASE * EVENTS_MAX + number, at, &step, start)?);
        }
    }
    all.sort_by_key(|injection| (injection.at, injection.event));
    Ok(all)
}

fn injection(
    world: &World,
    number: u64,
    at: Duration,
    step: &Step,
    start: UnixNanos,
) -> Result<Injection, WireError> {
    let timestamp = start.plus(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
    let producer = ProducerId(PRODUCER_BASE + number);
    let event = UnifiedEvent {
        id: EventId::sequenced(timestamp, producer, number),
        timestamp,
        observed_at: timestamp,
        ..step.event.clone()
    };
    let (id, shard) = (event.id, event.key().shard());
    let mut batch = EventBatch::new(producer, 1, shard);
    batch.push(event);
    Ok(Injection {
        at,
        subject: events_subject(&world.cluster, shard),
        msg_id: format!("{producer}-1-{shard}-0"),
        bytes: batch.finish(UnixNanos(0))?,
        event: id,
        timestamp,
        is_news: step.is_news,
    })
}

/// Names of the causes in a plan, with their number.
pub fn causes(faults: &[Fault]) -> Vec<(SmolStr, usize)> {
    let mut counts: std::collections::BTreeMap<Kind, usize> = std::collections::BTreeMap::new();
    for fault in faults {
        *counts.entry(fault.kind).or_default() += 1;
    }
    counts.into_iter().map(|(kind, count)| (kind.cause().into(), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn minute() -> Plan {
        Plan { seed: 3, length: Duration::from_secs(60), every: Duration::from_secs(3), beacons_per_s: 2.0 }
    }

    #[test]
    fn a_minute_has_every_kind_of_fault_on_things_of_their_own() {
        let world = World::new("load", 3);
        let faults = plan(&world, &minute());
        let kinds: BTreeSet<Kind> = faults.iter().map(|f| f.kind).collect();
        assert_eq!(kinds.len(), Kind::SHORT.len() + 1, "{kinds:?}");
        let seats: BTreeSet<&Entity> = faults.iter().map(|f| &f.seat).collect();
        assert_eq!(seats.len(), faults.len());
        assert!(faults.iter().all(|f| f.at + f.kind.lasts() <= Duration::from_secs(60)));
        assert!(faults.iter().all(|f| f.steps.iter().any(|step| step.is_news)));
    }

    #[test]
    fn the_same_seed_gives_the_same_injections() {
        let world = World::new("load", 3);
        let make = || injections(&world, &minute(), &plan(&world, &minute()), UnixNanos(1 << 60)).unwrap();
        let (once, again) = (make(), make());
        assert!(once.len() > 100);
        assert!(once.iter().zip(&again).all(|(a, b)| a.bytes == b.bytes && a.msg_id == b.msg_id));
        let ids: BTreeSet<_> = once.iter().map(|i| &i.msg_id).collect();
        assert_eq!(ids.len(), once.len());
    }
}
