//! Fits the calibration of confidence, and says what it is worth on services it was not fitted on.
//!
//! Fitted are the answers to the cases, right or wrong; what else was found within their windows; and what was found where
//! no fault is labelled, with the highest confidence that it stated. The last two are wrong answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use tapio_correlator::calibration::Calibration as Map;

use super::run::CaseRun;
use super::score::Outcome;
use super::totals::{Calibration, calibration};

/// A fit and its worth.
#[derive(Debug, Clone)]
pub struct Fit {
    /// Fitted on all answers.
    pub map: Map,
    /// Raw confidence against what was right.
    pub before: Calibration,
    /// Confidence of the answers to cases, stated by fits that were made without the service that the answer is about.
    pub after: Calibration,
    /// … of everything that was found.
    pub after_all: Calibration,
    /// Findings that answer no case, among what it was fitted on.
    pub others: usize,
    /// Services that were left out one by one.
    pub services: usize,
    /// What the services got that were left out, per system.
    pub left_out: Vec<LeftOut>,
}

/// Cases of one system, each judged with its service left out of the fit. A map that never turns the order around changes no
/// rank: what these shares say beside the overall one is how evenly they are spread over services.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// System.
    pub system: String,
    /// Cases with a cause.
    pub cases: usize,
    /// Share of them with entity and category right at rank 1.
    pub right: f64,
    /// Services at fault.
    pub services: usize,
    /// Mean over the services of that share.
    pub right_of_service: f64,
}

struct Answer {
    service: String,
    raw: f64,
    right: f64,
    is_other: bool,
}

/// Fits to the answers of runs that stated raw confidence.
pub fn fit(runs: &[CaseRun]) -> Fit {
    let answers: Vec<Answer> =
        runs.iter().flat_map(|run| answer(run).into_iter().chain(others(run))).collect();
    let services: BTreeSet<&str> = answers.iter().map(|a| a.service.as_str()).collect();
    let pairs = |of: &dyn Fn(&&Answer) -> bool| -> Vec<(f64, f64)> {
        answers.iter().filter(of).map(|a| (a.raw, a.right)).collect()
    };
    let (mut held_out, mut held_out_all) = (Vec::new(), Vec::new());
    for service in &services {
        let map = Map::fit(&pairs(&|a| a.service != *service));
        for answer in answers.iter().filter(|a| a.service == *service) {
            let stated = (map.stated(answer.raw), answer.right);
            held_out_all.push(stated);
            held_out.extend((!answer.is_other).then_some(stated));
        }
    }
    Fit {
        map: Map::fit(&pairs(&|_| true)),
        before: calibration(&pairs(&|a| !a.is_other)),
        after: calibration(&held_out),
        after_all: calibration(&held_out_all),
        others: answers.iter().filter(|a| a.is_other).count(),
        services: services.len(),
        left_out: left_out(runs),
    }
}

fn left_out(runs: &[CaseRun]) -> Vec<LeftOut> {
    let mut systems: BTreeMap<&str, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for run in runs {
        if let Outcome::Asked(score) = &run.outcome {
            let services = systems.entry(&run.label.system).or_default();
            services.entry(run.label.group()).or_default().push(score.both[0]);
        }
    }
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let all = systems.into_iter().map(|(system, services)| {
        let cases: Vec<f64> = services.values().flatten().copied().collect();
        let means: Vec<f64> = services.values().map(|of| mean(of)).collect();
        LeftOut {
            system: system.to_owned(),
            cases: cases.len(),
            right: mean(&cases),
            services: means.len(),
            right_of_service: mean(&means),
        }
    });
    all.collect()
}

fn answer(run: &CaseRun) -> Option<Answer> {
    match &run.outcome {
        Outcome::Asked(score) if score.answered => Some(Answer {
            service: run.label.group(),
            raw: score.confidence,
            right: score.both[0],
            is_other: false,
        }),
        _ => None,
    }
}

fn others(run: &CaseRun) -> impl Iterator<Item = Answer> {
    let within = match &run.outcome {
        // Of several open ones that blame something else, the answer itself may be one.
        Outcome::Asked(score) => {
            score.others.iter().filter(|other| other.1 < score.confidence).cloned().collect()
        }
        Outcome::Spare(_) => Vec::new(),
    };
    let calm = run.calm.iter().map(|finding| (finding.entity.clone(), finding.confidence));
    let all: Vec<(String, f64)> = within.into_iter().chain(calm).collect();
    all.into_iter().map(|(entity, raw)| Answer {
        service: format!("{}/{entity}", run.label.system),
        raw,
        right: 0.0,
        is_other: true,
    })
}

