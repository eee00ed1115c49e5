//! From the kernel's clock to the wall clock.
//!
//! Records carry `CLOCK_BOOTTIME`. The wall clock is stepped and slewed by time synchronisation, so the offset between the
//! two is measured again every [`REFRESH_INTERVAL_NS`] of boot time. One measurement reads boot, wall, boot: the wall time
//! lies between the two boot times, and of several tries the closest pair wins, so being preempted in between does not
//! matter. The error is at most half of that pair's distance, well under a microsecond.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// How old, in boot time, an offset may grow before it is measured again.
pub const REFRESH_INTERVAL_NS: u64 = 10_000_000_000;
const TRIES: usize = 8;

/// The offset between boot time and Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootClock {
    offset_ns: i128,
    measured_boot_ns: u64,
}

impl BootClock {
    /// Measures the offset now.
    pub fn measure() -> Self {
        let (mut best, mut best_distance) = (Self::at(0, 0), u64::MAX);
        for _ in 0..TRIES {
            let before = nanoseconds(clock_gettime(ClockId::Boottime));
            let wall = nanoseconds(clock_gettime(ClockId::Realtime));
            let after = nanoseconds(clock_gettime(ClockId::Boottime));
            let distance = after.saturating_sub(before);
            if distance < best_distance {
                best_distance = distance;
                best = Self::at(before + distance / 2, wall);
            }
        }
        best
    }

    /// A clock for which `boot_ns` and `unix_ns` are the same moment.
    pub fn at(boot_ns: u64, unix_ns: u64) -> Self {
        Self { offset_ns: i128::from(unix_ns) - i128::from(boot_ns), measured_boot_ns: boot_ns }
    }

    /// Unix time of a boot time, in nanoseconds; what would be before 1970 is 0.
    pub fn unix_ns(&self, boot_ns: u64) -> u64 {
        u64::try_from((i128::from(boot_ns) + self.offset_ns).max(0)).unwrap_or(u64::MAX)
    }

    /// Measures again if the offset is older than [`REFRESH_INTERVAL_NS`].
    pub fn refresh(&mut self) {
        let now = nanoseconds(clock_gettime(ClockId::Boottime));
        if now.saturating_sub(self.measured_boot_ns) >= REFRESH_INTERVAL_NS {
            *self = Self::measure();
        }
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_maps_to_unix_time_in_both_directions_of_the_offset() {
        assert_eq!(BootClock::at(1_000, 5_000).unix_ns(1_500), 5_500);
        assert_eq!(BootClock::at(5_000, 1_000).unix_ns(4_500), 500);
        assert_eq!(BootClock::at(5_000, 1_000).unix_ns(0), 0, "before 1970 is 0");
        assert_eq!(BootClock::at(0, u64::MAX).unix_ns(1), u64::MAX);
    }

    #[test]
    fn measured_clock_agrees_with_the_wall_clock() {
        let before = nanoseconds(clock_gettime(ClockId::Realtime));
        let clock = BootClock::measure();
        let now = clock.unix_ns(nanoseconds(clock_gettime(ClockId::Boottime)));
        let after = nanoseconds(clock_gettime(ClockId::Realtime));
        // A tolerance for the slewing of either clock.
        assert!(now + 1_000_000 >= before && now <= after + 1_000_000, "{before} <= {now} <= {after}");
    }

    #[test]
    fn refresh_measures_again_only_when_old() {
        let now = nanoseconds(clock_gettime(ClockId::Boottime));
        let fresh = BootClock::at(now, 42);
        let mut clock = fresh;
        clock.refresh();
        assert_eq!(clock, fresh);
        let mut old = BootClock::at(now.saturating_sub(REFRESH_INTERVAL_NS), 42);
        old.refresh();
        assert!(old.unix_ns(now) > 1_500_000_000_000_000_000, "measured against the real wall clock");
    }
}
