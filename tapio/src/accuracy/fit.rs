//! Fits the calibration of confidence, and says what it is worth on services it was not fitted on.
//!
//! There are two kinds of answers: those to the cases, right or wrong; and what else was found, within their windows and where
//! no fault is labelled, with the highest confidence that it stated, which is wrong. A map that serves the first kind alone states
//! the second with more, too, so both are told beside each other.
//!
//! Recordings as they are say only how much to trust evidence as good as theirs. So the cases are fitted in several ways at once:
//! as they are, and in each way in which they could as well have been (`perturb.rs`). All ways of a case together weigh as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use tapio_correlator::calibration::Calibration as Map;

use super::run::CaseRun;
use super::score::{CONFIDENT_ABOVE, Outcome};
use super::totals::{Calibration, calibration};

/// Fits and their worth.
#[derive(Debug, Clone)]
pub struct Fit {
    /// Fitted on everything that was found, in all ways.
    pub map: Map,
    /// Fitted on the answers to cases alone.
    pub of_answers: Map,
    /// What they are worth, per way.
    pub ways: Vec<WayWorth>,
    /// Findings that answer no case, among what [`Self::map`] was fitted on.
    pub others: usize,
    /// Services that were left out one by one.
    pub services: usize,
    /// What the services got that were left out, per system, of the recordings as they are.
    pub by_service: Vec<ByService>,
}

/// The cases run in one way.
pub struct Way {
    /// In words.
    pub name: &'static str,
    /// Runs that stated raw confidence.
    pub runs: Vec<CaseRun>,
}

/// What confidence is worth, raw and by each map, for the recordings in one way.
#[derive(Debug, Clone)]
pub struct WayWorth {
    /// In words.
    pub name: &'static str,
    /// As the inference gives it.
    pub raw: Worth,
    /// Stated by fits to answers alone that were made, in every way, without the service that the finding is about.
    pub of_answers: Worth,
    /// … by fits to everything that was found.
    pub of_all: Worth,
}

/// What stated confidence is worth.
#[derive(Debug, Clone)]
pub struct Worth {
    /// Of the answers to cases.
    pub answers: Calibration,
    /// Confident findings that answer no case.
    pub others_told: usize,
}

/// Cases of one system, each judged with its service left out of the fit. A map that never turns the order around changes no
/// rank: what these shares say beside the overall one is how evenly they are spread over services.
#[derive(Debug, Clone, PartialEq)]
pub struct ByService {
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
    way: usize,
    service: String,
    raw: f64,
    right: f64,
    is_other: bool,
}

/// Fits to the answers of all ways; the first is the recordings as they are.
pub fn fit(ways: &[Way]) -> Fit {
    let of_way = |(way, of): (usize, &Way)| -> Vec<Answer> {
        of.runs.iter().flat_map(|run| answer(way, run).into_iter().chain(others(way, run))).collect()
    };
    let answers: Vec<Answer> = ways.iter().enumerate().flat_map(of_way).collect();
    let services: BTreeSet<&str> = answers.iter().map(|a| a.service.as_str()).collect();
    let weight = 1.0 / ways.len().max(1) as f64;
    let without = |service: Option<&str>, with_others: bool| {
        let kept =
            answers.iter().filter(|a| Some(a.service.as_str()) != service && (with_others || !a.is_other));
        Map::fit(&kept.map(|a| (a.raw, a.right, weight)).collect::<Vec<_>>())
    };
    let held_out = |with_others: bool| -> BTreeMap<&str, Map> {
        services.iter().map(|service| (*service, without(Some(service), with_others))).collect()
    };
    let (of_answers, of_all) = (held_out(false), held_out(true));
    let worth = |way: usize, stated: &dyn Fn(&Answer) -> f64| {
        let mut told = Worth { answers: Calibration::default(), others_told: 0 };
        let of_way = || answers.iter().filter(|a| a.way == way);
        let asked = of_way().filter(|a| !a.is_other).map(|a| (stated(a), a.right));
        told.answers = calibration(&asked.collect::<Vec<_>>());
        told.others_told = of_way().filter(|a| a.is_other && stated(a) > CONFIDENT_ABOVE).count();
        told
    };
    let by = |maps: &BTreeMap<&str, Map>, a: &Answer| maps[a.service.as_str()].stated(a.raw);
    let all = ways.iter().enumerate().map(|(way, of)| WayWorth {
        name: of.name,
        raw: worth(way, &|a| a.raw),
        of_answers: worth(way, &|a| by(&of_answers, a)),
        of_all: worth(way, &|a| by(&of_all, a)),
    });
    Fit {
        map: without(None, true),
        of_answers: without(None, false),
        ways: all.collect(),
        others: answers.iter().filter(|a| a.is_other).count(),
        services: services.len(),
        by_service: ways.first().map(|way| by_service(&way.runs)).unwrap_or_default(),
    }
}

