//! Learns from outcomes: what was said of findings, and which of their predictions came true.
//!
//! Each outcome is a cause, the probability that the finding had stated for it, and whether it was right. A cause has a Beta
//! posterior of being right (Gelman et al., Bayesian Data Analysis, §2.4) whose prior is what the findings
//! themselves stated, with the weight of `PRIOR_STRENGTH` outcomes. A cause that is right as often as stated keeps its
//! prior; otherwise the odds of its prior in the model are multiplied by `odds(posterior mean) / odds(stated)`,
//! within `PRIOR_FACTOR`. Old outcomes fade and only the newest `OUTCOMES_WEIGHED` weigh, so that a
//! thousand clicks neither decide anything nor hide what comes after them.

mod beta;
mod publish;

use std::collections::BTreeMap;

use tapio_schemas::finding::Prediction;
use tapio_schemas::learning::{Feedback, Judgement, PRIOR_FACTOR, prediction_key};
use tapio_schemas::{Finding, FindingId, SmolStr, UnixNanos};

use serde::{Deserialize, Serialize};

pub use publish::{Learnt, add_publisher};

/// Outcomes that the stated probability is worth.
const PRIOR_STRENGTH: f64 = 4.0;
/// Weight of outcomes after which older ones of a cause no longer count.
const OUTCOMES_WEIGHED: f64 = 20.0;
/// Age at which an outcome counts half, against the newest one.
const HALF_LIFE_NS: f64 = 90.0 * 24.0 * 3600.0 * 1e9;
/// A prediction that came true or did not is about the cause, and about much else.
const PREDICTION_WEIGHT: f64 = 0.5;
/// A stated probability is taken for at least, and at most, so much.
const STATED: (f64, f64) = (0.1, 0.95);

/// A prediction that was scored: whether it came at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Finding that made it.
    pub finding: FindingId,
    /// Its cluster.
    pub cluster: SmolStr,
    /// Its cause.
    pub cause: SmolStr,
    /// Probability stated for the cause.
    pub stated: f64,
    /// When it was stored.
    pub at: UnixNanos,
    /// It came, at whatever time.
    pub came: bool,
    /// What is foretold of which entity, when it is not of the cause itself: a finding foretells several of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<SmolStr>,
}

impl Scored {
    /// The outcomes of a finding's predictions, as far as there are any that say something.
    pub fn all(finding: &Finding, at: UnixNanos) -> Vec<Self> {
        let elsewhere = finding.predictions.iter().filter_map(|p| Self::elsewhere(finding, p, at));
        Self::of_the_cause(finding, at).into_iter().chain(elsewhere).collect()
    }

    /// The prediction where the cause is says something of the cause.
    fn of_the_cause(finding: &Finding, at: UnixNanos) -> Option<Self> {
        let root = finding.root_cause.as_ref()?;
        let came = finding.prediction.as_ref()?.came()?;
        let (cluster, cause) = (finding.cluster.clone(), root.cause.clone());
        let stated = stated(finding, &root.cause).unwrap_or(finding.confidence.get());
        Some(Self { finding: finding.id, cluster, cause, stated, at, came, of: None })
    }

    /// A prediction elsewhere says something of the probabilities of its scenario alone.
    fn elsewhere(finding: &Finding, prediction: &Prediction, at: UnixNanos) -> Option<Self> {
        let came = prediction.came()?;
        let entity = prediction.entity.as_ref().map(ToString::to_string).unwrap_or_default();
        let cause = prediction_key(&prediction.scenario);
        let of = Some(SmolStr::from(format!("{} {entity}", prediction.scenario)));
        let (cluster, stated) = (finding.cluster.clone(), prediction.probability.get());
        Some(Self { finding: finding.id, cluster, cause, stated, at, came, of })
    }

    fn weight(&self) -> f64 {
        if self.of.is_some() { 1.0 } else { PREDICTION_WEIGHT }
    }
}

/// Probability that a finding gives a cause, on any seat.
pub fn stated(finding: &Finding, cause: &str) -> Option<f64> {
    let of_cause = finding.hypotheses.iter().filter(|h| h.cause == cause).map(|h| h.probability.get());
    of_cause.reduce(f64::max)
}

