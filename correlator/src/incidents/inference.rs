//! Which causes explain the signals best: noisy-or with leak over small sets of causes.
//!
//! A signal shows with probability `1 − (1 − leak)·Π(1 − p)` over the causes of a set that explain it (Pearl 1988, §4.3.2);
//! a set weighs as much as the product of the odds of its causes and of what it makes of the signals. Sets of at most
//! three causes are enumerated over at most sixteen candidates, which is exact for them; when there are more
//! candidates, the greedy choice and the best single ones stay in.

use std::collections::BTreeSet;

use super::candidates::Candidate;
use super::signals::{is_change, is_state, leak_probability};
use super::view::View;

/// Most causes of one incident that are weighed together.
pub const CAUSES_MAX: usize = 3;
/// A cause is a rival of the best one when it is this near to it …
const RIVAL_SHARE: f64 = 0.6;
/// … and both together are less probable than this share of it.
const JOINT_SHARE: f64 = 0.5;
/// Confidence lost when nothing but the faintest evidence is there.
const DOUBT: f64 = 0.55;
/// How fast evidence removes that doubt.
const DOUBT_DECAY: f64 = 1.1;
/// What happened is evidence, however faint.
const STRENGTH_MIN: f64 = 0.1;
/// Nothing is certain.
const CONFIDENCE_MAX: f64 = 0.98;

/// What inference makes of one component.
#[derive(Debug, Default)]
pub struct Verdict {
    /// (candidate, posterior), most probable first.
    pub ranked: Vec<(usize, f64)>,
    /// Candidates of the most probable set, in the same order.
    pub best_set: Vec<usize>,
    /// A different cause is about as probable as the best one and excludes it.
    pub has_rival: bool,
    /// Posterior of the best cause, tempered by how much evidence there is.
    pub confidence: f64,
}

