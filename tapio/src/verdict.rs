//! From what the instance knows to one verdict. Pure: the time is given.

use std::time::Duration;

use serde::Serialize;
use tapio_schemas::entity::kinds;
use tapio_schemas::finding::Status;
use tapio_schemas::proto::v1::ClusterFreshness;
use tapio_schemas::{Entity, Finding, FindingId, UnixNanos};
use tapio_storage::freshness::ClusterFreshness as FreshCluster;

/// All is only called well when everything up to so long ago has been judged.
pub const WATERMARK_AGE_MAX: Duration = Duration::from_secs(60);
/// What recovered in this time is still told.
pub const RECOVERED_TOLD_FOR: Duration = Duration::from_secs(15 * 60);

/// What the instance knows now.
#[derive(Debug, Default)]
pub struct Known {
    /// Active and not provable findings.
    pub open: Vec<Finding>,
    /// What recovered lately.
    pub recovered: Vec<Finding>,
    /// How far the correlators are.
    pub clusters: Vec<ClusterFreshness>,
    /// What the store itself may lack.
    pub gaps: Vec<String>,
    /// What was asked for, when nothing is known of it.
    pub unheard: Option<String>,
}

/// The answer, as `--output json` prints it.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// `active`, `not_provable`, `recovered` or `healthy`.
    pub verdict: Status,
    /// Why it cannot be said that all is well, beside the findings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What goes on, worst first.
    pub findings: Vec<Finding>,
    /// What recovered lately, newest first.
    pub recovered: Vec<Finding>,
    /// Up to when this is complete.
    pub freshness: Freshness,
    /// What failing containers said last, of those that findings are about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<ContainerLog>,
}

/// The last lines of a container that a finding is about.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerLog {
    /// The finding.
    pub finding: FindingId,
    /// Namespace of the pod.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container.
    pub container: String,
    /// Whether they are of the life before the present one; nothing where it is only known that the life has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<bool>,
    /// Oldest first; secrets are masked, lines alike but for numbers are told once, the last one with the count.
    pub lines: Vec<String>,
}

/// Up to when an answer is complete, over all clusters.
#[derive(Debug, Serialize)]
pub struct Freshness {
    /// Event time up to which everything is judged in every cluster; the epoch when nothing is.
    pub watermark: UnixNanos,
    /// Its age in milliseconds, by the clock of the instance; nothing when there is none.
    pub age_ms: Option<u64>,
    /// Holes, in words.
    pub gaps: Vec<String>,
    /// Each cluster.
    pub clusters: Vec<FreshCluster>,
}

impl Answer {
    /// Puts the worst first and says the verdict of what is there: what goes on counts; then whether anyone would know;
    /// then what was.
    pub fn judge_again(&mut self) {
        self.findings.sort_by(|a, b| {
            let rank = |f: &Finding| (f.severity, f.status == Status::Active, f.updated_at);
            rank(b).cmp(&rank(a))
        });
        self.verdict = if self.findings.iter().any(|finding| finding.status == Status::Active) {
            Status::Active
        } else if !self.findings.is_empty() || self.reason.is_some() {
            Status::NotProvable
        } else if !self.recovered.is_empty() {
            Status::Recovered
        } else {
            Status::Healthy
        };
    }
}

/// The answer of what is known.
pub fn judge(known: Known) -> Answer {
    let (reason, freshness) = (blind(&known), freshness(&known));
    let (findings, recovered) = (known.open, known.recovered);
    let mut answer =
        Answer { verdict: Status::Healthy, reason, findings, recovered, freshness, logs: Vec::new() };
    answer.judge_again();
    answer
}

/// Kinds of which an instance knows each that runs; the empty one is that of a bare name.
const RUNNING_KINDS: [&str; 7] =
    ["", kinds::POD, kinds::NODE, kinds::SERVICE, "Deployment", "StatefulSet", "DaemonSet"];

/// Whether an instance knows all of this kind that run: others (a HorizontalPodAutoscaler, a Namespace) it knows only when
/// something happens to them.
pub fn is_of_what_runs(wanted: &Entity) -> bool {
    RUNNING_KINDS.iter().any(|kind| wanted.kind.eq_ignore_ascii_case(kind))
}

/// What is said of a name that nobody who may know it knows.
pub fn unknown(name: &str) -> String {
    format!("nothing is known of {name}: is it spelt so, and does anything of it run?")
}

/// Why something may go on that is not known; `None` when everything is judged and told.
fn blind(known: &Known) -> Option<String> {
    if let Some(gap) = known.gaps.first() {
        return Some(gap.clone());
    }
    if known.clusters.is_empty() {
        return Some("no correlator has ever said how far it is: does one run?".to_owned());
    }
    let oldest = known.clusters.iter().min_by_key(|cluster| cluster.watermark_unix_nano)?;
    let place = |cluster: &ClusterFreshness| match known.clusters.len() {
        1 => String::new(),
        _ => format!(" in cluster {}", cluster.cluster),
    };
    if Duration::from_millis(oldest.age_ms) < WATERMARK_AGE_MAX {
        if let Some(silent) = known.clusters.iter().find(|cluster| cluster.silent) {
            let place = place(silent);
            return Some(format!("no event has come{place} in the last minute: is an agent running?"));
        }
        let unheard = known.unheard.as_ref()?;
        return Some(unknown(unheard));
    }
    let place = place(oldest);
    Some(match oldest.watermark_unix_nano {
        0 if oldest.at_unix_nano == 0 => {
            format!("agents speak{place} and no correlator says how far it is: does one run?")
        }
        0 => format!("no event has been judged yet{place}: is an agent running?"),
        since => {
            format!("no event has been judged{place} since {}: is an agent running?", UnixNanos(since))
        }
    })
}

