//! File systems and volumes: near full, full, and growth towards full.
//!
//! Exporters tell the same in several ways: used and free bytes by state (`system.filesystem.usage`), available bytes and
//! capacity (`k8s.volume.*`, `node_filesystem_*`, `kubelet_volume_stats_*`), or a share (`*.utilization`). What programs can still
//! write counts: available bytes with the capacity before used bytes with what is free, and a share only where there are
//! no bytes. Values of one moment that come in several metrics are put together by their time.
//!
//! The method is that of [`super::growth`], with bounds of its own: a disk fills over days, so its coarse window is a day, and
//! the climb is weighed against the room that was left when it began, not against the size.

use foldhash::HashMap;
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Score, SignalKind, UnixNanos};

use super::super::counters::Counters;
use super::super::episode::Observation;
use super::super::record::Sample;
use super::growth::{Growth, GrowthRule, find_growth};
use super::level::{Level, Stands, Threshold};
use super::window::{Point, Window, WindowSize};
use super::{Finding, GROWTH_CONFIRM, GROWTH_LEFT, Meter, seconds_to_nanos};
use crate::config::{SeriesConfig, nanos};

/// Used share from which on it is full: what is left is taken by the next write, or by blocks that no program gets.
pub const FULL_SHARE: f64 = 0.995;
/// It is no longer full below this.
const FULL_LEAVE: f64 = 0.98;
/// Samples older than this say nothing of now, ns: a part that is no longer told is forgotten.
const STALE_NS: u64 = 3_600_000_000_000;
/// Growth that is news: half used, a twentieth gained, full within six times the time it took.
const RULE: GrowthRule = GrowthRule {
    points_min: 10,
    usage_min: 0.5,
    rise_min: 0.05,
    reach: 6.0,
    per_hour_min: 0.001,
    of_room: true,
};
/// Volumes kept per shard; the longest silent are forgotten and counted.
const VOLUMES_MAX: usize = 2048;

/// What was last told of one part of a volume.
type Told = Option<(UnixNanos, f64)>;

/// One file system or volume.
#[derive(Debug, Default)]
struct Volume {
    used: Told,
    free: Told,
    capacity: Told,
    available: Told,
    last: UnixNanos,
    window: Window,
    near: Level,
    full: Level,
    cell: u64,
    growing: u32,
    flat: u32,
    is_growing: bool,
}

/// All volumes of a shard.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    volumes: HashMap<u128, Volume>,
}

impl Volumes {
    /// Takes a sample; appends what it leads to.
    pub(super) fn take(
        &mut self,
        sample: &Sample,
        config: &SeriesConfig,
        out: &mut Vec<Finding>,
        counters: &mut Counters,
    ) {
        let key = sample.place;
        self.make_room(key, counters);
        let volume = self.volumes.entry(key).or_default();
        let Some((used, limit)) = volume.put_together(sample) else { return };
        let size = WindowSize {
            fine_points: config.fine_points,
            cell_ns: nanos(config.disk_cell),
            coarse_points: config.disk_points,
        };
        let before = volume.window.last();
        if limit <= 0.0 || !volume.window.push(Point { at: sample.at, value: used, event: sample.id }, size) {
            return;
        }
        let pace = before.map_or(0, |before| sample.at.since(before.at));
        let told = Reading { sample, used, limit, pace };
        volume.levels(&told, config, out);
        volume.growth(&told, size.cell_ns, out);
    }

    /// Time from which on samples are needed to know again what is told now.
    pub(super) fn needs_from(&self) -> Option<UnixNanos> {
        let telling = self.volumes.values().filter(|v| v.is_growing || v.growing > 0);
        telling.filter_map(|v| v.window.fine_start()).min()
    }

    fn make_room(&mut self, key: u128, counters: &mut Counters) {
        if self.volumes.len() < VOLUMES_MAX || self.volumes.contains_key(&key) {
            return;
        }
        let mut ages: Vec<(UnixNanos, u128)> = self.volumes.iter().map(|(key, v)| (v.last, *key)).collect();
        ages.sort_unstable();
        for (_, oldest) in ages.iter().take(VOLUMES_MAX / 8) {
            self.volumes.remove(oldest);
            counters.evicted.series += 1;
        }
    }
}

/// A moment of a volume.
struct Reading<'a> {
    sample: &'a Sample,
    /// In the unit of `limit`.
    used: f64,
    limit: f64,
    /// Time since the sample before, ns.
    pace: u64,
}

impl Reading<'_> {
    fn seen(&self, kind: SignalKind) -> Observation {
        let mut seen = super::observation(kind, self.sample);
        // Volumes of one machine or pod are full and over one by one.
        seen.topic = self.sample.place as u64;
        (seen.observed, seen.baseline, seen.unit) = (self.used / self.limit, FULL_SHARE, "1");
        // Many are told once a minute: it is not over because they pause.
        seen.idle_ns = (3 * self.pace).max(30_000_000_000);
        let seen = seen.with("place", self.sample.label.as_str()).with("usage_share", self.used / self.limit);
        if self.is_bytes() {
            seen.with("usage_bytes", self.used)
                .with("limit_bytes", self.limit)
                .with("left_bytes", (self.limit - self.used).max(0.0))
        } else {
            seen
        }
    }

    fn is_bytes(&self) -> bool {
        self.sample.meter != Meter::DiskShare
    }
}

