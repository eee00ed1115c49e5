//! Stated confidence that means what it says.
//!
//! The inference gives a raw confidence; how often findings of that confidence were right on labelled cases says what is
//! to be stated. The map between the two is beta calibration (Kull, Silva Filho, Flach 2017, AISTATS):
//! `logit(stated) = a·ln(raw) − b·ln(1 − raw) + c` with `a, b ≥ 0`, a logistic regression in two features. It is monotone, holds the
//! identity (`a = b = 1, c = 0`), and has three numbers, so that a few dozen cases are enough. The fit is drawn towards the
//! identity by a ridge, which counts as much as a few answers: with few cases little is changed.
//!
//! The numbers are in `correlator/calibration.yaml`; `tapio accuracy --fit` writes them.

use serde::{Deserialize, Serialize};

/// The numbers that are shipped.
const BUILTIN: &str = include_str!("../calibration.yaml");
/// Raw confidences are kept so far from 0 and 1: no count of cases says more.
const EDGE: f64 = 1e-3;
/// Strength of the pull towards the identity.
const RIDGE: f64 = 2.0;
/// Times a step is halved.
const HALVINGS_MAX: usize = 40;
/// Steps of Newton's method; it has converged after a handful.
const STEPS_MAX: usize = 50;
/// A step that changes no number by more is the last.
const STEP_MIN: f64 = 1e-10;

/// The map from raw to stated confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Weight of `ln(raw)`, at least 0.
    pub a: f64,
    /// Weight of `−ln(1 − raw)`, at least 0.
    pub b: f64,
    /// Offset.
    pub c: f64,
    /// Labelled answers it was fitted on, each variant of a case counted; 0 for the identity.
    pub answers: usize,
}

impl Default for Calibration {
    fn default() -> Self {
        Self::IDENTITY
    }
}

impl Calibration {
    /// Raw confidence is stated as it is.
    pub const IDENTITY: Self = Self { a: 1.0, b: 1.0, c: 0.0, answers: 0 };

    /// The shipped one.
    ///
    /// # Errors
    /// When the file has something else than the four numbers.
    pub fn builtin() -> Result<Self, serde_norway::Error> {
        serde_norway::from_str(BUILTIN)
    }

    /// Stated confidence, 0..=1. Never falls when `raw` rises.
    pub fn stated(&self, raw: f64) -> f64 {
        if *self == (Self { answers: self.answers, ..Self::IDENTITY }) {
            return raw;
        }
        let [x, y] = features(raw);
        logistic(self.a * x + self.b * y + self.c)
    }

    /// Fits to (raw confidence, right: 0..=1, weight) of labelled answers. The weights say how many answers each is worth: one
    /// case in ten variants is hardly more than one.
    pub fn fit(answers: &[(f64, f64, f64)]) -> Self {
        // A weight that comes out negative would turn the order around: it is 0 then, and the rest is fitted anew.
        let mut free = [true; 3];
        loop {
            let [a, b, c] = newton(answers, free);
            if free[0] && a < 0.0 {
                free[0] = false;
            } else if free[1] && b < 0.0 {
                free[1] = false;
            } else {
                return Self { a, b, c, answers: answers.len() };
            }
        }
    }
}

