//! Detectors on series of samples, with bounded memory. Samples come in event-time order.

mod bounds;
mod certificate;
mod disk;
mod drops;
mod growth;
mod level;
mod meter;
mod plane;
mod season;
mod told;
mod trend;
mod window;

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use tapio_schemas::{EntityRef, SignalKind, UnixNanos};

use super::counters::Counters;
use super::episode::{EpisodeKey, Observation, episode_key};
use super::record::Sample;
use crate::config::{SeriesConfig, nanos};
use certificate::certificate;
use disk::Volumes;
use drops::{Drops, drops};
use level::{Level, Stands, Threshold};
use told::{climb, growth_observation};
use window::{Point, Window, WindowSize};

pub use growth::{Growth, GrowthRule, find_growth};
pub use meter::{Meter, row_of};
pub use season::{Knows, Period, SEASON_BYTES, Season, Usual};
pub use trend::{TimeToLimit, Trend, trend};
pub use window::Point as SeriesPoint;

/// Evaluations in a row that must agree before growth is told.
const GROWTH_CONFIRM: u32 = 2;
/// Evaluations in a row without growth after which it is over.
const GROWTH_LEFT: u32 = 3;
/// Periods a throttling share must rest on.
const PERIODS_MIN: f64 = 10.0;
/// A lower share of a limit is too coarse to tell the limit by.
const SHARE_MIN: f64 = 0.01;
/// A usage and a share that are measured so near to each other are of one moment.
const MOMENT_NS: u64 = 1_000_000_000;

/// What a sample led to.
#[derive(Debug)]
pub enum Finding {
    /// Evidence of a deviation.
    Seen(Box<Observation>),
    /// A deviation is over.
    Over(EpisodeKey),
}

#[derive(Debug, Default)]
struct Series {
    window: Window,
    level: Level,
    last: Option<(UnixNanos, f64)>,
    limit: f64,
    cell: u64,
    growing: u32,
    flat: u32,
    is_growing: bool,
    drops: Drops,
    /// Sum and number of the observations of a histogram so far.
    observed: (f64, f64),
    /// Since when it climbs, as far as a few samples tell: a trend may begin here.
    climbs_from: Option<UnixNanos>,
}

/// What the series of one thing know of each other.
#[derive(Debug, Default, Clone, Copy)]
struct Shared {
    memory_limit: f64,
    memory_usage: f64,
    /// Of its limit.
    memory_share: f64,
    /// When the usage and the share were measured.
    memory_at: (UnixNanos, UnixNanos),
    /// Periods since the throttled ones were last read.
    periods: f64,
    /// Kills that were told by the kernel and not yet matched by the counter.
    kills_told: f64,
    last: UnixNanos,
}

impl Shared {
    /// The limit, from what is used and the share of the limit that this is, whichever is told first. The usage of another moment
    /// would make another limit of it.
    fn derive_limit(&mut self) {
        let (usage, share) = self.memory_at;
        let is_one_moment = usage.since(share).max(share.since(usage)) <= MOMENT_NS;
        if is_one_moment && self.memory_share > SHARE_MIN {
            self.memory_limit = self.memory_usage / self.memory_share;
        }
    }
}

/// All series of a shard.
pub struct SeriesStore {
    config: SeriesConfig,
    series: HashMap<u128, Series>,
    shared: HashMap<u128, Shared>,
    volumes: Volumes,
    pairs: bounds::Pairs,
    /// Series whose season is learnt.
    seasons: usize,
}

impl SeriesStore {
    /// No series.
    pub fn new(config: SeriesConfig) -> Self {
        Self {
            config,
            series: HashMap::new(),
            shared: HashMap::new(),
            volumes: Volumes::default(),
            pairs: bounds::Pairs::default(),
            seasons: 0,
        }
    }

    /// The kernel told of an out-of-memory kill on this thing; the counter that follows is the same kill.
    pub fn kill_told(&mut self, owner: u128, at: UnixNanos, counters: &mut Counters) {
        // Of what nothing else is told, such as a cgroup that is gone with its kill, no series ever makes room.
        if self.shared.len() >= self.config.count_max && !self.shared.contains_key(&owner) {
            self.forget_silent(counters);
        }
        let shared = self.shared.entry(owner).or_default();
        shared.kills_told += 1.0;
        shared.last = shared.last.max(at);
    }

