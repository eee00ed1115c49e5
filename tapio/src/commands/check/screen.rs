//! The answer for people.

use std::fmt::Write as _;

use tapio_schemas::Finding;
use tapio_schemas::finding::Status;

use crate::render;
use crate::verdict::Answer;

/// Findings beside the first one, and recovered ones, on the one screen of the answer.
const LINES_MAX: usize = 10;
/// Gaps on the one screen.
const GAPS_SHOWN_MAX: usize = 3;

/// What an answer says without its times: two with the same gist are no news of each other.
pub fn gist(answer: &Answer) -> String {
    let mut out = format!("{} {:?}", answer.verdict, answer.reason);
    for finding in answer.findings.iter().chain(&answer.recovered) {
        let _ = write!(out, "\n{} {}", finding.status, finding.title);
    }
    for log in &answer.logs {
        let _ = write!(out, "\n{} {:?}", log.container, log.lines);
    }
    out
}

/// The answer for people: at most a screen, unless all is asked for.
pub fn human(answer: &Answer, all: bool) -> String {
    let mut out = String::new();
    let shown = if all { usize::MAX } else { LINES_MAX };
    match (answer.findings.split_first(), &answer.reason) {
        (Some((worst, others)), reason) => {
            let said = render::last_words(worst, &answer.logs);
            let _ = writeln!(out, "{}{said}", render::story(worst));
            lines(&mut out, "also", others, shown);
            if let Some(reason) = reason {
                let _ = writeln!(out, "not up to date: {reason}");
            }
        }
        (None, Some(reason)) => {
            let _ = writeln!(out, "not provable: {reason}");
        }
        (None, None) => {
            let judged = match answer.freshness.age_ms {
                Some(age) => format!("everything up to {} s ago is judged", age / 1000),
                None => format!("everything up to {} is judged", answer.freshness.watermark),
            };
            let _ = match answer.verdict {
                Status::Recovered => writeln!(out, "recovered: nothing is wrong now, {judged}"),
                _ => writeln!(out, "healthy: nothing is wrong, {judged}"),
            };
        }
    }
    lines(&mut out, "recovered", &answer.recovered, shown);
    let gaps = answer.freshness.gaps.iter().filter(|gap| Some(*gap) != answer.reason.as_ref());
    let gaps: Vec<_> = gaps.collect();
    let gaps_shown = if all { usize::MAX } else { GAPS_SHOWN_MAX };
    for gap in gaps.iter().take(gaps_shown) {
        let _ = writeln!(out, "incomplete: {gap}");
    }
    more(&mut out, gaps.len(), gaps_shown);
    out
}

fn lines(out: &mut String, label: &str, findings: &[Finding], shown: usize) {
    for finding in findings.iter().take(shown) {
        let _ = writeln!(out, "{label}: {}", render::line(finding));
    }
    more(out, findings.len(), shown);
}

fn more(out: &mut String, count: usize, shown: usize) {
    if count > shown {
        let _ = writeln!(out, "and {} more: tapio check --all", count - shown);
    }
}
