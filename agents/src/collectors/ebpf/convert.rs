//! A record of the kernel programs as an event.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use smol_str::{SmolStr, ToSmolStr};
use tapio_bpf::{
    Body, CloseReason, Comm, ConnectOutcome, Exec, Exit, OomVictim, Owner, RawRecord, Signal, TcpClosed,
    TcpConnectEnd, Tuple,
};
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, ProducerId, UnixNanos};
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{KernelData, NetworkData, NetworkDetail, Payload, VictimData};

use super::init::Inits;
use crate::attribution::{Attribution, CgroupIds};
use crate::gap::Gap;

const ETIMEDOUT: u16 = 110;
const ECONNRESET: u16 = 104;
const SIGKILL: u8 = 9;
/// SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ, SIGSYS: the process broke.
const CRASH_SIGNALS: [u8; 10] = [3, 4, 5, 6, 7, 8, 11, 24, 25, 31];

/// How long the owner of a group is not asked for again: a flood of records is of few groups.
const OWNERS_KEEP: Duration = Duration::from_secs(1);
/// Groups whose owner is kept.
const OWNERS_MAX: usize = 1024;

/// Turns records into events, in the order of the ring.
pub struct Converter {
    attribution: Arc<Attribution>,
    producer: ProducerId,
    sequence: u64,
    inits: Inits,
    owners: HashMap<CgroupIds, Arc<EntityRef>>,
    owners_since: Duration,
}

type Converted = (EventKind, EventSeverity, Payload);

impl Converter {
    /// A converter that knows the main processes of running containers.
    pub fn new(attribution: Arc<Attribution>, producer: ProducerId) -> Self {
        Self {
            attribution,
            producer,
            sequence: 0,
            inits: Inits::scan(),
            owners: HashMap::new(),
            owners_since: Duration::ZERO,
        }
    }

    /// A batch of records begins at `now`, on the clock of attribution.
    pub fn begin(&mut self, now: Duration) {
        if now.saturating_sub(self.owners_since) >= OWNERS_KEEP {
            self.owners.clear();
            self.owners_since = now;
        }
    }

    /// The event of a record; `None` for a connect that has only begun: its end will be told.
    pub fn event(&mut self, record: &RawRecord) -> Option<UnifiedEvent> {
        let owner = &record.owner;
        let (kind, severity, payload) = match &record.body {
            Body::Exec(exec) => self.exec(exec, owner),
            Body::Exit(exit) => self.exit(exit, owner),
            Body::OomVictim(victim) => self.oom(victim, owner),
            Body::Signal(signal) => signal_event(signal, owner),
            Body::TcpConnectBegin(_) => return None,
            Body::TcpConnectEnd(end) => connect_end(end, owner),
            Body::TcpAccepted(accepted) => {
                let data = network(&accepted.tuple, owner);
                (EventKind::NetAccept, EventSeverity::Debug, boxed(data))
            }
            Body::TcpClosed(closed) => close(closed, owner),
            Body::TcpRetransmit(again) => {
                (EventKind::NetRetransmit, EventSeverity::Info, boxed(network(&again.tuple, owner)))
            }
            Body::TcpResetSent(reset) => {
                (EventKind::NetResetSent, EventSeverity::Info, boxed(network(&reset.tuple, owner)))
            }
            Body::TcpResetReceived(reset) => {
                (EventKind::NetResetReceived, EventSeverity::Info, boxed(network(&reset.tuple, owner)))
            }
        };
        let pid = owner.process.map(|process| process.pid);
        let ids = CgroupIds { memory: owner.memory_cgroup_id, unified: owner.cgroup_id };
        let entity = match pid {
            // An older kernel names the victim and nothing else.
            Some(pid) if ids == CgroupIds::default() => self.attribution.resolve_process(pid),
            _ => self.owner_of(ids, pid),
        };
        let at = UnixNanos(record.unix_ns);
        Some(UnifiedEvent {
            id: self.next_id(at),
            timestamp: at,
            observed_at: UnixNanos(0),
            kind,
            source: Source::Ebpf,
            severity,
            pid: pid.unwrap_or(0),
            entity,
            payload,
            ..UnifiedEvent::default()
        })
    }

    /// The event that says what was lost.
    pub fn gap(&mut self, gap: &Gap) -> UnifiedEvent {
        let id = self.next_id(gap.to);
        UnifiedEvent { id, source: Source::Ebpf, ..gap.event(&self.attribution.node()) }
    }

    fn owner_of(&mut self, ids: CgroupIds, pid: Option<u32>) -> Arc<EntityRef> {
        if let Some(known) = self.owners.get(&ids) {
            return Arc::clone(known);
        }
        let (entity, is_known) = self.attribution.resolve_known(ids, pid);
        // What is not known yet may be with the next record.
        if is_known && self.owners.len() < OWNERS_MAX {
            self.owners.insert(ids, Arc::clone(&entity));
        }
        entity
    }

    fn next_id(&mut self, at: UnixNanos) -> EventId {
        self.sequence += 1;
        EventId::sequenced(at, self.producer, self.sequence)
    }

    fn exec(&mut self, exec: &Exec, owner: &Owner) -> Converted {
        let data = KernelData {
            other_pid: exec.parent_pid,
            is_init: owner.process.is_some_and(|process| self.inits.look_at(process.pid)),
            executable: exec.filename.as_str().into(),
            ..kernel(owner)
        };
        (EventKind::ProcessExec, EventSeverity::Debug, Payload::Kernel(Box::new(data)))
    }

