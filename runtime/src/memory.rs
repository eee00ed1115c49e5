//! How much memory this process uses of what it may, and what it sheds so that it is not killed for it.
//!
//! What it may is configured, or what its control group allows when that is less. What it uses is its resident memory: the
//! page cache of the group is not its own to give back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapio_schemas::EventSeverity;

use crate::config::ByteSize;

/// From this share of what it may use on, routine events up to `info` are shed …
const SHED_INFO_PERMILLE: u64 = 800;
/// … and from this on, those up to `warning`.
const SHED_WARNING_PERMILLE: u64 = 900;
/// So far below its threshold a step is left again, so that it does not come and go with each event.
const BACK_PERMILLE: u64 = 50;

/// Where the figure comes from.
pub trait MemoryFigure: Send + Sync {
    /// Bytes of memory that this process has resident; `None` when that cannot be known here.
    fn resident_bytes(&self) -> Option<u64>;
}

/// The memory of this process, from `/proc/self/statm`.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnMemory;

impl MemoryFigure for OwnMemory {
    fn resident_bytes(&self) -> Option<u64> {
        let statm = fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
}

/// What is shed, from the least to the most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// Nothing.
    #[default]
    Calm = 0,
    /// Routine events of severity `debug` and `info`.
    ShedsInfo = 1,
    /// Also those of severity `warning`.
    ShedsWarning = 2,
}

impl Pressure {
    /// From its number; anything else is calm.
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::ShedsInfo,
            2 => Self::ShedsWarning,
            _ => Self::Calm,
        }
    }

    /// The highest severity that is shed. `error` and `critical` never are.
    pub fn sheds_up_to(self) -> Option<EventSeverity> {
        match self {
            Self::Calm => None,
            Self::ShedsInfo => Some(EventSeverity::Info),
            Self::ShedsWarning => Some(EventSeverity::Warning),
        }
    }
}

/// Follows the figure.
pub struct MemoryWatch {
    figure: Arc<dyn MemoryFigure>,
    bytes_max: u64,
    bytes: u64,
    pressure: Pressure,
}

impl MemoryWatch {
    /// At most `bytes_max`, or what the control group of this process allows when that is less. 0 = what the group
    /// allows; without a group that limits it, nothing is ever shed.
    pub fn new(figure: Arc<dyn MemoryFigure>, bytes_max: ByteSize) -> Self {
        let bounds = [Some(bytes_max.bytes()).filter(|bytes| *bytes > 0), group_limit()];
        Self::with_limit(figure, bounds.into_iter().flatten().min().unwrap_or(u64::MAX))
    }

    fn with_limit(figure: Arc<dyn MemoryFigure>, bytes_max: u64) -> Self {
        Self { figure, bytes_max, bytes: 0, pressure: Pressure::Calm }
    }

    /// Looks at the figure; what is shed from now on.
    pub fn look(&mut self) -> Pressure {
        self.bytes = self.figure.resident_bytes().unwrap_or(0);
        let used = u128::from(self.bytes) * 1000 / u128::from(self.bytes_max.max(1));
        let above = |threshold: u64, step: Pressure| {
            let back = if self.pressure >= step { BACK_PERMILLE } else { 0 };
            used >= u128::from(threshold - back)
        };
        self.pressure = if above(SHED_WARNING_PERMILLE, Pressure::ShedsWarning) {
            Pressure::ShedsWarning
        } else if above(SHED_INFO_PERMILLE, Pressure::ShedsInfo) {
            Pressure::ShedsInfo
        } else {
            Pressure::Calm
        };
        self.pressure
    }

    /// Bytes used when it last looked.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that may be used; `u64::MAX` for no limit.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }
}

/// What the control group of this process and those above it allow at the least; `None` for no limit, or no groups.
fn group_limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().filter_map(|line| limit_of(line, Path::new("/sys/fs/cgroup"))).min()
}

/// The least limit on the way of one line of `/proc/self/cgroup` to the root: version 2 (`0::/path`) or the memory controller
/// of version 1 (`4:memory:/path`).
fn limit_of(line: &str, mount: &Path) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (controllers, path) = (parts.nth(1)?, parts.next()?);
    let (base, file): (PathBuf, _) = match controllers {
        "" => (mount.to_owned(), "memory.max"),
        names if names.split(',').any(|name| name == "memory") => {
            (mount.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // In a container the path may be that of the host while the mount is the container's own: its root counts anyway.
    let own = base.join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(&base));
    // No limit is `max`, or in version 1 a number no machine has.
    let limits = groups.filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok());
    limits.filter(|bytes: &u64| *bytes < 1 << 60).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Told(AtomicU64);

    impl MemoryFigure for Told {
        fn resident_bytes(&self) -> Option<u64> {
            Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
        }
    }

    #[test]
    fn it_sheds_the_least_first_and_comes_back_later_than_it_went() {
        let told = Arc::new(Told::default());
        let mut watch = MemoryWatch::with_limit(Arc::clone(&told) as Arc<dyn MemoryFigure>, 1000);
        let mut at = |bytes: u64| {
            told.0.store(bytes, Ordering::Relaxed);
            watch.look() as u8
        };
        let up: Vec<u8> = [799, 800, 899, 900, 5000].map(&mut at).into();
        assert_eq!(up, [0, 1, 1, 2, 2]);
        let down: Vec<u8> = [850, 849, 899, 750, 749, 799].map(&mut at).into();
        assert_eq!(down, [2, 1, 1, 1, 0, 0]);
        assert_eq!(at(900), 2, "at once, when it is high at once");
        assert_eq!(at(0), 0, "what cannot be known is no reason to shed");
        let severities = [0, 1, 2].map(|n| Pressure::from_number(n).sheds_up_to());
        assert_eq!(severities, [None, Some(EventSeverity::Info), Some(EventSeverity::Warning)]);
    }

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts_in_both_versions() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("a/memory.max", "5000\n");
        write("a/b/memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/x/memory.limit_in_bytes", "7000\n");
        let limit = |line: &str| limit_of(line, root.path());
        assert_eq!(limit("0::/a/b"), Some(5000));
        assert_eq!(limit("4:memory:/x/y"), Some(7000));
        assert_eq!(limit("4:cpu,memory:/elsewhere"), None);
        assert_eq!(limit("3:cpu:/a"), None);
        assert_eq!(limit("0::/"), None);
    }

    #[test]
    fn the_memory_of_this_process_is_that_of_a_small_program_and_grows_with_what_it_holds() {
        let before = OwnMemory.resident_bytes().expect("a figure");
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = OwnMemory.resident_bytes().expect("a figure");
        assert!((1 << 20..4 << 30).contains(&before), "{before}");
        assert!(after >= before + (60 << 20), "{before} → {after}, holding {}", held.len());
    }

    #[test]
    fn a_small_limit_that_is_configured_counts() {
        let mut watch = MemoryWatch::new(Arc::new(OwnMemory), ByteSize::mib(1));
        assert_eq!(watch.look(), Pressure::ShedsWarning);
        assert!(watch.bytes() > watch.bytes_max() && watch.bytes_max() == 1 << 20);
    }
}
