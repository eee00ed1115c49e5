//! Whether what was wrong is still wrong, by the verdicts after the change.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tapio_schemas::finding::{Severity, Status};
use tapio_schemas::{Entity, Finding, UnixNanos};

use crate::verdict::Answer;

/// Looks in a row that must see something new and bad: a rollout may be bad for a moment.
const WORSE_LOOKS: u32 = 2;

/// What was wrong before the change.
#[derive(Debug)]
pub struct Symptom {
    cause: (String, Entity),
    severity: Severity,
    /// All that was wrong at that time.
    known: BTreeSet<(String, Entity)>,
    /// When the change was made.
    since: UnixNanos,
    /// How long nothing must be seen of it.
    settle: Duration,
    /// The first look that did not see it, in a row.
    quiet_since: Option<UnixNanos>,
    worse_looks: u32,
}

/// What one look says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing of it since the change, for long enough.
    Gone,
    /// Not yet, or not for long enough.
    Waiting,
    /// It goes on.
    There,
    /// Something that is new, or worse; in words.
    Worse(String),
}

impl Symptom {
    /// What is wrong in `answer`; `finding` is what the change is against.
    pub fn of(finding: &Finding, answer: &Answer, since: UnixNanos, settle: Duration) -> Option<Self> {
        Some(Self {
            cause: place(finding)?,
            severity: finding.severity,
            known: answer.findings.iter().filter_map(place).collect(),
            since: since.max(answer.freshness.watermark),
            settle,
            quiet_since: None,
            worse_looks: 0,
        })
    }

    /// Takes one look.
    pub fn look(&mut self, answer: &Answer) -> Seen {
        let now = answer.freshness.watermark;
        // Who is blind, or has not come to the time of the change, sees nothing of it either.
        if answer.reason.is_some() || now <= self.since {
            return Seen::Waiting;
        }
        let fresh = |finding: &&Finding| finding.updated_at > self.since;
        if let Some(worse) = answer.findings.iter().filter(fresh).find(|finding| self.is_worse(finding)) {
            self.worse_looks += 1;
            self.quiet_since = None;
            return if self.worse_looks < WORSE_LOOKS {
                Seen::There
            } else {
                Seen::Worse(worse.title.clone())
            };
        }
        self.worse_looks = 0;
        if answer.findings.iter().filter(fresh).any(|finding| place(finding).as_ref() == Some(&self.cause)) {
            self.quiet_since = None;
            return Seen::There;
        }
        let quiet_since = *self.quiet_since.get_or_insert(now);
        let is_settled = u128::from(now.since(quiet_since)) >= self.settle.as_nanos();
        if is_settled { Seen::Gone } else { Seen::Waiting }
    }

    /// The same and worse, or another cause that has to do with the same thing.
    fn is_worse(&self, finding: &Finding) -> bool {
        let Some(place) = place(finding).filter(|_| finding.status == Status::Active) else { return false };
        if place == self.cause {
            return finding.severity > self.severity;
        }
        let chain = finding.chain.iter().map(|link| &link.entity);
        !self.known.contains(&place)
            && std::iter::once(&place.1).chain(chain).any(|entity| is_same(entity, &self.cause.1))
    }
}

/// Whether a workload has as many pods of its present template as it wants, and no others; anything else has. What is
/// paused, or changes its pods only when somebody deletes them, is not waited for.
pub fn is_rolled_out(object: &Value) -> bool {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (wanted, counts) = match object["kind"].as_str() {
        Some("Deployment") => {
            (spec["replicas"].as_u64().unwrap_or(1), ["updatedReplicas", "availableReplicas", "replicas"])
        }
        Some("StatefulSet") => {
            (spec["replicas"].as_u64().unwrap_or(1), ["updatedReplicas", "readyReplicas", "replicas"])
        }
        Some("DaemonSet") => (
            number(&status["desiredNumberScheduled"]),
            ["updatedNumberScheduled", "numberAvailable", "desiredNumberScheduled"],
        ),
        _ => return true,
    };
    let by_hand = spec["updateStrategy"]["type"] == "OnDelete" || spec["paused"] == true;
    let is_seen = number(&status["observedGeneration"]) >= number(&object["metadata"]["generation"]);
    by_hand || (is_seen && counts.iter().all(|count| number(&status[count]) == wanted))
}

fn is_same(a: &Entity, b: &Entity) -> bool {
    (&a.kind, &a.namespace, &a.name) == (&b.kind, &b.namespace, &b.name)
}

