//! Growth towards a limit that will not stop by itself.
//!
//! Not every climb is a leak. The series is split at drops of half (restarts, collections); the longest recent
//! stretch is taken whose four quarters each stand higher than the one before (sustained) and whose last
//! quarter still climbs (a step that flattens is not a leak). A series that has fallen from a peak well below
//! its limit before (a garbage collector's saw) must first rise above that peak. The trend is not carried
//! further than a few times its own length.

use tapio_schemas::UnixNanos;

use super::trend::{TimeToLimit, Trend, median, trend};
use super::window::Point;
use crate::config::SeriesConfig;

/// A drop below this share of the value before begins a new series.
const SPLIT_BELOW: f64 = 0.5;
/// A fall below this share of the highest value shows that something frees what it takes.
const RELEASE_BELOW: f64 = 0.85;
/// A peak at or above this share of the limit was ended by the limit, not by a release.
const PEAK_AT_LIMIT: f64 = 0.9;
/// The last quarter must climb at least at this share of the whole slope.
const TAIL_SHARE_MIN: f64 = 0.4;
/// Each quarter must rise at least by this share of the mean rise.
const QUARTER_SHARE_MIN: f64 = 0.2;
/// What no statistic sees (memory the sample leaves out, batched charging, the time the kernel takes): share of the
/// time to the limit that is added to both sides of the interval.
const MODEL_ERROR: f64 = 0.03;

/// Which growth is worth a word.
#[derive(Debug, Clone, Copy)]
pub struct GrowthRule {
    /// Least samples.
    pub points_min: usize,
    /// Below this share of the limit it is no news.
    pub usage_min: f64,
    /// Least growth, as a share of the limit.
    pub rise_min: f64,
    /// The trend is not carried further than this many times its own length.
    pub reach: f64,
    /// Least growth per hour, as a share of the limit.
    pub per_hour_min: f64,
    /// Certainty grows with the share of the room that was left, not of the limit.
    pub of_room: bool,
}

impl GrowthRule {
    /// Of memory. Below 5 % of the limit per hour it is no leak worth a word.
    pub fn memory(config: &SeriesConfig) -> Self {
        Self {
            points_min: config.growth_points_min,
            usage_min: config.growth_usage_min,
            rise_min: config.growth_rise_min,
            reach: config.growth_reach,
            per_hour_min: 0.05,
            of_room: false,
        }
    }
}

/// A sustained climb.
#[derive(Debug, Clone, PartialEq)]
pub struct Growth {
    /// First sample of the climb.
    pub onset: UnixNanos,
    /// Value there.
    pub from: f64,
    /// Its line.
    pub trend: Trend,
    /// Samples in it.
    pub points: usize,
    /// Seconds it lasts.
    pub span_s: f64,
    /// How certain: 0 … 1.
    pub certainty: f64,
    /// Seconds from the last sample to the limit.
    pub to_limit: TimeToLimit,
    /// Samples that show it: first to last, at most eight.
    pub evidence: Vec<tapio_schemas::EventId>,
}

/// Looks for growth at the end of `points` (time order) towards `limit` (> 0).
pub fn find_growth(points: &[Point], limit: f64, rule: &GrowthRule) -> Option<Growth> {
    // The cheap question first: most series are far from their limit.
    if limit <= 0.0 || points.last()?.value < rule.usage_min * limit || held_by_release(points, limit) {
        return None;
    }
    let run = tail_run(points);
    // The longest stretch first: half of it, a quarter of it, as long as there are samples enough.
    let mut length = run.len();
    while length >= rule.points_min.max(8) {
        if let Some(growth) = sustained(&run[run.len() - length..], limit, rule) {
            return Some(growth);
        }
        length = length * 2 / 3;
    }
    None
}

/// Samples since the last drop of half.
fn tail_run(points: &[Point]) -> &[Point] {
    let cut = points.windows(2).rposition(|w| w[1].value < SPLIT_BELOW * w[0].value);
    &points[cut.map_or(0, |at| at + 1)..]
}

/// True when the series has fallen from a peak that was not the limit, and has not risen above that peak since.
fn held_by_release(points: &[Point], limit: f64) -> bool {
    let mut peak = 0.0f64;
    let mut released_from = 0.0f64;
    for point in points {
        if point.value > peak {
            peak = point.value;
        } else if point.value < RELEASE_BELOW * peak && peak < PEAK_AT_LIMIT * limit {
            released_from = released_from.max(peak);
        }
    }
    let last = points.last().map_or(0.0, |p| p.value);
    released_from > 0.0 && last < 1.05 * released_from
}

