//! What a duration usually is, learnt from minutes of which some may have been bad.
//!
//! Each minute is a block. Blocks whose median is like that of the fastest block are how the thing behaves when nothing
//! hinders it, and only they are the reference: a first minute that was already faulty is left behind as soon as a good
//! one comes. The limit is twice the 90th percentile and some.

use std::collections::{BTreeMap, VecDeque};

use tapio_schemas::UnixNanos;
use tapio_schemas::service::Histogram;

use super::SECOND_NS;

/// Minutes remembered.
const BLOCKS_MAX: usize = 30;
/// A block with fewer samples says nothing when there are fuller ones.
const BLOCK_FULL: u64 = 3;
/// Samples without which there is no reference.
const SAMPLES_MIN: u64 = 3;
/// With fewer samples than this the reference is weak.
const SAMPLES_SOUND: u64 = 10;
/// What a comparison with a weak reference is worth.
const WEAK: f64 = 0.6;
/// A block is like the fastest one up to this factor of its median …
const LIKE_FACTOR: f64 = 1.5;
/// … and this much more, ns.
const LIKE_EXTRA_NS: f64 = 2e6;
/// The limit is this many times the 90th percentile …
const LIMIT_FACTOR: f64 = 2.0;
/// … and this much more, ns.
const LIMIT_EXTRA_NS: f64 = 10e6;

/// Middle of a bucket, ns.
pub fn middle_ns(bucket: u16) -> f64 {
    ((f64::from(bucket) + 0.5) / 8.0).exp2()
}

/// What is usual.
#[derive(Debug, Clone, Copy)]
pub struct Usual {
    /// Median, ns.
    pub median_ns: f64,
    /// Longer is bad, ns.
    pub limit_ns: f64,
    /// Share of bad samples in the reference.
    pub rate: f64,
    /// What a comparison with it is worth, up to 1.
    pub weight: f64,
}

/// The reference of one kind of duration.
#[derive(Debug, Default)]
pub struct Level {
    blocks: VecDeque<(u64, BTreeMap<u16, u64>)>,
    usual: Option<Usual>,
    is_stale: bool,
    /// Last time it was asked or taught.
    pub seen: UnixNanos,
}

impl Level {
    /// Learns samples of `at`.
    pub fn learn(&mut self, at: UnixNanos, samples: &Histogram) {
        let minute = at.0 / (60 * SECOND_NS);
        if self.blocks.back().is_none_or(|(newest, _)| *newest < minute) {
            self.blocks.push_back((minute, BTreeMap::new()));
        }
        // What comes late is learnt with the newest minute.
        if let Some((_, block)) = self.blocks.back_mut() {
            for (bucket, count) in samples {
                *block.entry(*bucket).or_default() += u64::from(*count);
            }
        }
        if self.blocks.len() > BLOCKS_MAX {
            self.blocks.pop_front();
        }
        self.is_stale = true;
    }

    /// What is usual; `None` while too little is known.
    pub fn usual(&mut self) -> Option<Usual> {
        if self.is_stale {
            self.is_stale = false;
            self.usual = self.compute();
        }
        self.usual
    }

    fn compute(&self) -> Option<Usual> {
        let total = |block: &BTreeMap<u16, u64>| block.values().sum::<u64>();
        let any_full = self.blocks.iter().any(|(_, b)| total(b) >= BLOCK_FULL);
        let telling = self.blocks.iter().filter(|(_, b)| !any_full || total(b) >= BLOCK_FULL);
        let medians: Vec<(f64, &BTreeMap<u16, u64>)> =
            telling.map(|(_, b)| (middle_ns(quantile(b, 0.5)), b)).collect();
        let fastest = medians.iter().map(|(m, _)| *m).min_by(f64::total_cmp)?;
        let mut pool: BTreeMap<u16, u64> = BTreeMap::new();
        for (_, block) in medians.iter().filter(|(m, _)| *m <= LIKE_FACTOR * fastest + LIKE_EXTRA_NS) {
            for (bucket, count) in *block {
                *pool.entry(*bucket).or_default() += count;
            }
        }
        let samples = total(&pool);
        if samples < SAMPLES_MIN {
            return None;
        }
        let limit_ns = LIMIT_FACTOR * middle_ns(quantile(&pool, 0.9)) + LIMIT_EXTRA_NS;
        let over: u64 = pool.iter().filter(|(b, _)| middle_ns(**b) > limit_ns).map(|(_, n)| n).sum();
        Some(Usual {
            median_ns: middle_ns(quantile(&pool, 0.5)),
            limit_ns,
            rate: (over as f64 + 0.5) / (samples as f64 + 1.0),
            weight: if samples < SAMPLES_SOUND { WEAK } else { 1.0 },
        })
    }
}

/// Bucket below or in which a share of the samples is.
fn quantile(samples: &BTreeMap<u16, u64>, share: f64) -> u16 {
    let total: u64 = samples.values().sum();
    let wanted = (share * total.saturating_sub(1) as f64).round() as u64;
    let mut below = 0;
    let bucket = samples.iter().find(|(_, count)| {
        below += **count;
        below > wanted
    });
    bucket.map_or(0, |(bucket, _)| *bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(ms: f64) -> u16 {
        (8.0 * (ms * 1e6).log2()) as u16
    }

    fn minute(number: u64) -> UnixNanos {
        UnixNanos((27_000_000 + number) * 60 * SECOND_NS)
    }

    #[test]
    fn a_cold_reference_says_nothing() {
        let mut level = Level::default();
        assert!(level.usual().is_none());
        level.learn(minute(0), &vec![(bucket(10.0), 2)]);
        assert!(level.usual().is_none());
        level.learn(minute(0), &vec![(bucket(10.0), 2)]);
        assert!(level.usual().is_some_and(|u| u.weight < 1.0));
    }

    #[test]
    fn a_faulty_first_minute_is_left_behind() {
        let mut level = Level::default();
        level.learn(minute(0), &vec![(bucket(900.0), 40)]);
        level.learn(minute(1), &vec![(bucket(10.0), 38), (bucket(14.0), 2)]);
        let usual = level.usual().unwrap();
        assert!((9e6..11e6).contains(&usual.median_ns), "{usual:?}");
        assert!((25e6..36e6).contains(&usual.limit_ns), "{usual:?}");
        assert!(usual.rate < 0.02, "{usual:?}");
    }
}
