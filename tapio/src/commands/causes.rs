//! `tapio causes`: what outcomes say of each cause.

use serde::Serialize;
use tapio_correlator::model::Model;
use tapio_schemas::proto::v1 as api;

use crate::cli::{CausesArgs, Output};
use crate::client::{Client, said};

/// One cause in one cluster.
#[derive(Debug, Serialize)]
struct Line {
    cause: String,
    cluster: String,
    /// Of the model that comes with this build; `None` for a cause it does not have.
    prior: Option<f64>,
    right: f64,
    wrong: f64,
    /// Mean probability the findings had stated; `None` without outcomes.
    stated: Option<f64>,
    posterior: Option<Posterior>,
    /// On the odds of the prior.
    factor: f64,
}

/// Of being right.
#[derive(Debug, Serialize)]
struct Posterior {
    mean: f64,
    /// 90 % of it.
    interval: (f64, f64),
}

/// Prints or resets.
pub async fn run(args: CausesArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let cluster = args.cluster.unwrap_or_default();
    if let Some(cause) = args.reset {
        let request = api::ResetCausesRequest { cluster, cause };
        let answer = client.correlation.reset_causes(request).await.map_err(said)?.into_inner();
        match args.output {
            Output::Human => println!("{} causes are as if nothing had been learnt", answer.causes),
            Output::Json | Output::Jsonl => println!("{{\"causes\":{}}}", answer.causes),
        }
        return Ok(0);
    }
    let request = api::ListCausesRequest { cluster };
    let learnt = client.correlation.list_causes(request).await.map_err(said)?.into_inner().causes;
    let lines = lines(learnt, args.all)?;
    match args.output {
        Output::Human => print!("{}", human(&lines)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&lines)?),
        Output::Jsonl => {
            for line in &lines {
                println!("{}", serde_json::to_string(line)?);
            }
        }
    }
    Ok(0)
}

fn lines(learnt: Vec<api::LearntCause>, all: bool) -> anyhow::Result<Vec<Line>> {
    let model = Model::builtin()?;
    let mut lines: Vec<Line> = learnt
        .into_iter()
        .map(|learnt| Line {
            prior: model.pattern(&learnt.cause).map(|pattern| pattern.prior),
            cause: learnt.cause,
            cluster: learnt.cluster,
            right: learnt.right,
            wrong: learnt.wrong,
            stated: Some(learnt.stated),
            posterior: Some(Posterior { mean: learnt.mean, interval: (learnt.low, learnt.high) }),
            factor: learnt.factor,
        })
        .collect();
    if all {
        for pattern in model.patterns() {
            if lines.iter().any(|line| line.cause == pattern.id) {
                continue;
            }
            lines.push(Line {
                cause: pattern.id.to_string(),
                cluster: String::new(),
                prior: Some(pattern.prior),
                right: 0.0,
                wrong: 0.0,
                stated: None,
                posterior: None,
                factor: 1.0,
            });
        }
    }
    lines.sort_by(|a, b| (&a.cause, &a.cluster).cmp(&(&b.cause, &b.cluster)));
    Ok(lines)
}

fn human(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "nothing has been learnt yet: tapio feedback ID --right or --wrong; all causes: --all\n"
            .to_owned();
    }
    let mut out = format!(
        "{:<28} {:<12} {:>6} {:>6} {:>6} {:>7}  {:<19} {:>7}\n",
        "cause", "cluster", "prior", "right", "wrong", "stated", "right in (90 %)", "factor"
    );
    for line in lines {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let posterior = line.posterior.as_ref().map_or_else(
            || "-".to_owned(),
            |p| format!("{:.2} ({:.2}–{:.2})", p.mean, p.interval.0, p.interval.1),
        );
        out.push_str(&format!(
            "{:<28} {:<12} {:>6} {:>6} {:>6} {:>7}  {posterior:<19} {:>7.2}\n",
            line.cause,
            line.cluster,
            number(line.prior),
            line.right,
            line.wrong,
            number(line.stated),
            line.factor
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(cause: &str) -> api::LearntCause {
        api::LearntCause {
            cause: cause.into(),
            cluster: "prod".into(),
            right: 2.0,
            wrong: 1.0,
            stated: 0.8,
            mean: 0.7,
            low: 0.4,
            high: 0.9,
            factor: 0.6,
        }
    }

    #[test]
    fn a_cause_shows_its_prior_its_outcomes_and_its_posterior() {
        let shown = human(&lines(vec![learnt("memory.leak")], false).unwrap());
        assert_eq!(shown.lines().count(), 2, "{shown}");
        let words: Vec<_> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words[..2], ["memory.leak", "prod"]);
        assert_eq!(words[3..], ["2", "1", "0.800", "0.70", "(0.40–0.90)", "0.60"]);
    }

    #[test]
    fn all_causes_are_those_of_the_model_and_those_with_outcomes() {
        let all = lines(vec![learnt("own.cause"), learnt("memory.leak")], true).unwrap();
        assert_eq!(all.len(), Model::builtin().unwrap().patterns().len() + 1);
        assert!(all.iter().any(|line| line.cause == "own.cause" && line.prior.is_none()));
        assert!(human(&[]).contains("nothing has been learnt"));
    }
}