fn by_service(runs: &[CaseRun]) -> Vec<ByService> {
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
        ByService {
            system: system.to_owned(),
            cases: cases.len(),
            right: mean(&cases),
            services: means.len(),
            right_of_service: mean(&means),
        }
    });
    all.collect()
}

fn answer(way: usize, run: &CaseRun) -> Option<Answer> {
    match &run.outcome {
        Outcome::Asked(score) if score.answered => Some(Answer {
            way,
            service: run.label.group(),
            raw: score.confidence,
            right: score.both[0],
            is_other: false,
        }),
        _ => None,
    }
}

fn others(way: usize, run: &CaseRun) -> impl Iterator<Item = Answer> {
    let within = match &run.outcome {
        // Of several open ones that blame something else, the answer itself may be one.
        Outcome::Asked(score) => {
            score.others.iter().filter(|other| other.1 < score.confidence).cloned().collect()
        }
        Outcome::Spare(_) => Vec::new(),
    };
    let calm = run.calm.iter().map(|finding| (finding.entity.clone(), finding.confidence));
    let all: Vec<(String, f64)> = within.into_iter().chain(calm).collect();
    all.into_iter().map(move |(entity, raw)| Answer {
        way,
        service: format!("{}/{entity}", run.label.system),
        raw,
        right: 0.0,
        is_other: true,
    })
}

