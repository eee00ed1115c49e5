//! Reads one group: its files, kept open and read again from their start.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::parse;
use crate::attribution::Hierarchies;

/// Largest file read; `memory.stat` of a large machine is below 8 KiB.
const FILE_BYTES_MAX: usize = 32 * 1024;

/// Memory of a group, bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemorySample {
    /// Everything charged, page cache too.
    pub raw: u64,
    /// Without what is reclaimed at no cost.
    pub working_set: u64,
    /// The smallest limit of the group and its ancestors.
    pub limit: Option<u64>,
    /// Counts since the group was made, by name.
    pub events: Vec<(&'static str, u64)>,
}

/// Processor time of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuSample {
    /// Seconds used, over all processors; `None` where the group is not in the tree that counts them (v1 `cpuacct`).
    pub used_seconds: Option<f64>,
    /// Quota periods, those in which it was throttled, and for how many seconds; `None` without the controller.
    pub quota: Option<(u64, u64, f64)>,
}

/// Processes and threads of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidsSample {
    /// Now.
    pub current: u64,
    /// Allowed.
    pub limit: Option<u64>,
}

/// Bytes since the group was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoSample {
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
}

/// Share of time in which some task waited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Psi {
    /// Percent over the last ten seconds.
    pub avg10: f64,
    /// Seconds since the group was made.
    pub total_seconds: f64,
}

/// What a group offers now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Memory.
    pub memory: Option<MemorySample>,
    /// Processor.
    pub cpu: Option<CpuSample>,
    /// Processes.
    pub pids: Option<PidsSample>,
    /// Block devices.
    pub io: Option<IoSample>,
    /// Waiting for memory.
    pub memory_pressure: Option<Psi>,
    /// Waiting for a processor.
    pub cpu_pressure: Option<Psi>,
    /// Waiting for a device.
    pub io_pressure: Option<Psi>,
}

impl Sample {
    /// True when nothing could be read: the group is gone.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How many files may be kept open, shared by all groups.
#[derive(Clone)]
pub struct FileBudget(Arc<AtomicUsize>);

impl FileBudget {
    /// So many.
    pub fn new(files: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(files)))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One file of a group.
struct Source {
    path: PathBuf,
    file: Option<File>,
    /// Not there when it was first read: not tried again.
    absent: bool,
    budget: FileBudget,
}

impl Source {
    fn new(tree: Option<&Path>, group: &str, name: &str, budget: &FileBudget) -> Self {
        let path = tree.map(|tree| PathBuf::from(format!("{}{group}/{name}", tree.display())));
        let absent = path.is_none();
        Self { path: path.unwrap_or_default(), file: None, absent, budget: budget.clone() }
    }

    fn read<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
        if self.absent {
            return None;
        }
        let opened = match self.file.take() {
            Some(file) => Some(file),
            None => match File::open(&self.path) {
                Ok(file) => {
                    if self.budget.take() {
                        self.file = Some(file);
                        None
                    } else {
                        return read_all(&file, buffer);
                    }
                }
                Err(_) => {
                    self.absent = true;
                    return None;
                }
            },
        };
        if let Some(file) = opened {
            self.file = Some(file);
        }
        read_all(self.file.as_ref()?, buffer)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.budget.give_back();
        }
    }
}

fn read_all<'a>(file: &File, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
    buffer.resize(FILE_BYTES_MAX, 0);
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(_) => return None,
        }
    }
    std::str::from_utf8(&buffer[..filled]).ok()
}

/// The open files of one group.
pub struct GroupReader {
    memory_v1: bool,
    cpu_v1: bool,
    io_v1: bool,
    usage: Source,
    stat: Source,
    limit: Source,
    /// `memory.max` of the ancestors, v2 only: v1 tells the smallest in `memory.stat`.
    ancestor_limits: Vec<Source>,
    oom: Source,
    failcnt: Source,
    cpu_time: Source,
    cpu_stat: Source,
    pids: Source,
    pids_limit: Source,
    io: Source,
    memory_pressure: Source,
    cpu_pressure: Source,
    io_pressure: Source,
}

