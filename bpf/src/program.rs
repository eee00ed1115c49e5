//! The kernel programs by name, and what became of each.

use std::fmt;

/// A kernel program. The number is its index in the counters map, `enum tapio_program`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    Exec = 0,
    Exit = 1,
    Oom = 2,
    Signal = 3,
    TcpState = 4,
    TcpRetransmit = 5,
    TcpSendReset = 6,
    TcpReceiveReset = 7,
}

impl Program {
    pub const ALL: [Self; 8] = [
        Self::Exec,
        Self::Exit,
        Self::Oom,
        Self::Signal,
        Self::TcpState,
        Self::TcpRetransmit,
        Self::TcpSendReset,
        Self::TcpReceiveReset,
    ];

    /// Its index in the counters map.
    pub fn index(self) -> u32 {
        self as u32
    }

    /// The name of the program, for people and as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Exit => "exit",
            Self::Oom => "oom",
            Self::Signal => "signal",
            Self::TcpState => "tcp_state",
            Self::TcpRetransmit => "tcp_retransmit",
            Self::TcpSendReset => "tcp_send_reset",
            Self::TcpReceiveReset => "tcp_receive_reset",
        }
    }

    /// The tracepoint it attaches to.
    pub fn tracepoint(self) -> &'static str {
        match self {
            Self::Exec => "sched_process_exec",
            Self::Exit => "sched_process_exit",
            Self::Oom => "mark_victim",
            Self::Signal => "signal_generate",
            Self::TcpState => "inet_sock_set_state",
            Self::TcpRetransmit => "tcp_retransmit_skb",
            Self::TcpSendReset => "tcp_send_reset",
            Self::TcpReceiveReset => "tcp_receive_reset",
        }
    }

    /// The function of the C source.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Exec => "tapio_exec",
            Self::Exit => "tapio_exit",
            Self::Oom => "tapio_oom",
            Self::Signal => "tapio_signal",
            Self::TcpState => "tapio_tcp_state",
            Self::TcpRetransmit => "tapio_tcp_retransmit",
            Self::TcpSendReset => "tapio_tcp_send_reset",
            Self::TcpReceiveReset => "tapio_tcp_receive_reset",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStatus {
    pub program: Program,
    pub state: ProgramState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramState {
    /// Loaded and attached: its records come.
    Attached,
    /// Accepted by the kernel, not attached; only [`crate::probe()`] leaves a program so.
    Loadable,
    /// Not wanted by the configuration.
    Disabled,
    /// Refused, with what to do about it.
    Failed { reason: String },
}

/// Whether the sockets that were there before the programs were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketScan {
    /// Their processes and cgroups are known.
    Done,
    /// Not wanted, or no program that would use it.
    Disabled,
    /// Refused: events of older sockets name at most their cgroup in the default hierarchy.
    Failed { reason: String },
}

/// What one program wrote since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramCounters {
    pub program: Program,
    /// Records put into the ring.
    pub submitted: u64,
    /// Records lost because the ring was full, those shed included.
    pub lost: u64,
    /// Of these, routine records left out when the ring was three quarters full, to keep room for news.
    pub shed: u64,
    /// Runs the kernel left out because the program was already running on that CPU, when an interrupt came within it.
    pub missed: u64,
}
