//! Evidence that a series has changed for the worse: a cumulative sum of log-likelihood ratios.
//!
//! Page, E. S. (1954), "Continuous inspection schemes", Biometrika 41: 100–115, for Bernoulli samples: each sample is bad
//! or good. Before the change a share `q0` of them is bad, which the reference knows; after it a share `q1`. The sum grows
//! by `ln(q1/q0)` with a bad sample and falls by `ln((1−q0)/(1−q1))` with a good one; it never falls below zero and never
//! grows above [`SUM_MAX`], which bounds the time to recover. So a sum of 6 means 400 : 1 for the change.

use tapio_schemas::UnixNanos;

use super::SECOND_NS;

/// Share of bad samples under a fault that concerns every request.
pub const HALF: f64 = 0.5;
/// Share of bad samples under a fault that concerns some requests.
pub const SOME: f64 = 0.15;
/// Lowest share of bad samples that a reference is believed to have.
pub const RATE_MIN: f64 = 0.02;
/// Highest sum, nats.
const SUM_MAX: f64 = 12.0;
/// A series that is silent for longer begins anew.
const SILENT_MAX_NS: u64 = 150 * SECOND_NS;
/// What a silent series last said stands for so long, whatever it was.
pub const STANDS_NS: u64 = 290 * SECOND_NS;
/// Most that the size of a bad sample adds, nats.
const SIZE_MAX: f64 = 3.0;
/// Bad samples that a fault of some requests needs.
const SOME_BAD_MIN: u64 = 5;

/// Samples of one moment, in any order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch {
    sum: f64,
    bad: u64,
    count: u64,
}

fn bounded(rate: f64, under_fault: f64) -> f64 {
    rate.max(RATE_MIN).min(0.9 * under_fault)
}

impl Batch {
    /// Adds bad samples. `ratio` is how many times the limit was exceeded (1 when there is no size): with a heavy tail
    /// P(> v) falls like limit / v.
    pub fn bad(&mut self, count: u32, rate: f64, under_fault: f64, weight: f64, ratio: f64) {
        let size = ratio.max(1.0).ln().min(SIZE_MAX);
        let gain = (under_fault / bounded(rate, under_fault)).ln() + size;
        self.sum += f64::from(count) * weight * gain;
        self.bad += u64::from(count);
        self.count += u64::from(count);
    }

    /// Adds good samples.
    pub fn good(&mut self, count: u32, rate: f64, under_fault: f64, weight: f64) {
        let loss = ((1.0 - under_fault) / (1.0 - bounded(rate, under_fault))).ln();
        self.sum += f64::from(count) * weight * loss;
        self.count += u64::from(count);
    }
}

/// The sum of one series.
#[derive(Debug, Clone, Copy)]
pub struct Cusum {
    under_fault: f64,
    sum: f64,
    since: UnixNanos,
    last: UnixNanos,
    bad: u64,
    count: u64,
}

impl Cusum {
    /// Nothing seen.
    pub fn new(under_fault: f64) -> Self {
        let none = UnixNanos(0);
        Self { under_fault, sum: 0.0, since: none, last: none, bad: 0, count: 0 }
    }

    /// Share of bad samples that it looks for.
    pub fn under_fault(&self) -> f64 {
        self.under_fault
    }

    /// Adds the samples of one moment.
    pub fn add(&mut self, at: UnixNanos, batch: Batch) {
        if batch.count == 0 {
            return;
        }
        if at.since(self.last) > SILENT_MAX_NS {
            self.sum = 0.0;
        }
        if self.sum <= 0.0 {
            (self.since, self.bad, self.count) = (at, 0, 0);
        }
        self.sum = (self.sum + batch.sum).clamp(0.0, SUM_MAX);
        self.bad += batch.bad;
        self.count += batch.count;
        self.last = self.last.max(at);
    }

    /// It is certain that it is normal now.
    pub fn clear(&mut self) {
        self.sum = 0.0;
    }

    /// It is at least so certain that it is not normal.
    pub fn raise(&mut self, sum: f64) {
        self.sum = self.sum.max(sum);
    }

