//! Measures of services and their pods against what is usual. One sample a minute must do.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use smol_str::SmolStr;
use tapio_schemas::service::Measure;
use tapio_schemas::{Entity, EventId, UnixNanos};

use super::cusum::{Batch, Cusum, HALF};
use super::window::MeterKey;
use super::{SECOND_NS, make_room};
use crate::shards::series::{Knows, SEASON_BYTES, Season, Usual};

/// Series followed; the longest silent are forgotten and counted.
const SERIES_MAX: usize = 16_384;
/// Samples remembered of a series.
const SAMPLES_MAX: usize = 60;
/// Samples without which there is no reference.
const SAMPLES_MIN: usize = 3;
/// A processor this busy is saturated …
const CPU_BUSY: f64 = 0.5;
/// … when that is so many times the usual.
const CPU_TIMES: f64 = 2.0;
/// From here on one sample is enough, with this evidence.
const CPU_FULL: (f64, f64) = (0.7, 8.0);
/// What saturation is worth is multiplied by this with each step after it was last seen.
const CPU_FADES: f64 = 0.95;
/// A processor does far more than usual above so many times a high quantile and some: share of it, processors.
const JUMP: (f64, f64, f64) = (2.0, 0.02, 0.05);
/// Memory has leapt above so many times the highest of the last ones and some: share of the limit, bytes.
const LEAP: (f64, f64, f64) = (1.3, 0.05, 16e6);
/// What is so much more is usual after so long.
const NEWS_NS: u64 = 900 * SECOND_NS;
/// Samples that follow sooner after one that was judged are passed over, so that a reference of a few dozen of them is some
/// minutes long, and so that one moment is not taken for many.
const APART_NS: u64 = 10 * SECOND_NS;
/// Series whose season is learnt, further ones have none and are counted.
const SEASONS_MAX: usize = 2048;
/// A series that is silent for so long makes room for the season of another.
const SEASON_SILENT_NS: u64 = 86_400 * SECOND_NS;
/// Most bytes of all seasons.
const SEASONS_BYTES: usize = 25 << 20;
const _: () = assert!(SEASONS_MAX * SEASON_BYTES <= SEASONS_BYTES, "seasons take more than they may");

/// Longest latency that is believed, s: more is the ceiling of a histogram.
const LATENCY_MAX_S: f64 = 60.0;

/// What is judged of a measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// The processor is used up.
    CpuSaturated,
    /// The processor does far more than usual.
    CpuRaised,
    /// The measure has shifted.
    Shifted,
}

/// A measure out of the ordinary.
#[derive(Debug, Clone)]
pub struct Deviation {
    /// Evidence, nats.
    pub evidence: f64,
    /// Since when.
    pub since: UnixNanos,
    /// Usual value.
    pub usual: f64,
    /// Value now.
    pub now: f64,
    /// Event.
    pub event: EventId,
    /// What is known of its season.
    pub season: Knows,
}

#[derive(Debug)]
struct Series {
    samples: VecDeque<f64>,
    main: Cusum,
    /// Of a processor: the jump without saturation.
    jump: Cusum,
    /// Evidence of saturation, fading.
    held: f64,
    /// What was usual and what was, when that was seen.
    held_at: (f64, f64),
    usual: f64,
    now: f64,
    event: EventId,
    seen: UnixNanos,
    /// Last sample of which something was learnt.
    judged: UnixNanos,
    /// What is usual at this time of the day or the week, when there is room to learn it.
    season: Option<Box<Season>>,
    /// It is so at this time: what deviates from the last hour does not deviate.
    excused: bool,
    /// It deviates from the last hour, excused or not.
    is_over: bool,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            samples: VecDeque::new(),
            main: Cusum::new(HALF),
            jump: Cusum::new(HALF),
            held: 0.0,
            held_at: (0.0, 0.0),
            usual: 0.0,
            now: 0.0,
            event: EventId::default(),
            seen: UnixNanos(0),
            judged: UnixNanos(0),
            season: None,
            excused: false,
            is_over: false,
        }
    }
}

/// Value below which a share of the samples is.
fn quantile(samples: &VecDeque<f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get((share * sorted.len().saturating_sub(1) as f64) as usize).copied()
}

fn one(is_bad: bool, rate: f64, weight: f64) -> Batch {
    let mut batch = Batch::default();
    if is_bad {
        batch.bad(1, rate, HALF, weight, 1.0);
    } else {
        batch.good(1, rate, HALF, weight);
    }
    batch
}

