//! What one scrape says, put together over the labels, and what two of them say of the time between.

use std::collections::BTreeMap;

use super::exposition::{Sample, number};

/// Where a sample goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Slot {
    /// Added to others of this name: counters, and gauges of parts.
    Sum(&'static str),
    /// The largest of this name, and which it is by this label.
    Max(&'static str, &'static str),
    /// A bucket of this histogram.
    Bucket(&'static str),
}

/// Buckets of a histogram; more than any client library makes.
const BUCKETS_MAX: usize = 256;

/// What one scrape says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tally {
    sums: BTreeMap<&'static str, f64>,
    largest: BTreeMap<&'static str, (f64, String)>,
    /// Cumulative counts by upper bound; the bits of a positive number sort as it does.
    buckets: BTreeMap<&'static str, BTreeMap<u64, f64>>,
}

impl Tally {
    /// Takes a sample.
    pub fn take(&mut self, slot: Slot, sample: &Sample<'_>) {
        if sample.value.is_nan() {
            return;
        }
        match slot {
            Slot::Sum(name) => *self.sums.entry(name).or_default() += sample.value,
            Slot::Max(name, label) => {
                let largest = self.largest.entry(name).or_insert((f64::NEG_INFINITY, String::new()));
                if sample.value > largest.0 {
                    *largest = (sample.value, sample.label(label).to_owned());
                }
            }
            Slot::Bucket(name) => {
                let bound = number(sample.label("le")).filter(|bound| *bound >= 0.0);
                let buckets = self.buckets.entry(name).or_default();
                if let Some(bound) = bound.filter(|_| buckets.len() < BUCKETS_MAX) {
                    *buckets.entry(bound.to_bits()).or_default() += sample.value;
                }
            }
        }
    }

    /// A sum as it stands.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sums.get(name).copied()
    }

    /// The largest, and which it is.
    pub fn largest(&self, name: &str) -> Option<(f64, &str)> {
        self.largest.get(name).map(|(value, which)| (*value, which.as_str()))
    }

    /// By how much a counter grew since `before`; one that fell has begun anew. Nothing when it was not there.
    pub fn growth(&self, before: &Self, name: &str) -> Option<f64> {
        let (now, then) = (self.sum(name)?, before.sum(name)?);
        Some(if now >= then { now - then } else { now })
    }

    /// Quantile of what a histogram observed since `before`: linear within its bucket, as `histogram_quantile` of PromQL has it. Nothing
    /// when fewer than `count_min` were observed.
    pub fn quantile(&self, before: &Self, name: &str, q: f64, count_min: f64) -> Option<f64> {
        let (now, then) = (self.buckets.get(name)?, before.buckets.get(name)?);
        let count = |buckets: &BTreeMap<u64, f64>| buckets.last_key_value().map_or(0.0, |(_, count)| *count);
        let is_new = count(now) < count(then);
        let grown =
            |bound: u64, now: f64| now - if is_new { 0.0 } else { then.get(&bound).copied().unwrap_or(0.0) };
        let all: Vec<(f64, f64)> =
            now.iter().map(|(bound, count)| (f64::from_bits(*bound), grown(*bound, *count))).collect();
        let total = all.last()?.1;
        if total < count_min.max(1.0) {
            return None;
        }
        let rank = q * total;
        let at = all.iter().position(|(_, count)| *count >= rank)?;
        let (below, counted) = if at == 0 { (0.0, 0.0) } else { all[at - 1] };
        let (bound, count) = all[at];
        if !bound.is_finite() {
            // Beyond the last bound: it is at least that.
            return Some(below);
        }
        let share = if count > counted { (rank - counted) / (count - counted) } else { 1.0 };
        Some(below + (bound - below) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposition::parse;
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        for sample in text.lines().filter_map(|line| parse(line).unwrap()) {
            let slot = match sample.name {
                "d_bucket" => Slot::Bucket("d"),
                "depth" => Slot::Max("depth", "name"),
                _ => Slot::Sum("n"),
            };
            tally.take(slot, &sample);
        }
        tally
    }

    #[test]
    fn counters_grow_and_begin_anew() {
        let (one, two) = (tally("n{a=\"1\"} 10\nn{a=\"2\"} 5"), tally("n{a=\"1\"} 12\nn{a=\"2\"} 9"));
        assert_eq!((two.growth(&one, "n"), one.growth(&two, "n")), (Some(6.0), Some(15.0)));
        assert_eq!(two.growth(&Tally::default(), "n"), None, "what was before is not known");
        let depths = tally("depth{name=\"a\"} 3\ndepth{name=\"b\"} 7\ndepth{name=\"c\"} NaN");
        assert_eq!(depths.largest("depth"), Some((7.0, "b")));
    }

    #[test]
    fn a_quantile_is_of_what_came_since_the_scrape_before() {
        let before = tally("d_bucket{le=\"0.1\"} 1000\nd_bucket{le=\"1\"} 1000\nd_bucket{le=\"+Inf\"} 1000");
        let after = tally(
            "d_bucket{le=\"0.1\"} 1050\nd_bucket{le=\"1\"} 1100\nd_bucket{le=\"+Inf\"} 1100\nd_bucket{v=\"2\",le=\"+Inf\"} 0",
        );
        assert_eq!(after.quantile(&before, "d", 0.5, 20.0), Some(0.1));
        assert_eq!(after.quantile(&before, "d", 0.75, 20.0), Some(0.55));
        assert_eq!(after.quantile(&before, "d", 0.99, 101.0), None, "too few");
        // Slower than the last bound is at least that; a restart counts from zero.
        let slow = tally("d_bucket{le=\"0.1\"} 0\nd_bucket{le=\"1\"} 10\nd_bucket{le=\"+Inf\"} 100");
        assert_eq!(slow.quantile(&before, "d", 0.99, 20.0), Some(1.0));
    }
}
