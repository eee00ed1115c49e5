//! Configuration of the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;

/// The network collector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Whether it runs. Default true.
    pub enabled: bool,
    /// Where the counters of the machine's network namespace are. Default `/proc/1/net`; where it cannot be read, those
    /// of the agent's own namespace are: `/proc/self/net`.
    pub dir: PathBuf,
    /// Time between two samples. Default 5 s.
    pub interval: HumanDuration,
    /// Interfaces sampled; further ones are counted and left out. Default 64. Those with a name that only a container's
    /// end has (`veth…`, `cali…`) come last; that some of them are left out is no fault of the collector.
    pub interfaces_max: usize,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            dir: PathBuf::from("/proc/1/net"),
            interval: HumanDuration::from_secs(5),
            interfaces_max: 64,
        }
    }
}
