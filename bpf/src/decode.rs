//! From bytes of the ring to a [`RawRecord`]. The bytes are foreign: every length and every closed value is checked, and
//! nothing here can panic on them.

use std::{
    mem::offset_of,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{
    clock::BootClock,
    layout::{self, kind},
    record::{
        Body, CloseReason, Comm, ConnectOutcome, Direction, Exec, Exit, OomVictim, Owner, Process, RawRecord,
        Sender, Signal, SignalResult, TcpAccepted, TcpClosed, TcpConnectBegin, TcpConnectEnd, TcpReset,
        TcpRetransmit, TcpState, Tuple,
    },
};

const HEADER_BYTES: usize = size_of::<layout::Header>();

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("record of {got} bytes, where at least {need} are needed")]
    TooShort { need: usize, got: usize },
    #[error("record of unknown kind {0}, perhaps from another version of the programs")]
    UnknownKind(u16),
    #[error("record of kind {kind} has {got} bytes, expected {expected}")]
    WrongLength { kind: u16, expected: usize, got: usize },
    #[error("field {field} has the unknown value {value}")]
    UnknownValue { field: &'static str, value: u32 },
}

/// Decodes one record; `clock` gives its wall-clock time.
pub fn decode(bytes: &[u8], clock: &BootClock) -> Result<RawRecord, DecodeError> {
    if bytes.len() < HEADER_BYTES {
        return Err(DecodeError::TooShort { need: HEADER_BYTES, got: bytes.len() });
    }
    let (head, rest) = bytes.split_at(HEADER_BYTES);
    let header = Fields(head);
    let kind = header.u16(offset_of!(layout::Header, kind));
    let body_bytes = body_bytes(kind).ok_or(DecodeError::UnknownKind(kind))?;
    let length = header.u32(offset_of!(layout::Header, length)) as usize;
    if rest.len() != body_bytes || length != bytes.len() {
        return Err(DecodeError::WrongLength { kind, expected: HEADER_BYTES + body_bytes, got: bytes.len() });
    }
    let boot_ns = header.u64(offset_of!(layout::Header, boot_ns));
    Ok(RawRecord {
        boot_ns,
        unix_ns: clock.unix_ns(boot_ns),
        owner: owner(&header),
        body: body(kind, &header, &Fields(rest))?,
    })
}

/// Bytes of the body of a kind.
fn body_bytes(record_kind: u16) -> Option<usize> {
    Some(match record_kind {
        kind::EXEC => size_of::<layout::Exec>(),
        kind::EXIT => size_of::<layout::Exit>(),
        kind::OOM_VICTIM => size_of::<layout::OomVictim>(),
        kind::SIGNAL => size_of::<layout::Signal>(),
        kind::TCP_CONNECT_BEGIN => size_of::<layout::TcpConnectBegin>(),
        kind::TCP_CONNECT_END => size_of::<layout::TcpConnectEnd>(),
        kind::TCP_ACCEPTED => size_of::<layout::TcpAccepted>(),
        kind::TCP_CLOSED => size_of::<layout::TcpClosed>(),
        kind::TCP_RETRANSMIT => size_of::<layout::TcpRetransmit>(),
        kind::TCP_RESET_SENT | kind::TCP_RESET_RECEIVED => size_of::<layout::TcpReset>(),
        _ => return None,
    })
}

fn body(record_kind: u16, header: &Fields<'_>, fields: &Fields<'_>) -> Result<Body, DecodeError> {
    Ok(match record_kind {
        kind::EXEC => Body::Exec(exec(fields)),
        kind::EXIT => Body::Exit(exit(fields)),
        kind::OOM_VICTIM => Body::OomVictim(oom_victim(header, fields)),
        kind::SIGNAL => Body::Signal(signal(fields)?),
        kind::TCP_CONNECT_BEGIN => Body::TcpConnectBegin(TcpConnectBegin { tuple: tuple(fields) }),
        kind::TCP_CONNECT_END => Body::TcpConnectEnd(tcp_connect_end(fields)?),
        kind::TCP_ACCEPTED => Body::TcpAccepted(TcpAccepted { tuple: tuple(fields) }),
        kind::TCP_CLOSED => Body::TcpClosed(tcp_closed(fields)?),
        kind::TCP_RETRANSMIT => Body::TcpRetransmit(tcp_retransmit(fields)?),
        kind::TCP_RESET_SENT => Body::TcpResetSent(tcp_reset(fields)?),
        kind::TCP_RESET_RECEIVED => Body::TcpResetReceived(tcp_reset(fields)?),
        other => return Err(DecodeError::UnknownKind(other)),
    })
}

