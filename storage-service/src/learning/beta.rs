//! The interval of a Beta distribution.

use statrs::distribution::{Beta, ContinuousCDF};

/// Share of the posterior outside of the interval, on each side.
const TAIL: f64 = 0.05;

/// The middle 90 % of Beta(alpha, beta); everything when the parameters are none of a distribution.
pub fn interval(alpha: f64, beta: f64) -> (f64, f64) {
    Beta::new(alpha, beta).map_or((0.0, 1.0), |d| (d.inverse_cdf(TAIL), d.inverse_cdf(1.0 - TAIL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_quantiles() {
        // Uniform, and Beta(2, 1) whose distribution function is x².
        let near = |(low, high): (f64, f64), expected: (f64, f64)| {
            assert!((low - expected.0).abs() < 1e-6 && (high - expected.1).abs() < 1e-6, "{low} {high}");
        };
        near(interval(1.0, 1.0), (0.05, 0.95));
        near(interval(2.0, 1.0), (0.05_f64.sqrt(), 0.95_f64.sqrt()));
        assert_eq!(interval(f64::NAN, 1.0), (0.0, 1.0));
    }
}