fn freshness(known: &Known) -> Freshness {
    let several = known.clusters.len() > 1;
    let told = |cluster: &ClusterFreshness, gap: &String| {
        if several { format!("{}: {gap}", cluster.cluster) } else { gap.clone() }
    };
    let of_clusters = known.clusters.iter().flat_map(|c| c.gaps.iter().map(move |gap| told(c, gap)));
    Freshness {
        watermark: known.clusters.iter().map(|c| UnixNanos(c.watermark_unix_nano)).min().unwrap_or_default(),
        age_ms: known.clusters.iter().filter(|c| c.watermark_unix_nano > 0).map(|c| c.age_ms).max(),
        gaps: known.gaps.iter().cloned().chain(of_clusters).collect(),
        clusters: known.clusters.iter().map(FreshCluster::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str, age_ms: u64) -> ClusterFreshness {
        let watermark_unix_nano = 1_767_225_600_000_000_000 - age_ms * 1_000_000;
        ClusterFreshness { cluster: name.into(), watermark_unix_nano, age_ms, ..Default::default() }
    }

    fn verdict(clusters: Vec<ClusterFreshness>) -> (Status, String) {
        let answer = judge(Known { clusters, ..Known::default() });
        (answer.verdict, answer.reason.unwrap_or_default())
    }

    #[test]
    fn silence_is_only_health_when_everything_is_judged() {
        assert_eq!(verdict(vec![cluster("a", 59_999)]), (Status::Healthy, String::new()));
        let (status, reason) = verdict(vec![cluster("a", 60_000)]);
        assert_eq!(status, Status::NotProvable);
        assert!(reason.contains("since 2025-12-31T23:59:00"), "{reason}");
        let (status, reason) = verdict(vec![cluster("a", 10), cluster("b", 70_000)]);
        assert_eq!(status, Status::NotProvable);
        assert!(reason.contains("in cluster b since"), "{reason}");
        let never = ClusterFreshness { watermark_unix_nano: 0, age_ms: u64::MAX, ..cluster("b", 0) };
        let started = ClusterFreshness { at_unix_nano: 1, ..never.clone() };
        assert!(verdict(vec![started]).1.contains("no event has been judged yet"));
        let (status, reason) = verdict(vec![cluster("a", 10), never]);
        assert_eq!(status, Status::NotProvable);
        assert_eq!(reason, "agents speak in cluster b and no correlator says how far it is: does one run?");
        assert!(verdict(vec![]).1.contains("no correlator"));
        let silent = ClusterFreshness { silent: true, ..cluster("b", 10) };
        let (status, reason) = verdict(vec![cluster("a", 20), silent]);
        assert_eq!(status, Status::NotProvable);
        assert_eq!(reason, "no event has come in cluster b in the last minute: is an agent running?");
    }

    #[test]
    fn a_store_that_lacks_findings_cannot_say_that_all_is_well() {
        let known = Known {
            clusters: vec![cluster("a", 1)],
            gaps: vec!["the store does not take findings: disk full".into()],
            ..Known::default()
        };
        let answer = judge(known);
        assert_eq!(answer.verdict, Status::NotProvable);
        assert_eq!(answer.reason.as_deref(), Some("the store does not take findings: disk full"));
    }

    #[test]
    fn of_what_nobody_has_heard_nothing_is_healthy() {
        let unheard = Some("deploy/typo".to_owned());
        let answer = judge(Known { clusters: vec![cluster("a", 1)], unheard, ..Known::default() });
        assert_eq!(answer.verdict, Status::NotProvable);
        let reason = "nothing is known of deploy/typo: is it spelt so, and does anything of it run?";
        assert_eq!(answer.reason.as_deref(), Some(reason));
        let silent = ClusterFreshness { silent: true, ..cluster("a", 1) };
        let known =
            Known { clusters: vec![silent], unheard: Some("deploy/typo".to_owned()), ..Known::default() };
        assert!(judge(known).reason.is_some_and(|reason| reason.contains("is an agent running?")));
    }

    #[test]
    fn gaps_name_their_cluster_when_there_are_several() {
        let lost = |name| ClusterFreshness { gaps: vec!["lost 3".into()], ..cluster(name, 5) };
        let one = judge(Known { clusters: vec![lost("a")], ..Known::default() });
        assert_eq!((one.verdict, &one.freshness.gaps[..]), (Status::Healthy, &["lost 3".to_owned()][..]));
        let two = judge(Known { clusters: vec![lost("a"), lost("b")], ..Known::default() });
        assert_eq!(two.freshness.gaps, ["a: lost 3", "b: lost 3"]);
    }
}