impl Series {
    fn remember(&mut self, value: f64) {
        // A peak of every day is none of the last hour, or a shift right after it would be no news.
        if self.excused && self.is_over {
            return;
        }
        self.samples.push_back(value);
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    fn rate(&self, is_bad: impl Fn(f64) -> bool) -> f64 {
        let bad = self.samples.iter().filter(|v| is_bad(**v)).count();
        (bad as f64 + 0.5) / (self.samples.len() as f64 + 1.0)
    }

    fn is_cold(&self) -> bool {
        self.samples.len() < SAMPLES_MIN
    }

    /// Share of the processor. A gauge is a state: one normal sample ends it. Without a reference none is known to be
    /// more than usual.
    fn cpu(&mut self, at: UnixNanos, value: f64) {
        let median = quantile(&self.samples, 0.5);
        let is_more = !self.is_cold() && median.is_some_and(|m| value >= CPU_TIMES * m);
        let saturated = value >= CPU_BUSY && is_more && !self.excused;
        self.main.add(at, one(saturated, 0.0, 1.0));
        if !saturated {
            self.main.clear();
        } else if value >= CPU_FULL.0 {
            self.main.raise(CPU_FULL.1);
        }
        let is_news = self.jumps(at, value, JUMP.1);
        self.usual = median.unwrap_or(value);
        let evidence = self.main.evidence(at);
        if evidence >= self.held {
            (self.held, self.held_at) = (evidence, (self.usual, value));
        }
        if !saturated && !is_news {
            self.remember(value);
        }
    }

    /// Processors in use, of as many as there are: nothing says when they are saturated.
    fn cores(&mut self, at: UnixNanos, value: f64) {
        let is_news = self.jumps(at, value, JUMP.2);
        self.usual = quantile(&self.samples, 0.5).unwrap_or(value);
        if !is_news {
            self.remember(value);
        }
    }

    /// Whether it is so every day, or every week, at this time; then learns it.
    fn see_season(&mut self, at: UnixNanos, value: f64, measure: Measure) {
        self.is_over = false;
        let Some(season) = &mut self.season else { return };
        let is_low = measure == Measure::SuccessShare;
        let is_usual = |usual: Usual| if is_low { value >= usual.low } else { value <= usual.above() };
        self.excused = season.usual(at).is_some_and(is_usual);
        season.learn(at, value);
    }

    /// True while it uses far more than usual, and not for so long that this is what is usual now.
    fn jumps(&mut self, at: UnixNanos, value: f64, extra: f64) -> bool {
        let Some(high) = quantile(&self.samples, 0.95).filter(|_| !self.is_cold()) else { return false };
        let limit = JUMP.0 * high + extra;
        self.is_over = value > limit;
        let jumped = self.is_over && !self.excused;
        self.jump.add(at, one(jumped, self.rate(|v| v > limit), 1.0));
        if !jumped {
            self.jump.clear();
        }
        jumped && at.since(self.jump.since()) < NEWS_NS
    }

    /// Worse when it is above `factor` times a high quantile and some.
    fn high(&mut self, at: UnixNanos, value: f64, factor: f64, extra: f64) {
        let mut is_bad = false;
        if let Some(high) = quantile(&self.samples, 0.9).filter(|_| !self.is_cold()) {
            let limit = factor * high + extra;
            self.is_over = value > limit;
            is_bad = self.is_over && !self.excused;
            self.main.add(at, one(is_bad, self.rate(|v| v > limit), 1.0));
            self.usual = quantile(&self.samples, 0.5).unwrap_or_default();
        }
        let suspect = is_bad && self.main.sum(at) >= 3.0;
        if !suspect {
            self.remember(value);
        }
    }

    /// Worse when it has leapt above the highest of the last ones. Memory grows by little, or is let go of.
    fn leap(&mut self, at: UnixNanos, value: f64, extra: f64) {
        let mut has_leapt = false;
        if !self.is_cold() {
            let high = self.samples.iter().fold(0.0f64, |a, b| a.max(*b));
            let limit = LEAP.0 * high + extra;
            self.is_over = value > limit;
            has_leapt = self.is_over && !self.excused;
            self.main.add(at, one(has_leapt, 0.0, 1.0));
            self.usual = quantile(&self.samples, 0.5).unwrap_or_default();
        }
        let is_news = has_leapt && at.since(self.main.since()) < NEWS_NS;
        if !is_news {
            self.remember(value);
        }
        if !has_leapt {
            self.main.clear();
        }
    }

    /// Worse when it is a tenth below a low quantile.
    fn low(&mut self, at: UnixNanos, value: f64) {
        if let Some(low) = quantile(&self.samples, 0.1).filter(|_| !self.is_cold()) {
            let limit = low - 0.1;
            self.is_over = value < limit;
            self.main.add(at, one(self.is_over && !self.excused, self.rate(|v| v < limit), 1.0));
            self.usual = quantile(&self.samples, 0.5).unwrap_or_default();
        }
        self.remember(value);
    }
}

/// Processor of a service when it was last measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuSeen {
    /// When.
    pub at: UnixNanos,
    /// Whether any of its pods was saturated, or used far more than usual where no limit is known.
    pub is_saturated: bool,
}

/// All meters.
#[derive(Debug, Default)]
pub struct Meters {
    series: BTreeMap<(Entity, MeterKey), Series>,
    cpu: BTreeMap<Entity, CpuSeen>,
    /// Series with a season.
    seasons: usize,
    /// Series forgotten because there were too many.
    pub evicted: u64,
    /// Samples of series whose season is not learnt because there are too many.
    pub unseasoned: u64,
}

