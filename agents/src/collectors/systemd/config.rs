//! Configuration of the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;

/// The systemd collector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SystemdConfig {
    /// Whether it runs. Default true; a machine without systemd is said once and looked at again.
    pub enabled: bool,
    /// Socket of the system bus, where the manager is asked. Default `/run/dbus/system_bus_socket`; in a container,
    /// where the host's is mounted.
    pub bus_socket: PathBuf,
    /// Units that failed before the start are told when it was not longer ago than this, at most `age_max`.
    /// Default 24 h.
    pub history: HumanDuration,
    /// Longest time between two attempts to find a manager. Default 30 s.
    pub retry_max: HumanDuration,
}

impl Default for SystemdConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            bus_socket: PathBuf::from("/run/dbus/system_bus_socket"),
            history: HumanDuration::from_secs(24 * 3600),
            retry_max: HumanDuration::from_secs(30),
        }
    }
}