/// Weighs `candidates` (indices into `all`) against the signals `members` (indices into the view).
pub fn infer(
    view: &View<'_>,
    all: &[Candidate<'_>],
    candidates: &[usize],
    members: &BTreeSet<usize>,
    candidates_max: usize,
) -> Verdict {
    let problem = Problem::new(view, all, candidates, members, candidates_max);
    let sets = problem.weigh();
    let total: f64 = sets.iter().map(|(_, weight)| weight).sum();
    if total <= 0.0 || problem.causes.is_empty() {
        return Verdict::default();
    }
    let posterior = |wanted: &[usize]| {
        let holds = |set: &[usize]| wanted.iter().all(|w| set.contains(w));
        sets.iter().filter(|(set, _)| holds(set)).map(|(_, weight)| weight).sum::<f64>() / total
    };
    let mut ranked: Vec<(usize, f64)> =
        (0..problem.causes.len()).map(|local| (local, posterior(&[local]))).collect();
    ranked.sort_by(|a, b| {
        let (left, right) = (&all[problem.causes[a.0]], &all[problem.causes[b.0]]);
        b.1.total_cmp(&a.1)
            .then_with(|| (&left.pattern.id, &left.seat).cmp(&(&right.pattern.id, &right.seat)))
    });
    let (best, first) = ranked[0];
    let has_rival = ranked[1..].iter().any(|(other, second)| {
        *second > RIVAL_SHARE * first && posterior(&[best, *other]) < JOINT_SHARE * second
    });
    let most_probable =
        sets.iter().max_by(|a, b| a.1.total_cmp(&b.1).then_with(|| b.0.len().cmp(&a.0.len())));
    let set = most_probable.map(|(set, _)| set.as_slice()).unwrap_or_default();
    let best_set = ranked.iter().filter(|(local, _)| set.contains(local)).map(|(l, _)| problem.causes[*l]);
    Verdict {
        best_set: best_set.collect(),
        has_rival,
        confidence: first * evidence_factor(view, &all[problem.causes[best]], members),
        ranked: ranked.iter().map(|(local, p)| (problem.causes[*local], *p)).collect(),
    }
}

struct Problem {
    /// Candidates that are weighed.
    causes: Vec<usize>,
    odds: Vec<f64>,
    signals: Vec<WeighedSignal>,
}

struct WeighedSignal {
    strength: f64,
    leak: f64,
    /// Per cause, in the order of `causes`.
    probability: Vec<f64>,
}

impl Problem {
    fn new(
        view: &View<'_>,
        all: &[Candidate<'_>],
        candidates: &[usize],
        members: &BTreeSet<usize>,
        candidates_max: usize,
    ) -> Self {
        let explained_change = |at: usize| candidates.iter().any(|c| all[*c].explains.contains_key(&at));
        let latest = view.latest(members.iter());
        let signals = members
            .iter()
            // A change nobody explains is no riddle: changes are made.
            .filter(|at| !is_change(view.signals[**at].kind) || explained_change(**at))
            .map(|at| {
                let signal = view.signals[*at];
                let leak = if is_change(signal.kind) { 0.5 } else { leak_probability(signal.kind) };
                let of = |c: &usize| all[*c].explains.get(at).map_or(0.0, |(p, _)| *p);
                let probability = candidates.iter().map(of).collect();
                let floor = if is_state(signal.kind) { 0.0 } else { STRENGTH_MIN };
                WeighedSignal { strength: view.strength(*at, latest).max(floor), leak, probability }
            })
            .collect();
        let odds = candidates.iter().map(|c| all[*c].odds).collect();
        let mut problem = Self { causes: candidates.to_vec(), odds, signals };
        problem.narrow(candidates_max);
        problem
    }

    /// Keeps the greedy choice and the best single causes.
    fn narrow(&mut self, count_max: usize) {
        if self.causes.len() <= count_max {
            return;
        }
        let mut keep: Vec<usize> = Vec::new();
        for _ in 0..CAUSES_MAX {
            let next = (0..self.causes.len()).filter(|c| !keep.contains(c)).max_by(|a, b| {
                let with = |c: usize| self.weight(&[keep.as_slice(), &[c]].concat());
                with(*a).total_cmp(&with(*b)).then(b.cmp(a))
            });
            keep.extend(next);
        }
        let mut singles: Vec<usize> = (0..self.causes.len()).collect();
        singles.sort_by(|a, b| self.weight(&[*b]).total_cmp(&self.weight(&[*a])).then(a.cmp(b)));
        let rest: Vec<usize> = singles.into_iter().filter(|c| !keep.contains(c)).collect();
        keep.extend(rest.into_iter().take(count_max.saturating_sub(keep.len())));
        keep.sort_unstable();
        self.causes = keep.iter().map(|c| self.causes[*c]).collect();
        self.odds = keep.iter().map(|c| self.odds[*c]).collect();
        for signal in &mut self.signals {
            signal.probability = keep.iter().map(|c| signal.probability[*c]).collect();
        }
    }

    fn weight(&self, set: &[usize]) -> f64 {
        let odds: f64 = set.iter().map(|c| self.odds[*c]).product();
        let likelihood: f64 = self
            .signals
            .iter()
            .map(|s| {
                let unseen: f64 = set.iter().map(|c| 1.0 - s.probability[*c]).product();
                // A faint signal is faint evidence, either way.
                (1.0 - (1.0 - s.leak) * unseen).powf(s.strength)
            })
            .product();
        odds * likelihood
    }

    /// Every set of at most [`CAUSES_MAX`] causes with its weight.
    fn weigh(&self) -> Vec<(Vec<usize>, f64)> {
        let count = self.causes.len();
        let mut sets = vec![(Vec::new(), self.weight(&[]))];
        let mut from = 0;
        for _ in 0..CAUSES_MAX {
            let to = sets.len();
            for at in from..to {
                let first = sets[at].0.last().map_or(0, |last| last + 1);
                for next in first..count {
                    let mut set = sets[at].0.clone();
                    set.push(next);
                    let weight = self.weight(&set);
                    sets.push((set, weight));
                }
            }
            from = to;
        }
        sets
    }
}

/// Grows with the number, strength and weight of the signals explained: one faint signal is never proof.
fn evidence_factor(view: &View<'_>, cause: &Candidate<'_>, members: &BTreeSet<usize>) -> f64 {
    let mut evidence = 0.0;
    let latest = view.latest(members.iter());
    for (at, (_, symptom)) in cause.explains.iter().filter(|(at, _)| members.contains(at)) {
        let signal = view.signals[*at];
        let repeated = 1.0 + 0.25 * (signal.count.max(1) as f64).ln().min(4.0);
        evidence += view.strength(*at, latest) * cause.pattern.symptoms[*symptom].weight * repeated;
    }
    evidence += 0.2 * cause.changes.len() as f64;
    (1.0 - DOUBT * (-DOUBT_DECAY * evidence).exp()).min(CONFIDENCE_MAX)
}
