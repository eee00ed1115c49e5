//! Sums over cases: a row per system and kind, intervals, calibration.

use std::collections::BTreeMap;

use serde::Serialize;

use super::label::Label;
use super::score::{Outcome, Score};

/// Quantile of the normal distribution for 95 % intervals.
const Z_95: f64 = 1.96;
/// Bins of the reliability table.
const BINS: usize = 10;

/// Means over the cases of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// System.
    pub system: String,
    /// Kind of fault; `all` for the sum of a system.
    pub kind: String,
    /// Cases.
    pub cases: usize,
    /// Entity within the first 1, 3, 5.
    pub entity: [f64; 3],
    /// Category at rank 1.
    pub category: f64,
    /// Both within the first 1, 3, 5.
    pub both: [f64; 3],
    /// 95 % interval of both at rank 1 (Wilson 1927).
    pub both_interval: (f64, f64),
    /// Cases with a finding.
    pub answered: usize,
    /// Cases whose answer names no cause.
    pub unproven: usize,
    /// Median seconds to the first right answer, over the cases that had one.
    pub seconds_median: Option<f64>,
    /// … over those whose labelled start is exact.
    pub seconds_median_exact: Option<f64>,
    /// Confident findings of something else within the windows.
    pub false_findings: usize,
}

/// One bin of the reliability table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    /// Lower end of the stated confidence.
    pub from: f64,
    /// Answers in it.
    pub answers: usize,
    /// Mean stated confidence.
    pub stated: f64,
    /// Share that was right.
    pub observed: f64,
}

/// How far stated confidence is from what was right.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Calibration {
    /// Bins that have answers.
    pub bins: Vec<Bin>,
    /// Expected calibration error (Naeini et al. 2015), 10 bins of equal width.
    pub ece: Option<f64>,
    /// Mean squared error of the confidence (Brier 1950).
    pub brier: Option<f64>,
}

/// A scored case.
pub type Scored<'a> = (&'a Label, &'a Outcome);

/// Rows per system and kind, `all` of each system first, and of all systems before everything when there are several.
pub fn rows(cases: &[Scored<'_>]) -> Vec<Row> {
    let mut groups: BTreeMap<(&str, &str), Vec<(&Label, &Score)>> = BTreeMap::new();
    for (label, outcome) in cases {
        if let Outcome::Asked(score) = outcome {
            // The empty kind sorts before every other.
            for key in [("", ""), (&*label.system, ""), (&*label.system, &*label.kind)] {
                groups.entry(key).or_default().push((label, score));
            }
        }
    }
    let systems = groups.keys().filter(|(system, kind)| !system.is_empty() && kind.is_empty()).count();
    let groups = groups.into_iter().filter(|((system, _), _)| systems > 1 || !system.is_empty());
    groups.map(|((system, kind), members)| row(system, kind, &members)).collect()
}

fn row(system: &str, kind: &str, members: &[(&Label, &Score)]) -> Row {
    let or_all = |text: &str| if text.is_empty() { "all".to_owned() } else { text.to_owned() };
    let mean =
        |of: &dyn Fn(&Score) -> f64| members.iter().map(|(_, s)| of(s)).sum::<f64>() / members.len() as f64;
    let count = |of: &dyn Fn(&Score) -> bool| members.iter().filter(|(_, s)| of(s)).count();
    let both = std::array::from_fn(|i| mean(&|s| s.both[i]));
    let exact = members.iter().filter(|(label, _)| label.onset_is_exact);
    Row {
        system: or_all(system),
        kind: or_all(kind),
        cases: members.len(),
        entity: std::array::from_fn(|i| mean(&|s| s.entity[i])),
        category: mean(&|s| s.category),
        both,
        both_interval: wilson(both[0] * members.len() as f64, members.len()),
        answered: count(&|s| s.answered),
        unproven: count(&|s| s.unproven),
        seconds_median: median(members.iter().filter_map(|(_, s)| s.seconds)),
        seconds_median_exact: median(exact.filter_map(|(_, s)| s.seconds)),
        false_findings: members.iter().map(|(_, s)| s.false_findings).sum(),
    }
}

/// The upper median, as it needs no rule for even counts.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// 95 % score interval of a share (Wilson 1927).
pub fn wilson(right: f64, cases: usize) -> (f64, f64) {
    if cases == 0 {
        return (0.0, 0.0);
    }
    let n = cases as f64;
    let (p, z2) = (right / n, Z_95 * Z_95);
    let centre = p + z2 / (2.0 * n);
    let half = Z_95 * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    ((centre - half) / scale, (centre + half) / scale)
}

/// Stated confidence and whether both were right, of every case that was answered.
pub fn stated(cases: &[Scored<'_>]) -> Vec<(f64, f64)> {
    let scores = cases.iter().filter_map(|(_, outcome)| match outcome {
        Outcome::Asked(score) if score.answered => Some((score.confidence, score.both[0])),
        _ => None,
    });
    scores.collect()
}

/// The reliability table of (stated, right) pairs.
pub fn calibration(answers: &[(f64, f64)]) -> Calibration {
    if answers.is_empty() {
        return Calibration::default();
    }
    let mut bins: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
    for (stated, right) in answers {
        // A negative number becomes 0 by the cast.
        bins.entry(((stated * BINS as f64) as usize).min(BINS - 1)).or_default().push((*stated, *right));
    }
    let all = answers.len() as f64;
    let bins: Vec<Bin> = bins
        .into_iter()
        .map(|(bin, members)| {
            let mean = |sum: f64| sum / members.len() as f64;
            Bin {
                from: bin as f64 / BINS as f64,
                answers: members.len(),
                stated: mean(members.iter().map(|(stated, _)| stated).sum()),
                observed: mean(members.iter().map(|(_, right)| right).sum()),
            }
        })
        .collect();
    let ece = bins.iter().map(|b| b.answers as f64 * (b.stated - b.observed).abs()).sum::<f64>() / all;
    let brier = answers.iter().map(|(stated, right)| (stated - right).powi(2)).sum::<f64>() / all;
    Calibration { bins, ece: Some(ece), brier: Some(brier) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_wilson_is_as_published() {
        // Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
        let (low, high) = wilson(81.0, 263);
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        let (low, high) = wilson(0.0, 20);
        assert!(low.abs() < 1e-12 && (high - 0.1611).abs() < 5e-5, "{low} {high}");
    }

    #[test]
    fn calibration_compares_what_is_stated_with_what_was_right() {
        let answers = [(0.95, 1.0), (0.95, 1.0), (0.95, 0.0), (0.15, 0.0), (1.0, 1.0)];
        let table = calibration(&answers);
        assert_eq!(table.bins.iter().map(|b| b.answers).collect::<Vec<_>>(), [1, 4]);
        let ece = (0.15 + 4.0 * (0.9625f64 - 0.75).abs()) / 5.0;
        assert!((table.ece.unwrap() - ece).abs() < 1e-12);
        let brier = (2.0 * 0.05f64.powi(2) + 0.95f64.powi(2) + 0.15f64.powi(2)) / 5.0;
        assert!((table.brier.unwrap() - brier).abs() < 1e-12);
        assert_eq!(calibration(&[]), Calibration::default());
    }
}
