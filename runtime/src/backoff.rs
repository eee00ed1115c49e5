//! Capped exponential backoff with jitter, so that many parts that failed together do not return
//! together.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Doubling is stopped after this many attempts: 2^20 times the smallest delay is beyond any cap.
const DOUBLINGS_MAX: u32 = 20;

/// How long to wait before attempt `n`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Delay before the first retry.
    pub min: Duration,
    /// No delay is longer, before jitter.
    pub max: Duration,
    /// Share of the delay that is random, 0..=1: the delay lies in `[(1 - jitter) d, d]`.
    pub jitter: f64,
}

impl Backoff {
    /// A backoff from `min` to `max` of which one fifth is random.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, jitter: 0.2 }
    }

    /// Delay before retry number `attempt` (0 is the first retry), with a fresh random part.
    pub fn delay(&self, attempt: u32) -> Duration {
        self.delay_with(attempt, random_unit())
    }

    /// The same with the random part given: `unit` in 0..=1.
    pub fn delay_with(&self, attempt: u32, unit: f64) -> Duration {
        let doubled = self.min.saturating_mul(1 << attempt.min(DOUBLINGS_MAX));
        let capped = doubled.min(self.max);
        let jitter = self.jitter.clamp(0.0, 1.0) * unit.clamp(0.0, 1.0);
        capped.mul_f64(1.0 - jitter)
    }
}

/// A number in 0..1 from the randomly seeded standard hasher: enough for jitter, no dependency.
fn random_unit() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_jitters_down() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        assert_eq!(backoff.delay_with(0, 0.0), Duration::from_millis(100));
        assert_eq!(backoff.delay_with(2, 0.0), Duration::from_millis(400));
        assert_eq!(backoff.delay_with(9, 0.0), Duration::from_secs(1));
        assert_eq!(backoff.delay_with(u32::MAX, 1.0), Duration::from_millis(800));
        let delays: std::collections::HashSet<_> = (0..32).map(|_| backoff.delay(0)).collect();
        assert!(delays.len() > 16, "delays must differ: {delays:?}");
    }
}