impl Fit {
    /// For people.
    pub fn human(&self) -> String {
        let Self { map, of_answers, ways, others, services, by_service } = self;
        let numbers = |map: &Map| format!("a {:.3}, b {:.3}, c {:.3}", map.a, map.b, map.c);
        let mut out = format!(
            "fit 1, answers to cases, in {} ways: {} answers, {}\nfit 2, everything that is found: {} answers, {others} of them to no case, {}\n\n",
            ways.len(),
            of_answers.answers,
            numbers(of_answers),
            map.answers,
            numbers(map)
        );
        let _ = writeln!(
            out,
            "of answers to cases expected calibration error and Brier score; confident findings that answer none\n(fits made leaving out each of {services} services in turn)\n\n{:<32} {:<16} {:<16} fit 2",
            "", "raw", "fit 1"
        );
        let told = |of: &Worth| match (of.answers.ece, of.answers.brier) {
            (Some(ece), Some(brier)) => format!("{ece:.3} {brier:.3} {:>3}", of.others_told),
            _ => "no answers".to_owned(),
        };
        for WayWorth { name, raw, of_answers, of_all } in ways {
            let line = format!("{name:<32} {:<16} {:<16} {:<16}", told(raw), told(of_answers), told(of_all));
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out.push('\n');
        for of in by_service {
            let _ = writeln!(
                out,
                "{}: entity and category right at rank 1: {:.0} % of {} cases, {:.0} % as the mean of {} services",
                of.system,
                100.0 * of.right,
                of.cases,
                100.0 * of.right_of_service,
                of.services
            );
        }
        out
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

    fn fit(runs: &[CaseRun]) -> Fit {
        super::fit(&[Way { name: "as they are", runs: runs.to_vec() }])
    }

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
        let found = |i| CalmFinding { entity: format!("s{}", i % 5), confidence: 0.6 };
        disturbed[0].calm = (0..40).map(found).collect();
        let (without, with) = (fit(&right), fit(&disturbed));
        assert_eq!((with.others, with.map.answers), (40, 80));
        assert!(with.map.stated(0.6) < 0.6 && 0.8 < without.map.stated(0.6), "{with:?} {without:?}");
        let told = |fit: &Fit| {
            (fit.ways[0].raw.others_told, fit.ways[0].of_answers.others_told, fit.ways[0].of_all.others_told)
        };
        // The map of answers alone states what is wrong with more, and tells it.
        assert_eq!((told(&without), told(&with)), ((0, 0, 0), (0, 40, 0)), "{with:?}");
    }

    #[test]
    fn a_service_with_one_case_counts_as_much_as_one_with_many() {
        let mut runs: Vec<CaseRun> = (0..9).map(|_| run(0, 0.9, 1.0)).collect();
        runs.push(run(1, 0.9, 0.0));
        let all = &fit(&runs).by_service[0];
        assert!((all.right - 0.9).abs() < 1e-9 && (all.right_of_service - 0.5).abs() < 1e-9, "{all:?}");
        assert!(fit(&runs).human().contains("90 % of 10 cases, 50 % as the mean of 2 services"));
    }

    #[test]
    fn confidence_that_was_too_high_is_better_on_services_that_were_left_out() {
        // Stated 0.95, right in 7 of 10, of each service.
        let runs: Vec<CaseRun> = (0..90).map(|i| run(i % 9, 0.95, f64::from(u8::from(i / 9 < 7)))).collect();
        let fit = fit(&runs);
        assert_eq!((fit.services, fit.map.answers), (9, 90));
        let all = &fit.by_service[0];
        assert_eq!((all.cases, all.services), (90, 9));
        assert!((all.right - 0.7).abs() < 1e-9 && (all.right_of_service - 0.7).abs() < 1e-9, "{all:?}");
        let WayWorth { raw, of_answers, of_all, .. } = &fit.ways[0];
        assert!((raw.answers.ece.unwrap() - 0.25).abs() < 1e-9);
        assert!(of_all.answers.ece.unwrap() < 0.1, "{fit:?}");
        assert!(of_all.answers.brier.unwrap() < raw.answers.brier.unwrap(), "{fit:?}");
        // Nothing else was found.
        assert_eq!((of_answers.answers.ece, fit.map), (of_all.answers.ece, fit.of_answers));
    }

    #[test]
    fn all_ways_of_a_case_weigh_as_one() {
        let runs: Vec<CaseRun> = (0..30).map(|i| run(i % 5, 0.6, 1.0)).collect();
        let way = |name| Way { name, runs: runs.clone() };
        let (one, three) = (super::fit(&[way("a")]), super::fit(&[way("a"), way("b"), way("c")]));
        assert_eq!((one.map.answers, three.map.answers), (30, 90));
        assert!((one.map.stated(0.6) - three.map.stated(0.6)).abs() < 1e-6, "{one:?} {three:?}");
        assert_eq!(three.ways.iter().map(|worth| worth.name).collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn a_way_in_which_the_answers_are_wrong_lowers_what_is_stated_of_all() {
        let way = |name, right| Way { name, runs: (0..30).map(|i| run(i % 5, 0.8, right)).collect() };
        let (good, mixed) = (super::fit(&[way("a", 1.0)]), super::fit(&[way("a", 1.0), way("b", 0.0)]));
        assert!(mixed.map.stated(0.8) < 0.65 && 0.85 < good.map.stated(0.8), "{good:?} {mixed:?}");
    }
}
