//! Loads and attaches the kernel programs. One that the kernel does not take leaves the others as they are.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Iter, ProgramError},
};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    config::BpfConfig,
    error::{BpfError, program_failure},
    layout,
    program::{Program, ProgramCounters, ProgramState, ProgramStatus, SocketScan},
    reader::RingReader,
};

/// Where the running kernel describes its types.
pub(crate) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const MAP_EVENTS: &str = "tapio_events";
const MAP_COUNTS: &str = "tapio_counts";
const MAP_CONNECTIONS: &str = "tapio_connections";
const SOCKET_SCAN: &str = "tapio_socket_scan";

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TAPIO_BPF_OBJECT"));

/// Loads the programs as configured.
#[derive(Debug, Clone, Default)]
pub struct Loader {
    config: BpfConfig,
}

impl Loader {
    pub fn new(config: BpfConfig) -> Self {
        Self { config }
    }

    /// Loads and attaches every configured program.
    ///
    /// # Errors
    /// When none can be loaded at all: no type information, no rights, a kernel without ring buffers. A single program
    /// that fails is no error, see [`Loaded::programs`].
    pub fn load(&self) -> Result<Loaded, BpfError> {
        let (mut ebpf, btf) = self.open()?;
        let programs = self.each(|program| match attach(&mut ebpf, program, &btf) {
            Ok(()) => ProgramState::Attached,
            Err(error) => ProgramState::Failed { reason: program_failure(&error, program.tracepoint()) },
        });
        let scan = self.scan_sockets(&mut ebpf, &btf);
        for status in &programs {
            match &status.state {
                ProgramState::Failed { reason } => {
                    tracing::warn!(program = status.program.name(), reason, "kernel program is not attached");
                }
                state => tracing::debug!(program = status.program.name(), ?state, "kernel program"),
            }
        }
        if let SocketScan::Failed { reason } = &scan {
            tracing::warn!(reason, "older sockets were not looked at");
        }
        Loaded::new(ebpf, programs, scan)
    }

    /// After the programs are attached, so that no socket falls between.
    fn scan_sockets(&self, ebpf: &mut Ebpf, btf: &Btf) -> SocketScan {
        if !self.config.scan_sockets || !self.config.programs.contains(&Program::TcpState) {
            return SocketScan::Disabled;
        }
        match scan_sockets(ebpf, btf) {
            Ok(()) => SocketScan::Done,
            Err(reason) => SocketScan::Failed { reason },
        }
    }

    /// Offers every configured program to the kernel without attaching it.
    pub(crate) fn try_load(&self) -> Result<Vec<ProgramStatus>, BpfError> {
        let (mut ebpf, btf) = self.open()?;
        Ok(self.each(|program| match load(&mut ebpf, program, &btf) {
            Ok(_) => ProgramState::Loadable,
            Err(error) => ProgramState::Failed { reason: program_failure(&error, program.tracepoint()) },
        }))
    }

    fn each(&self, mut state: impl FnMut(Program) -> ProgramState) -> Vec<ProgramStatus> {
        let status = |program| ProgramStatus {
            program,
            state: if self.config.programs.contains(&program) {
                state(program)
            } else {
                ProgramState::Disabled
            },
        };
        Program::ALL.into_iter().map(status).collect()
    }

    /// Creates the maps and fits the programs to the running kernel's types.
    fn open(&self) -> Result<(Ebpf, Btf), BpfError> {
        self.config.check().map_err(BpfError::Config)?;
        raise_locked_memory_limit();
        let btf = Btf::from_sys_fs().map_err(|source| BpfError::NoBtf { path: BTF_PATH, source })?;
        let signals = self.config.signals.bits();
        let shed_bytes = u64::from(self.config.ring_bytes) / 4 * 3;
        let connect_begins = u8::from(self.config.connect_begins);
        let ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("tapio_signal_mask", &signals, true)
            .override_global("tapio_shed_bytes", &shed_bytes, true)
            .override_global("tapio_tell_connect_begin", &connect_begins, true)
            .map_max_entries(MAP_EVENTS, self.config.ring_bytes)
            .map_max_entries(MAP_CONNECTIONS, self.config.connections_max)
            .load(OBJECT)
            .map_err(BpfError::from_load)?;
        Ok((ebpf, btf))
    }
}

/// Kernels before 5.11 charge maps against this limit, newer ones against the memory cgroup; so failing is no harm.
fn raise_locked_memory_limit() {
    if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        tracing::debug!(%error, "locked memory limit stays as it is, which matters before Linux 5.11 only");
    }
}