    /// The sum, while it stands.
    pub fn sum(&self, now: UnixNanos) -> f64 {
        if now.since(self.last) <= STANDS_NS { self.sum } else { 0.0 }
    }

    /// Evidence, nats: a change that is complete outweighs a mixture that sits at the ceiling.
    pub fn evidence(&self, now: UnixNanos) -> f64 {
        let share = self.bad as f64 / self.count.max(1) as f64;
        if self.under_fault >= HALF {
            return self.sum(now) * (1.25 * share).min(1.0);
        }
        let enough = self.bad >= SOME_BAD_MIN;
        if enough { 0.55 * self.sum(now) * (share / SOME).min(1.0) } else { 0.0 }
    }

    /// Since when it grows.
    pub fn since(&self) -> UnixNanos {
        self.since
    }

    /// Newest sample.
    pub fn last(&self) -> UnixNanos {
        self.last
    }

    /// (bad, all) since then.
    pub fn counts(&self) -> (u64, u64) {
        (self.bad, self.count)
    }

    /// True when a sample of `at` may be part of what is wrong and must not be learnt.
    pub fn forbids_learning(&self, at: UnixNanos, now: UnixNanos) -> bool {
        const SUSPECT: f64 = 3.0;
        self.sum(now) >= SUSPECT && at.plus(SECOND_NS) >= self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> UnixNanos {
        UnixNanos(1_000_000 * SECOND_NS + s * SECOND_NS)
    }

    fn add(cusum: &mut Cusum, s: u64, bad: u32, good: u32, rate: f64) {
        let mut batch = Batch::default();
        batch.bad(bad, rate, cusum.under_fault(), 1.0, 1.0);
        batch.good(good, rate, cusum.under_fault(), 1.0);
        cusum.add(at(s), batch);
    }

    #[test]
    fn three_bad_ones_against_a_good_reference_are_an_alarm_and_the_onset_is_kept() {
        let mut cusum = Cusum::new(HALF);
        add(&mut cusum, 0, 0, 100, 0.02);
        assert_eq!(cusum.evidence(at(0)), 0.0);
        add(&mut cusum, 5, 3, 0, 0.02);
        assert!(cusum.evidence(at(5)) > 6.0, "{}", cusum.evidence(at(5)));
        assert_eq!(cusum.since(), at(5));
        add(&mut cusum, 10, 50, 0, 0.02);
        assert_eq!(cusum.since(), at(5));
        assert!(cusum.evidence(at(10)) <= SUM_MAX);
        add(&mut cusum, 15, 0, 20, 0.02);
        assert!(cusum.evidence(at(15)) < 2.0, "twenty good ones end it");
    }

    #[test]
    fn an_immature_reference_makes_bad_samples_weak() {
        let mut cusum = Cusum::new(HALF);
        add(&mut cusum, 0, 1, 0, 0.5 / 6.0);
        assert!(cusum.evidence(at(0)) < 2.0);
    }

    #[test]
    fn silence_ends_it_and_a_gap_begins_anew() {
        let mut cusum = Cusum::new(HALF);
        add(&mut cusum, 0, 10, 0, 0.02);
        assert!(cusum.evidence(at(200)) > 6.0);
        assert_eq!(cusum.evidence(at(300)), 0.0);
        add(&mut cusum, 200, 1, 0, 0.02);
        assert_eq!(cusum.since(), at(200));
        assert!(cusum.evidence(at(200)) < 6.0);
    }

    #[test]
    fn a_fault_of_some_requests_is_seen_by_the_sum_that_looks_for_it() {
        let (mut half, mut some) = (Cusum::new(HALF), Cusum::new(SOME));
        for s in 0..6 {
            add(&mut half, s * 5, 3, 17, 0.02);
            add(&mut some, s * 5, 3, 17, 0.02);
        }
        assert!(half.evidence(at(30)) < 1.0, "{}", half.evidence(at(30)));
        assert!(some.evidence(at(30)) > 4.0, "{}", some.evidence(at(30)));
    }
}
