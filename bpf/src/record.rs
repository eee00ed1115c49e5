//! What the kernel programs report, as Rust values.

use std::{fmt, net::SocketAddr, time::Duration};

use crate::layout::COMM_BYTES;

/// One record from the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// When the kernel saw it: nanoseconds of `CLOCK_BOOTTIME`, which counts time asleep and never jumps.
    pub boot_ns: u64,
    /// The same moment in nanoseconds since the Unix epoch, by the offset the reader last measured.
    pub unix_ns: u64,
    pub owner: Owner,
    pub body: Body,
}

/// The process a record is about, and its two cgroups, read from that process's own task or remembered with its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Inode number of the cgroup directory in the default (v2) hierarchy; `None` when unknown.
    pub cgroup_id: Option<u64>,
    /// Inode number of the cgroup directory its memory is charged to, v1 or v2; `None` when unknown.
    pub memory_cgroup_id: Option<u64>,
    /// `None`: a packet of no socket, a socket of a kernel thread, or one that is older than the programs on a kernel that
    /// did not let them be looked at, see [`crate::Loaded::socket_scan`]. The cgroup may still be known.
    pub process: Option<Process>,
}

/// A process, in the initial pid and user namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The thread that acted, or was acted upon.
    pub tid: u32,
    pub uid: u32,
    /// When the process began, nanoseconds of `CLOCK_BOOTTIME`: together with `pid` an identity that outlives the
    /// reuse of pids. 0 when the kernel gave nothing but a pid, see [`OomVictim::pid_only`].
    pub start_boot_ns: u64,
    pub comm: Comm,
}

/// A process name as the kernel keeps it: at most fifteen bytes, of any encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Comm(pub(crate) [u8; COMM_BYTES]);

impl Comm {
    /// The bytes before the first NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(COMM_BYTES);
        &self.0[..end]
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Exec(Exec),
    Exit(Exit),
    OomVictim(OomVictim),
    Signal(Signal),
    TcpConnectBegin(TcpConnectBegin),
    TcpConnectEnd(TcpConnectEnd),
    TcpAccepted(TcpAccepted),
    TcpClosed(TcpClosed),
    TcpRetransmit(TcpRetransmit),
    /// This machine sent a reset; no owner when nothing listened on the port.
    TcpResetSent(TcpReset),
    /// A reset came for a connection that was established. One that comes during a handshake is the refusal that
    /// [`TcpConnectEnd`] tells, and is not reported here as well.
    TcpResetReceived(TcpReset),
}

/// A process began to run a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub parent_pid: u32,
    /// The path as it was given to execve, cut at 255 bytes.
    pub filename: String,
}

/// A process ended: reported once, when its last thread is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub parent_pid: u32,
    /// What it passed to exit, 0..=255; 0 when a signal killed it.
    pub status: u8,
    /// The signal that killed it.
    pub signal: Option<u8>,
    pub core_dumped: bool,
    /// The most memory it ever held resident.
    pub max_rss_bytes: u64,
}

/// The out-of-memory killer chose the owner of this record. The resident sizes come from per-CPU counters and may be off
/// by some tens of pages per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OomVictim {
    pub total_vm_bytes: u64,
    pub anon_rss_bytes: u64,
    pub file_rss_bytes: u64,
    pub shmem_rss_bytes: u64,
    pub page_table_bytes: u64,
    pub oom_score_adj: i32,
    /// The kernel is older than 6.9 and gave the pid alone: sizes, name and cgroups must be read from `/proc` at once.
    pub pid_only: bool,
}

/// A signal was sent to the owner of this record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    pub signal: u8,
    /// `si_code`: positive when the kernel raised it, for example 1 or 2 for an address fault.
    pub code: i32,
    /// `None`: the kernel itself.
    pub sender: Option<Sender>,
    /// To the whole process, not to one thread.
    pub to_group: bool,
    pub result: SignalResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    pub pid: u32,
    pub cgroup_id: Option<u64>,
    pub comm: Comm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalResult {
    Delivered,
    Ignored,
    AlreadyPending,
    QueueOverflow,
    InfoLost,
}

/// The two ends of a connection, this machine's first. Equal `socket` and `network_namespace` mean the same socket as long
/// as it lives; the kernel uses the value again for a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Inode number of the network namespace.
    pub network_namespace: u32,
    /// `None`: a packet that belonged to no socket.
    pub socket: Option<u64>,
}

/// A SYN is about to be sent. The local port is 0 unless it was bound before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpConnectBegin {
    pub tuple: Tuple,
}

/// The one outcome of a connect attempt. A call that fails before the first SYN, for want of a route, is not seen at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpConnectEnd {
    pub tuple: Tuple,
    pub outcome: ConnectOutcome,
    /// From the SYN to the outcome; `None` when the attempt began before the programs.
    pub latency: Option<Duration>,
    /// The socket's error as an errno, 0 = none.
    pub error: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectOutcome {
    Established,
    /// The other side answered with a reset, or a router with "port unreachable".
    Refused,
    /// No answer to any SYN.
    TimedOut,
    /// A reset after the other side had begun to connect too.
    Reset,
    /// No host or network there: a router or the neighbour table said so.
    Unreachable,
    /// Closed, disconnected or killed on this side before an answer came.
    Aborted,
    /// connect itself failed on this side, for example without a free port.
    LocalError,
    /// Any other error of the socket.
    Failed,
}

/// A connection came in and its handshake is complete. The owner is who called listen, which with a socket handed on, as
/// by a service manager, is not who will accept it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpAccepted {
    pub tuple: Tuple,
}

/// A connection that had been established is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpClosed {
    pub tuple: Tuple,
    pub reason: CloseReason,
    pub direction: Option<Direction>,
    /// Since it was established; `None` when that was before the programs.
    pub duration: Option<Duration>,
    /// Sent from here and acknowledged there.
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub smoothed_rtt_us: u32,
    pub retransmits: u32,
    /// The socket's error as an errno, 0 = none.
    pub error: i32,
    pub old_state: TcpState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides said FIN.
    Finished,
    ResetByPeer,
    /// No acknowledgement, or no answer to keep-alive.
    TimedOut,
    /// This side dropped it: linger 0, data left unread, disconnect, administrator.
    Aborted,
    /// Any other error of the socket.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    Outbound,
    Inbound,
}

/// A segment is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpRetransmit {
    pub tuple: Tuple,
    /// [`TcpState::SynSent`] = the SYN itself.
    pub state: TcpState,
    /// Segments sent again in this socket's life, this one included.
    pub total: u32,
    /// Timeouts in a row without progress.
    pub consecutive: u8,
    pub direction: Option<Direction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpReset {
    pub tuple: Tuple,
    /// State of the socket at that moment; `None` without a socket, [`TcpState::Closed`] when this side just dropped it.
    pub state: Option<TcpState>,
    pub direction: Option<Direction>,
}

/// States of the kernel's TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Closed,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    NewSynReceived,
    /// A state this crate does not know, by its number.
    Other(u8),
}
