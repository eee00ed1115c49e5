//! The mutation check: a discriminator that can be taken away without any case noticing discriminates nothing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_norway::{Mapping, Value};
use smol_str::SmolStr;

use super::run_case;
use crate::model::{Model, ModelError, Pattern};

/// A pattern without one of its discriminators.
#[derive(Debug)]
pub struct Mutant {
    /// What was taken away, in words.
    pub without: String,
    /// What is left.
    pub pattern: Pattern,
}

/// What the cases say of the mutants of one pattern.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Survey {
    /// Cause id.
    pub pattern: SmolStr,
    /// Discriminators whose absence a case notices: (what, the first such case).
    pub noticed: Vec<(String, String)>,
    /// Discriminators whose absence none does.
    pub unnoticed: Vec<String>,
}

/// All mutants of a pattern: without each refuter, each predicate, each absence and each share that tempers.
///
/// # Errors
/// When what is left is no pattern, which a sound pattern does not come to.
pub fn mutants(pattern: &Pattern) -> Result<Vec<Mutant>, ModelError> {
    let whole: Value =
        serde_norway::from_str(&pattern.source).map_err(|e| ModelError::yaml(&pattern.file, &e))?;
    let mut found = Vec::new();
    for list in ["refuted_by", "tempered_by"] {
        for at in 0..items(&whole, list) {
            let name = word(&whole[list][at], if list == "refuted_by" { "signal" } else { "share" });
            let mut left = whole.clone();
            if let Some(items) = left.get_mut(list).and_then(Value::as_sequence_mut) {
                items.remove(at);
            }
            found.push((format!("{list}[{at}] {name}"), left));
        }
    }
    for at in 0..items(&whole, "symptoms") {
        for key in ["when", "absence"] {
            let mut left = whole.clone();
            let symptom = left.get_mut("symptoms").and_then(|symptoms| symptoms.get_mut(at));
            if symptom
                .and_then(Value::as_mapping_mut)
                .and_then(|symptom: &mut Mapping| symptom.remove(key))
                .is_some()
            {
                let name = word(&whole["symptoms"][at], "signal");
                found.push((format!("symptoms[{at}].{key} {name}"), left));
            }
        }
    }
    found
        .into_iter()
        .map(|(without, left)| {
            let text = serde_norway::to_string(&left).map_err(|e| ModelError::yaml(&pattern.file, &e))?;
            Ok(Mutant { without, pattern: Model::parse_one(&pattern.file, &text)? })
        })
        .collect()
}

fn items(whole: &Value, list: &str) -> usize {
    whole.get(list).and_then(Value::as_sequence).map_or(0, Vec::len)
}

fn word(item: &Value, key: &str) -> String {
    item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Runs the cases of the library against each mutant of one pattern, the pattern's own first, until one notices. Cases
/// that fail with the whole library notice nothing.
///
/// # Errors
/// As [`mutants`].
pub fn survey(model: &Arc<Model>, pattern: &Pattern) -> Result<Survey, ModelError> {
    let mut survey = Survey { pattern: pattern.id.clone(), noticed: Vec::new(), unnoticed: Vec::new() };
    for mutant in mutants(pattern)? {
        let mutated = Arc::new(model.with(Arc::new(mutant.pattern)));
        match first_to_notice(model, &mutated, &pattern.id) {
            Some(case) => survey.noticed.push((mutant.without, case)),
            None => survey.unnoticed.push(mutant.without),
        }
    }
    Ok(survey)
}

/// Surveys of all patterns of a model, by as many threads as there are processors.
///
/// # Errors
/// As [`mutants`].
pub fn surveys(model: &Arc<Model>) -> Result<Vec<Survey>, ModelError> {
    let next = AtomicUsize::new(0);
    let survey_some = || {
        let mut found = Vec::new();
        while let Some(pattern) = model.patterns().get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push(survey(model, pattern)?);
        }
        Ok(found)
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let found: Result<Vec<Vec<Survey>>, ModelError> = std::thread::scope(|scope| {
        let working: Vec<_> = (0..workers).map(|_| scope.spawn(survey_some)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        working.into_iter().map(join).collect()
    });
    let mut found: Vec<Survey> = found?.into_iter().flatten().collect();
    found.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    Ok(found)
}

/// The surveys as a page of Markdown (`docs/mutations.md`).
pub fn page(surveys: &[Survey]) -> String {
    let noticed: usize = surveys.iter().map(|survey| survey.noticed.len()).sum();
    let unnoticed: usize = surveys.iter().map(|survey| survey.unnoticed.len()).sum();
    let mut out = format!(
        "# Mutations\n\nEach discriminator of the pattern library, taken away alone, and the first case that fails without it; \
         made by `make mutations`. A discriminator is a predicate of a symptom, an absence that counts, a refuter or a share \
         that tempers. {} were taken away, {noticed} were missed by a case, {unnoticed} by none.\n\n\
         | cause | without | missed by |\n|---|---|---|\n",
        noticed + unnoticed
    );
    for survey in surveys {
        for (without, case) in &survey.noticed {
            let _ = writeln!(out, "| {} | `{without}` | {case} |", survey.pattern);
        }
        for without in &survey.unnoticed {
            let _ = writeln!(out, "| {} | `{without}` | **no case** |", survey.pattern);
        }
    }
    out
}

fn first_to_notice(model: &Arc<Model>, mutated: &Arc<Model>, id: &str) -> Option<String> {
    let own = model.patterns().iter().filter(|p| p.id == id);
    let others = model.patterns().iter().filter(|p| p.id != id);
    own.chain(others).flat_map(|of| of.cases.iter().map(move |case| (of, case))).find_map(|(of, case)| {
        let fails = |with: &Arc<Model>| !run_case(with, of, case).wrong.is_empty();
        (fails(mutated) && !fails(model)).then(|| format!("{} / {}", of.id, case.name))
    })
}
