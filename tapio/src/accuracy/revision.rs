//! The part of a published finding that is scored.

use anyhow::Context;
use serde::Deserialize;
use tapio_schemas::UnixNanos;

use super::label::category;
use super::matching::Named;

/// One revision of a finding, read from the line that `tapio replay --output jsonl` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Revision {
    /// Finding.
    pub id: String,
    /// Where it stands.
    #[serde(default)]
    pub status: String,
    /// Stated probability that the root cause is right.
    #[serde(default)]
    pub confidence: f64,
    /// When it was made.
    pub emitted_at: UnixNanos,
    /// When it was opened.
    pub opened_at: Option<UnixNanos>,
    /// The cause that is named.
    pub root_cause: Option<Cause>,
    /// What was weighed.
    hypotheses: Option<Vec<Weighed>>,
}

/// A cause and its seat.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Where.
    pub entity: Named,
    /// `<category>.<name>`.
    pub cause: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Weighed {
    #[serde(default)]
    entity: Named,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    probability: f64,
}

/// A hypothesis with its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where and what.
    pub cause: Cause,
    /// Probability.
    pub probability: f64,
}

impl Row {
    /// Category of the cause.
    pub fn category(&self) -> &str {
        category(&self.cause.cause)
    }
}

impl Revision {
    /// Reads all lines of findings; other lines are passed over.
    pub fn read_all(text: &str) -> anyhow::Result<Vec<Self>> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| line.starts_with('{'));
        lines
            .map(|(at, line)| {
                serde_json::from_str(line).with_context(|| format!("line {} is no finding", at + 1))
            })
            .collect()
    }

    /// Name of what it blames; empty when nothing is.
    pub fn names(&self) -> &str {
        self.root_cause.as_ref().map_or("", |cause| cause.entity.name.as_str())
    }

    /// Unix time at which it was made, in seconds, as exact as a microsecond.
    pub fn at(&self) -> f64 {
        (self.emitted_at.0 / 1000) as f64 / 1e6
    }

    /// True while it goes on and names a cause.
    pub fn is_active(&self) -> bool {
        self.status == "active"
    }

    /// What it says, most probable first.
    pub fn ranked(&self) -> Vec<Row> {
        let weighed = self.hypotheses.iter().flatten();
        let mut rows: Vec<Row> = weighed
            .map(|h| Row {
                cause: Cause { entity: h.entity.clone(), cause: h.cause.clone() },
                probability: h.probability,
            })
            .collect();
        if rows.is_empty() {
            rows.extend(self.root_cause.clone().map(|cause| Row { cause, probability: self.confidence }));
        }
        rows.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        rows
    }
}
