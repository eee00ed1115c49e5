//! The mutation check: a discriminator that can be taken away without any case noticing discriminates nothing.

use std::sync::Arc;

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

fn first_to_notice(model: &Arc<Model>, mutated: &Arc<Model>, id: &str) -> Option<String> {
    let own = model.patterns().iter().filter(|p| p.id == id);
    let others = model.patterns().iter().filter(|p| p.id != id);
    own.chain(others).flat_map(|of| of.cases.iter().map(move |case| (of, case))).find_map(|(of, case)| {
        let fails = |with: &Arc<Model>| !run_case(with, of, case).wrong.is_empty();
        (fails(mutated) && !fails(model)).then(|| format!("{} / {}", of.id, case.name))
    })
}
