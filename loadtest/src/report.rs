//! What a load test says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::balance::Balance;
use crate::ceiling::Ceiling;
use crate::latency::Percentiles;
use crate::rig::process::Usage;
use crate::verdict::Verdict;

/// The figures, with the keys of the JSON object on the last line.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Events per second from the start to the last acknowledgement.
    pub published_per_s: f64,
    /// Events per second from the start until the correlator has taken the last one.
    pub processed_per_s: f64,
    /// Wire bytes per event.
    pub bytes_per_event: f64,
    /// Events not used, by `stage.reason`.
    pub dropped: BTreeMap<String, u64>,
    /// NATS alone, the same messages, mean of before and after.
    pub ceiling_bytes_per_s: f64,
    /// Bytes processed per second as a share of it.
    pub ratio: f64,
    /// From the event to the first that is heard of it: a first word, or the signal where none is due.
    pub latency_event_to_signal_ms: Percentiles,
    /// From the event to the arrival of the signal that names it, by which findings are decided.
    pub latency_event_to_binding_signal_ms: Percentiles,
    /// From a fault's first event to the arrival of the first finding that names its cause.
    pub latency_event_to_insight_ms: Percentiles,
    /// From the event that the cause follows from (of a crash loop the second end) to the same finding.
    pub latency_deciding_event_to_insight_ms: Percentiles,
    /// CPU seconds per million events, by process.
    pub cpu_seconds_per_million: BTreeMap<String, f64>,
    /// Largest resident set, by process.
    pub peak_rss_bytes: BTreeMap<String, u64>,
}

/// Everything that is told to people, and whether all is well.
#[derive(Debug)]
pub struct Report {
    /// What was run, in a line.
    pub title: String,
    /// The figures.
    pub figures: Figures,
    /// Counts.
    pub balance: Balance,
    /// Findings.
    pub verdict: Verdict,
    /// NATS alone before and after.
    pub ceilings: Vec<Ceiling>,
    /// Further lines: name and text.
    pub notes: Vec<(String, String)>,
    /// What else is wrong; makes the exit code 1.
    pub failures: Vec<String>,
}

impl Report {
    /// True when the balance is exact and the findings are those promised.
    pub fn is_good(&self) -> bool {
        self.balance.is_exact() && self.verdict.wrong.is_empty() && self.failures.is_empty()
    }

    /// The JSON object, on one line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.figures).unwrap_or_default()
    }

    /// For people.
    pub fn text(&self) -> String {
        let f = &self.figures;
        let mut out = format!("{}\n", self.title);
        let mut line = |name: &str, text: String| {
            let _ = writeln!(out, "  {name:<22} {text}");
        };
        line("published", format!("{:.0} events/s", f.published_per_s));
        line("processed", format!("{:.0} events/s", f.processed_per_s));
        line("wire size", format!("{:.1} bytes/event", f.bytes_per_event));
        let ceilings: Vec<String> =
            self.ceilings.iter().map(|c| format!("{:.1}", c.bytes_per_s / 1e6)).collect();
        if !ceilings.is_empty() {
            let mean = f.ceiling_bytes_per_s / 1e6;
            line("NATS alone", format!("{mean:.1} MB/s (runs: {})", ceilings.join(", ")));
            line("share of it", format!("{:.1} %", f.ratio * 100.0));
        }
        line("event → signal", percentiles(&f.latency_event_to_signal_ms));
        line("event → binding signal", percentiles(&f.latency_event_to_binding_signal_ms));
        line("event → finding", percentiles(&f.latency_event_to_insight_ms));
        line("deciding event → …", percentiles(&f.latency_deciding_event_to_insight_ms));
        for (name, seconds) in &f.cpu_seconds_per_million {
            let peak = f.peak_rss_bytes.get(name).map_or(0.0, |bytes| *bytes as f64 / 1048576.0);
            line(name, format!("{seconds:.3} CPU s per million events, peak {peak:.1} MiB"));
        }
        for (name, text) in &self.notes {
            line(name, text.clone());
        }
        line("balance", self.balance.to_string());
        let verdict = &self.verdict;
        line("findings", format!("{} of {} faults found, once each", verdict.right, verdict.faults));
        verdict.own.iter().for_each(|title| line("of itself", title.clone()));
        verdict.machine.iter().for_each(|says| line("of this machine", says.clone()));
        for wrong in &verdict.wrong {
            line("WRONG", wrong.to_string());
        }
        for failure in &self.failures {
            line("WRONG", failure.clone());
        }
        let end = match (self.balance.is_exact(), self.is_good()) {
            (true, true) => "Every injected fault was found exactly once, and the balance is exact.",
            (true, false) => "The balance is exact, but not everything is as it has to be.",
            (false, _) => "THE BALANCE IS NOT EXACT.",
        };
        let _ = writeln!(out, "{end}");
        out
    }
}

fn percentiles(p: &Percentiles) -> String {
    match (p.p50, p.p99, p.p999) {
        (Some(p50), Some(p99), Some(p999)) => {
            format!("p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms")
        }
        _ => "not measured".to_owned(),
    }
}

/// CPU seconds per million events and peak sizes, by process.
pub fn costs(
    before: &[(&'static str, Usage)],
    after: &[(&'static str, Usage)],
    events: u64,
) -> (BTreeMap<String, f64>, BTreeMap<String, u64>) {
    let mut cpu = BTreeMap::new();
    let mut peak = BTreeMap::new();
    for (name, usage) in after {
        let used = before.iter().find(|(known, _)| known == name).map_or(Duration::ZERO, |(_, u)| u.cpu);
        let seconds = usage.cpu.saturating_sub(used).as_secs_f64();
        cpu.insert((*name).to_owned(), rounded(seconds * 1e6 / events.max(1) as f64));
        peak.insert((*name).to_owned(), usage.peak_rss_bytes);
    }
    (cpu, peak)
}

/// Four digits after the point.
pub fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
