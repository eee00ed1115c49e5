//! Ranks by measures: how far each is from where it was before the alarm.
//!
//! The robust scorer of BARO (Pham, Ha, Zhang, FSE 2024): a measure's values after the alarm, less the median before it, over the
//! range between its quartiles before it; the largest value counts, and a service counts by its largest measure.

use std::collections::BTreeMap;

use tapio_schemas::service::{Histogram, Measure};
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Entity, SmolStr, UnixNanos};

use super::{Blamed, category};
use crate::shards::bucket_ns;

/// Series kept; further ones are left out.
const SERIES_MAX: usize = 16_384;
/// Windows kept of a series: an hour of five seconds.
const WINDOWS_MAX: usize = 720;
/// Fewest values before the alarm that say what is usual.
const USUAL_MIN: usize = 3;
/// A range between quartiles is not taken for less than this share of the median: some measures hardly move.
const RANGE_SHARE_MIN: f64 = 0.05;

/// What a series is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    OwnTime,
    CallGap,
    CallTime,
    CallErrors,
    Meter(Measure),
}

type Key = (Entity, What, SmolStr);

/// Values of all series, by window.
#[derive(Debug, Default)]
pub struct Series {
    windows: BTreeMap<Key, BTreeMap<UnixNanos, Window>>,
}

#[derive(Debug)]
enum Window {
    /// Bucket → count, added up over shards.
    Times(BTreeMap<u16, u64>),
    /// Part of a whole.
    Share {
        part: u64,
        whole: u64,
    },
    Value(f64),
}

impl Window {
    fn value(&self) -> Option<f64> {
        match self {
            Self::Value(value) => Some(*value),
            Self::Share { part, whole } => (*whole > 0).then(|| *part as f64 / *whole as f64),
            Self::Times(buckets) => {
                let half = buckets.values().sum::<u64>() / 2;
                let mut below = 0;
                let median = buckets.iter().find(|(_, count)| {
                    below += **count;
                    below > half
                });
                median.map(|(bucket, _)| bucket_ns(f64::from(*bucket)) as f64 / 1e9)
            }
        }
    }
}

impl Series {
    /// Takes the tallies of a shard.
    pub fn observe(&mut self, section: &SignalSection) {
        for tally in &section.operations {
            let key = (tally.service.clone(), What::OwnTime, tally.operation.clone());
            self.times(key, tally.window_start, &tally.own_time);
        }
        for tally in &section.call_gaps {
            self.times(
                (tally.to.clone(), What::CallGap, tally.operation.clone()),
                tally.window_start,
                &tally.gap,
            );
        }
        for tally in &section.tallies {
            let key = |what| (tally.to.clone(), what, tally.from.name.clone());
            self.times(key(What::CallTime), tally.window_start, &tally.latency);
            let empty = || Window::Share { part: 0, whole: 0 };
            if let Some(Window::Share { part, whole }) =
                self.window(key(What::CallErrors), tally.window_start, empty)
            {
                *part += tally.errors;
                *whole += tally.calls;
            }
        }
        for meter in &section.meters {
            let label = SmolStr::from(format!("{}/{}", meter.pod, meter.label));
            let key = (meter.service.clone(), What::Meter(meter.measure), label);
            if let Some(window) = self.window(key, meter.at, || Window::Value(meter.value)) {
                *window = Window::Value(meter.value);
            }
        }
    }

    fn times(&mut self, key: Key, start: UnixNanos, histogram: &Histogram) {
        if let Some(Window::Times(buckets)) = self.window(key, start, || Window::Times(BTreeMap::new())) {
            for (bucket, count) in histogram {
                *buckets.entry(*bucket).or_default() += u64::from(*count);
            }
        }
    }

    fn window(&mut self, key: Key, start: UnixNanos, new: impl FnOnce() -> Window) -> Option<&mut Window> {
        if self.windows.len() >= SERIES_MAX && !self.windows.contains_key(&key) {
            return None;
        }
        let windows = self.windows.entry(key).or_default();
        if windows.len() >= WINDOWS_MAX && !windows.contains_key(&start) {
            windows.pop_first();
        }
        Some(windows.entry(start).or_insert_with(new))
    }

    /// Services by their largest robust change between `alarm` and `now`.
    pub fn ranked(&self, alarm: UnixNanos, now: UnixNanos) -> Vec<Blamed> {
        let mut best: BTreeMap<&Entity, (f64, &'static str)> = BTreeMap::new();
        for ((entity, what, _), windows) in &self.windows {
            let before: Vec<f64> = windows.range(..alarm).filter_map(|(_, w)| w.value()).collect();
            let after = windows.range(alarm..now).filter_map(|(_, w)| w.value());
            let Some(change) = robust_change(before, after) else { continue };
            let known = best.entry(entity).or_insert((0.0, ""));
            if change > known.0 {
                *known = (change, category_of(*what));
            }
        }
        let blamed = best.into_iter().filter(|(_, (weight, _))| *weight > 0.0);
        let mut blamed: Vec<Blamed> = blamed
            .map(|(entity, (weight, category))| Blamed { entity: entity.clone(), category, weight })
            .collect();
        blamed.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        blamed
    }
}

fn category_of(what: What) -> &'static str {
    match what {
        What::OwnTime => "cpu",
        What::CallGap | What::CallTime => "network",
        What::CallErrors => "code",
        What::Meter(measure) => category::of_measure(measure),
    }
}

/// The largest distance from the median before, in ranges between quartiles.
fn robust_change(mut before: Vec<f64>, after: impl Iterator<Item = f64>) -> Option<f64> {
    if before.len() < USUAL_MIN {
        return None;
    }
    before.sort_by(f64::total_cmp);
    let quantile = |q: f64| before[(q * (before.len() - 1) as f64).round() as usize];
    let median = quantile(0.5);
    let range = (quantile(0.75) - quantile(0.25)).max(median.abs() * RANGE_SHARE_MIN);
    let range = if range > 0.0 { range } else { 1.0 };
    after.map(|value| (value - median).abs() / range).max_by(f64::total_cmp)
}
