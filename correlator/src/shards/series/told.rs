//! What growth is told as.

use tapio_schemas::signal::Forecast;
use tapio_schemas::{Score, SignalKind, UnixNanos};

use super::super::episode::Observation;
use super::super::record::Sample;
use super::growth::Growth;
use super::window::Point;
use super::{observation, seconds_to_nanos};

/// Samples that tell whether a series climbs.
const CLIMB_POINTS: usize = 4;

/// Time of the earliest of the last few samples, when they climb.
pub(super) fn climb(points: &[Point]) -> Option<UnixNanos> {
    let (first, last) = (points.get(points.len().saturating_sub(CLIMB_POINTS))?, points.last()?);
    (last.value > first.value).then_some(first.at)
}

pub(super) fn growth_observation(growth: &Growth, sample: &Sample, limit: f64) -> Observation {
    let after = |seconds: f64| sample.at.plus(seconds_to_nanos(seconds));
    let mut seen = observation(SignalKind::MemoryGrowth, sample);
    let interval_s = growth.span_s / (growth.points - 1) as f64;
    seen.onset = growth.onset;
    seen.count = 0;
    seen.evidence = growth.evidence.clone();
    seen.strength = growth.certainty;
    seen.baseline = growth.from;
    seen.unit = "By";
    // A slow series comes once a minute: it is not over because it pauses.
    seen.idle_ns = (3 * seconds_to_nanos(interval_s)).max(30_000_000_000);
    seen.forecast = Some(Forecast {
        scenario: "oom_kill".into(),
        probability: Score::clamped(growth.certainty),
        at: after(growth.to_limit.best_s),
        earliest: after(growth.to_limit.earliest_s),
        latest: after(growth.to_limit.latest_s),
    });
    seen.with("usage_bytes", sample.value)
        .with("limit_bytes", limit)
        .with("usage_share", sample.value / limit)
        .with("start_bytes", growth.from)
        .with("slope_bytes_per_s", growth.trend.slope)
        .with("slope_low_bytes_per_s", growth.trend.slope_low)
        .with("slope_high_bytes_per_s", growth.trend.slope_high)
        .with("noise_bytes", growth.trend.noise)
        .with("samples", growth.points as i64)
        .with("span_s", growth.span_s)
        .with("seconds_to_limit", growth.to_limit.best_s)
}
