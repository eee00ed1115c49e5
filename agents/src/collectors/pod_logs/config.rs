//! Configuration of the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The last lines of failing containers of this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodLogsConfig {
    /// Whether it runs. Default true; where the directory is not there it does not.
    pub enabled: bool,
    /// Where the kubelet keeps the logs of pods. Default `/var/log/pods`.
    pub dir: PathBuf,
    /// Failed containers whose lines are read in a minute; further ones are counted and left out. Default 30.
    pub per_minute: u32,
}

impl Default for PodLogsConfig {
    fn default() -> Self {
        Self { enabled: true, dir: PathBuf::from("/var/log/pods"), per_minute: 30 }
    }
}
