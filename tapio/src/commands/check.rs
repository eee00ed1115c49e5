//! `tapio check`: what is wrong now.

use serde::Serialize;
use tapio_schemas::finding::{Freshness, Status};
use tapio_schemas::{Finding, UnixNanos};

use crate::cli::{CheckArgs, Output};
use crate::client::Client;
use crate::exit::FINDINGS;
use crate::render;

/// The answer, as `--output json` prints it.
#[derive(Debug, Serialize)]
struct Answer {
    verdict: Status,
    findings: Vec<Finding>,
    freshness: Freshness,
}

/// Asks the instance, prints the answer, returns the exit code.
pub async fn run(args: CheckArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let answer = judge(client.list(args.entity.as_deref().unwrap_or(""), "").await?);
    match args.output {
        Output::Human => print_human(&answer),
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&answer)?),
    }
    Ok(if answer.findings.is_empty() { 0 } else { FINDINGS })
}

/// Only what goes on counts as a finding; a past one turns "healthy" into "recovered".
fn judge(all: Vec<Finding>) -> Answer {
    let freshness = Freshness {
        watermark: all.iter().map(|f| f.freshness.watermark).max().unwrap_or(UnixNanos(0)),
        gaps: all.iter().flat_map(|f| f.freshness.gaps.iter().cloned()).collect(),
    };
    let recovered = all.iter().any(|f| f.status == Status::Recovered);
    let mut findings: Vec<Finding> =
        all.into_iter().filter(|f| matches!(f.status, Status::Active | Status::NotProvable)).collect();
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(b.updated_at.cmp(&a.updated_at)));
    let verdict = if findings.iter().any(|f| f.status == Status::Active) {
        Status::Active
    } else if !findings.is_empty() {
        Status::NotProvable
    } else if recovered {
        Status::Recovered
    } else {
        Status::Healthy
    };
    Answer { verdict, findings, freshness }
}

fn print_human(answer: &Answer) {
    match answer.verdict {
        Status::Healthy => println!("healthy: nothing that is known with a confidence above 0.7 goes on"),
        Status::Recovered | Status::Superseded => {
            println!("recovered: nothing is wrong now; `tapio watch --stored` shows what was")
        }
        Status::Active | Status::NotProvable => {
            for (i, finding) in answer.findings.iter().enumerate() {
                if i == 0 {
                    println!("{}", render::story(finding));
                } else {
                    println!("also: {}", render::line(finding));
                }
            }
        }
    }
}
