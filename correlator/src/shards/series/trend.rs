//! Robust trends: the slope of Theil and Sen with its interval, and the time to a limit.
//!
//! Sources: P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968): the
//! median of the slopes of all pairs, and the interval between two of their order statistics, whose ranks
//! follow from the variance `n(n−1)(2n+5)/18` of Kendall's S. Noise is the median absolute deviation of the
//! residuals × 1.4826, the standard deviation for normal noise.

/// Standard normal quantile of a two-sided 90 % interval.
const Z_90: f64 = 1.6449;
/// Most points that are compared pair by pair; longer series are thinned evenly.
const PAIR_POINTS_MAX: usize = 64;

/// A robust line through a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Units per second: median over all pairs.
    pub slope: f64,
    /// Lower end of the 90 % interval.
    pub slope_low: f64,
    /// Upper end of the 90 % interval.
    pub slope_high: f64,
    /// Value of the line at the last point.
    pub now: f64,
    /// Standard deviation of the residuals, robust.
    pub noise: f64,
}

/// Seconds from the last point until the line meets the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeToLimit {
    /// Best estimate.
    pub best_s: f64,
    /// 5 % earlier.
    pub earliest_s: f64,
    /// 5 % later; infinite when the trend may be flat.
    pub latest_s: f64,
}

/// The trend of `points` (seconds, value), in time order. `None` below three points or without any time between them.
pub fn trend(points: &[(f64, f64)]) -> Option<Trend> {
    let points = thinned(points);
    let n = points.len();
    if n < 3 {
        return None;
    }
    let mut slopes = Vec::with_capacity(n * (n - 1) / 2);
    for (i, a) in points.iter().enumerate() {
        for b in &points[i + 1..] {
            if b.0 > a.0 {
                slopes.push((b.1 - a.1) / (b.0 - a.0));
            }
        }
    }
    if slopes.is_empty() {
        return None;
    }
    let (low, high) = interval_ranks(n, slopes.len());
    let (slope_low, slope, slope_high) = around_median(&mut slopes, low, high);
    let last = points[n - 1].0;
    let mut levels: Vec<f64> = points.iter().map(|(t, v)| v + slope * (last - t)).collect();
    let now = median(&mut levels);
    let mut residuals: Vec<f64> = points.iter().map(|(t, v)| (v + slope * (last - t) - now).abs()).collect();
    let noise = 1.4826 * median(&mut residuals);
    Some(Trend { slope, slope_low, slope_high, now, noise })
}

/// Ranks of the interval's ends among the sorted slopes.
fn interval_ranks(n: usize, slopes: usize) -> (usize, usize) {
    let n = n as f64;
    let half = Z_90 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt() / 2.0;
    let middle = slopes as f64 / 2.0;
    let low = (middle - half).floor().max(0.0) as usize;
    let high = ((middle + half).ceil() as usize).min(slopes - 1);
    (low.min(slopes - 1), high)
}

impl Trend {
    /// When the line meets `limit`, with the uncertainty of the slope and the noise of the values.
    ///
    /// `None` when it is not climbing.
    pub fn time_to(&self, limit: f64) -> Option<TimeToLimit> {
        if self.slope <= 0.0 || self.slope_high <= 0.0 {
            return None;
        }
        let spread = Z_90 * self.noise;
        let best_s = ((limit - self.now) / self.slope).max(0.0);
        let earliest_s = ((limit - spread - self.now) / self.slope_high).max(0.0);
        let latest_s = if self.slope_low > 0.0 {
            ((limit + spread - self.now) / self.slope_low).max(best_s)
        } else {
            f64::INFINITY
        };
        Some(TimeToLimit { best_s, earliest_s: earliest_s.min(best_s), latest_s })
    }
}

/// At most [`PAIR_POINTS_MAX`] points, evenly thinned; always with the last.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(PAIR_POINTS_MAX).max(1);
    let mut kept: Vec<_> = points.iter().rev().step_by(stride).copied().collect();
    kept.reverse();
    kept
}

/// Median; moves the values about. Zero of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    let is_odd = values.len() % 2 == 1;
    let (below, at, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    // The value before the middle is the greatest of those below.
    below
        .iter()
        .copied()
        .max_by(f64::total_cmp)
        .filter(|_| !is_odd)
        .map_or(*at, |before| f64::midpoint(before, *at))
}

/// The value of rank `low`, the median, and the value of rank `high`, where the ranks are on either side of the middle.
/// Only these are put into their places: a trend is asked for with every sample.
fn around_median(values: &mut [f64], low: usize, high: usize) -> (f64, f64, f64) {
    let middle = median(values);
    let half = values.len() / 2;
    let ranked = |values: &mut [f64], rank: usize| *values.select_nth_unstable_by(rank, f64::total_cmp).1;
    let (below, above) = values.split_at_mut(half);
    let at_low = if low < half { ranked(below, low) } else { ranked(above, low - half) };
    let at_high = if high < half { ranked(below, high) } else { ranked(above, high - half) };
    (at_low, middle, at_high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_exactly() {
        let points: Vec<_> = (0..20).map(|i| (f64::from(i), 3.0 * f64::from(i) + 7.0)).collect();
        let t = trend(&points).unwrap();
        assert!((t.slope - 3.0).abs() < 1e-9 && (t.now - 64.0).abs() < 1e-9 && t.noise < 1e-9);
        let ttl = t.time_to(94.0).unwrap();
        assert!((ttl.best_s - 10.0).abs() < 1e-9);
    }

    #[test]
    fn outliers_do_not_move_the_slope() {
        let mut points: Vec<_> = (0..30).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        points[7].1 = 900.0;
        points[20].1 = -500.0;
        assert!((trend(&points).unwrap().slope - 2.0).abs() < 0.05);
    }

    /// Sen 1968 gives the interval its level: over many noisy lines it covers the true slope about nine times in ten.
    #[test]
    fn the_interval_covers_the_slope_as_often_as_it_says() {
        let mut seed = 7u64;
        let mut uniform = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        let trials = 2000;
        let covered = (0..trials)
            .filter(|_| {
                let points: Vec<_> = (0..20)
                    .map(|i| {
                        let noise: f64 = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                        (f64::from(i), f64::from(i) + 3.0 * noise)
                    })
                    .collect();
                let t = trend(&points).unwrap();
                t.slope_low <= 1.0 && 1.0 <= t.slope_high
            })
            .count();
        let share = covered as f64 / f64::from(trials);
        assert!((0.87..=0.96).contains(&share), "{share}");
    }
}
