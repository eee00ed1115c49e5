//! What people and time said of findings, and what follows for the priors of their causes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::entity::Entity;
use crate::ids::{FindingId, Score, UnixNanos};
use crate::vocabulary::vocabulary;

/// Value of [`Feedback::schema`].
pub const FEEDBACK_SCHEMA: &str = "tapio.feedback/v1";
/// Smallest and largest factor on the prior odds of a cause: outcomes lean, they never decide.
pub const PRIOR_FACTOR: (f64, f64) = (0.25, 4.0);
/// Versions of the priors of a cluster that are kept, so that a tick is decided again as it was.
pub const PRIOR_VERSIONS_MAX: usize = 16;

/// Under which name the outcomes of a scenario's predictions are learnt, beside those of causes: they correct the odds
/// of its probabilities.
pub fn prediction_key(scenario: &str) -> SmolStr {
    smol_str::format_smolstr!("prediction.{scenario}")
}

vocabulary! {
    /// What was said of the root cause of a finding.
    pub enum Judgement: u8 {
        Right = 1 => "right",
        Wrong = 2 => "wrong",
    }
}

/// What somebody who knows said of a finding. One stands per finding: a later word replaces it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// Always [`FEEDBACK_SCHEMA`].
    pub schema: SmolStr,
    /// Of which finding.
    pub finding: FindingId,
    /// The revision that was judged.
    pub revision: u32,
    /// Its cluster.
    pub cluster: SmolStr,
    /// When it was said, by the clock.
    pub at: UnixNanos,
    /// Right or wrong.
    pub judgement: Judgement,
    /// What the finding had named; `None` when it was not provable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<Stated>,
    /// What it was instead, as far as it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<Actual>,
    /// What helped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A cause as a finding stated it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stated {
    /// Cause id.
    pub cause: SmolStr,
    /// Seat.
    pub entity: Entity,
    /// Probability the finding gave it.
    pub probability: Score,
}

/// What it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Actual {
    /// Cause id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<SmolStr>,
    /// Where, as `namespace/kind/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
    /// Probability the finding gave that cause; zero when it was not weighed.
    pub probability: Score,
}

/// Factors on the prior odds of causes, from an event time on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Priors {
    /// Ticks at or after this event time are decided with it.
    pub from: UnixNanos,
    /// Cause id → factor within [`PRIOR_FACTOR`]; a cause that is not here has 1.
    pub factors: BTreeMap<SmolStr, f64>,
}

/// The value of `priors.<cluster>` in the state bucket: versions, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PriorHistory {
    /// At most [`PRIOR_VERSIONS_MAX`], with growing `from`.
    pub versions: Vec<Priors>,
}

impl PriorHistory {
    /// Factor on the prior odds of a cause at an event time, within [`PRIOR_FACTOR`] whatever was written.
    pub fn factor(&self, cause: &str, at: UnixNanos) -> f64 {
        let version = self.versions.iter().rev().find(|version| version.from <= at);
        let factor = version.and_then(|version| version.factors.get(cause)).copied().unwrap_or(1.0);
        if factor.is_finite() { factor.clamp(PRIOR_FACTOR.0, PRIOR_FACTOR.1) } else { 1.0 }
    }

    /// Adds a version that holds from `from` on; `false` when the last one says the same.
    pub fn add(&mut self, from: UnixNanos, factors: BTreeMap<SmolStr, f64>) -> bool {
        let last = self.versions.last();
        if last.map_or(factors.is_empty(), |last| last.factors == factors) {
            return false;
        }
        let from = last.map_or(from, |last| from.max(last.from.plus(1)));
        self.versions.push(Priors { from, factors });
        let surplus = self.versions.len().saturating_sub(PRIOR_VERSIONS_MAX);
        self.versions.drain(..surplus);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(factor: f64) -> BTreeMap<SmolStr, f64> {
        BTreeMap::from([("a.b".into(), factor)])
    }

    #[test]
    fn a_tick_is_decided_with_what_held_at_its_time() {
        let mut history = PriorHistory::default();
        assert!(!history.add(UnixNanos(5), BTreeMap::new()), "nothing was learnt");
        assert!(history.add(UnixNanos(10), factors(0.5)));
        assert!(!history.add(UnixNanos(20), factors(0.5)), "the same");
        assert!(history.add(UnixNanos(20), factors(2.0)));
        assert!(history.add(UnixNanos(20), BTreeMap::new()), "a reset");
        let at = |at| history.factor("a.b", UnixNanos(at));
        assert_eq!([at(9), at(10), at(19), at(20), at(21)], [1.0, 0.5, 0.5, 2.0, 1.0]);
        assert_eq!(history.factor("other", UnixNanos(10)), 1.0);
    }

    #[test]
    fn no_factor_is_out_of_bounds_and_the_history_is_bounded() {
        let mut history = PriorHistory::default();
        for (at, factor) in [f64::NAN, 1e9, -3.0].into_iter().enumerate() {
            history.add(UnixNanos(at as u64), factors(factor));
        }
        let at = |at| history.factor("a.b", UnixNanos(at));
        assert_eq!([at(0), at(1), at(2)], [1.0, 4.0, 0.25]);
        for at in 0..100 {
            history.add(UnixNanos(10 + at), factors(1.0 + at as f64));
        }
        assert_eq!(history.versions.len(), PRIOR_VERSIONS_MAX);
    }
}