fn load<'a>(ebpf: &'a mut Ebpf, program: Program, btf: &Btf) -> Result<&'a mut BtfTracePoint, ProgramError> {
    let invalid = || ProgramError::InvalidName { name: program.symbol().to_owned() };
    let loaded: &mut BtfTracePoint = ebpf.program_mut(program.symbol()).ok_or_else(invalid)?.try_into()?;
    loaded.load(program.tracepoint(), btf)?;
    Ok(loaded)
}

fn attach(ebpf: &mut Ebpf, program: Program, btf: &Btf) -> Result<(), ProgramError> {
    load(ebpf, program, btf)?.attach()?;
    Ok(())
}

/// Runs the iterator over all open files to its end. It writes into maps and gives no text.
fn scan_sockets(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), String> {
    let failure = |error: ProgramError| program_failure(&error, "iter/task_file");
    let program = ebpf.program_mut(SOCKET_SCAN).ok_or("the compiled programs have no socket scan")?;
    let program: &mut Iter = program.try_into().map_err(failure)?;
    program.load("task_file", btf).map_err(failure)?;
    let link = program.attach().map_err(failure)?;
    let link = program.take_link(link).map_err(failure)?;
    let mut walk = link.into_file().map_err(|error| error.to_string())?;
    io::copy(&mut walk, &mut io::sink()).map_err(|error| format!("read of the walk failed: {error}"))?;
    program.unload().map_err(failure)
}

/// The programs at work. Dropping it detaches them.
pub struct Loaded {
    ebpf: Ebpf,
    counts: PerCpuArray<MapData, layout::Counters>,
    ring: Option<RingBuf<MapData>>,
    programs: Vec<ProgramStatus>,
    scan: SocketScan,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("programs", &self.programs).finish_non_exhaustive()
    }
}

impl Loaded {
    fn new(mut ebpf: Ebpf, programs: Vec<ProgramStatus>, scan: SocketScan) -> Result<Self, BpfError> {
        let counts = ebpf.take_map(MAP_COUNTS).ok_or(BpfError::MissingMap(MAP_COUNTS))?;
        let counts =
            PerCpuArray::try_from(counts).map_err(|source| BpfError::Map { map: MAP_COUNTS, source })?;
        let ring = ebpf.take_map(MAP_EVENTS).ok_or(BpfError::MissingMap(MAP_EVENTS))?;
        let ring = RingBuf::try_from(ring).map_err(|source| BpfError::Map { map: MAP_EVENTS, source })?;
        Ok(Self { ebpf, counts, ring: Some(ring), programs, scan })
    }

    /// What became of each program, in the order of [`Program::ALL`].
    pub fn programs(&self) -> &[ProgramStatus] {
        &self.programs
    }

    /// Whether sockets older than the programs are known.
    pub fn socket_scan(&self) -> &SocketScan {
        &self.scan
    }

    /// The one reader of the ring.
    ///
    /// # Errors
    /// When it was taken before, or the kernel gives no descriptor to wake it by.
    pub fn reader(&mut self) -> Result<RingReader, BpfError> {
        RingReader::new(self.ring.take().ok_or(BpfError::ReaderTaken)?)
    }

    /// What each program wrote, lost and missed since it was loaded, summed over CPUs.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Vec<ProgramCounters>, BpfError> {
        Program::ALL.into_iter().map(|program| self.counters_of(program)).collect()
    }

    fn counters_of(&self, program: Program) -> Result<ProgramCounters, BpfError> {
        let per_cpu = self
            .counts
            .get(&program.index(), 0)
            .map_err(|source| BpfError::Map { map: MAP_COUNTS, source })?;
        let sum = |field: usize| per_cpu.iter().map(|counts| counts[field]).sum();
        let shed: u64 = sum(layout::COUNTER_SHED);
        Ok(ProgramCounters {
            program,
            submitted: sum(layout::COUNTER_SUBMITTED),
            lost: sum(layout::COUNTER_FULL) + shed,
            shed,
            missed: self.missed(program),
        })
    }

    /// The kernel tells runs it left out in the description of the program's descriptor, since 5.12.
    fn missed(&self, program: Program) -> u64 {
        let described =
            self.ebpf.program(program.symbol()).and_then(|program| program.fd().ok()).and_then(|fd| {
                fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()
            });
        described.as_deref().and_then(recursion_misses).unwrap_or(0)
    }
}

fn recursion_misses(description: &str) -> Option<u64> {
    description.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursion_misses_are_read_from_the_description() {
        assert_eq!(recursion_misses("pos:\t0\nprog_type:\t26\nrecursion_misses:\t17\n"), Some(17));
        assert_eq!(recursion_misses("pos:\t0\n"), None);
    }
}
