//! A pattern's own cases, run: signals in, verdict out; and what the library is worth without one of its discriminators.

mod mutants;

use std::sync::Arc;

use smol_str::SmolStr;
use tapio_schemas::Finding;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{ShardMark, SignalSection};

use crate::incidents::{IncidentConfig, IncidentEngine};
use crate::model::{Case, Expectation, Model, Pattern};

pub use mutants::{Mutant, Survey, mutants, page as mutations_page, survey, surveys};

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CaseRun {
    /// Cause id of its pattern.
    pub pattern: SmolStr,
    /// Name of the case.
    pub case: String,
    /// What is not as expected; empty when all is.
    pub wrong: Vec<String>,
}

/// Last revision of each finding of a case, in the order of their first appearance.
///
/// # Errors
/// When the case names an entity that its pattern does not declare.
pub fn verdicts(model: &Arc<Model>, pattern: &Pattern, case: &Case) -> Result<Vec<Finding>, String> {
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::clone(model));
    engine.learn(case.states(&pattern.entities)?);
    engine.apply(case.section(&pattern.entities)?);
    engine.apply(SignalSection {
        marks: (0..SHARD_COUNT).map(|shard| ShardMark { shard, epoch: 0, at: case.verdict_at() }).collect(),
        ..SignalSection::default()
    });
    let mut last: Vec<Finding> = Vec::new();
    for finding in engine.advance() {
        match last.iter_mut().find(|known| known.id == finding.id) {
            Some(known) => *known = finding,
            None => last.push(finding),
        }
    }
    Ok(last)
}

/// What is not as expected.
pub fn differences(pattern: &Pattern, expect: &Expectation, findings: &[Finding]) -> Vec<String> {
    let count = expect.findings.unwrap_or(1);
    if findings.len() != count {
        let told = |f: &Finding| f.root_cause.as_ref().map_or("no cause".to_owned(), |r| r.cause.to_string());
        let causes: Vec<String> = findings.iter().map(told).collect();
        return vec![format!("{} findings instead of {count}: {}", findings.len(), causes.join(", "))];
    }
    let seat = match &expect.seat {
        Some(name) => match pattern.entities.get(name) {
            Some(entity) => Some(entity.to_ref().owner()),
            None => return vec![format!("`{name}` is no entity of this pattern")],
        },
        None => None,
    };
    let of_each = findings.iter().map(|finding| differences_of(expect, seat.as_ref(), finding));
    if expect.among {
        let nearest = of_each.min_by_key(Vec::len);
        return nearest.unwrap_or_else(|| vec!["no finding".to_owned()]);
    }
    of_each.flatten().collect()
}

fn differences_of(
    expect: &Expectation,
    seat: Option<&tapio_schemas::Entity>,
    finding: &Finding,
) -> Vec<String> {
    let root = finding.root_cause.as_ref();
    let confidence = finding.confidence.get();
    let below = finding.hypotheses.iter().skip(1).find(|h| Some(&h.cause) == expect.not.as_ref());
    let doubted = expect.not.as_ref().or(expect.cause.as_ref());
    let said_against = |words: &String| {
        let doubted = finding.hypotheses.iter().filter(|h| Some(&h.cause) == doubted);
        doubted.flat_map(|h| &h.refuted_by).any(|reason| reason.contains(words))
    };
    let outcome = finding.prediction.as_ref().and_then(|p| p.outcome.clone());
    let told = root.map_or("none".to_owned(), |r| format!("{} on {}", r.cause, r.entity));
    let checks = [
        (root.map(|r| &r.cause) == expect.cause.as_ref(), format!("cause is {told}")),
        (seat.is_none() || root.map(|r| &r.entity) == seat, format!("seat: cause is {told}")),
        (expect.status.is_none_or(|s| finding.status == s), format!("status is {:?}", finding.status)),
        (expect.above.is_none_or(|floor| confidence > floor), format!("confidence too low: {confidence:.2}")),
        (
            expect.at_most.is_none_or(|ceiling| confidence <= ceiling),
            format!("confidence too high: {confidence:.2}"),
        ),
        (expect.prediction.is_none() || outcome == expect.prediction, format!("prediction is {outcome:?}")),
        (
            expect.chain.is_none_or(|links| finding.chain.len() == links),
            format!("chain has {} links", finding.chain.len()),
        ),
        (
            expect.not.is_none() || below.is_some_and(|h| !h.refuted_by.is_empty()),
            "the other cause is not among the refuted ones".to_owned(),
        ),
        (
            expect.because.as_ref().is_none_or(said_against),
            "words missing among what speaks against the cause in doubt".to_owned(),
        ),
        (
            expect.says.as_ref().is_none_or(|words| finding.story.contains(words)),
            "words missing in the story".to_owned(),
        ),
        (
            expect.silent.as_ref().is_none_or(|words| !finding.story.contains(words)),
            "words too many in the story".to_owned(),
        ),
        (finding.story.contains("Seen: "), "story without evidence".to_owned()),
        (!finding.story.contains('{') && !finding.title.contains('{'), "a hole in the story".to_owned()),
    ];
    checks.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
}

/// Runs one case.
pub fn run_case(model: &Arc<Model>, pattern: &Pattern, case: &Case) -> CaseRun {
    let wrong = match verdicts(model, pattern, case) {
        Ok(findings) => differences(pattern, &case.expect, &findings),
        Err(fault) => vec![fault],
    };
    CaseRun { pattern: pattern.id.clone(), case: case.name.clone(), wrong }
}

/// Runs every case of a pattern.
pub fn run_pattern(model: &Arc<Model>, pattern: &Pattern) -> Vec<CaseRun> {
    pattern.cases.iter().map(|case| run_case(model, pattern, case)).collect()
}
