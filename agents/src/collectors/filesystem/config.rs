//! Configuration of the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;

/// The file system collector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilesystemConfig {
    /// Whether it runs. Default true.
    pub enabled: bool,
    /// The process whose mounts are those of the machine. Default `/proc/1`; where its list or its root cannot be read,
    /// the agent's own are: `/proc/self`, and the collector is degraded when those are others.
    pub process: PathBuf,
    /// Directory below which that process's root is seen, such as the host's `/` mounted in a pod. Default empty: `root`
    /// of the process, which needs the right to trace it (`CAP_SYS_PTRACE` in a pod).
    pub root: PathBuf,
    /// Time between two samples. Default 10 s.
    pub interval: HumanDuration,
    /// File systems sampled; further ones are counted and left out. Default 64.
    pub mounts_max: usize,
    /// Types that are sampled. Network file systems are not among them: asking for their size waits for their server.
    pub types: Vec<String>,
}

impl Default for FilesystemConfig {
    fn default() -> Self {
        let types = [
            "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "vfat", "exfat", "tmpfs",
            "overlay",
        ];
        Self {
            enabled: true,
            process: PathBuf::from("/proc/1"),
            root: PathBuf::new(),
            interval: HumanDuration::from_secs(10),
            mounts_max: 64,
            types: types.map(str::to_owned).into(),
        }
    }
}
