//! The whole comparison: the product, the simple methods, and the product with less, with other names, with perturbed input.

use clap::ValueEnum;
use tapio_correlator::baseline::Method;

use super::cases::Case;
use super::perturb::Perturbation;
use super::report::Report;
use super::run::{Plan, run};

/// Seed of the random names in the comparison.
const RENAME_SEED: u64 = 7;

/// One run of the comparison.
pub struct Part {
    /// What was run, in words.
    pub name: &'static str,
    /// Its report.
    pub report: Report,
}

/// Runs everything; the first part is the product as it is, each case twice.
pub fn compare(cases: &[Case], plan: &Plan, said: impl Fn(&str)) -> anyhow::Result<Vec<Part>> {
    let without =
        |signal: &str| Plan { without: vec![signal.to_owned()], write_findings: None, ..plan.clone() };
    let method = |method: Method| {
        let mut plan = Plan { write_findings: None, ..plan.clone() };
        plan.settings.correlator.method = method;
        plan
    };
    let mut plans = vec![
        ("causal inference", Plan { twice: true, ..plan.clone() }),
        (
            "… with every name replaced",
            Plan { rename: Some(RENAME_SEED), write_findings: None, ..plan.clone() },
        ),
        ("… without logs", without("logs")),
        ("… without traces", without("traces")),
        ("… without metrics", without("metrics")),
        ("earliest signal", method(Method::Earliest)),
        ("loudest entity", method(Method::Loudest)),
        ("largest robust change (BARO)", method(Method::RankSum)),
    ];
    let perturbed =
        |how: Perturbation| (how.says(), Plan { perturb: Some(how), write_findings: None, ..plan.clone() });
    // After the same with other names.
    plans.splice(2..2, Perturbation::value_variants().iter().copied().map(perturbed));
    let mut parts = Vec::new();
    for (name, plan) in plans {
        said(name);
        parts.push(Part { name, report: Report::of(&run(cases, &plan)?) });
    }
    Ok(parts)
}