fn features(raw: f64) -> [f64; 2] {
    let raw = raw.clamp(EDGE, 1.0 - EDGE);
    [raw.ln(), -(1.0 - raw).ln()]
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// Minimises the log loss plus the ridge over the free numbers; a number that is not free is 0.
fn newton(answers: &[(f64, f64, f64)], free: [bool; 3]) -> [f64; 3] {
    let identity = [Calibration::IDENTITY.a, Calibration::IDENTITY.b, Calibration::IDENTITY.c];
    let mut at: [f64; 3] = std::array::from_fn(|i| if free[i] { identity[i] } else { 0.0 });
    for _ in 0..STEPS_MAX {
        let mut gradient: [f64; 3] = std::array::from_fn(|i| RIDGE * (at[i] - identity[i]));
        let mut curve = [[0.0; 3]; 3];
        for (raw, right, weight) in answers {
            let [x, y] = features(*raw);
            let input = [x, y, 1.0];
            let stated = logistic(at.iter().zip(input).map(|(w, v)| w * v).sum());
            for i in 0..3 {
                gradient[i] += weight * (stated - right) * input[i];
                for j in 0..3 {
                    curve[i][j] += weight * stated * (1.0 - stated) * input[i] * input[j];
                }
            }
        }
        for i in 0..3 {
            curve[i][i] += RIDGE;
            if !free[i] {
                gradient[i] = 0.0;
                curve[i] = std::array::from_fn(|j| f64::from(u8::from(i == j)));
            }
        }
        let step = solve(curve, gradient);
        // Where the curve is flat a whole step may jump over the minimum and never come back: it is halved until it descends.
        let here = loss(answers, at);
        let reach = |share: f64| std::array::from_fn(|i| at[i] - share * step[i]);
        let shares = std::iter::successors(Some(1.0), |share| Some(share / 2.0)).take(HALVINGS_MAX);
        let Some(next) = shares.map(reach).find(|next| loss(answers, *next) <= here) else { break };
        at = next;
        if step.iter().all(|s| s.abs() < STEP_MIN) {
            break;
        }
    }
    at
}

/// Log loss plus the ridge.
fn loss(answers: &[(f64, f64, f64)], at: [f64; 3]) -> f64 {
    let identity = [Calibration::IDENTITY.a, Calibration::IDENTITY.b, Calibration::IDENTITY.c];
    let ridge: f64 = (0..3).map(|i| 0.5 * RIDGE * (at[i] - identity[i]).powi(2)).sum();
    let of = |(raw, right, weight): &(f64, f64, f64)| {
        let [x, y] = features(*raw);
        let z = at[0] * x + at[1] * y + at[2];
        // ln(1 + exp(z)) − right · z, without an overflow.
        weight * (z.max(0.0) + (-z.abs()).exp().ln_1p() - right * z)
    };
    ridge + answers.iter().map(of).sum::<f64>()
}

/// Solves a system of three equations; the ridge makes it definite.
fn solve(mut m: [[f64; 3]; 3], mut v: [f64; 3]) -> [f64; 3] {
    for i in 0..3 {
        let pivot = (i..3).max_by(|a, b| m[*a][i].abs().total_cmp(&m[*b][i].abs())).unwrap_or(i);
        m.swap(i, pivot);
        v.swap(i, pivot);
        for j in i + 1..3 {
            let factor = m[j][i] / m[i][i];
            let row = m[i];
            (i..3).for_each(|k| m[j][k] -= factor * row[k]);
            v[j] -= factor * v[i];
        }
    }
    for i in (0..3).rev() {
        let known: f64 = (i + 1..3).map(|k| m[i][k] * v[k]).sum();
        v[i] = (v[i] - known) / m[i][i];
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` answers stated with `raw`, of which a share was right.
    fn answers(raw: f64, n: usize, share: f64) -> Vec<(f64, f64, f64)> {
        (0..n).map(|i| (raw, f64::from(u8::from((i as f64) < share * n as f64)), 1.0)).collect()
    }

    #[test]
    fn what_is_shipped_loads() {
        let shipped = Calibration::builtin().unwrap();
        assert!(
            shipped.a >= 0.0 && shipped.b >= 0.0 && shipped.c.is_finite(),
            "no monotone map: {shipped:?}"
        );
    }

    #[test]
    fn the_identity_changes_nothing() {
        for raw in [0.0, 0.2, 0.7, 1.0] {
            assert_eq!(Calibration::IDENTITY.stated(raw), raw);
        }
    }

    #[test]
    fn too_much_confidence_is_taken_back() {
        let data = [answers(0.9, 200, 0.7), answers(0.6, 200, 0.4), answers(0.3, 200, 0.15)].concat();
        let fitted = Calibration::fit(&data);
        for (raw, share) in [(0.9, 0.7), (0.6, 0.4), (0.3, 0.15)] {
            assert!((fitted.stated(raw) - share).abs() < 0.03, "{raw}: {}", fitted.stated(raw));
        }
    }

    #[test]
    fn right_confidence_stays() {
        let data = [answers(0.9, 200, 0.9), answers(0.5, 200, 0.5), answers(0.1, 200, 0.1)].concat();
        let fitted = Calibration::fit(&data);
        for raw in [0.1, 0.3, 0.5, 0.7, 0.9] {
            assert!((fitted.stated(raw) - raw).abs() < 0.03, "{raw}: {}", fitted.stated(raw));
        }
    }

    #[test]
    fn few_answers_change_little_and_none_change_nothing() {
        let fitted = Calibration::fit(&answers(0.9, 1, 0.0));
        assert!((fitted.stated(0.5) - 0.5).abs() < 0.2, "{}", fitted.stated(0.5));
        let none = Calibration::fit(&[]);
        assert!((none.stated(0.37) - 0.37).abs() < 1e-9);
    }

    #[test]
    fn a_weight_counts_as_so_many_answers() {
        let data = [answers(0.9, 40, 0.5), answers(0.4, 20, 0.3)].concat();
        let (mut halves, mut lighter) = (Vec::new(), Vec::new());
        for (raw, right, _) in &data {
            halves.extend([(*raw, *right, 0.5); 2]);
            lighter.push((*raw, *right, 0.1));
        }
        let (whole, halves, lighter) =
            (Calibration::fit(&data), Calibration::fit(&halves), Calibration::fit(&lighter));
        assert!((whole.stated(0.9) - halves.stated(0.9)).abs() < 1e-6, "{whole:?} {halves:?}");
        assert!(
            whole.stated(0.9) < lighter.stated(0.9) && lighter.stated(0.9) < 0.9,
            "{whole:?} {lighter:?}"
        );
    }

    #[test]
    fn the_order_is_never_turned_around() {
        let turned = [answers(0.9, 200, 0.1), answers(0.1, 200, 0.9)].concat();
        let fitted = Calibration::fit(&turned);
        assert!(fitted.a >= 0.0 && fitted.b >= 0.0, "{fitted:?}");
        let stated: Vec<f64> = (0..=100).map(|i| fitted.stated(f64::from(i) / 100.0)).collect();
        assert!(stated.windows(2).all(|w| w[0] <= w[1]));
    }
}
