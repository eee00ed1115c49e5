//! Configuration of the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;

/// The cgroup collector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupConfig {
    /// Whether it runs. Default true.
    pub enabled: bool,
    /// Where the control groups are mounted. Default `/sys/fs/cgroup`; in a container, where the host's are.
    pub root: PathBuf,
    /// Time between two samples of a group. Default 5 s.
    pub interval: HumanDuration,
    /// Time between two samples of a group whose memory grows and is above half of its limit, or would reach
    /// it within ten minutes. Default 1 s.
    pub fast_interval: HumanDuration,
    /// Time between two searches for new groups. Default 2 s.
    pub discover_interval: HumanDuration,
    /// Groups sampled; beyond it containers go before units before the rest. Default 512.
    pub groups_max: usize,
    /// Files kept open; beyond it they are opened for each reading. Default 4096, at most half of what the
    /// process may open.
    pub open_files_max: usize,
}

impl Default for CgroupConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            root: PathBuf::from(crate::attribution::CGROUP_ROOT),
            interval: HumanDuration::from_secs(5),
            fast_interval: HumanDuration::from_secs(1),
            discover_interval: HumanDuration::from_secs(2),
            groups_max: 512,
            open_files_max: 4096,
        }
    }
}