    fn exit(&mut self, exit: &Exit, owner: &Owner) -> Converted {
        let data = KernelData {
            other_pid: exit.parent_pid,
            exit_code: i32::from(exit.status),
            signal: exit.signal.map_or(0, u32::from),
            is_init: owner.process.is_some_and(|process| self.inits.ended(process.pid)),
            ..kernel(owner)
        };
        let severity = match exit.signal {
            Some(signal) if CRASH_SIGNALS.contains(&signal) => EventSeverity::Error,
            Some(SIGKILL) => EventSeverity::Warning,
            Some(_) => EventSeverity::Info,
            None if exit.status != 0 && data.is_init => EventSeverity::Error,
            None if exit.status != 0 => EventSeverity::Info,
            None => EventSeverity::Debug,
        };
        (EventKind::ProcessExit, severity, Payload::Kernel(Box::new(data)))
    }

    fn oom(&mut self, victim: &OomVictim, owner: &Owner) -> Converted {
        let mut data = kernel(owner);
        if let Some(process) = owner.process {
            data.is_init = self.inits.contains(process.pid);
            if victim.pid_only {
                data.comm = comm_of_live(process.pid);
            }
        }
        data.victim = Some(Box::new(VictimData {
            anon_rss_bytes: victim.anon_rss_bytes,
            file_rss_bytes: victim.file_rss_bytes,
            total_vm_bytes: victim.total_vm_bytes,
            oom_score_adj: i16::try_from(victim.oom_score_adj).unwrap_or_default(),
        }));
        (EventKind::OomKill, EventSeverity::Critical, Payload::Kernel(Box::new(data)))
    }
}

fn kernel(owner: &Owner) -> KernelData {
    KernelData {
        uid: owner.process.map_or(0, |process| process.uid),
        comm: comm(owner),
        ..KernelData::default()
    }
}

fn signal_event(signal: &Signal, owner: &Owner) -> Converted {
    let data = KernelData {
        other_pid: signal.sender.map_or(0, |sender| sender.pid),
        signal: u32::from(signal.signal),
        ..kernel(owner)
    };
    let severity =
        if CRASH_SIGNALS.contains(&signal.signal) { EventSeverity::Warning } else { EventSeverity::Info };
    (EventKind::SignalSent, severity, Payload::Kernel(Box::new(data)))
}

fn connect_end(end: &TcpConnectEnd, owner: &Owner) -> Converted {
    let (kind, severity) = match end.outcome {
        ConnectOutcome::Established => (EventKind::NetConnect, EventSeverity::Debug),
        ConnectOutcome::Refused => (EventKind::NetConnectRefused, EventSeverity::Warning),
        ConnectOutcome::TimedOut => (EventKind::NetConnectTimeout, EventSeverity::Warning),
        ConnectOutcome::Reset => (EventKind::NetConnectReset, EventSeverity::Warning),
        ConnectOutcome::Unreachable => (EventKind::NetConnectUnreachable, EventSeverity::Warning),
        ConnectOutcome::Aborted | ConnectOutcome::LocalError | ConnectOutcome::Failed => {
            (EventKind::NetConnectAborted, EventSeverity::Info)
        }
    };
    let data = NetworkData {
        errno: errno(end.error),
        duration_ns: nanos(end.latency),
        ..network(&end.tuple, owner)
    };
    (kind, severity, boxed(data))
}

fn close(closed: &TcpClosed, owner: &Owner) -> Converted {
    let (kind, severity, implied) = match closed.reason {
        CloseReason::Finished => (EventKind::NetClose, EventSeverity::Debug, 0),
        CloseReason::ResetByPeer => (EventKind::NetReset, EventSeverity::Warning, ECONNRESET),
        CloseReason::TimedOut => (EventKind::NetClose, EventSeverity::Warning, ETIMEDOUT),
        CloseReason::Aborted => (EventKind::NetClose, EventSeverity::Debug, 0),
        CloseReason::Failed => (EventKind::NetClose, EventSeverity::Info, 0),
    };
    let detail = NetworkDetail {
        sent_bytes: closed.bytes_acked,
        received_bytes: closed.bytes_received,
        ..NetworkDetail::default()
    };
    let error = errno(closed.error);
    let data = NetworkData {
        errno: if error == 0 { implied } else { error },
        duration_ns: nanos(closed.duration),
        detail: Some(Box::new(detail)),
        ..network(&closed.tuple, owner)
    };
    (kind, severity, boxed(data))
}

fn network(tuple: &Tuple, owner: &Owner) -> NetworkData {
    NetworkData {
        local_addr: octets(tuple.local),
        remote_addr: octets(tuple.remote),
        local_port: tuple.local.port(),
        remote_port: tuple.remote.port(),
        comm: comm(owner),
        ..NetworkData::default()
    }
}

fn boxed(data: NetworkData) -> Payload {
    Payload::Network(Box::new(data))
}

fn octets(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn comm(owner: &Owner) -> SmolStr {
    owner.process.map_or_else(SmolStr::default, |process| text(&process.comm))
}

fn text(comm: &Comm) -> SmolStr {
    match std::str::from_utf8(comm.as_bytes()) {
        Ok(text) => SmolStr::new(text),
        Err(_) => comm.to_smolstr(),
    }
}

fn comm_of_live(pid: u32) -> SmolStr {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().into()
}

fn errno(error: i32) -> u16 {
    u16::try_from(error).unwrap_or(0)
}

fn nanos(duration: Option<Duration>) -> u64 {
    duration.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
