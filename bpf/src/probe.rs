//! What this machine can do for the kernel programs, for people who ask why nothing is seen. Works without rights.

use std::{fs, path::Path};

use crate::{
    config::BpfConfig,
    error::{BpfError, PERMISSION_HINT},
    loader::{BTF_PATH, Loader},
    program::ProgramStatus,
};

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What was found.
#[derive(Debug)]
pub struct Probe {
    /// As `uname -r` gives it; empty when the system does not say.
    pub kernel_release: String,
    /// The kernel describes its types.
    pub btf: bool,
    pub capabilities: Capabilities,
    /// What the kernel says to each program, or why none could be offered to it.
    pub programs: Result<Vec<ProgramStatus>, BpfError>,
}

/// Effective capabilities of this thread that matter for loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub bpf: bool,
    pub perfmon: bool,
    pub sys_admin: bool,
}

impl Capabilities {
    /// Enough to load tracing programs.
    pub fn suffice(self) -> bool {
        self.sys_admin || (self.bpf && self.perfmon)
    }

    /// What to do when they do not suffice.
    pub fn hint(self) -> Option<&'static str> {
        (!self.suffice()).then_some(PERMISSION_HINT)
    }

    /// From the text of `/proc/thread-self/status`; what it does not say is not there.
    fn parse(status: &str) -> Self {
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        let has = |capability: u32| bits & (1 << capability) != 0;
        Self { bpf: has(CAP_BPF), perfmon: has(CAP_PERFMON), sys_admin: has(CAP_SYS_ADMIN) }
    }
}

/// Looks at the kernel, the rights of this thread, and offers every program to the kernel without attaching it.
pub fn probe() -> Probe {
    Probe {
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        btf: Path::new(BTF_PATH).exists(),
        capabilities: Capabilities::parse(
            &fs::read_to_string("/proc/thread-self/status").unwrap_or_default(),
        ),
        programs: Loader::new(BpfConfig {
            ring_bytes: probe_ring_bytes(),
            connections_max: 1,
            ..BpfConfig::default()
        })
        .try_load(),
    }
}

/// The smallest ring there is: nothing is written to it.
fn probe_ring_bytes() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(crate::config::RING_BYTES_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let all = Capabilities::parse("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all, Capabilities { bpf: true, perfmon: true, sys_admin: true });
        let two = Capabilities::parse("CapEff:\t000000c000000000\n");
        assert_eq!(two, Capabilities { bpf: true, perfmon: true, sys_admin: false });
        assert!(two.suffice() && two.hint().is_none());
        for nothing in ["", "CapEff:\tnot a number\n", "CapEff:\t0000008000000000\n"] {
            let few = Capabilities::parse(nothing);
            assert!(!few.suffice() && few.hint().is_some(), "{nothing:?}");
        }
    }
}