fn sustained(run: &[Point], limit: f64, rule: &GrowthRule) -> Option<Growth> {
    let (first, last) = (run.first()?, run.last()?);
    let seconds: Vec<(f64, f64)> = run.iter().map(|p| (p.at.since(first.at) as f64 / 1e9, p.value)).collect();
    let span_s = last.at.since(first.at) as f64 / 1e9;
    // And of the others most do not climb.
    if !quarters_rise(&seconds) {
        return None;
    }
    let whole = trend(&seconds)?;
    let rise = whole.slope * span_s;
    if whole.slope_low <= 0.0
        || rise < rule.rise_min * limit
        || whole.slope * 3600.0 < rule.per_hour_min * limit
    {
        return None;
    }
    let tail = trend(&seconds[seconds.len() * 3 / 4 - 1..])?;
    let half = trend(&seconds[seconds.len() / 2..])?;
    if tail.slope < TAIL_SHARE_MIN * whole.slope || half.slope < TAIL_SHARE_MIN * whole.slope {
        return None;
    }
    let line = current_line(whole, half);
    let to_limit = widened(line.time_to(limit)?, span_s / (run.len() - 1) as f64);
    if to_limit.best_s > rule.reach * span_s {
        return None;
    }
    Some(Growth {
        onset: first.at,
        from: first.value,
        points: run.len(),
        span_s,
        certainty: certainty(
            &whole,
            &line,
            run.len(),
            rise,
            rise / if rule.of_room { limit - first.value } else { limit },
        ),
        trend: line,
        to_limit,
        evidence: spread(run),
    })
}

/// Each quarter's median stands clearly above the one before it.
fn quarters_rise(seconds: &[(f64, f64)]) -> bool {
    let quarter = seconds.len() as f64 / 4.0;
    let medians: Vec<f64> = (0..4)
        .map(|q| {
            let range = (quarter * f64::from(q)) as usize..(quarter * f64::from(q + 1)) as usize;
            median(&mut seconds[range].iter().map(|p| p.1).collect::<Vec<_>>())
        })
        .collect();
    let mean_rise = (medians[3] - medians[0]) / 3.0;
    mean_rise > 0.0 && medians.windows(2).all(|w| w[1] - w[0] >= QUARTER_SHARE_MIN * mean_rise)
}

/// The newer half's line when its interval excludes the slope of the whole: the climb has changed its pace.
fn current_line(whole: Trend, half: Trend) -> Trend {
    let changed = half.slope_low > whole.slope || half.slope_high < whole.slope;
    if changed && half.slope > 0.0 { half } else { whole }
}

/// Adds what the statistic cannot see: the sampling interval and [`MODEL_ERROR`].
fn widened(ttl: TimeToLimit, interval_s: f64) -> TimeToLimit {
    let slack = MODEL_ERROR * ttl.best_s + interval_s;
    TimeToLimit {
        best_s: ttl.best_s,
        earliest_s: (ttl.earliest_s - slack).max(0.0),
        latest_s: ttl.latest_s + slack,
    }
}

/// Grows with the samples, with the share of the limit (or of the room) that the climb covers, and with how narrow its slope is.
fn certainty(whole: &Trend, line: &Trend, points: usize, rise: f64, share: f64) -> f64 {
    let samples = 1.0 - (-(points as f64) / 8.0).exp();
    let extent = (0.5 + share).min(1.0);
    let narrow = 1.0 - 0.5 * ((whole.slope_high - whole.slope_low) / (2.0 * whole.slope)).clamp(0.0, 1.0);
    let noise = 1.0 - (line.noise / rise.max(f64::MIN_POSITIVE)).clamp(0.0, 0.5);
    (samples * extent * narrow * noise).clamp(0.0, 0.99)
}

/// At most eight samples, evenly spread, with the first and the last.
fn spread(run: &[Point]) -> Vec<tapio_schemas::EventId> {
    const EVIDENCE_MAX: usize = 8;
    if run.len() <= EVIDENCE_MAX {
        return run.iter().map(|p| p.event).collect();
    }
    (0..EVIDENCE_MAX).map(|i| run[i * (run.len() - 1) / (EVIDENCE_MAX - 1)].event).collect()
}
