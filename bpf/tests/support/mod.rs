//! What the tests share: the real programs on the real kernel, and real children that provoke events.
//!
//! Other work goes on on the same machine, so every test looks only at its own processes, ports and cgroups.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod cgroup;
pub mod child;

use std::time::{Duration, Instant};

use tapio_bpf::{
    Batch, Body, BpfConfig, Loaded, Loader, ProgramState, RawRecord, RingReader, TcpAccepted, TcpClosed,
    TcpConnectBegin, TcpConnectEnd, TcpReset, TcpRetransmit,
};

/// No event takes longer than this, even on a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(30);
const BATCH_MAX: usize = 4096;
/// Times that a scene is played until the kernel has left out no run of a program in it.
const SCENES_MAX: usize = 5;

/// These tests are never skipped: what they check is whether the kernel takes the programs.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test loads kernel programs: run it as root, for example `sudo -E cargo test -p tapio-bpf`"
    );
}

/// The programs at work, and all records since.
pub struct Watch {
    pub loaded: Loaded,
    pub reader: RingReader,
    pub records: Vec<RawRecord>,
}

impl Watch {
    pub fn start() -> Self {
        Self::with(BpfConfig::default())
    }

    pub fn with(config: BpfConfig) -> Self {
        require_root();
        let mut loaded = Loader::new(config).load().expect("the kernel takes the programs");
        for status in loaded.programs() {
            assert!(
                matches!(status.state, ProgramState::Attached | ProgramState::Disabled),
                "program {} is not attached: {:?}",
                status.program,
                status.state
            );
        }
        let reader = loaded.reader().expect("the ring has its reader");
        Self { loaded, reader, records: Vec::new() }
    }

    /// Reads until `found` gives something.
    pub fn until<T>(&mut self, what: &str, mut found: impl FnMut(&[RawRecord]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = found(&self.records) {
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: not seen among {} records", self.records.len());
            let batch = self
                .reader
                .next_batch(&mut self.records, BATCH_MAX, Some(left))
                .expect("the ring is readable");
            assert_ne!(batch, Batch::Closed);
        }
    }

    /// Reads until everything that happened before this call is in: a marker process runs, and the ring keeps order.
    pub fn settle(&mut self) {
        let marker = child::run("true", &[]);
        self.until("the end of the marker process", |records| {
            records
                .iter()
                .find(|record| pid(record) == Some(marker) && matches!(record.body, Body::Exit(_)))
                .map(|_| ())
        });
        for (reason, count) in self.reader.failures().by_reason() {
            assert_eq!(count, 0, "records were left out: {reason}");
        }
        for counters in self.loaded.counters().expect("the counters are readable") {
            assert_eq!(counters.lost, 0, "program {} lost records", counters.program);
        }
    }

    /// Plays a scene that timers take part in, and reads all of it. A timer that comes while the very program runs that it would
    /// run is left out by the kernel, which counts that (`missed`): such a scene says nothing and is played again.
    pub fn whole<T>(scene: impl Fn() -> T) -> (Self, T) {
        for _ in 0..SCENES_MAX {
            let mut watch = Self::start();
            let value = scene();
            watch.settle();
            let counters = watch.loaded.counters().expect("the counters are readable");
            if counters.iter().all(|counters| counters.missed == 0) {
                return (watch, value);
            }
        }
        panic!("the kernel left out runs of programs in each of {SCENES_MAX} scenes");
    }

    /// The records about a process, in order.
    pub fn of_pid(&self, wanted: u32) -> Vec<&RawRecord> {
        self.records.iter().filter(|record| pid(record) == Some(wanted)).collect()
    }
}

pub fn pid(record: &RawRecord) -> Option<u32> {
    record.owner.process.map(|process| process.pid)
}

macro_rules! pick {
    ($($(#[$doc:meta])* $name:ident: $variant:ident($body:ty);)*) => {
        $($(#[$doc])*
        pub fn $name(records: &[&RawRecord]) -> Vec<$body> {
            records.iter().filter_map(|record| match &record.body {
                Body::$variant(body) => Some(body.clone()),
                _ => None,
            }).collect()
        })*
    };
}

pick! {
    execs: Exec(tapio_bpf::Exec);
    exits: Exit(tapio_bpf::Exit);
    victims: OomVictim(tapio_bpf::OomVictim);
    signals: Signal(tapio_bpf::Signal);
    begins: TcpConnectBegin(TcpConnectBegin);
    ends: TcpConnectEnd(TcpConnectEnd);
    accepts: TcpAccepted(TcpAccepted);
    closes: TcpClosed(TcpClosed);
    retransmits: TcpRetransmit(TcpRetransmit);
    resets_sent: TcpResetSent(TcpReset);
    resets_received: TcpResetReceived(TcpReset);
}
