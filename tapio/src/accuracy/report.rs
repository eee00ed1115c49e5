//! What is told about a run: for people, and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::run::CaseRun;
use super::score::{Outcome, Score};
use super::totals::{Calibration, Row, Scored, calibration, median, rows, stated};

/// Everything that is told about one run over all cases.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Per system and kind.
    pub rows: Vec<Row>,
    /// Cases in which nothing was to be blamed, and how many of them were left alone.
    pub spared: (usize, usize),
    /// Of all answers.
    pub calibration: Calibration,
    /// Outside of the labelled faults.
    pub calm: Calm,
    /// Times real time at which cases were replayed on one core: the slowest and the median case.
    pub speed: Option<Speed>,
    /// Case by case.
    pub cases: Vec<CaseLine>,
}

/// Findings where no fault is labelled.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Calm {
    /// Hours with data outside of every labelled fault of the system.
    pub hours: f64,
    /// Confident findings first made there.
    pub findings: usize,
    /// Per hour.
    pub per_hour: Option<f64>,
}

/// Speed of replay: seconds of recording, minutes without data left out, per second of processor time.
#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    /// Of the median case.
    pub median: f64,
    /// Of the slowest case.
    pub least: f64,
    /// Processor time of all replays, seconds.
    pub cpu_seconds: f64,
}

/// One case in short.
#[derive(Debug, Clone, Serialize)]
pub struct CaseLine {
    /// Name.
    pub case: String,
    /// System.
    pub system: String,
    /// Kind of fault.
    pub kind: String,
    /// What was to be named; empty when nothing was.
    pub wanted: String,
    /// What was named.
    pub named: String,
    /// Stated confidence.
    pub confidence: f64,
    /// Entity, category and both at rank 1; for a case without a cause: left alone or not.
    pub right: (f64, f64, f64),
    /// Seconds to the first right answer.
    pub seconds: Option<f64>,
}

impl Report {
    /// Sums a run.
    pub fn of(runs: &[CaseRun]) -> Self {
        let scored: Vec<Scored<'_>> = runs.iter().map(|run| (&run.label, &run.outcome)).collect();
        let spared = runs.iter().filter_map(|run| match &run.outcome {
            Outcome::Spare(spared) => Some(spared.blamed.is_empty()),
            Outcome::Asked(_) => None,
        });
        let spared: Vec<bool> = spared.collect();
        Self {
            rows: rows(&scored),
            spared: (spared.len(), spared.iter().filter(|right| **right).count()),
            calibration: calibration(&stated(&scored)),
            calm: Calm::of(runs),
            speed: Speed::of(runs),
            cases: runs.iter().map(CaseLine::of).collect(),
        }
    }

    /// For people.
    pub fn human(&self) -> String {
        let mut out = String::new();
        let _ = self.write_human(&mut out);
        out
    }