    /// Takes a sample; appends what it leads to.
    pub fn take(&mut self, sample: &Sample, out: &mut Vec<Finding>, counters: &mut Counters) {
        if sample.meter.is_of_a_disk() {
            return self.volumes.take(sample, &self.config, out, counters);
        }
        self.make_room(sample, counters);
        let config = &self.config;
        let series = self.series.entry(sample.series).or_default();
        if series.last.is_some_and(|(at, _)| sample.at <= at) {
            return;
        }
        let shared = self.shared.entry(sample.owner).or_default();
        shared.last = shared.last.max(sample.at);
        match sample.meter {
            Meter::MemoryUsage => {
                memory(series, shared, sample, config, out);
                shared.memory_at.0 = sample.at;
                shared.derive_limit();
            }
            Meter::MemoryLimit => shared.memory_limit = sample.value.max(0.0),
            Meter::MemoryShare => {
                (shared.memory_share, shared.memory_at.1) = (sample.value, sample.at);
                shared.derive_limit();
            }
            Meter::OomKills => kills(series, shared, sample, out),
            Meter::CpuPeriods => shared.periods += increase(series, sample),
            Meter::CertificateEnd | Meter::CertificateLeft => certificate(series, sample, config, out),
            Meter::NetDrops => drops(series, &mut self.seasons, sample, config, out, counters),
            meter if plane::rule(meter).is_some() => plane::take(series, sample, out),
            Meter::Bounded => bounds::bounded(series, &mut self.pairs, sample, out, counters),
            Meter::CpuThrottledPeriods => throttled(series, shared, sample, config, out),
            meter => plain_level(series, sample, meter, config, out),
        }
        series.last = Some((sample.at, sample.value));
    }

    /// Time from which on samples are needed to know again what is known now, or may be known soon: a climb is held before
    /// it is long enough to be told, or a restart would see it begin later.
    pub fn needs_from(&self) -> Option<UnixNanos> {
        self.series
            .values()
            .flat_map(|s| {
                let telling = s.is_growing || s.growing > 0;
                [s.climbs_from, telling.then(|| s.window.fine_start()).flatten(), s.drops.needs_from()]
            })
            .flatten()
            .chain(self.volumes.needs_from())
            .min()
    }

    /// Forgets the eighth of the things whose series say least; their series stay.
    fn forget_silent(&mut self, counters: &mut Counters) {
        let mut ages: Vec<(UnixNanos, u128)> = self.shared.iter().map(|(key, s)| (s.last, *key)).collect();
        ages.sort_unstable();
        for (_, key) in ages.iter().take((self.config.count_max / 8).max(1)) {
            self.shared.remove(key);
            counters.evicted.series += 1;
        }
    }

    /// Series kept.
    pub fn count(&self) -> usize {
        self.series.len()
    }

    fn make_room(&mut self, sample: &Sample, counters: &mut Counters) {
        if self.series.len() < self.config.count_max || self.series.contains_key(&sample.series) {
            return;
        }
        // An eighth at once: the search costs as much for one as for many.
        let mut ages: Vec<(UnixNanos, u128)> =
            self.series.iter().map(|(key, s)| (s.last.map_or(UnixNanos(0), |l| l.0), *key)).collect();
        ages.sort_unstable();
        for (_, key) in ages.iter().take((self.config.count_max / 8).max(1)) {
            let gone = self.series.remove(key);
            self.seasons -= usize::from(gone.is_some_and(|series| series.drops.season.is_some()));
            counters.evicted.series += 1;
        }
        let oldest = ages.get(self.config.count_max / 8).map_or(UnixNanos(0), |a| a.0);
        self.shared.retain(|_, shared| shared.last >= oldest);
    }
}

/// Increase of a cumulative value since the last sample; a fall is a restart from zero.
fn increase(series: &Series, sample: &Sample) -> f64 {
    match series.last {
        None => 0.0,
        Some((_, before)) if sample.value >= before => sample.value - before,
        Some(_) => sample.value.max(0.0),
    }
}

fn observation(kind: SignalKind, sample: &Sample) -> Observation {
    let mut seen = Observation::new(kind, &sample.entity, sample.at, sample.id);
    seen.observed = sample.value;
    seen
}

fn memory(
    series: &mut Series,
    shared: &mut Shared,
    sample: &Sample,
    config: &SeriesConfig,
    out: &mut Vec<Finding>,
) {
    shared.memory_usage = sample.value;
    if sample.limit > 0.0 {
        shared.memory_limit = sample.limit;
    }
    series.limit = shared.memory_limit;
    let size = WindowSize {
        fine_points: config.fine_points,
        cell_ns: nanos(config.coarse_cell),
        coarse_points: config.coarse_points,
    };
    series.window.push(Point { at: sample.at, value: sample.value, event: sample.id }, size);
    if series.limit <= 0.0 {
        return;
    }
    series.climbs_from = match climb(series.window.fine()) {
        Some(from) => Some(series.climbs_from.unwrap_or(from)),
        None => None,
    };
    near_limit(series, sample, SignalKind::MemoryNearLimit, "By", config, out);
    let cell = sample.at.0 / size.cell_ns.max(1);
    let rule = GrowthRule::memory(config);
    let growth = find_growth(series.window.fine(), series.limit, &rule).or_else(|| {
        // The coarse window says something new once per cell only, unless it has to be watched.
        let fresh =
            std::mem::replace(&mut series.cell, cell) != cell || series.is_growing || series.growing > 0;
        if fresh { find_growth(series.window.coarse(), series.limit, &rule) } else { None }
    });
    match growth {
        Some(growth) => {
            (series.growing, series.flat) = (series.growing + 1, 0);
            if series.growing >= GROWTH_CONFIRM || series.is_growing {
                series.is_growing = true;
                out.push(Finding::Seen(Box::new(growth_observation(&growth, sample, series.limit))));
            }
        }
        None => {
            (series.growing, series.flat) = (0, series.flat + 1);
            // A drop of half is the end of this climb at once: what follows is another life.
            let dropped = series.last.is_some_and(|(_, before)| sample.value < 0.5 * before);
            if series.is_growing && (series.flat >= GROWTH_LEFT || dropped) {
                series.is_growing = false;
                out.push(Finding::Over(key_of(SignalKind::MemoryGrowth, &sample.entity)));
            }
        }
    }
}

