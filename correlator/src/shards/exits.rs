//! Which ends of processes are news.
//!
//! The exit of an out-of-memory victim is the kill, told once. A crash by SIGSEGV and its like always is news.
//! A non-zero exit of an ordinary short-lived process is not: only of a container's or unit's main process, or of the
//! same program in the same container or unit again and again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tapio_schemas::payload::KernelData;
use tapio_schemas::{SignalKind, SmolStr, UnifiedEvent, UnixNanos};

use super::confirm::Confirm;
use super::counters::Counters;
use super::episode::Observation;
use super::record::owner_identity;

/// A victim's exit follows its choice within this time (it may hang in uninterruptible sleep).
const VICTIM_EXIT_NS: u64 = 60_000_000_000;
/// Exits of one program that are remembered to see a repetition.
const REPEAT_COUNT: usize = 3;
/// … within this time.
const REPEAT_NS: u64 = 60_000_000_000;
/// Victims and programs remembered per shard.
const REMEMBERED_MAX: usize = 4096;

const SIGKILL: u32 = 9;
/// SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS.
const CRASH_SIGNALS: [u32; 7] = [4, 5, 6, 7, 8, 11, 31];

/// Recent victims and exits of a shard.
#[derive(Default)]
pub struct Exits {
    /// (node, pid) → when it was chosen.
    victims: HashMap<(SmolStr, u32), UnixNanos>,
    victims_by_age: BTreeMap<(UnixNanos, u32), SmolStr>,
    /// (thing, program, code) → last exits.
    repeats: HashMap<(u128, SmolStr, i32), VecDeque<UnixNanos>>,
}

impl Exits {
    /// The kernel chose a victim.
    pub fn victim(&mut self, event: &UnifiedEvent, counters: &mut Counters) {
        let node = event.entity.node.clone();
        self.victims.insert((node.clone(), event.pid), event.timestamp);
        self.victims_by_age.insert((event.timestamp, event.pid), node);
        if self.victims_by_age.len() > REMEMBERED_MAX
            && let Some(((_, pid), node)) = self.victims_by_age.pop_first()
        {
            self.victims.remove(&(node, pid));
            counters.evicted.exits += 1;
        }
    }

    /// What a process exit is, when it is news.
    pub fn judge(
        &mut self,
        event: &UnifiedEvent,
        exit: &KernelData,
        counters: &mut Counters,
    ) -> Option<Observation> {
        let kind = match exit.signal {
            signal if CRASH_SIGNALS.contains(&signal) => SignalKind::CrashSignal,
            SIGKILL if self.was_victim(event) => return None,
            SIGKILL if is_main(event, exit) => SignalKind::Killed,
            0 if exit.exit_code != 0 && is_main(event, exit) => SignalKind::ExitNonzero,
            0 if exit.exit_code > 1 && self.is_repeated(event, exit, counters) => SignalKind::ExitNonzero,
            // SIGTERM, SIGINT, SIGHUP, SIGPIPE: asked to go.
            _ => return None,
        };
        Some(told(event, exit, kind))
    }

    fn was_victim(&mut self, event: &UnifiedEvent) -> bool {
        let key = (event.entity.node.clone(), event.pid);
        let chosen = self.victims.get(&key).copied();
        chosen.is_some_and(|at| event.timestamp.since(at) <= VICTIM_EXIT_NS)
    }

    /// True from the third exit of this program with this code on, in a container or unit.
    fn is_repeated(&mut self, event: &UnifiedEvent, exit: &KernelData, counters: &mut Counters) -> bool {
        let entity = &event.entity;
        let is_service = !entity.container.is_empty()
            || !entity.container_id.is_empty()
            || entity.unit.ends_with(".service");
        if !is_service {
            return false;
        }
        if self.repeats.len() >= REMEMBERED_MAX {
            let now = event.timestamp;
            self.repeats.retain(|_, seen| seen.back().is_some_and(|at| now.since(*at) <= REPEAT_NS));
            if self.repeats.len() >= REMEMBERED_MAX {
                counters.evicted.exits += 1;
                return false;
            }
        }
        let key = (owner_identity(entity), exit.comm.clone(), exit.exit_code);
        let seen = self.repeats.entry(key).or_default();
        seen.push_back(event.timestamp);
        if seen.len() > REPEAT_COUNT {
            seen.pop_front();
        }
        seen.len() == REPEAT_COUNT && event.timestamp.since(seen[0]) <= REPEAT_NS
    }
}

/// A crash, which is news whatever else is known.
pub fn crash(event: &UnifiedEvent, exit: &KernelData) -> Option<Observation> {
    CRASH_SIGNALS.contains(&exit.signal).then(|| told(event, exit, SignalKind::CrashSignal))
}

fn told(event: &UnifiedEvent, exit: &KernelData, kind: SignalKind) -> Observation {
    let mut seen = Observation::new(kind, &event.entity, event.timestamp, event.id);
    seen.pid = event.pid;
    seen.strength = match kind {
        SignalKind::CrashSignal => 1.0,
        SignalKind::ExitNonzero if !is_main(event, exit) => 0.5,
        _ => 0.8,
    };
    if is_main(event, exit) {
        seen.confirm = Confirm::needed(kind, &event.entity);
    }
    seen.with("comm", exit.comm.as_str())
        .with("executable", exit.executable.as_str())
        .with("pid", i64::from(event.pid))
        .with("exit_code", i64::from(exit.exit_code))
        .with("signal", i64::from(exit.signal))
        .with("signal_name", signal_name(exit.signal))
        .with("main_process", tapio_schemas::AttributeValue::Bool(is_main(event, exit)))
}

/// First process of a pid namespace inside a container; on the machine itself only units tell (through systemd).
fn is_main(event: &UnifiedEvent, exit: &KernelData) -> bool {
    exit.is_init && event.pid != 1
}

/// Name of a signal, as in signal(7).
pub fn signal_name(signal: u32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => "",
    }
}
