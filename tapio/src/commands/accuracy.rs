//! `tapio accuracy`: recorded cases with known answers through the pipeline, and how often the verdict was right.

use std::io::Write;

use clap::ValueEnum;
use tapio_correlator::config::CorrelatorConfig;

use crate::accuracy::cases::{self, Case};
use crate::accuracy::fit::{self, Fit, Way};
use crate::accuracy::perturb::Perturbation;
use crate::accuracy::report::Report;
use crate::accuracy::run::{Plan, run as run_cases};
use crate::accuracy::{markdown, suite};
use crate::cli::{AccuracyArgs, Output, RunArgs};
use crate::config::TapioConfig;
use crate::recording::ReplaySettings;

/// Runs all cases and prints the report.
pub fn run(args: &AccuracyArgs) -> anyhow::Result<i32> {
    let base =
        RunArgs { config: args.config.clone(), overrides: args.overrides.clone(), ..RunArgs::default() };
    let config = TapioConfig::load(&base)?;
    let correlator = CorrelatorConfig { method: args.method.into(), ..config.correlator };
    let plan = Plan {
        settings: ReplaySettings { cluster: "replay".to_owned(), correlator },
        without: args.without.iter().map(|signal| signal.name().to_owned()).collect(),
        perturb: args.perturb,
        rename: args.rename,
        jobs: args.jobs,
        twice: args.twice,
        write_findings: args.findings.clone(),
        read_findings: args.score.clone(),
    };
    let cases = cases::read(&args.directories)?;
    if let Some(page) = &args.write {
        let parts = suite::compare(&cases, &plan, |name| eprintln!("{name} …"))?;
        markdown::write(page, &parts, &raw_fit(&cases, &plan)?)?;
        return tell(&parts[0].report, args.output);
    }
    if let Some(file) = &args.fit {
        let fit = raw_fit(&cases, &plan)?;
        fit.write(file)?;
        write!(std::io::stdout(), "{}", fit.human())?;
        return Ok(0);
    }
    tell(&Report::of(&run_cases(&cases, &plan)?), args.output)
}

/// A fit to what the inference itself gives, of the recordings as they are and in every way in which they are perturbed.
fn raw_fit(cases: &[Case], plan: &Plan) -> anyhow::Result<Fit> {
    let mut raw = Plan { write_findings: None, ..plan.clone() };
    raw.settings.correlator.incidents.calibrated = false;
    let perturbed = Perturbation::value_variants().iter().map(|how| (how.says(), Some(*how)));
    let ways = std::iter::once(("as they are", None)).chain(perturbed).map(|(name, perturb)| {
        eprintln!("raw confidence, {name}");
        Ok(Way { name, runs: run_cases(cases, &Plan { perturb, ..raw.clone() })? })
    });
    Ok(fit::fit(&ways.collect::<anyhow::Result<Vec<_>>>()?))
}

fn tell(report: &Report, output: Output) -> anyhow::Result<i32> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Human => write!(out, "{}", report.human())?,
        Output::Json | Output::Jsonl => writeln!(out, "{}", serde_json::to_string(report)?)?,
    }
    Ok(0)
}
