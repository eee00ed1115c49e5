//! How fast something fails, with an interval, and since when.
//!
//! The interval is that of a Gamma posterior of a Poisson rate with Jeffreys' prior (Gelman et al., Bayesian Data Analysis,
//! §2.6): `Gamma(k + ½, T)` for `k` failures in a time `T`. Failures come in bursts, so `k` and `T` are divided by the
//! dispersion of the counts (McCullagh and Nelder, Generalized Linear Models, §6.2). Quantiles are those of Wilson and Hilferty
//! (1931). Since when: the change of a Poisson rate with the highest likelihood (Hinkley, Biometrika 57, 1970).

/// Standard normal quantile of a two-sided 90 % interval.
const Z_90: f64 = 1.6449;
/// Log-likelihood ratio above which a rate has changed.
const CHANGED_NATS: f64 = 5.0;
/// Median of chi-squared with one degree of freedom.
const CHI_SQUARED_MEDIAN: f64 = 0.455;
/// Counts that tell a dispersion.
const DISPERSION_COUNTS_MIN: usize = 4;

/// Failures per unit of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// 5 % are lower.
    pub low: f64,
    /// Median.
    pub mid: f64,
    /// 5 % are higher.
    pub high: f64,
}

/// Quantile of Gamma(shape, 1) for a standard normal quantile.
fn gamma_quantile(shape: f64, z: f64) -> f64 {
    let ninth = 1.0 / (9.0 * shape);
    shape * (1.0 - ninth + z * ninth.sqrt()).max(0.0).powi(3)
}

/// The rate behind failures that were counted one stretch after the other, the last of which goes on; `time` is that of all.
pub fn rate(failures: &[u64], time: f64) -> Rate {
    let count: f64 = failures.iter().map(|count| *count as f64).sum();
    let by = dispersion(&failures[..failures.len().saturating_sub(1)]);
    let (shape, time) = (count / by + 0.5, time / by);
    let at = |z| gamma_quantile(shape, z) / time;
    Rate { low: at(-Z_90), mid: at(0.0), high: at(Z_90) }
}

/// Variance over mean, at least one.
fn dispersion(failures: &[u64]) -> f64 {
    let n = failures.len();
    let mean = failures.iter().sum::<u64>() as f64 / n.max(1) as f64;
    if n < DISPERSION_COUNTS_MIN || mean <= 0.0 {
        return 1.0;
    }
    let squares: f64 = failures.iter().map(|count| (*count as f64 - mean).powi(2)).sum();
    (squares / (n - 1) as f64 / mean).max(1.0)
}

/// The first stretch after the last change of the rate: the best place to cut, then the best one after it, until no part has
/// changed. 0 when it never has. Of the last stretch only this share has passed.
pub fn changed_at(failures: &[u64], passed: f64) -> usize {
    let mut from = 0;
    while let Some(cut) = best_cut(&failures[from..], passed) {
        from += cut;
    }
    from
}

fn best_cut(failures: &[u64], passed: f64) -> Option<usize> {
    let by = dispersion_of_parts(&failures[..failures.len().saturating_sub(1)]);
    let all: f64 = failures.iter().map(|count| *count as f64).sum();
    let n = failures.len() as f64 - 1.0 + passed;
    let likely = |count: f64, time: f64| if count > 0.0 { count * (count / time).ln() } else { 0.0 };
    let whole = likely(all, n);
    let mut before = 0.0;
    let mut best: Option<(f64, usize)> = None;
    for at in 1..failures.len() {
        before += failures[at - 1] as f64;
        let gain = (likely(before, at as f64) + likely(all - before, n - at as f64) - whole) / by;
        if gain > best.map_or(CHANGED_NATS, |(gain, _)| gain) {
            best = Some((gain, at));
        }
    }
    best.map(|(_, at)| at)
}

/// Dispersion from neighbours, of which a change of the rate concerns only a few: their squared differences over their sums
/// are as chi-squared with one degree of freedom, times the dispersion.
fn dispersion_of_parts(failures: &[u64]) -> f64 {
    let mut ratios: Vec<f64> = failures
        .windows(2)
        .filter(|pair| pair[0] + pair[1] > 0)
        .map(|pair| (pair[0] as f64 - pair[1] as f64).powi(2) / (pair[0] + pair[1]) as f64)
        .collect();
    if ratios.len() < DISPERSION_COUNTS_MIN {
        return 1.0;
    }
    ratios.sort_by(f64::total_cmp);
    (ratios[(ratios.len() - 1) / 2] / CHI_SQUARED_MEDIAN).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_interval_holds_the_rate_and_shrinks_with_what_was_seen() {
        let few = rate(&[5, 5], 2.0);
        let many = rate(&[5; 200], 200.0);
        for rate in [few, many] {
            assert!(rate.low < 5.0 && 5.0 < rate.high && (rate.mid - 5.0).abs() < 0.3, "{rate:?}");
        }
        assert!(many.high - many.low < 0.15 * (few.high - few.low), "{few:?} {many:?}");
        // Tables of the Gamma distribution: 5 % and 95 % of Gamma(10.5, 1) are 5.80 and 16.34.
        assert!((gamma_quantile(10.5, -Z_90) - 5.80).abs() < 0.02);
        assert!((gamma_quantile(10.5, Z_90) - 16.34).abs() < 0.02);
    }

    #[test]
    fn bursts_are_less_certain_than_an_even_flow() {
        let (even, bursts) = (rate(&[5; 20], 20.0), rate(&[0, 0, 0, 20].repeat(5), 20.0));
        assert!(bursts.high - bursts.low > 2.0 * (even.high - even.low), "{even:?} {bursts:?}");
    }

    #[test]
    fn the_last_change_is_found_and_chance_is_none() {
        assert_eq!(changed_at(&[0, 0, 1, 0, 0, 30, 28, 33], 1.0), 5);
        assert_eq!(changed_at(&[0, 0, 30, 28, 33, 0, 0], 1.0), 5, "it has stopped");
        assert_eq!(changed_at(&[4, 6, 5, 3, 7, 5, 4, 6], 1.0), 0);
        assert_eq!(
            changed_at(&[0, 40, 0, 0, 40, 0, 0, 40, 0, 0, 40, 0], 1.0),
            0,
            "it always comes in bursts"
        );
        assert_eq!(changed_at(&[30, 28, 33, 31, 29, 3], 0.1), 0, "the last stretch has only begun");
        assert_eq!(changed_at(&[0, 0, 0, 0, 0, 12], 0.1), 5);
        assert_eq!((changed_at(&[], 1.0), changed_at(&[9], 1.0)), (0, 0));
    }

    proptest! {
        #[test]
        fn bounds_are_in_order_and_finite(failures in prop::collection::vec(0u64..1_000_000, 0..64), time in 0.1f64..1e6) {
            let rate = rate(&failures, time);
            prop_assert!(0.0 <= rate.low && rate.low <= rate.mid && rate.mid <= rate.high && rate.high.is_finite());
            prop_assert!(changed_at(&failures, 0.5) <= failures.len().saturating_sub(1));
        }
    }
}