impl Fit {
    /// For people.
    pub fn human(&self) -> String {
        let Self { map, before, after, after_all, others, services, left_out } = self;
        let pair = |c: &Calibration| match (c.ece, c.brier) {
            (Some(ece), Some(brier)) => {
                format!("expected calibration error {ece:.3}, Brier score {brier:.3}")
            }
            _ => "no answers".to_owned(),
        };
        let told = |of: &LeftOut| {
            format!(
                "… of {}, entity and category right at rank 1: {:.0} % of {} cases, {:.0} % as the mean of {} services\n",
                of.system,
                100.0 * of.right,
                of.cases,
                100.0 * of.right_of_service,
                of.services
            )
        };
        let left_out: String = left_out.iter().map(told).collect();
        format!(
            "fitted on {} answers, {others} of them to no case: a {:.3}, b {:.3}, c {:.3}\nraw confidence, answers to cases: {}\nleaving out each of {services} services in turn, answers to cases: {}\n… and of all that is found: {}\n{left_out}",
            map.answers,
            map.a,
            map.b,
            map.c,
            pair(before),
            pair(after),
            pair(after_all)
        )
    }

    /// Writes the numbers to the file that is built into the program.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let Map { a, b, c, answers } = self.map;
        let text = format!(
            "# From raw to stated confidence: correlator/src/calibration.rs says what the numbers are, `tapio accuracy --fit` writes them.\na: {a:.6}\nb: {b:.6}\nc: {c:.6}\n# Labelled answers it was fitted on; 0: the identity.\nanswers: {answers}\n"
        );
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::label::{Label, Root, Verdict};
    use crate::accuracy::matching::Wanted;
    use crate::accuracy::run::CalmFinding;
    use crate::accuracy::score::Score;

    fn run(service: usize, raw: f64, right: f64) -> CaseRun {
        let entity = Wanted::Service(format!("s{service}"));
        CaseRun {
            label: Label {
                case: "c".into(),
                system: "shop".into(),
                kind: "cpu".into(),
                roots: vec![Root { entity, categories: BTreeSet::new() }],
                verdict: Verdict::Active,
                window: None,
                start: None,
                onset_is_exact: true,
            },
            outcome: Outcome::Asked(Score {
                answered: true,
                confidence: raw,
                both: [right; 3],
                ..Score::default()
            }),
            covered_s: 0.0,
            calm_s: 0.0,
            calm: Vec::new(),
            cpu_s: None,
        }
    }

    #[test]
    fn what_is_found_where_nothing_is_wrong_lowers_what_is_stated() {
        let right: Vec<CaseRun> = (0..40).map(|i| run(i % 5, 0.6, 1.0)).collect();
        let mut disturbed = right.clone();
        let found = |_| CalmFinding { entity: "s1".into(), confidence: 0.6 };
        disturbed[0].calm = (0..40).map(found).collect();
        let (without, with) = (fit(&right), fit(&disturbed));
        assert_eq!((with.others, with.map.answers), (40, 80));
        assert!(with.map.stated(0.6) < 0.6 && 0.8 < without.map.stated(0.6), "{with:?} {without:?}");
        assert!(with.after.ece > without.after.ece, "{:?} {:?}", with.after, without.after);
    }

    #[test]
    fn a_service_with_one_case_counts_as_much_as_one_with_many() {
        let mut runs: Vec<CaseRun> = (0..9).map(|_| run(0, 0.9, 1.0)).collect();
        runs.push(run(1, 0.9, 0.0));
        let all = &fit(&runs).left_out[0];
        assert!((all.right - 0.9).abs() < 1e-9 && (all.right_of_service - 0.5).abs() < 1e-9, "{all:?}");
        assert!(fit(&runs).human().contains("90 % of 10 cases, 50 % as the mean of 2 services"));
    }

    #[test]
    fn confidence_that_was_too_high_is_better_on_services_that_were_left_out() {
        // Stated 0.95, right in 7 of 10, of each service.
        let runs: Vec<CaseRun> = (0..90).map(|i| run(i % 9, 0.95, f64::from(u8::from(i / 9 < 7)))).collect();
        let fit = fit(&runs);
        assert_eq!((fit.services, fit.map.answers), (9, 90));
        let all = &fit.left_out[0];
        assert_eq!((all.cases, all.services), (90, 9));
        assert!((all.right - 0.7).abs() < 1e-9 && (all.right_of_service - 0.7).abs() < 1e-9, "{all:?}");
        assert!((fit.before.ece.unwrap() - 0.25).abs() < 1e-9);
        assert!(fit.after.ece.unwrap() < 0.1, "{:?}", fit.after);
        assert!(fit.after.brier.unwrap() < fit.before.brier.unwrap(), "{:?} {:?}", fit.before, fit.after);
    }
}
