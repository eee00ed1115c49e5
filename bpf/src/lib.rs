//! The kernel part of Tapio: programs on the kernel's own tracepoints, and the code that loads and reads them.
//!
//! The programs are C with CO-RE (`src/kernel`), compiled by clang when this crate is built and embedded in it. They
//! attach to BTF tracepoints (`tp_btf`), read fields by name, and learn the place of each field from the running kernel's
//! type information when they are loaded. One that a kernel does not have or take leaves the others at work.
//!
//! | program | tracepoint | reports | since Linux |
//! |---|---|---|---|
//! | `exec` | `sched_process_exec` | a process begins a program | 5.8 |
//! | `exit` | `sched_process_exit` | a process ends: status, killing signal, peak memory | 5.8 |
//! | `oom` | `mark_victim` | the out-of-memory killer's victim, its memory, its memory cgroup | 6.9; from 5.8 the pid alone |
//! | `signal` | `signal_generate` | signals that end processes, and who sent them | 5.8 |
//! | `tcp_state` | `inet_sock_set_state` | connects and how each ended, connections accepted, connections closed | 5.8 |
//! | `tcp_retransmit` | `tcp_retransmit_skb` | a segment sent again | 5.8 |
//! | `tcp_send_reset` | `tcp_send_reset` | a reset sent | 5.8; where no socket was, about 6.10 |
//! | `tcp_receive_reset` | `tcp_receive_reset` | a reset for an established connection | 5.8 |
//!
//! 5.8 is where ring buffers and `bpf_ktime_get_boot_ns` came; `tp_btf` itself is from 5.5. The kernel needs
//! `CONFIG_DEBUG_INFO_BTF`, the process root or `CAP_BPF` and `CAP_PERFMON`. Neither kprobes nor fentry are used.
//!
//! # Whose event it is
//!
//! Every record names the process it is *about*, never the one that happened to run: the victim, the process that ends,
//! the target of a signal, the owner of a socket. It carries two cgroup ids of that process, in the default hierarchy and
//! where its memory is charged, because with cgroup v1 these are different trees. A socket's owner is taken in connect()
//! and listen(), where the kernel runs for that process, and remembered; later events of the socket come in interrupt
//! context. For sockets older than the programs one walk over all open files tells whose they are (`iter/task_file`, since
//! Linux 5.11); where that is refused they have the cgroup of the default hierarchy and no process.
//!
//! # How a connect ended
//!
//! Each attempt yields one [`TcpConnectEnd`], by the socket's state machine: the kernel writes the socket's error before
//! it changes the state. A reset in answer to a SYN is *refused*; a reset of an established connection is a
//! [`Body::TcpResetReceived`] and a [`TcpClosed`] with [`CloseReason::ResetByPeer`]. Non-blocking connects are the same
//! to the state machine.
//!
//! # Loss
//!
//! A full ring loses records, an interrupt within a program loses a run; both are counted per program
//! ([`Loaded::counters`]). Records that cannot be decoded are counted by reason ([`RingReader::failures`]).
//!
//! ```no_run
//! use tapio_bpf::{Batch, BpfConfig, Loader};
//!
//! # fn main() -> Result<(), tapio_bpf::BpfError> {
//! let mut loaded = Loader::new(BpfConfig::default()).load()?;
//! let mut reader = loaded.reader()?;
//! let waker = reader.waker(); // for another thread: `wake` or `close`
//! let mut records = Vec::new();
//! while reader.next_batch(&mut records, 1024, None)? != Batch::Closed {
//!     records.drain(..).for_each(|record| println!("{record:?}"));
//! #   waker.close();
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod clock;
mod config;
mod decode;
mod error;
mod layout;
mod loader;
mod probe;
mod program;
mod reader;
mod record;

pub use clock::{BootClock, REFRESH_INTERVAL_NS};
pub use config::{
    BpfConfig, CONNECTIONS_MAX_DEFAULT, RING_BYTES_DEFAULT, RING_BYTES_MAX, RING_BYTES_MIN, SIGNALS_DEFAULT,
    SignalMask,
};
pub use decode::{DecodeError, decode};
pub use error::BpfError;
pub use loader::{Loaded, Loader};
pub use probe::{Capabilities, Probe, probe};
pub use program::{Program, ProgramCounters, ProgramState, ProgramStatus, SocketScan};
pub use reader::{Batch, CLOSE_DRAIN_MAX, DecodeFailures, RingReader, RingWaker};
pub use record::{
    Body, CloseReason, Comm, ConnectOutcome, Direction, Exec, Exit, OomVictim, Owner, Process, RawRecord,
    Sender, Signal, SignalResult, TcpAccepted, TcpClosed, TcpConnectBegin, TcpConnectEnd, TcpReset,
    TcpRetransmit, TcpState, Tuple,
};
