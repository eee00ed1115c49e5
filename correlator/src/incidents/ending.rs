//! Last revisions: what is said of a finding that is no longer followed.
//!
//! `recovered` is said only when the signs of it have ended or fallen silent. What is dropped for another reason is
//! `not_provable` from then on: what was found stays told, whether it goes on is not known.

use tapio_schemas::finding::{Finding, Prediction, Status};
use tapio_schemas::{FindingId, UnixNanos};

use crate::model::clock_time;

/// True when nothing more needs to be said of it.
pub fn is_over(status: Status) -> bool {
    matches!(status, Status::Recovered | Status::Superseded | Status::Healthy)
}

/// It is part of `other`, whose title is given.
pub fn superseded(last: Finding, other: FindingId, title: &str, now: UnixNanos) -> Finding {
    let story = format!("This is part of another incident ({other}): {title}.");
    Finding { status: Status::Superseded, superseded_by: Some(other), story, ..as_of(last, now) }
}

/// It cannot be followed any more. `why` completes a sentence: "… is not known: <why>".
pub fn lost(last: Finding, why: &str, now: UnixNanos) -> Finding {
    let said = last.story.trim_end();
    let story = format!("{said} Whether it goes on is not known: {why}.").trim_start().to_owned();
    Finding { status: Status::NotProvable, superseded_by: None, story, ..as_of(last, now) }
}

/// Nothing of it was seen for so long that it counts as over.
pub fn silent(last: Finding, now: UnixNanos) -> Finding {
    let since = clock_time(last.updated_at);
    let said = last.story.trim_end();
    let story = format!("{said} Nothing of it was seen after {since}, so it counts as over.");
    let story = story.trim_start().to_owned();
    Finding { status: Status::Recovered, superseded_by: None, story, ..as_of(last, now) }
}

fn as_of(mut finding: Finding, now: UnixNanos) -> Finding {
    // What is not followed is not foretold; what was scored stays.
    let is_scored = |p: &Prediction| p.outcome.as_deref().is_some_and(|o| o != "pending");
    finding.prediction = finding.prediction.filter(is_scored);
    finding.predictions.retain(is_scored);
    finding.freshness.watermark = now;
    finding.emitted_at = now;
    finding.revision += 1;
    finding
}
