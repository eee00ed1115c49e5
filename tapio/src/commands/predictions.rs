//! `tapio predictions`: what was foretold, whether it came, and whether the intervals hold what they promise.

use serde::Serialize;
use tapio_schemas::finding::Prediction;
use tapio_schemas::{Entity, Finding, UnixNanos};

use crate::cli::{Output, PredictionsArgs};
use crate::client::{Client, Question};
use crate::render;

/// Share of truths that an interval promises to contain.
const PROMISED: f64 = 0.9;
/// Outcomes of predictions that could be scored; the first one is within the interval.
const SCORED: [&str; 3] = ["hit", "early", "miss"];

/// A prediction with the finding that made it.
#[derive(Debug, Serialize)]
struct Line {
    finding: String,
    cause: Option<String>,
    entity: Option<Entity>,
    #[serde(flatten)]
    prediction: Prediction,
}

/// How many intervals contained the truth.
#[derive(Debug, Serialize)]
struct Coverage {
    promised: f64,
    /// Predictions whose time has come.
    scored: usize,
    /// Those that came within their interval.
    inside: usize,
    /// Mean of (stated probability − whether it came)²: 0 is best, 0.25 is a coin.
    brier: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Answer {
    predictions: Vec<Line>,
    coverage: Coverage,
}

/// Asks the instance and prints, newest first.
pub async fn run(args: PredictionsArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let question = Question { entity: "", status: "", since: UnixNanos(0), with_prediction: true };
    let answer = answer(client.list(question).await?.findings, args.scored);
    match args.output {
        Output::Human => print!("{}", human(&answer)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Jsonl => {
            for line in &answer.predictions {
                println!("{}", serde_json::to_string(line)?);
            }
        }
    }
    Ok(0)
}

fn is_scored(prediction: &Prediction) -> bool {
    prediction.outcome.as_ref().is_some_and(|outcome| SCORED.contains(&outcome.as_str()))
}

fn answer(findings: Vec<Finding>, only_scored: bool) -> Answer {
    let mut predictions: Vec<Line> = findings.iter().flat_map(lines).collect();
    predictions.retain(|line| !only_scored || is_scored(&line.prediction));
    Answer { coverage: coverage(&predictions), predictions }
}

/// What a finding foretells, each of the entity that it is about.
fn lines(finding: &Finding) -> impl Iterator<Item = Line> {
    finding.foretold().map(|prediction| Line {
        finding: finding.id.to_string(),
        cause: finding.root_cause.as_ref().map(|root| root.cause.to_string()),
        entity: prediction.entity.as_ref().or(finding.entity()).cloned(),
        prediction: Prediction { entity: None, ..prediction.clone() },
    })
}

fn coverage(lines: &[Line]) -> Coverage {
    let scored: Vec<&Prediction> =
        lines.iter().map(|line| &line.prediction).filter(|prediction| is_scored(prediction)).collect();
    let outcome_is = |prediction: &Prediction, word: &str| prediction.outcome.as_deref() == Some(word);
    let error = |prediction: &Prediction| {
        let came = if prediction.came()? { 1.0 } else { 0.0 };
        Some((prediction.probability.get() - came).powi(2))
    };
    let errors: Vec<f64> = lines.iter().filter_map(|line| error(&line.prediction)).collect();
    let brier = errors.iter().sum::<f64>() / errors.len() as f64;
    Coverage {
        promised: PROMISED,
        scored: scored.len(),
        inside: scored.iter().filter(|prediction| outcome_is(prediction, SCORED[0])).count(),
        brier: (!errors.is_empty()).then_some(brier),
    }
}

fn human(answer: &Answer) -> String {
    let mut out = String::new();
    for line in &answer.predictions {
        let prediction = &line.prediction;
        let (from, to) = (render::clock(prediction.interval.0), render::clock(prediction.interval.1));
        let place = line.entity.as_ref().map(ToString::to_string).unwrap_or_default();
        out.push_str(&format!(
            "{} {:<19} {:<8} in {place}, between {from} and {to}, probability {:.2} ({})\n",
            prediction.at,
            prediction.scenario.replace('_', " "),
            prediction.outcome.as_deref().unwrap_or("pending"),
            prediction.probability.get(),
            line.finding,
        ));
    }
    let Coverage { promised, scored, inside, brier } = &answer.coverage;
    match brier {
        Some(brier) => out.push_str(&format!(
            "{inside} of {scored} came within an interval that promised {:.0} %; Brier score {brier:.3}\n",
            promised * 100.0
        )),
        None => out.push_str("no prediction has been scored yet\n"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::Score;

    fn line(outcome: &str, probability: f64) -> Line {
        Line {
            finding: "fnd-1".into(),
            cause: None,
            entity: None,
            prediction: Prediction {
                entity: None,
                scenario: "oom_kill".into(),
                probability: Score::clamped(probability),
                at: UnixNanos(5),
                interval: (UnixNanos(4), UnixNanos(6)),
                outcome: Some(outcome.into()),
            },
        }
    }

    #[test]
    fn errors_that_stop_use_up_no_budget_which_the_probability_was_about() {
        let mut budget = line("not_due", 0.3);
        assert_eq!(coverage(std::slice::from_ref(&budget)).brier, None);
        budget.prediction.scenario = tapio_schemas::finding::SCENARIO_BUDGET.into();
        let found = coverage(&[budget]);
        assert_eq!((found.scored, found.inside), (0, 0), "no interval was tried");
        assert!((found.brier.unwrap() - 0.09).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn coverage_counts_what_could_be_scored() {
        let lines: Vec<Line> =
            ["hit", "hit", "early", "miss", "pending", "not_due"].map(|outcome| line(outcome, 0.8)).into();
        let found = coverage(&lines);
        assert_eq!((found.scored, found.inside), (4, 2));
        // Three came at 0.8, one did not.
        assert!((found.brier.unwrap() - (3.0 * 0.04 + 0.64) / 4.0).abs() < 1e-9, "{found:?}");
        let shown = human(&Answer { predictions: lines, coverage: found });
        assert!(
            shown.ends_with("2 of 4 came within an interval that promised 90 %; Brier score 0.190\n"),
            "{shown}"
        );
        assert_eq!(coverage(&[line("pending", 0.5)]).brier, None);
    }
}