fn owner(header: &Fields<'_>) -> Owner {
    let flags = header.u32(offset_of!(layout::Header, flags));
    let known = flags & (layout::FLAG_PROCESS_KNOWN | layout::FLAG_VICTIM_PID_ONLY) != 0;
    Owner {
        cgroup_id: unless_zero(header.u64(offset_of!(layout::Header, cgroup_id))),
        memory_cgroup_id: unless_zero(header.u64(offset_of!(layout::Header, memory_cgroup_id))),
        process: known.then(|| Process {
            pid: header.u32(offset_of!(layout::Header, pid)),
            tid: header.u32(offset_of!(layout::Header, tid)),
            uid: header.u32(offset_of!(layout::Header, uid)),
            start_boot_ns: header.u64(offset_of!(layout::Header, start_boot_ns)),
            comm: Comm(header.array(offset_of!(layout::Header, comm))),
        }),
    }
}

fn exec(fields: &Fields<'_>) -> Exec {
    let name: [u8; layout::FILENAME_BYTES] = fields.array(offset_of!(layout::Exec, filename));
    let length = fields.u32(offset_of!(layout::Exec, filename_bytes)) as usize;
    Exec {
        parent_pid: fields.u32(offset_of!(layout::Exec, parent_pid)),
        filename: String::from_utf8_lossy(&name[..length.min(name.len())]).into_owned(),
    }
}

fn exit(fields: &Fields<'_>) -> Exit {
    let signal = fields.u32(offset_of!(layout::Exit, signal)) as u8;
    Exit {
        parent_pid: fields.u32(offset_of!(layout::Exit, parent_pid)),
        status: fields.i32(offset_of!(layout::Exit, status)) as u8,
        signal: (signal != 0).then_some(signal),
        core_dumped: fields.u32(offset_of!(layout::Exit, core_dumped)) != 0,
        max_rss_bytes: pages(fields.u64(offset_of!(layout::Exit, max_rss_pages))),
    }
}

fn oom_victim(header: &Fields<'_>, fields: &Fields<'_>) -> OomVictim {
    let flags = header.u32(offset_of!(layout::Header, flags));
    OomVictim {
        total_vm_bytes: pages(fields.u64(offset_of!(layout::OomVictim, total_vm_pages))),
        anon_rss_bytes: pages(fields.u64(offset_of!(layout::OomVictim, anon_rss_pages))),
        file_rss_bytes: pages(fields.u64(offset_of!(layout::OomVictim, file_rss_pages))),
        shmem_rss_bytes: pages(fields.u64(offset_of!(layout::OomVictim, shmem_rss_pages))),
        page_table_bytes: fields.u64(offset_of!(layout::OomVictim, page_table_bytes)),
        oom_score_adj: fields.i32(offset_of!(layout::OomVictim, oom_score_adj)),
        pid_only: flags & layout::FLAG_VICTIM_PID_ONLY != 0,
    }
}

fn signal(fields: &Fields<'_>) -> Result<Signal, DecodeError> {
    let number = fields.i32(offset_of!(layout::Signal, signal));
    let sender_pid = fields.u32(offset_of!(layout::Signal, sender_pid));
    Ok(Signal {
        signal: u8::try_from(number).map_err(|_| unknown("signal", number as u32))?,
        code: fields.i32(offset_of!(layout::Signal, code)),
        sender: (sender_pid != 0).then(|| Sender {
            pid: sender_pid,
            cgroup_id: unless_zero(fields.u64(offset_of!(layout::Signal, sender_cgroup_id))),
            comm: Comm(fields.array(offset_of!(layout::Signal, sender_comm))),
        }),
        to_group: fields.u32(offset_of!(layout::Signal, to_group)) != 0,
        result: match fields.u32(offset_of!(layout::Signal, result)) {
            0 => SignalResult::Delivered,
            1 => SignalResult::Ignored,
            2 => SignalResult::AlreadyPending,
            3 => SignalResult::QueueOverflow,
            4 => SignalResult::InfoLost,
            other => return Err(unknown("signal result", other)),
        },
    })
}

/// The tuple is the first field of every TCP body.
fn tuple(fields: &Fields<'_>) -> Tuple {
    let local_port = fields.u16(offset_of!(layout::Tuple, local_port));
    let remote_port = fields.u16(offset_of!(layout::Tuple, remote_port));
    Tuple {
        local: SocketAddr::new(fields.address(offset_of!(layout::Tuple, local_address)), local_port),
        remote: SocketAddr::new(fields.address(offset_of!(layout::Tuple, remote_address)), remote_port),
        network_namespace: fields.u32(offset_of!(layout::Tuple, network_namespace)),
        socket: unless_zero(fields.u64(offset_of!(layout::Tuple, socket))),
    }
}

