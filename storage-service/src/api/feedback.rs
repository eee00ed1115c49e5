//! From a request to feedback on a finding. Everything is checked here.

use tapio_schemas::finding::Hypothesis;
use tapio_schemas::learning::{Actual, FEEDBACK_SCHEMA, Feedback, Judgement, Stated};
use tapio_schemas::proto::v1;
use tapio_schemas::{Entity, Finding, Score, SmolStr, UnixNanos};

use super::ApiError;
use super::question::{entity, optional, short, word};
use crate::learning::{LearntCause, stated};

/// Longest name of a cause or a cluster.
const NAME_BYTES_MAX: usize = 128;

/// A request to give feedback, before it is checked.
#[derive(Debug, Clone, Default)]
pub struct FeedbackQuestion {
    /// Of which finding.
    pub id: String,
    /// `right` or `wrong`.
    pub judgement: String,
    /// What it was.
    pub cause: String,
    /// Where it was.
    pub entity: String,
    /// What helped.
    pub fix: String,
    /// In words.
    pub note: String,
}

impl From<v1::GiveFeedbackRequest> for FeedbackQuestion {
    fn from(request: v1::GiveFeedbackRequest) -> Self {
        let v1::GiveFeedbackRequest { id, judgement, cause, entity, fix, note } = request;
        Self { id, judgement, cause, entity, fix, note }
    }
}

/// What is said, checked but for the finding.
pub(super) struct Said {
    judgement: Judgement,
    cause: Option<SmolStr>,
    entity: Option<Entity>,
    fix: String,
    note: String,
}

impl FeedbackQuestion {
    pub(super) fn check(&self) -> Result<Said, ApiError> {
        short("fix", &self.fix)?;
        short("note", &self.note)?;
        let said = Said {
            judgement: word("judgement", &self.judgement)?,
            cause: optional("cause", &self.cause, cause)?,
            entity: optional("entity", &self.entity, entity)?,
            fix: self.fix.clone(),
            note: self.note.clone(),
        };
        if said.judgement == Judgement::Right && (said.cause.is_some() || said.entity.is_some()) {
            let message = "what was right needs no other cause or entity: say `wrong`, or leave them out";
            return Err(ApiError::invalid("cause", message));
        }
        Ok(said)
    }
}

impl Said {
    /// The feedback on this finding, said at `at`.
    pub(super) fn about(self, finding: &Finding, at: UnixNanos) -> Result<Feedback, ApiError> {
        let named = finding.root_cause.as_ref().map(|root| Stated {
            cause: root.cause.clone(),
            entity: root.entity.clone(),
            probability: weighed(finding, &root.cause, &root.entity).unwrap_or(finding.confidence),
        });
        if named.is_none() && self.judgement == Judgement::Right {
            let message = "this finding names no cause: say `wrong` with the cause it was";
            return Err(ApiError::invalid("judgement", message));
        }
        let is_told = self.cause.is_some() || self.entity.is_some();
        let probability =
            self.cause.as_ref().and_then(|cause| stated(finding, cause)).map_or(Score::ZERO, Score::clamped);
        let actual = is_told.then_some(Actual { cause: self.cause, entity: self.entity, probability });
        Ok(Feedback {
            schema: SmolStr::new_static(FEEDBACK_SCHEMA),
            finding: finding.id,
            revision: finding.revision,
            cluster: finding.cluster.clone(),
            at,
            judgement: self.judgement,
            named,
            actual,
            fix: self.fix,
            note: self.note,
        })
    }
}

fn weighed(finding: &Finding, cause: &str, seat: &Entity) -> Option<Score> {
    let is_it = |h: &&Hypothesis| h.cause == cause && h.entity == *seat;
    finding.hypotheses.iter().find(is_it).map(|h| h.probability)
}

/// `<category>.<name>`.
fn cause(field: &'static str, text: &str) -> Result<SmolStr, ApiError> {
    name(field, text)?;
    match text.split_once('.') {
        Some((category, rest)) if !category.is_empty() && !rest.is_empty() => Ok(SmolStr::new(text)),
        _ => Err(ApiError::invalid(field, "expected `<category>.<name>`, such as `memory.leak`")),
    }
}

/// The name of a cause or a cluster; empty stands for all.
pub(super) fn name(field: &'static str, text: &str) -> Result<(), ApiError> {
    if text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control) {
        return Ok(());
    }
    Err(ApiError::invalid(
        field,
        format!("a name has at most {NAME_BYTES_MAX} bytes and no control characters"),
    ))
}

impl From<&LearntCause> for v1::LearntCause {
    fn from(learnt: &LearntCause) -> Self {
        Self {
            cluster: learnt.cluster.to_string(),
            cause: learnt.cause.to_string(),
            right: learnt.right,
            wrong: learnt.wrong,
            stated: learnt.stated,
            mean: learnt.mean,
            low: learnt.interval.0,
            high: learnt.interval.1,
            factor: learnt.factor,
        }
    }
}