fn place(finding: &Finding) -> Option<(String, Entity)> {
    let root = finding.root_cause.as_ref()?;
    Some((root.cause.to_string(), root.entity.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::verdict::Freshness;

    const SECOND: u64 = 1_000_000_000;

    fn finding(cause: &str, severity: &str, at: u64) -> Finding {
        let (at, entity) =
            (UnixNanos(at * SECOND), json!({"kind": "Deployment", "namespace": "shop", "name": "api"}));
        serde_json::from_value(json!({
            "schema": "tapio.finding/v1", "id": format!("fnd-{:032x}", 1), "revision": 1, "status": "active",
            "cluster": "c", "severity": severity, "title": cause, "story": "", "opened_at": at, "first_bad_at": at,
            "updated_at": at, "emitted_at": at, "confidence": 0.9, "hypotheses": [], "chain": [], "actions": [],
            "root_cause": {"entity": entity, "cause": cause, "evidence": []},
            "impact": {"business_impact": 0, "customer_facing": false, "slo_impact": false, "cascade_risk": 0,
                       "requests_affected": 0, "callers": []},
            "semantic_group": {"id": format!("grp-{:032x}", 0), "type": "", "intent": ""},
            "freshness": {"watermark": at, "gaps": []},
        }))
        .unwrap()
    }

    fn answer(at: u64, findings: Vec<Finding>) -> Answer {
        let watermark = UnixNanos(at * SECOND);
        let freshness = Freshness { watermark, age_ms: None, gaps: Vec::new(), clusters: Vec::new() };
        let mut answer = Answer {
            verdict: Status::Healthy,
            reason: None,
            findings,
            recovered: Vec::new(),
            freshness,
            logs: Vec::new(),
        };
        answer.judge_again();
        answer
    }

    fn symptom() -> Symptom {
        let broken = finding("memory.limit_exceeded", "error", 99);
        let before = answer(100, vec![broken.clone()]);
        Symptom::of(&broken, &before, UnixNanos(90 * SECOND), Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn it_is_gone_when_nothing_new_is_seen_for_long_enough() {
        let mut symptom = symptom();
        let at = |at, last| answer(at, vec![finding("memory.limit_exceeded", "error", last)]);
        assert_eq!(symptom.look(&at(100, 99)), Seen::Waiting, "judged up to before the change");
        assert_eq!(symptom.look(&at(110, 108)), Seen::There);
        assert_eq!(symptom.look(&answer(120, vec![])), Seen::Waiting);
        assert_eq!(symptom.look(&at(130, 128)), Seen::There, "it came back");
        // Still told, but nothing of it was seen since the change.
        assert_eq!(symptom.look(&at(140, 99)), Seen::Waiting);
        let blind = Answer { reason: Some("pods cannot be listed".to_owned()), ..answer(200, vec![]) };
        assert_eq!(symptom.look(&blind), Seen::Waiting, "who is blind cannot say that it is gone");
        assert_eq!(symptom.look(&answer(160, vec![])), Seen::Gone);
    }

    #[test]
    fn a_rollout_is_done_when_all_pods_are_of_the_present_template_and_available() {
        let deployment = |observed: u64, updated: u64, available: u64, all: u64| {
            json!({"kind": "Deployment", "metadata": {"generation": 3}, "spec": {"replicas": 2}, "status": {
                "observedGeneration": observed, "updatedReplicas": updated, "availableReplicas": available,
                "replicas": all}})
        };
        assert!(is_rolled_out(&deployment(3, 2, 2, 2)));
        for (observed, updated, available, all) in [(2, 2, 2, 2), (3, 1, 2, 2), (3, 2, 1, 2), (3, 2, 2, 3)] {
            assert!(!is_rolled_out(&deployment(observed, updated, available, all)));
        }
        let mut paused = deployment(2, 0, 0, 0);
        paused["spec"]["paused"] = json!(true);
        assert!(is_rolled_out(&paused) && is_rolled_out(&json!({"kind": "Service"})));
    }

    #[test]
    fn another_cause_on_the_same_thing_is_worse_once_it_lasts() {
        let mut symptom = symptom();
        let worse = |at| answer(at, vec![finding("image.not_found", "error", at)]);
        assert_eq!(symptom.look(&worse(110)), Seen::There);
        assert_eq!(symptom.look(&worse(115)), Seen::Worse("image.not_found".to_owned()));
        let critical = |at| answer(at, vec![finding("memory.limit_exceeded", "critical", at)]);
        symptom.look(&answer(116, vec![]));
        assert_eq!(symptom.look(&critical(117)), Seen::There);
        assert_eq!(symptom.look(&critical(118)), Seen::Worse("memory.limit_exceeded".to_owned()));
    }
}
