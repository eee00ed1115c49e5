//! Times from one end to the other, and their percentiles.

use serde::Serialize;

/// Percentiles in milliseconds; `None` when nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them are below.
    pub p50: Option<f64>,
    /// 99 of 100 are below.
    pub p99: Option<f64>,
    /// 999 of 1000 are below.
    pub p999: Option<f64>,
}

/// Measured times.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    nanos: Vec<u64>,
}

impl Latencies {
    /// One more.
    pub fn add(&mut self, nanos: u64) {
        self.nanos.push(nanos);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.nanos.len()
    }

    /// By nearest rank: with fewer than 1000 values the last percentile is the largest value.
    pub fn percentiles(&self) -> Percentiles {
        let mut sorted = self.nanos.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            let nanos = sorted.get(rank.saturating_sub(1))?;
            Some((*nanos as f64 / 1e3).round() / 1e3)
        };
        Percentiles { p50: at(0.50), p99: at(0.99), p999: at(0.999) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles(), Percentiles::default());
        (1..=1000u64).rev().for_each(|ms| latencies.add(ms * 1_000_000));
        let p = latencies.percentiles();
        assert_eq!((p.p50, p.p99, p.p999), (Some(500.0), Some(990.0), Some(999.0)));
        let mut one = Latencies::default();
        one.add(1_500_000);
        assert_eq!(one.percentiles().p999, Some(1.5));
    }
}
