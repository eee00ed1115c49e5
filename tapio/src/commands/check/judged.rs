//! From what a dump or a cluster's lists say to an answer, through the correlator in this process.

use std::collections::{BTreeMap, BTreeSet};

use tapio_agents::collectors::kubernetes::Snapshot;
use tapio_agents::collectors::kubernetes::snapshot::{Named, WINDOW_NS};
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::config::HumanDuration;
use tapio_schemas::finding::Status;
use tapio_schemas::{Finding, FindingId, UnixNanos};

use super::about::About;
use crate::recording::{Replay, ReplaySettings};
use crate::verdict::{Answer, Freshness, RECOVERED_TOLD_FOR};

/// Cluster that a dump is taken for: it does not say its name.
pub const CLUSTER: &str = "local";

/// Between two looks at what goes on, before the end.
const LOOK: HumanDuration = HumanDuration::from_secs(60);

/// What is missing.
#[derive(Debug, Default)]
pub struct Holes {
    /// Without this nothing can be called healthy.
    pub blind: Option<String>,
    /// All that is missing, in words.
    pub gaps: Vec<String>,
}

/// Judges a snapshot as of `now`.
pub fn snapshot(
    snapshot: Snapshot,
    now: UnixNanos,
    about: &About,
    mut holes: Holes,
) -> anyhow::Result<Answer> {
    if snapshot.left_out() > 0 {
        let left_out = format!("{} objects beyond the limit were left out", snapshot.left_out());
        holes.blind.get_or_insert_with(|| left_out.clone());
        holes.gaps.push(left_out);
    }
    let absent = about.absent_from(&snapshot);
    let selected = snapshot.selected().clone();
    let mut replay = Replay::new(&settings())?;
    let mut latest = Latest::default();
    replay.run_events(snapshot.into_events(CLUSTER, now), now, |finding| latest.take(finding))?;
    let mut answer = answer(latest, now, about, &selected, holes);
    // What is not there can still be a cause: a Service that was deleted, a ServiceAccount that a pod names.
    if let Some(absent) = absent.filter(|_| answer.findings.is_empty() && answer.recovered.is_empty()) {
        answer.freshness.gaps.push(absent.clone());
        answer.reason.get_or_insert(absent);
        answer.judge_again();
    }
    Ok(answer)
}

/// A snapshot tells once what belongs to what; that holds for its whole window.
fn settings() -> ReplaySettings {
    let mut correlator = CorrelatorConfig::default();
    correlator.incidents.edge_memory = HumanDuration::from_secs(2 * WINDOW_NS / 1_000_000_000);
    // Only the last word is asked for.
    correlator.incidents.look = LOOK;
    ReplaySettings { cluster: CLUSTER.to_owned(), correlator }
}

/// Last revision of each finding.
#[derive(Default)]
pub struct Latest(BTreeMap<FindingId, Finding>);

impl Latest {
    /// Revisions come in order.
    pub fn take(&mut self, finding: Finding) -> anyhow::Result<()> {
        self.0.insert(finding.id, finding);
        Ok(())
    }
}

/// The answer as of `now`.
pub fn answer(
    latest: Latest,
    now: UnixNanos,
    about: &About,
    selected: &BTreeSet<Named>,
    holes: Holes,
) -> Answer {
    let since = now.minus(RECOVERED_TOLD_FOR.as_nanos() as u64);
    let (mut findings, mut recovered) = (Vec::new(), Vec::new());
    for finding in latest.0.into_values().filter(|finding| about.concerns(finding, selected)) {
        match finding.status {
            Status::Active | Status::NotProvable => findings.push(finding),
            Status::Recovered if finding.updated_at >= since => recovered.push(finding),
            Status::Recovered | Status::Healthy | Status::Superseded => {}
        }
    }
    recovered.sort_by_key(|finding| std::cmp::Reverse(finding.updated_at));
    let freshness = Freshness { watermark: now, age_ms: None, gaps: holes.gaps, clusters: Vec::new() };
    let (reason, logs) = (holes.blind, Vec::new());
    let mut answer = Answer { verdict: Status::Healthy, reason, findings, recovered, freshness, logs };
    answer.judge_again();
    answer
}