fn tcp_connect_end(fields: &Fields<'_>) -> Result<TcpConnectEnd, DecodeError> {
    Ok(TcpConnectEnd {
        tuple: tuple(fields),
        outcome: match fields.u8(offset_of!(layout::TcpConnectEnd, outcome)) {
            1 => ConnectOutcome::Established,
            2 => ConnectOutcome::Refused,
            3 => ConnectOutcome::TimedOut,
            4 => ConnectOutcome::Reset,
            5 => ConnectOutcome::Unreachable,
            6 => ConnectOutcome::Aborted,
            7 => ConnectOutcome::LocalError,
            8 => ConnectOutcome::Failed,
            other => return Err(unknown("connect outcome", other.into())),
        },
        latency: nanoseconds(fields.u64(offset_of!(layout::TcpConnectEnd, latency_ns))),
        error: fields.i32(offset_of!(layout::TcpConnectEnd, error)),
    })
}

fn tcp_closed(fields: &Fields<'_>) -> Result<TcpClosed, DecodeError> {
    Ok(TcpClosed {
        tuple: tuple(fields),
        reason: match fields.u8(offset_of!(layout::TcpClosed, reason)) {
            1 => CloseReason::Finished,
            2 => CloseReason::ResetByPeer,
            3 => CloseReason::TimedOut,
            4 => CloseReason::Aborted,
            5 => CloseReason::Failed,
            other => return Err(unknown("close reason", other.into())),
        },
        direction: direction(fields.u8(offset_of!(layout::TcpClosed, direction)))?,
        duration: nanoseconds(fields.u64(offset_of!(layout::TcpClosed, duration_ns))),
        bytes_acked: fields.u64(offset_of!(layout::TcpClosed, bytes_acked)),
        bytes_received: fields.u64(offset_of!(layout::TcpClosed, bytes_received)),
        smoothed_rtt_us: fields.u32(offset_of!(layout::TcpClosed, smoothed_rtt_us)),
        retransmits: fields.u32(offset_of!(layout::TcpClosed, retransmits)),
        error: fields.i32(offset_of!(layout::TcpClosed, error)),
        old_state: tcp_state(fields.u8(offset_of!(layout::TcpClosed, old_state))),
    })
}

fn tcp_retransmit(fields: &Fields<'_>) -> Result<TcpRetransmit, DecodeError> {
    Ok(TcpRetransmit {
        tuple: tuple(fields),
        state: tcp_state(fields.u8(offset_of!(layout::TcpRetransmit, state))),
        total: fields.u32(offset_of!(layout::TcpRetransmit, total)),
        consecutive: fields.u8(offset_of!(layout::TcpRetransmit, consecutive)),
        direction: direction(fields.u8(offset_of!(layout::TcpRetransmit, direction)))?,
    })
}

fn tcp_reset(fields: &Fields<'_>) -> Result<TcpReset, DecodeError> {
    let state = fields.u8(offset_of!(layout::TcpReset, state));
    Ok(TcpReset {
        tuple: tuple(fields),
        state: (state != 0).then(|| tcp_state(state)),
        direction: direction(fields.u8(offset_of!(layout::TcpReset, direction)))?,
    })
}

fn direction(value: u8) -> Result<Option<Direction>, DecodeError> {
    match value {
        0 => Ok(None),
        1 => Ok(Some(Direction::Outbound)),
        2 => Ok(Some(Direction::Inbound)),
        other => Err(unknown("direction", other.into())),
    }
}

fn tcp_state(value: u8) -> TcpState {
    match value {
        1 => TcpState::Established,
        2 => TcpState::SynSent,
        3 => TcpState::SynReceived,
        4 => TcpState::FinWait1,
        5 => TcpState::FinWait2,
        6 => TcpState::TimeWait,
        7 => TcpState::Closed,
        8 => TcpState::CloseWait,
        9 => TcpState::LastAck,
        10 => TcpState::Listen,
        11 => TcpState::Closing,
        12 => TcpState::NewSynReceived,
        other => TcpState::Other(other),
    }
}

fn unknown(field: &'static str, value: u32) -> DecodeError {
    DecodeError::UnknownValue { field, value }
}

fn unless_zero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn nanoseconds(value: u64) -> Option<Duration> {
    unless_zero(value).map(Duration::from_nanos)
}

fn pages(count: u64) -> u64 {
    count.saturating_mul(rustix::param::page_size() as u64)
}

/// Reads fields at the offsets of a `layout` structure. The slice was checked to have that structure's size.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }

    fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_ne_bytes(self.array(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.array(offset))
    }

    fn i32(&self, offset: usize) -> i32 {
        i32::from_ne_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.array(offset))
    }

    fn address(&self, offset: usize) -> IpAddr {
        Ipv6Addr::from(self.array::<16>(offset)).to_canonical()
    }
}