impl Volume {
    /// What is used, and of how much, when the sample completes a moment.
    fn put_together(&mut self, sample: &Sample) -> Option<(f64, f64)> {
        let (at, value) = (sample.at, sample.value);
        let part = match sample.meter {
            Meter::DiskUsed => &mut self.used,
            Meter::DiskFree => &mut self.free,
            Meter::DiskCapacity => &mut self.capacity,
            Meter::DiskAvailable => &mut self.available,
            _ => {
                self.last = self.last.max(at);
                let bytes = [self.used, self.available].into_iter().flatten();
                let fresh = bytes.map(|(told, _)| told).any(|told| at.since(told) < STALE_NS);
                return (!fresh).then_some((value, 1.0));
            }
        };
        if part.is_some_and(|(told, _)| told >= at) {
            return None;
        }
        *part = Some((at, value));
        self.last = self.last.max(at);
        let fresh = |told: Told| told.filter(|(told, _)| at.since(*told) < STALE_NS).map(|(_, value)| value);
        let now = |told: Told| told.filter(|(told, _)| *told == at).map(|(_, value)| value);
        if let (Some(_), Some(capacity)) = (fresh(self.available), fresh(self.capacity)) {
            return now(self.available).map(|available| (capacity - available, capacity));
        }
        let used = now(self.used)?;
        if sample.limit > 0.0 {
            return Some((used, sample.limit));
        }
        match fresh(self.free) {
            Some(_) => now(self.free).map(|free| (used, used + free)),
            None => fresh(self.capacity).map(|capacity| (used, capacity)),
        }
    }

    fn levels(&mut self, told: &Reading<'_>, config: &SeriesConfig, out: &mut Vec<Finding>) {
        let share = told.used / told.limit;
        let near = Threshold { enter: config.near_limit, leave: config.near_limit - 0.05, samples: 2 };
        let full = Threshold { enter: FULL_SHARE, leave: FULL_LEAVE, samples: 1 };
        for (level, threshold, kind) in
            [(&mut self.near, near, SignalKind::DiskNearFull), (&mut self.full, full, SignalKind::DiskFull)]
        {
            match level.next(share, threshold) {
                Stands::Below => {}
                Stands::Left => out.push(Finding::Over(told.seen(kind).episode())),
                Stands::Above => {
                    let mut seen = told.seen(kind);
                    let room = 1.0 - threshold.enter;
                    // Half certain at the threshold, certain when nothing is left.
                    seen.strength = (0.5 + 0.5 * (share - threshold.enter) / room).clamp(0.5, 1.0);
                    if kind == SignalKind::DiskFull {
                        seen.strength = 1.0;
                    }
                    out.push(Finding::Seen(Box::new(seen)));
                }
            }
        }
    }

    fn growth(&mut self, told: &Reading<'_>, cell_ns: u64, out: &mut Vec<Finding>) {
        let cell = told.sample.at.0 / cell_ns.max(1);
        let limit = FULL_SHARE * told.limit;
        let growth = find_growth(self.window.fine(), limit, &RULE).or_else(|| {
            let fresh =
                std::mem::replace(&mut self.cell, cell) != cell || self.is_growing || self.growing > 0;
            if fresh { find_growth(self.window.coarse(), limit, &RULE) } else { None }
        });
        match growth.filter(|_| told.used < limit) {
            Some(growth) => {
                (self.growing, self.flat) = (self.growing + 1, 0);
                if self.growing >= GROWTH_CONFIRM || self.is_growing {
                    self.is_growing = true;
                    out.push(Finding::Seen(Box::new(observation(&growth, told))));
                }
            }
            None => {
                (self.growing, self.flat) = (0, self.flat + 1);
                if self.is_growing && (self.flat >= GROWTH_LEFT || told.used >= limit) {
                    self.is_growing = false;
                    out.push(Finding::Over(told.seen(SignalKind::DiskGrowth).episode()));
                }
            }
        }
    }
}

fn observation(growth: &Growth, told: &Reading<'_>) -> Observation {
    let after = |seconds: f64| told.sample.at.plus(seconds_to_nanos(seconds));
    let mut seen = told.seen(SignalKind::DiskGrowth);
    let interval_s = growth.span_s / (growth.points - 1) as f64;
    seen.onset = growth.onset;
    seen.count = 0;
    seen.evidence = growth.evidence.clone();
    seen.strength = growth.certainty;
    seen.baseline = growth.from / told.limit;
    seen.idle_ns = seen.idle_ns.max(3 * seconds_to_nanos(interval_s));
    seen.forecast = Some(Forecast {
        scenario: "disk_full".into(),
        probability: Score::clamped(growth.certainty),
        at: after(growth.to_limit.best_s),
        earliest: after(growth.to_limit.earliest_s),
        latest: after(growth.to_limit.latest_s),
    });
    let seen = seen
        .with("start_share", growth.from / told.limit)
        .with("samples", growth.points as i64)
        .with("span_s", growth.span_s)
        .with("seconds_to_full", growth.to_limit.best_s);
    if told.is_bytes() {
        seen.with("start_bytes", growth.from).with("slope_bytes_per_s", growth.trend.slope)
    } else {
        seen
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