impl GroupReader {
    /// A reader of the group at `path` (`/a/b`) in every tree that has it.
    pub fn new(trees: &Hierarchies, path: &str, budget: &FileBudget) -> Self {
        let unified = trees.unified.as_deref();
        let v1 = |controller: &str| trees.v1_tree(controller);
        let memory = v1("memory").or(unified);
        let (memory_v1, cpu_v1, io_v1) =
            (v1("memory").is_some(), v1("cpu").is_some() || v1("cpuacct").is_some(), v1("blkio").is_some());
        let file = |tree, name| Source::new(tree, path, name, budget);
        let pick = |is_v1, v1, v2| if is_v1 { v1 } else { v2 };
        let ancestors = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]);
        let ancestor_limits = if memory_v1 {
            Vec::new()
        } else {
            ancestors.map(|ancestor| Source::new(memory, ancestor, "memory.max", budget)).collect()
        };
        Self {
            memory_v1,
            cpu_v1,
            io_v1,
            usage: file(memory, pick(memory_v1, "memory.usage_in_bytes", "memory.current")),
            stat: file(memory, "memory.stat"),
            limit: file(memory, pick(memory_v1, "memory.limit_in_bytes", "memory.max")),
            ancestor_limits,
            oom: file(memory, pick(memory_v1, "memory.oom_control", "memory.events")),
            failcnt: file(if memory_v1 { memory } else { None }, "memory.failcnt"),
            cpu_time: file(if cpu_v1 { v1("cpuacct") } else { None }, "cpuacct.usage"),
            cpu_stat: file(if cpu_v1 { v1("cpu") } else { unified }, "cpu.stat"),
            pids: file(v1("pids").or(unified), "pids.current"),
            pids_limit: file(v1("pids").or(unified), "pids.max"),
            io: file(v1("blkio").or(unified), io_file(v1("blkio"), path)),
            memory_pressure: file(unified, "memory.pressure"),
            cpu_pressure: file(unified, "cpu.pressure"),
            io_pressure: file(unified, "io.pressure"),
        }
    }

    /// Reads everything. `buffer` is reused from group to group.
    pub fn read(&mut self, buffer: &mut Vec<u8>) -> Sample {
        Sample {
            memory: self.memory(buffer),
            cpu: self.cpu(buffer),
            pids: self.pids.read(buffer).and_then(parse::number).map(|current| PidsSample {
                current,
                limit: self.pids_limit.read(buffer).and_then(parse::limit),
            }),
            io: self.io.read(buffer).map(|text| {
                let (read, written) = if self.io_v1 { parse::io_v1(text) } else { parse::io_v2(text) };
                IoSample { read, written }
            }),
            memory_pressure: psi(&mut self.memory_pressure, buffer),
            cpu_pressure: psi(&mut self.cpu_pressure, buffer),
            io_pressure: psi(&mut self.io_pressure, buffer),
        }
    }

    fn memory(&mut self, buffer: &mut Vec<u8>) -> Option<MemorySample> {
        let raw = self.usage.read(buffer).and_then(parse::number)?;
        let mut limit = self.limit.read(buffer).and_then(parse::limit);
        let mut inactive = 0;
        if let Some(stat) = self.stat.read(buffer) {
            let key = if self.memory_v1 { "total_inactive_file" } else { "inactive_file" };
            inactive = parse::keyed(stat, key).unwrap_or(0);
            if self.memory_v1 {
                let effective = parse::keyed(stat, "hierarchical_memory_limit");
                limit = smaller(limit, effective.filter(|n| *n < 1 << 62));
            }
        }
        for ancestor in &mut self.ancestor_limits {
            limit = smaller(limit, ancestor.read(buffer).and_then(parse::limit));
        }
        let mut events = Vec::new();
        let names: &[&'static str] =
            if self.memory_v1 { &["oom_kill"] } else { &["oom_kill", "oom", "max", "high"] };
        if let Some(text) = self.oom.read(buffer) {
            events.extend(names.iter().filter_map(|name| Some((*name, parse::keyed(text, name)?))));
        }
        if let Some(count) = self.failcnt.read(buffer).and_then(parse::number) {
            events.push(("max", count));
        }
        Some(MemorySample { raw, working_set: raw.saturating_sub(inactive), limit, events })
    }

    fn cpu(&mut self, buffer: &mut Vec<u8>) -> Option<CpuSample> {
        let from_acct = self.cpu_time.read(buffer).and_then(parse::number).map(|ns| ns as f64 / 1e9);
        let stat = self.cpu_stat.read(buffer);
        let key = |name: &str| stat.and_then(|text| parse::keyed(text, name));
        let used_seconds = from_acct.or_else(|| key("usage_usec").map(|us| us as f64 / 1e6));
        let throttled = if self.cpu_v1 {
            key("throttled_time").map(|ns| ns as f64 / 1e9)
        } else {
            key("throttled_usec").map(|us| us as f64 / 1e6)
        };
        let quota = match (key("nr_periods"), key("nr_throttled"), throttled) {
            (Some(periods), Some(count), Some(seconds)) => Some((periods, count, seconds)),
            _ => None,
        };
        // A v1 group may be in the tree of `cpu` alone: it has a quota and no count of time.
        (used_seconds.is_some() || quota.is_some()).then_some(CpuSample { used_seconds, quota })
    }
}

/// With children, as v2 counts; very old kernels count without. Newer ones count only where a limit or the BFQ
/// scheduler is at work.
fn io_file(blkio: Option<&Path>, path: &str) -> &'static str {
    const RECURSIVE: &str = "blkio.throttle.io_service_bytes_recursive";
    match blkio {
        None => "io.stat",
        Some(tree) if Path::new(&format!("{}{path}/{RECURSIVE}", tree.display())).exists() => RECURSIVE,
        Some(_) => "blkio.throttle.io_service_bytes",
    }
}

fn psi(source: &mut Source, buffer: &mut Vec<u8>) -> Option<Psi> {
    let (avg10, total) = source.read(buffer).and_then(parse::pressure)?;
    Some(Psi { avg10, total_seconds: total as f64 / 1e6 })
}

fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
