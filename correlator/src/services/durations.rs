//! Durations against what is usual: the time in a service itself, and the time on the way between two of them.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tapio_schemas::{EventId, UnixNanos};

use super::cusum::{Batch, Cusum, HALF};
use super::levels::{Level, middle_ns};
use super::window;

/// What was seen when it was bad.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Operation that shows it.
    pub operation: SmolStr,
    /// Usual median, ns.
    pub usual_ns: f64,
    /// Mean of what is too long, ns.
    pub now_ns: f64,
    /// The request that took longest.
    pub evidence: EventId,
}

/// One series with the last bad sight.
#[derive(Debug)]
pub struct Series {
    /// Its sum.
    pub cusum: Cusum,
    /// What was seen.
    pub seen: Seen,
    /// Event of the moment at which it began, and of now.
    pub evidence: Vec<EventId>,
}

/// References per operation, one series per `K`.
#[derive(Debug)]
pub struct Watch<K> {
    levels: BTreeMap<(K, SmolStr), Level>,
    /// The series.
    pub series: BTreeMap<K, Series>,
    levels_max: usize,
    /// References forgotten because there were too many.
    pub evicted: u64,
}

impl<K: Ord + Clone> Watch<K> {
    /// With a limit on the references.
    pub fn new(levels_max: usize) -> Self {
        Self { levels: BTreeMap::new(), series: BTreeMap::new(), levels_max, evicted: 0 }
    }

    /// Compares what one key did in a window with what is usual.
    pub fn observe<'a>(
        &mut self,
        at: UnixNanos,
        key: &K,
        operations: impl Iterator<Item = (&'a SmolStr, &'a window::Durations)>,
    ) {
        let mut batch = Batch::default();
        let mut worst: Option<(f64, Seen)> = None;
        for (operation, durations) in operations {
            let Some(level) = self.levels.get_mut(&(key.clone(), operation.clone())) else { continue };
            level.seen = at;
            let Some(usual) = level.usual() else { continue };
            let (mut bad, mut sum) = (0u32, 0.0);
            for (bucket, count) in durations.histogram() {
                let value = middle_ns(bucket);
                if value > usual.limit_ns {
                    batch.bad(count, usual.rate, HALF, usual.weight, value / usual.limit_ns);
                    bad += count;
                    sum += value * f64::from(count);
                } else {
                    batch.good(count, usual.rate, HALF, usual.weight);
                }
            }
            if bad > 0 && worst.as_ref().is_none_or(|(most, _)| sum > *most) {
                let (operation, evidence) = (operation.clone(), durations.evidence);
                let now_ns = sum / f64::from(bad);
                worst = Some((sum, Seen { operation, usual_ns: usual.median_ns, now_ns, evidence }));
            }
        }
        let series = self.series.entry(key.clone()).or_insert_with(|| Series {
            cusum: Cusum::new(HALF),
            seen: Seen::default(),
            evidence: Vec::new(),
        });
        series.cusum.add(at, batch);
        if let Some((_, seen)) = worst {
            if series.cusum.since() == at {
                series.evidence.clear();
            }
            crate::shards::add_evidence(&mut series.evidence, seen.evidence);
            series.seen = seen;
        }
    }

    /// Learns what one key did in a window of a while ago, unless it was part of what is wrong.
    pub fn learn<'a>(
        &mut self,
        at: UnixNanos,
        now: UnixNanos,
        key: &K,
        operations: impl Iterator<Item = (&'a SmolStr, &'a window::Durations)>,
    ) {
        if self.series.get(key).is_some_and(|s| s.cusum.forbids_learning(at, now)) {
            return;
        }
        for (operation, durations) in operations {
            let level = self.levels.entry((key.clone(), operation.clone())).or_default();
            level.seen = level.seen.max(at);
            level.learn(at, &durations.histogram());
        }
        self.evicted += super::make_room(&mut self.levels, self.levels_max, |level| level.seen);
    }

    /// Forgets series of which nothing was heard since then.
    pub fn prune(&mut self, silent_before: UnixNanos) {
        self.series.retain(|_, s| s.cusum.last() >= silent_before);
    }
}
