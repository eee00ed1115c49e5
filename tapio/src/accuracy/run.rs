//! Runs the cases: one case at a time per thread, each through a replay of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use rustix::time::{ClockId, clock_gettime};

use super::cases::Case;
use super::edit::{Edit, Edited};
use super::label::Label;
use super::perturb::Perturbation;
use super::revision::Revision;
use super::score::{CONFIDENT_ABOVE, Outcome, score};
use super::survey::Survey;
use crate::input;
use crate::recording::{Replay, ReplaySettings};

/// How cases are run.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// How recordings are replayed.
    pub settings: ReplaySettings,
    /// Lines of these signals are left out.
    pub without: Vec<String>,
    /// What remains is perturbed.
    pub perturb: Option<Perturbation>,
    /// Names are replaced by random words of this seed.
    pub rename: Option<u64>,
    /// Cases at a time.
    pub jobs: usize,
    /// Each case is run twice, and must say the same.
    pub twice: bool,
    /// Where the findings of each case are written, as `<case>.jsonl`.
    pub write_findings: Option<PathBuf>,
    /// Findings made before, as `<case>.jsonl`: they are scored and nothing is replayed.
    pub read_findings: Option<PathBuf>,
}

/// A case that was run.
#[derive(Debug, Clone)]
pub struct CaseRun {
    /// What is right, under the names that were used.
    pub label: Label,
    /// The score.
    pub outcome: Outcome,
    /// Seconds of the recording in which something is recorded.
    pub covered_s: f64,
    /// … outside of every labelled fault of its system.
    pub calm_s: f64,
    /// Findings first made outside of every labelled fault of its system.
    pub calm: Vec<CalmFinding>,
    /// Processor time of the replay, seconds; `None` when nothing was replayed.
    pub cpu_s: Option<f64>,
}

/// A finding that names a cause where no fault is labelled.
#[derive(Debug, Clone, PartialEq)]
pub struct CalmFinding {
    /// What it blames.
    pub entity: String,
    /// Highest confidence that it stated.
    pub confidence: f64,
}

impl CaseRun {
    /// Confident findings first made outside of every labelled fault of its system.
    pub fn calm_findings(&self) -> usize {
        self.calm.iter().filter(|finding| finding.confidence > CONFIDENT_ABOVE).count()
    }
}

/// Runs all cases, in their order.
pub fn run(cases: &[Case], plan: &Plan) -> anyhow::Result<Vec<CaseRun>> {
    if let Some(directory) = &plan.write_findings {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(at) else { return };
                let result = run_case(case, &windows_of(&case.label.system, cases), plan)
                    .with_context(|| format!("case {}", case.label.case));
                let failed = result.is_err();
                done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, result));
                if failed {
                    next.store(cases.len(), Ordering::Relaxed);
                }
            }
        };
        (0..plan.jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Spans of time in which some labelled fault of the system is at work.
fn windows_of(system: &str, cases: &[Case]) -> Vec<(f64, f64)> {
    cases.iter().filter(|case| case.label.system == system).filter_map(|case| case.label.window).collect()
}

fn run_case(case: &Case, windows: &[(f64, f64)], plan: &Plan) -> anyhow::Result<CaseRun> {
    let survey = Survey::of(input::open(&case.file)?, plan.rename.is_some())?;
    let mut label = case.label.clone();
    let renaming = plan.rename.map(|seed| survey.names.renamed(seed)).transpose()?;
    if let Some(renaming) = &renaming {
        label.roots.iter_mut().for_each(|root| root.entity = renaming.wanted(&root.entity));
    }
    let shift_s = plan.perturb.map_or(0.0, Perturbation::shift_s);
    label.shift(shift_s);
    let edit = Edit { without: plan.without.clone(), perturbation: plan.perturb, renaming };
    let (text, cpu_s) = findings(case, &edit, plan)?;
    if let Some(directory) = &plan.write_findings {
        let file = directory.join(format!("{}.jsonl", label.case));
        std::fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let revisions = Revision::read_all(&text)?;
    // A recording without a window is either all calm or all fault.
    let has_window = label.window.is_some();
    Ok(CaseRun {
        outcome: score(&label, &revisions),
        covered_s: survey.covered_seconds(),
        calm_s: if has_window { survey.seconds_outside(windows) } else { 0.0 },
        calm: if has_window { calm_findings(&revisions, windows, shift_s) } else { Vec::new() },
        cpu_s,
        label,
    })
}

/// Findings that name a cause and were first told with confidence outside of all spans, each of them so much later; or that
/// were never told with confidence, and first told there.
fn calm_findings(revisions: &[Revision], windows: &[(f64, f64)], shift_s: f64) -> Vec<CalmFinding> {
    let is_calm = |r: &Revision| {
        let at = r.at() - shift_s;
        windows.iter().all(|(from, to)| at < *from || *to < at)
    };
    let mut told: BTreeMap<&str, Vec<&Revision>> = BTreeMap::new();
    for revision in revisions.iter().filter(|r| r.is_active()) {
        told.entry(&revision.id).or_default().push(revision);
    }
    let calm = told.into_values().filter_map(|told| {
        let first = told.iter().find(|r| r.confidence > CONFIDENT_ABOVE).or(told.first())?;
        let highest =
            told.iter().filter(|r| is_calm(r)).max_by(|a, b| a.confidence.total_cmp(&b.confidence))?;
        let entity = highest.names().to_owned();
        is_calm(first).then_some(CalmFinding { entity, confidence: highest.confidence })
    });
    calm.collect()
}

/// The lines that `tapio replay --output jsonl` would print, and the processor time that took.
fn findings(case: &Case, edit: &Edit, plan: &Plan) -> anyhow::Result<(String, Option<f64>)> {
    if let Some(directory) = &plan.read_findings {
        let file = directory.join(format!("{}.jsonl", case.label.case));
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => other.with_context(|| format!("cannot read {}", file.display())),
        };
        return Ok((text?, None));
    }
    let (text, cpu_s) = replay(&case.file, edit, &plan.settings)?;
    if plan.twice && replay(&case.file, edit, &plan.settings)?.0 != text {
        bail!("two runs did not say the same");
    }
    Ok((text, Some(cpu_s)))
}

fn replay(file: &Path, edit: &Edit, settings: &ReplaySettings) -> anyhow::Result<(String, f64)> {
    let source = input::open(file)?;
    let source: Box<dyn std::io::BufRead> =
        if edit.is_nothing() { source } else { Box::new(Edited::new(source, edit.clone())) };
    let started = cpu_seconds();
    let mut text = String::new();
    Replay::new(settings)?.run(vec![source], |finding| {
        text.push_str(&serde_json::to_string(&finding)?);
        text.push('\n');
        Ok(())
    })?;
    Ok((text, cpu_seconds() - started))
}

/// Processor time of this thread, on which a replay runs as a whole.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
