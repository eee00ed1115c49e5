//! How far the absence of a step can be believed: the share of records that get lost on the way, taken from what is there.
//!
//! Nobody counts what a collector or a network drops. But an operation that always does something, as most do (a first line, a
//! first call), then does not always show it. Of each operation that is known well the step that most of its requests have is
//! looked at, and the share of the requests that lack it. One operation may just not have such a step; records are lost
//! where hardly any operation has one: where the lowest tenth lacks something too. How much is lost, the median says.

use std::collections::BTreeMap;

use tapio_schemas::service::StepKind;

use super::shapes::{StepId, Way};

/// Requests without which an operation says nothing about it.
const REQUESTS_MIN: u64 = 20;
/// Operations without which nothing is said.
const OPERATIONS_MIN: usize = 3;
/// Counts of an operation are halved above this: what gets lost changes.
const COUNT_MAX: u64 = 2048;
/// Steps of an operation that are counted.
const STEPS_MAX: usize = 64;
/// A lower share is none: rounding, and requests at the edge of a window.
const SHARE_MIN: f64 = 0.02;
/// More is not believed to be loss.
const SHARE_MAX: f64 = 0.6;
/// Records are lost where so many of the operations lack something; how many, the middle one says.
const QUANTILES: (f64, f64) = (0.1, 0.5);
/// What is expected of rules that are many and differ: some are broken more often than the share of the system says.
const MARGIN: f64 = 1.3;
/// What is known of the system weighs as much as so many requests of the operation.
const PRIOR: f64 = 10.0;
/// Records that have to come for a step to be seen in its request: its own, and that of the span around it.
const RECORDS: i32 = 2;
/// Records that have to come for the caller to see that its callee was odd: what is odd, the callee's span, the call.
const RECORDS_BELOW: i32 = 3;

/// What the requests of an operation have in common, whether it is learnt as usual or not.
#[derive(Debug, Default)]
pub struct Regularity {
    requests: u64,
    steps: BTreeMap<StepId, u64>,
}

impl Regularity {
    /// Counts requests that went this way.
    pub fn count(&mut self, way: &Way, count: u64) {
        self.requests += count;
        for (id, step) in &way.steps {
            let is_telling = matches!(step.kind, StepKind::Call | StepKind::Log);
            if is_telling && (self.steps.len() < STEPS_MAX || self.steps.contains_key(id)) {
                *self.steps.entry(*id).or_default() += count;
            }
        }
        if self.requests > COUNT_MAX {
            self.requests /= 2;
            self.steps.values_mut().for_each(|count| *count /= 2);
            self.steps.retain(|_, count| *count > 0);
        }
    }

    /// (requests that lack the step that most of them have, requests); `None` where no request has any.
    pub fn lacking(&self) -> Option<(u64, u64)> {
        let most = self.steps.values().max()?;
        Some((self.requests.saturating_sub(*most), self.requests))
    }
}

/// Share of the records that are lost, 0 when none are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss(f64);

impl Loss {
    /// Of (requests that lack the step that most of them have, requests) of each operation.
    pub fn of(operations: impl Iterator<Item = (u64, u64)>) -> Self {
        let sound = operations.filter(|(_, all)| *all >= REQUESTS_MIN);
        let mut shares: Vec<f64> = sound.map(|(lack, all)| lack as f64 / all as f64).collect();
        if shares.len() < OPERATIONS_MIN {
            return Self::default();
        }
        shares.sort_by(f64::total_cmp);
        let at = |quantile: f64| shares[(quantile * (shares.len() - 1) as f64) as usize];
        let (least, share) = (at(QUANTILES.0), at(QUANTILES.1));
        if least < SHARE_MIN { Self::default() } else { Self(share.min(SHARE_MAX)) }
    }

    /// True when records are lost.
    pub fn is_some(self) -> bool {
        self.0 > 0.0
    }

    /// Least share of the requests in which a rule held that holds without loss in `share`.
    pub fn lowered(self, share: f64) -> f64 {
        share * (1.0 - self.0).powi(RECORDS)
    }

    /// Share of the requests that break a rule: (exceptions, requests) of the reference, drawn to what the loss makes
    /// expect.
    pub fn rate(self, exceptions: u64, of: u64) -> f64 {
        let (exceptions, of) = (exceptions as f64 + 0.5, of as f64 + 1.0);
        if !self.is_some() {
            return exceptions / of;
        }
        MARGIN * (exceptions + PRIOR * (1.0 - self.lowered(1.0))) / (of + PRIOR)
    }

    /// For each odd request whose reason was seen below it, so many odd ones whose reason below got lost.
    pub fn unseen_reasons(self) -> f64 {
        let seen = (1.0 - self.0).powi(RECORDS_BELOW);
        (1.0 - seen) / seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_without_a_regular_step_is_no_loss_and_a_system_without_one_is() {
        let regular = [(0, 400), (90, 300), (90, 200), (60, 100), (20, 50)];
        assert!(!Loss::of(regular.into_iter()).is_some());
        let lossy = [(80, 400), (66, 300), (90, 200), (60, 100), (12, 50)];
        let loss = Loss::of(lossy.into_iter());
        assert!((0.21..0.25).contains(&loss.0), "{loss:?}");
        assert!(
            !Loss::of([(80, 400), (66, 300), (5, 19), (4, 19)].into_iter()).is_some(),
            "too few that are known"
        );
    }

    #[test]
    fn with_loss_a_rule_that_held_three_times_says_little() {
        let none = Loss::default();
        assert!(
            (none.rate(0, 3) - 0.125).abs() < 1e-9
                && none.lowered(0.95) == 0.95
                && none.unseen_reasons() == 0.0
        );
        let fifth = Loss(0.2);
        assert!(fifth.rate(0, 3) > 0.36, "{}", fifth.rate(0, 3));
        assert!((fifth.rate(200, 1000) - 0.26).abs() < 0.01, "what is known of the rule itself outweighs it");
        assert!((0.9..1.0).contains(&fifth.unseen_reasons()));
    }
}
