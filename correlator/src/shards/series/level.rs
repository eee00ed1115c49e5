//! A value that stays above a threshold, with hysteresis.

/// A threshold.
#[derive(Debug, Clone, Copy)]
pub struct Threshold {
    /// At or above this for [`Threshold::samples`] samples in a row: it is news.
    pub enter: f64,
    /// Below this: it is over.
    pub leave: f64,
    /// Samples in a row.
    pub samples: u32,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// Not above.
    Below,
    /// Above, for long enough.
    Above,
    /// Was above, and has just fallen below the lower bound.
    Left,
}

/// State of one series against one threshold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Level {
    run: u32,
    above: bool,
}

impl Level {
    /// Takes the next value.
    pub fn next(&mut self, value: f64, threshold: Threshold) -> Stands {
        if self.above {
            self.above = value >= threshold.leave;
            self.run = 0;
            return if self.above { Stands::Above } else { Stands::Left };
        }
        self.run = if value >= threshold.enter { self.run + 1 } else { 0 };
        self.above = self.run >= threshold.samples;
        if self.above { Stands::Above } else { Stands::Below }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peak_is_no_news_and_a_dip_is_no_end() {
        let threshold = Threshold { enter: 0.9, leave: 0.8, samples: 2 };
        let mut level = Level::default();
        let stands: Vec<_> =
            [0.95, 0.5, 0.91, 0.92, 0.85, 0.79, 0.85].map(|v| level.next(v, threshold)).into();
        use Stands::{Above, Below, Left};
        assert_eq!(stands, [Below, Below, Below, Above, Above, Left, Below]);
    }
}