impl Meters {
    /// Takes a sample.
    pub fn observe(&mut self, service: &Entity, key: &MeterKey, said: (UnixNanos, f64, EventId)) {
        let (at, value, event) = said;
        let series = self.series.entry((service.clone(), key.clone())).or_default();
        if at.since(series.judged) < APART_NS && at > series.judged {
            return;
        }
        (series.seen, series.event, series.now) = (at, event, value);
        series.judged = at;
        if series.season.is_none() && key.1 != Measure::RequestsPerSecond && self.seasons < SEASONS_MAX {
            series.season = Some(Box::default());
            self.seasons += 1;
        }
        self.unseasoned += u64::from(series.season.is_none() && key.1 != Measure::RequestsPerSecond);
        series.see_season(at, value, key.1);
        match key.1 {
            Measure::CpuShare | Measure::CpuCores => {
                let is_cold = series.is_cold();
                let is_saturated = if key.1 == Measure::CpuShare {
                    series.cpu(at, value);
                    series.main.evidence(at) > 0.0
                } else {
                    series.cores(at, value);
                    series.jump.sum(at) > 0.0
                };
                // Without a reference only a processor that is idle is known to be normal.
                if !is_cold || (key.1 == Measure::CpuShare && value < CPU_BUSY) {
                    self.saw_cpu(service, at, is_saturated);
                }
            }
            Measure::MemoryShare => series.leap(at, value, LEAP.1),
            Measure::MemoryBytes => series.leap(at, value, LEAP.2),
            Measure::LatencySeconds => series.high(at, value.min(LATENCY_MAX_S), 2.0, 0.02),
            Measure::SuccessShare => series.low(at, value),
            Measure::SystemCalls => series.high(at, value, 1.5, 10.0),
            Measure::RequestsPerSecond => {}
        }
    }

    fn saw_cpu(&mut self, service: &Entity, at: UnixNanos, is_saturated: bool) {
        let seen = self.cpu.entry(service.clone()).or_insert(CpuSeen { at, is_saturated });
        // Pods are measured at the same moment, more or less.
        let same = at.since(seen.at).max(seen.at.since(at)) < 30 * SECOND_NS;
        let is_saturated = is_saturated || (same && seen.is_saturated);
        *seen = CpuSeen { at: seen.at.max(at), is_saturated };
    }

    /// A step has passed.
    pub fn fade(&mut self, now: UnixNanos) {
        let is_full = self.seasons >= SEASONS_MAX;
        for series in self.series.values_mut() {
            series.held = (CPU_FADES * series.held).max(series.main.evidence(now));
            // Pods come and go: one that is gone leaves its place to another.
            if is_full && now.since(series.seen) > SEASON_SILENT_NS {
                (series.season, series.excused) = (None, false);
            }
        }
        self.evicted += make_room(&mut self.series, SERIES_MAX, |s| s.seen);
        self.seasons = self.series.values().filter(|series| series.season.is_some()).count();
        self.evicted += make_room(&mut self.cpu, SERIES_MAX, |c| c.at);
    }

    /// The processor of a service.
    pub fn cpu(&self) -> &BTreeMap<Entity, CpuSeen> {
        &self.cpu
    }

    /// Strongest deviation of each service, sign, measure and label, of all its pods.
    pub fn deviations(
        &self,
        now: UnixNanos,
        evidence_min: f64,
    ) -> BTreeMap<(&Entity, Sign, Measure, &SmolStr), Deviation> {
        let mut all: BTreeMap<(&Entity, Sign, Measure, &SmolStr), Deviation> = BTreeMap::new();
        for ((service, (_, measure, label)), series) in &self.series {
            let of = |evidence, since| Deviation {
                evidence,
                since,
                usual: series.usual,
                now: series.now,
                event: series.event,
                season: series.season.as_ref().map_or(Knows::Cold(0), |season| season.knows()),
            };
            let main = of(series.main.evidence(now), series.main.since());
            let signs = match measure {
                Measure::CpuShare => vec![
                    {
                        let (usual, now) = series.held_at;
                        (Sign::CpuSaturated, Deviation { evidence: series.held, usual, now, ..main })
                    },
                    (Sign::CpuRaised, of(series.jump.evidence(now), series.jump.since())),
                ],
                Measure::CpuCores => {
                    vec![(Sign::CpuRaised, of(series.jump.evidence(now), series.jump.since()))]
                }
                _ => vec![(Sign::Shifted, main)],
            };
            for (sign, deviation) in signs {
                let key = (service, sign, *measure, label);
                let stronger = all.get(&key).is_none_or(|known| deviation.evidence > known.evidence);
                if deviation.evidence >= evidence_min && stronger {
                    all.insert(key, deviation);
                }
            }
        }
        all
    }
}