fn seconds_to_nanos(seconds: f64) -> u64 {
    // A time that is further away than a century is as good as never.
    const CENTURY_S: f64 = 3.2e9;
    (seconds.clamp(0.0, CENTURY_S) * 1e9) as u64
}

fn kills(series: &Series, shared: &mut Shared, sample: &Sample, out: &mut Vec<Finding>) {
    let counted = increase(series, sample);
    let told = shared.kills_told.min(counted);
    // What the kernel told and the counter did not confirm is not carried over: counters of parents differ.
    shared.kills_told = 0.0;
    let untold = counted - told;
    if untold < 1.0 {
        return;
    }
    let mut seen = observation(SignalKind::OomKill, sample);
    seen.count = untold as u64;
    seen.observed = shared.memory_usage;
    seen.unit = "By";
    out.push(Finding::Seen(Box::new(
        seen.with("seen_by", "cgroup_counter")
            .with("limit_bytes", shared.memory_limit)
            .with("usage_bytes", shared.memory_usage),
    )));
}

fn throttled(
    series: &mut Series,
    shared: &mut Shared,
    sample: &Sample,
    config: &SeriesConfig,
    out: &mut Vec<Finding>,
) {
    let throttled = increase(series, sample);
    if shared.periods < PERIODS_MIN {
        return;
    }
    let share = (throttled / std::mem::take(&mut shared.periods)).clamp(0.0, 1.0);
    let threshold = Threshold { enter: config.throttled, leave: 0.6 * config.throttled, samples: 2 };
    let stands = series.level.next(share, threshold);
    push_level(SignalKind::CpuThrottled, stands, (share, threshold.enter), "1", sample, out, |seen| {
        seen.with("throttled_share", share)
    });
}

fn near_limit(
    series: &mut Series,
    sample: &Sample,
    kind: SignalKind,
    unit: &'static str,
    config: &SeriesConfig,
    out: &mut Vec<Finding>,
) {
    let (limit, value) = (series.limit, sample.value);
    let threshold = Threshold { enter: config.near_limit, leave: config.near_limit - 0.05, samples: 2 };
    let stands = series.level.next(value / limit, threshold);
    push_level(kind, stands, (value, limit * threshold.enter), unit, sample, out, |seen| {
        let seen = seen.with("usage_share", value / limit);
        if kind == SignalKind::MemoryNearLimit {
            seen.with("usage_bytes", value).with("limit_bytes", limit)
        } else {
            seen.with("usage", value).with("limit", limit)
        }
    });
}

fn plain_level(
    series: &mut Series,
    sample: &Sample,
    meter: Meter,
    config: &SeriesConfig,
    out: &mut Vec<Finding>,
) {
    let (kind, enter, unit) = match meter {
        Meter::MemoryPressure => (SignalKind::MemoryPressure, config.memory_pressure, "%"),
        Meter::CpuPressure => (SignalKind::CpuPressure, config.cpu_pressure, "%"),
        Meter::IoPressure => (SignalKind::IoPressure, config.io_pressure, "%"),
        Meter::CpuShare => (SignalKind::CpuSaturated, config.near_limit, "1"),
        Meter::Pids if sample.limit > 0.0 => {
            series.limit = sample.limit;
            return near_limit(series, sample, SignalKind::PidsNearLimit, "{process}", config, out);
        }
        _ => return,
    };
    let threshold = Threshold { enter, leave: 0.6 * enter, samples: 2 };
    let stands = series.level.next(sample.value, threshold);
    push_level(kind, stands, (sample.value, enter), unit, sample, out, |seen| seen);
}

/// `observed` and `threshold` are in `unit`. From where on it is news says nothing about what is usual: there is no baseline.
fn push_level(
    kind: SignalKind,
    stands: Stands,
    (observed, threshold): (f64, f64),
    unit: &'static str,
    sample: &Sample,
    out: &mut Vec<Finding>,
    facts: impl FnOnce(Observation) -> Observation,
) {
    match stands {
        Stands::Below => {}
        Stands::Left => out.push(Finding::Over(key_of(kind, &sample.entity))),
        Stands::Above => {
            let mut seen = observation(kind, sample);
            (seen.observed, seen.unit) = (observed, unit);
            // Half certain at the threshold, certain at twice of it.
            seen.strength = (0.5 * observed / threshold).clamp(0.3, 1.0);
            out.push(Finding::Seen(Box::new(facts(seen))));
        }
    }
}

fn key_of(kind: SignalKind, entity: &Arc<EntityRef>) -> EpisodeKey {
    episode_key(kind, entity, None, 0)
}

#[cfg(test)]
mod tests;
