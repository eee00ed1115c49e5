//! Configuration of the collector.

use serde::{Deserialize, Serialize};
use tapio_bpf::{
    BpfConfig, CONNECTIONS_MAX_DEFAULT, Program, RING_BYTES_DEFAULT, SIGNALS_DEFAULT, SignalMask,
};
use tapio_runtime::config::ByteSize;

/// The ebpf collector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EbpfConfig {
    /// Whether it runs. Default true; without rights or kernel support it is degraded, not an error.
    pub enabled: bool,
    /// Size of the kernel's ring, a power of two. Default 1 MiB. A full ring loses records, which are counted.
    pub ring: ByteSize,
    /// Connections remembered in the kernel to tell whose they are. Default 65536.
    pub connections_max: u32,
    /// Signals reported, by number. Default: those that end a process and are not a terminal's.
    pub signals: Vec<u8>,
    /// Programs left out, by name (`exec exit oom signal tcp_state tcp_retransmit tcp_send_reset
    /// tcp_receive_reset`). Default none.
    pub without: Vec<String>,
}

impl Default for EbpfConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            ring: ByteSize(u64::from(RING_BYTES_DEFAULT)),
            connections_max: CONNECTIONS_MAX_DEFAULT,
            signals: SIGNALS_DEFAULT.to_vec(),
            without: Vec::new(),
        }
    }
}

impl EbpfConfig {
    /// The same as the loader takes it.
    pub fn to_bpf(&self) -> BpfConfig {
        let wanted = |program: &Program| !self.without.iter().any(|name| name == program.name());
        BpfConfig {
            ring_bytes: u32::try_from(self.ring.bytes()).unwrap_or(u32::MAX),
            connections_max: self.connections_max,
            signals: SignalMask::of(&self.signals),
            // The end of an attempt tells all of it.
            connect_begins: false,
            programs: Program::ALL.into_iter().filter(wanted).collect(),
            ..BpfConfig::default()
        }
    }
}