/// What outcomes say of one cause in one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct LearntCause {
    /// Cluster.
    pub cluster: SmolStr,
    /// Cause id.
    pub cause: SmolStr,
    /// Outcomes for it, not faded.
    pub right: f64,
    /// Outcomes against it, not faded.
    pub wrong: f64,
    /// Mean probability stated.
    pub stated: f64,
    /// Mean of the posterior.
    pub mean: f64,
    /// The interval with 90 % of it.
    pub interval: (f64, f64),
    /// On the odds of the cause's prior.
    pub factor: f64,
}

#[derive(Debug, Clone, Copy)]
struct Outcome {
    at: UnixNanos,
    finding: FindingId,
    stated: f64,
    right: bool,
    weight: f64,
}

type Outcomes = BTreeMap<(SmolStr, SmolStr), Vec<Outcome>>;

/// When what was learnt was forgotten last; asked by cluster and cause.
pub type ForgottenAt<'a> = dyn Fn(&str, &str) -> UnixNanos + 'a;

/// A function of what is stored alone.
pub fn learn(feedback: &[Feedback], scored: &[Scored], forgotten_at: &ForgottenAt<'_>) -> Vec<LearntCause> {
    let mut outcomes = Outcomes::new();
    for said in feedback {
        take_feedback(said, &mut outcomes);
    }
    for scored in scored {
        let outcome = Outcome {
            at: scored.at,
            finding: scored.finding,
            stated: scored.stated,
            right: scored.came,
            weight: scored.weight(),
        };
        outcomes.entry((scored.cluster.clone(), scored.cause.clone())).or_default().push(outcome);
    }
    let learnt = outcomes.into_iter().filter_map(|((cluster, cause), mut outcomes)| {
        let forgotten = forgotten_at(&cluster, &cause);
        outcomes.retain(|outcome| outcome.at > forgotten);
        outcomes.sort_by_key(|outcome| (std::cmp::Reverse(outcome.at), outcome.finding));
        weigh(cluster, cause, &outcomes)
    });
    learnt.collect()
}

fn take_feedback(said: &Feedback, outcomes: &mut Outcomes) {
    let mut add = |cause: &SmolStr, stated: f64, right: bool| {
        let outcome = Outcome { at: said.at, finding: said.finding, stated, right, weight: 1.0 };
        outcomes.entry((said.cluster.clone(), cause.clone())).or_default().push(outcome);
    };
    let actual = said.actual.as_ref();
    let cause = actual.and_then(|actual| actual.cause.as_ref());
    if let Some(named) = &said.named {
        // The cause may be right and sit elsewhere.
        let right = said.judgement == Judgement::Right || cause == Some(&named.cause);
        add(&named.cause, named.probability.get(), right);
    }
    let other = cause.filter(|cause| said.named.as_ref().is_none_or(|named| named.cause != **cause));
    if let (Some(other), Some(actual)) = (other, actual) {
        add(other, actual.probability.get(), true);
    }
}

/// Newest outcomes first.
fn weigh(cluster: SmolStr, cause: SmolStr, outcomes: &[Outcome]) -> Option<LearntCause> {
    let newest = outcomes.first()?.at;
    let (mut sum, mut sum_right, mut sum_stated) = (0.0, 0.0, 0.0);
    for outcome in outcomes {
        let faded = 0.5_f64.powf(newest.since(outcome.at) as f64 / HALF_LIFE_NS);
        let weight = (outcome.weight * faded).min(OUTCOMES_WEIGHED - sum);
        sum += weight;
        sum_right += if outcome.right { weight } else { 0.0 };
        sum_stated += weight * outcome.stated.clamp(STATED.0, STATED.1);
    }
    if sum <= 0.0 {
        return None;
    }
    let stated = sum_stated / sum;
    let right_before = PRIOR_STRENGTH * stated;
    let alpha = right_before + sum_right;
    let beta = (PRIOR_STRENGTH - right_before) + (sum - sum_right);
    let mean = alpha / (alpha + beta);
    let odds = |p: f64| p / (1.0 - p);
    let count = |right: bool| outcomes.iter().filter(|o| o.right == right).map(|o| o.weight).sum();
    Some(LearntCause {
        cluster,
        cause,
        right: count(true),
        wrong: count(false),
        stated,
        mean,
        interval: beta::interval(alpha, beta),
        factor: (odds(mean) / odds(stated)).clamp(PRIOR_FACTOR.0, PRIOR_FACTOR.1),
    })
}

#[cfg(test)]
mod tests;
