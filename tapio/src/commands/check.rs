//! `tapio check`: what is wrong now.

use std::fmt::Write as _;

use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::finding::Status;
use tapio_schemas::{Finding, UnixNanos};

use crate::cli::{CheckArgs, Output};
use crate::client::{Client, Question};
use crate::exit::{CANNOT_TELL, FINDINGS};
use crate::render;
use crate::verdict::{Answer, Known, RECOVERED_TOLD_FOR, judge};

/// Findings beside the first one, and recovered ones, on the one screen of the answer.
const LINES_MAX: usize = 10;
/// Gaps on the one screen.
const GAPS_SHOWN_MAX: usize = 3;

/// Asks the instance, prints the answer, returns the exit code.
pub async fn run(args: CheckArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let answer = judge(ask(&mut client, args.entity.as_deref().unwrap_or("")).await?);
    match args.output {
        Output::Human => print!("{}", human(&answer, args.all)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&answer)?),
    }
    Ok(exit_code(&answer))
}

fn exit_code(answer: &Answer) -> i32 {
    match answer.verdict {
        _ if !answer.findings.is_empty() => FINDINGS,
        Status::Healthy | Status::Recovered => 0,
        _ => CANNOT_TELL,
    }
}

/// The freshness of the first answer counts: what is judged up to there is in the ones that follow.
async fn ask(client: &mut Client, entity: &str) -> anyhow::Result<Known> {
    let question =
        |status: Status, since| Question { entity, status: status.as_str(), since, with_prediction: false };
    let mut active = client.list(question(Status::Active, UnixNanos(0))).await?;
    let not_provable = client.list(question(Status::NotProvable, UnixNanos(0))).await?;
    let now = UnixNanos(SystemClock::new().now_unix_nanos());
    let since = now.minus(RECOVERED_TOLD_FOR.as_nanos() as u64);
    let recovered = client.list(question(Status::Recovered, since)).await?;
    active.findings.extend(not_provable.findings);
    Ok(Known {
        open: newest_revisions(active.findings),
        recovered: recovered.findings,
        clusters: active.clusters,
        gaps: active.gaps,
    })
}

/// A finding may change its status between two questions.
fn newest_revisions(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| (finding.id, std::cmp::Reverse(finding.revision)));
    findings.dedup_by_key(|finding| finding.id);
    findings
}

fn human(answer: &Answer, all: bool) -> String {
    let mut out = String::new();
    let shown = if all { usize::MAX } else { LINES_MAX };
    match (answer.findings.split_first(), &answer.reason) {
        (Some((worst, others)), reason) => {
            let _ = writeln!(out, "{}", render::story(worst));
            lines(&mut out, "also", others, shown);
            if let Some(reason) = reason {
                let _ = writeln!(out, "not up to date: {reason}");
            }
        }
        (None, Some(reason)) => {
            let _ = writeln!(out, "not provable: {reason}");
        }
        (None, None) => {
            let age = answer.freshness.age_ms.unwrap_or_default() / 1000;
            let judged = format!("everything up to {age} s ago is judged");
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
