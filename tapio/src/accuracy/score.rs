//! Scores one case: the findings that were made against what is right.
//!
//! The answer to a case is the last revision of the open finding with the highest confidence, of those made within the
//! case's window. Hypotheses of equal probability share their rank: what they get is the expected value over all orders of
//! them. No answer is a miss.

use std::collections::HashMap;

use super::label::{Label, Root};
use super::revision::{Cause, Revision, Row};

/// Above this a finding is stored and acted upon.
pub const CONFIDENT_ABOVE: f64 = 0.7;
/// Ranks that are counted.
pub const RANKS: [usize; 3] = [1, 3, 5];

/// Score of one case with a cause.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// There was a finding at all.
    pub answered: bool,
    /// The answer names no cause because the evidence singles none out.
    pub unproven: bool,
    /// Stated confidence of the answer.
    pub confidence: f64,
    /// Share of chances that the entity is within the first 1, 3, 5.
    pub entity: [f64; 3],
    /// … that the category is right at rank 1.
    pub category: f64,
    /// … that both are, within the first 1, 3, 5.
    pub both: [f64; 3],
    /// Seconds from the fault to the first revision whose root cause is right.
    pub seconds: Option<f64>,
    /// Other confident findings that stand at the end.
    pub false_findings: usize,
    /// Entity and confidence of all other findings that stand at the end, confident or not.
    pub others: Vec<(String, f64)>,
    /// What was named.
    pub named: Option<Cause>,
}

/// Score of a case in which nothing is to be blamed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spared {
    /// Causes that were blamed with confidence.
    pub blamed: Vec<Cause>,
}

/// Score of one case.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A cause was to be named.
    Asked(Score),
    /// Nothing was to be blamed.
    Spare(Spared),
}

/// Scores the revisions of a case.
pub fn score(label: &Label, revisions: &[Revision]) -> Outcome {
    let counted: Vec<&Revision> = revisions.iter().filter(|r| label.counts(r.at())).collect();
    let last = last_of_each(&counted);
    let open: Vec<&Revision> = last.iter().copied().filter(|r| r.is_active()).collect();
    if label.is_negative() {
        let blamed = open.iter().filter(|r| r.confidence > CONFIDENT_ABOVE);
        return Outcome::Spare(Spared {
            blamed: blamed.map(|r| r.root_cause.clone().unwrap_or_default()).collect(),
        });
    }
    let mut pool = if open.is_empty() { last } else { open.clone() };
    pool.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let Some(answer) = pool.first() else { return Outcome::Asked(Score::default()) };
    let marks: Vec<Marks> =
        label.roots.iter().map(|root| best_marks(&pool, root, label.roots.len() > 1)).collect();
    let others: Vec<&Revision> = open.iter().copied().filter(|r| !names_any(r, label)).collect();
    let least = |of: &dyn Fn(&Marks) -> f64| marks.iter().map(of).fold(1.0, f64::min);
    Outcome::Asked(Score {
        answered: true,
        unproven: answer.root_cause.is_none(),
        confidence: answer.confidence,
        entity: std::array::from_fn(|i| least(&|m| m.entity[i])),
        category: least(&|m| m.category),
        both: std::array::from_fn(|i| least(&|m| m.both[i])),
        seconds: seconds_to_right(label, &counted),
        false_findings: others.iter().filter(|r| r.confidence > CONFIDENT_ABOVE).count(),
        others: others.iter().map(|r| (r.names().to_owned(), r.confidence)).collect(),
        named: answer.root_cause.clone(),
    })
}

/// The last revision of each finding, in the order in which findings came.
fn last_of_each<'a>(revisions: &[&'a Revision]) -> Vec<&'a Revision> {
    let mut order: Vec<&Revision> = Vec::new();
    let mut place: HashMap<&str, usize> = HashMap::new();
    for revision in revisions {
        match place.get(revision.id.as_str()) {
            Some(at) => order[*at] = revision,
            None => {
                place.insert(&revision.id, order.len());
                order.push(revision);
            }
        }
    }
    order
}

fn names_any(revision: &Revision, label: &Label) -> bool {
    let entity = revision.root_cause.as_ref().map(|cause| &cause.entity);
    label.roots.iter().any(|root| entity.is_some_and(|entity| root.entity.is(entity)))
}

fn is_right(revision: &Revision, label: &Label) -> bool {
    let Some(cause) = &revision.root_cause else { return false };
    let category = super::label::category(&cause.cause);
    label.roots.iter().any(|root| root.entity.is(&cause.entity) && root.categories.contains(category))
}

fn seconds_to_right(label: &Label, counted: &[&Revision]) -> Option<f64> {
    let start = label.start?;
    let first = counted.iter().filter(|r| is_right(r, label)).map(|r| r.at()).min_by(f64::total_cmp)?;
    Some((first - start).max(0.0))
}

struct Marks {
    entity: [f64; 3],
    category: f64,
    both: [f64; 3],
}

/// What one cause gets from the answer; with several causes at once, from the finding that serves it best.
fn best_marks(pool: &[&Revision], root: &Root, several: bool) -> Marks {
    let taken = if several { pool } else { &pool[..1] };
    let mut best: Option<Marks> = None;
    for revision in taken {
        let marks = marks_of(&revision.ranked(), root);
        let value = |m: &Marks| (m.both[0], m.entity[0]);
        if best.as_ref().is_none_or(|known| value(&marks) > value(known)) {
            best = Some(marks);
        }
    }
    best.unwrap_or(Marks { entity: [0.0; 3], category: 0.0, both: [0.0; 3] })
}

fn marks_of(rows: &[Row], root: &Root) -> Marks {
    let entity = |row: &Row| root.entity.is(&row.cause.entity);
    let category = |row: &Row| root.categories.contains(row.category());
    let both = |row: &Row| entity(row) && category(row);
    Marks {
        entity: RANKS.map(|k| credit(rows, entity, k)),
        category: credit(rows, category, 1),
        both: RANKS.map(|k| credit(rows, both, k)),
    }
}

/// Chance that a row which passes is within the first `k` of rows sorted by probability, when ties are broken at random.
fn credit(rows: &[Row], passes: impl Fn(&Row) -> bool, k: usize) -> f64 {
    let Some(first) = rows.iter().find(|row| passes(row)) else { return 0.0 };
    let before = rows.iter().filter(|row| row.probability > first.probability).count();
    let tied: Vec<&Row> = rows.iter().filter(|row| row.probability == first.probability).collect();
    let good = tied.iter().filter(|row| passes(row)).count();
    let slots = k.saturating_sub(before);
    if slots >= tied.len() {
        return 1.0;
    }
    // Hypergeometric: none of the good ones is among `slots` drawn from the tied.
    let none = (0..slots).map(|i| (tied.len() - good).saturating_sub(i) as f64 / (tied.len() - i) as f64);
    1.0 - none.product::<f64>()
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