    fn write_human(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:16} {:22} {:>5}  {:^17}  {:>8}  {:^17}  {:^11} {:>8} {:>6} {:>8} {:>6}",
            "system",
            "kind",
            "cases",
            "entity @1 @3 @5",
            "category",
            "both @1 @3 @5",
            "95 %",
            "answered",
            "silent",
            "unproven",
            "median"
        )?;
        for row in &self.rows {
            let [e1, e3, e5] = row.entity;
            let [b1, b3, b5] = row.both;
            let (low, high) = row.both_interval;
            writeln!(
                out,
                "{:16} {:22} {:5}  {e1:5.3} {e3:5.3} {e5:5.3}  {:8.3}  {b1:5.3} {b3:5.3} {b5:5.3}  {low:4.2}–{high:4.2}  {:8} {:6} {:8} {:>6}",
                row.system,
                row.kind,
                row.cases,
                row.category,
                row.answered,
                row.cases - row.answered,
                row.unproven,
                seconds(row.seconds_median)
            )?;
        }
        for line in self.cases.iter().filter(|line| line.right.2 < 1.0) {
            writeln!(
                out,
                "  miss {}: {} was named, wanted {}",
                line.case,
                or_nothing(&line.named),
                or_nothing(&line.wanted)
            )?;
        }
        let (spared, right) = self.spared;
        writeln!(out, "\nhealthy, recovered or not provable, left alone: {right} of {spared}")?;
        let others: usize =
            self.rows.iter().find(|row| row.kind == "all").map_or(0, |row| row.false_findings);
        writeln!(out, "confident findings of something else within the windows: {others}")?;
        let per_hour = self.calm.per_hour.map_or_else(|| "–".to_owned(), |rate| format!("{rate:.2}"));
        writeln!(
            out,
            "confident findings where no fault is labelled: {} in {:.1} h ({per_hour} per hour)",
            self.calm.findings, self.calm.hours
        )?;
        self.write_calibration(out)?;
        if let Some(speed) = &self.speed {
            writeln!(
                out,
                "replay on one core: median {:.0} times real time, slowest case {:.0} times, {:.1} s in all",
                speed.median, speed.least, speed.cpu_seconds
            )?;
        }
        Ok(())
    }

    fn write_calibration(&self, out: &mut String) -> std::fmt::Result {
        let figure = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        let (ece, brier) = (figure(self.calibration.ece), figure(self.calibration.brier));
        writeln!(out, "expected calibration error {ece}, Brier score {brier}")?;
        writeln!(out, "confidence  answers  stated  observed")?;
        for bin in &self.calibration.bins {
            writeln!(
                out,
                "{:.1}–{:.1}    {:8} {:7.2} {:9.2}",
                bin.from,
                bin.from + 0.1,
                bin.answers,
                bin.stated,
                bin.observed
            )?;
        }
        Ok(())
    }
}

/// Seconds, or a dash.
pub fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0} s"))
}

fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

impl Calm {
    fn of(runs: &[CaseRun]) -> Self {
        let hours = runs.iter().map(|run| run.calm_s).sum::<f64>() / 3600.0;
        let findings: usize = runs.iter().map(CaseRun::calm_findings).sum();
        Self { hours, findings, per_hour: (hours > 0.0).then(|| findings as f64 / hours) }
    }
}

impl Speed {
    fn of(runs: &[CaseRun]) -> Option<Self> {
        let speeds: Vec<f64> =
            runs.iter().filter_map(|run| Some(run.covered_s / run.cpu_s?.max(1e-9))).collect();
        Some(Self {
            median: median(speeds.iter().copied())?,
            least: speeds.iter().copied().min_by(f64::total_cmp)?,
            cpu_seconds: runs.iter().filter_map(|run| run.cpu_s).sum(),
        })
    }
}

impl CaseLine {
    fn of(run: &CaseRun) -> Self {
        let wanted: Vec<String> = run
            .label
            .roots
            .iter()
            .map(|root| {
                let categories: Vec<&str> = root.categories.iter().map(String::as_str).collect();
                format!("{} on {}", categories.join(" or "), root.entity.name())
            })
            .collect();
        let said = |cause: &super::revision::Cause| format!("{} on {}", cause.cause, cause.entity.name);
        let mut line = Self {
            case: run.label.case.clone(),
            system: run.label.system.clone(),
            kind: run.label.kind.clone(),
            wanted: wanted.join(", "),
            named: String::new(),
            confidence: 0.0,
            right: (0.0, 0.0, 0.0),
            seconds: None,
        };
        match &run.outcome {
            Outcome::Asked(Score { entity, category, both, named, confidence, seconds, .. }) => {
                line.named = named.as_ref().map(said).unwrap_or_default();
                line.confidence = *confidence;
                line.right = (entity[0], *category, both[0]);
                line.seconds = *seconds;
            }
            Outcome::Spare(spared) => {
                line.wanted = String::new();
                line.named = spared.blamed.iter().map(said).collect::<Vec<_>>().join(", ");
                let right = f64::from(u8::from(spared.blamed.is_empty()));
                line.right = (right, right, right);
            }
        }
        line
    }
}
