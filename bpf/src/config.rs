//! What the loader may be told.

use crate::program::Program;

/// Smallest and largest ring the kernel and reason accept.
pub const RING_BYTES_MIN: u32 = 4096;
pub const RING_BYTES_MAX: u32 = 256 * 1024 * 1024;
pub const RING_BYTES_DEFAULT: u32 = 1024 * 1024;
/// About 150 bytes of kernel memory for each.
pub const CONNECTIONS_MAX_DEFAULT: u32 = 65_536;

/// Signals reported by default: those that by themselves end a process and are news, so neither SIGCHLD nor SIGPIPE, nor
/// the SIGINT and SIGHUP of terminals.
pub const SIGNALS_DEFAULT: [u8; 12] = [3, 4, 5, 6, 7, 8, 9, 11, 15, 24, 25, 31];

/// Configuration of the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfConfig {
    /// Bytes of the ring, a power of two and a multiple of the page size. A full ring loses records, which are counted.
    pub ring_bytes: u32,
    /// Connections remembered to tell whose they are and since when. Beyond it the least used is forgotten: its later
    /// records have no process and no duration.
    pub connections_max: u32,
    pub signals: SignalMask,
    /// Walk all open files once, to learn whose the sockets are that were there before. Needs Linux 5.11.
    pub scan_sockets: bool,
    /// Report that a connect begins, and not its end alone: one record more per attempt.
    pub connect_begins: bool,
    /// The programs to load, each at most once.
    pub programs: Vec<Program>,
}

impl Default for BpfConfig {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES_DEFAULT,
            connections_max: CONNECTIONS_MAX_DEFAULT,
            signals: SignalMask::default(),
            scan_sockets: true,
            connect_begins: true,
            programs: Program::ALL.to_vec(),
        }
    }
}

impl BpfConfig {
    /// Says what is wrong with a value, by its name.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (ring, page) = (self.ring_bytes, rustix::param::page_size() as u32);
        if !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring)
            || !ring.is_power_of_two()
            || !ring.is_multiple_of(page)
        {
            return Err(format!(
                "ring_bytes is {ring}: give a power of two from {} to {RING_BYTES_MAX}",
                RING_BYTES_MIN.max(page)
            ));
        }
        if self.connections_max == 0 {
            return Err("connections_max is 0: give at least 1".to_owned());
        }
        Ok(())
    }
}

/// The set of signals to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalMask(u64);

impl SignalMask {
    /// A set of signal numbers; those outside 1..=64 do not exist and are left out.
    pub fn of(signals: &[u8]) -> Self {
        let bits = signals.iter().filter(|signal| (1..=64).contains(*signal));
        Self(bits.fold(0, |mask, signal| mask | 1 << (signal - 1)))
    }

    /// Bit n - 1 = signal n.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl Default for SignalMask {
    fn default() -> Self {
        Self::of(&SIGNALS_DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_mask_has_the_bit_below_the_number() {
        assert_eq!(SignalMask::of(&[1]).bits(), 1);
        assert_eq!(SignalMask::of(&[9, 11, 64]).bits(), 1 << 8 | 1 << 10 | 1 << 63);
        assert_eq!(SignalMask::of(&[0, 65, 255]).bits(), 0);
        assert_eq!(SignalMask::default().bits() & (1 << 16), 0, "SIGCHLD would flood");
    }

    #[test]
    fn check_names_the_wrong_value() {
        assert_eq!(BpfConfig::default().check(), Ok(()));
        for ring_bytes in [0, 4095, 1_000_000, RING_BYTES_MAX * 2] {
            let error = BpfConfig { ring_bytes, ..BpfConfig::default() }.check().unwrap_err();
            assert!(error.starts_with("ring_bytes"), "{error}");
        }
        let error = BpfConfig { connections_max: 0, ..BpfConfig::default() }.check().unwrap_err();
        assert!(error.starts_with("connections_max"), "{error}");
    }
}
