//! What failing containers said last, beside the findings that are about them.

use tapio_agents::collectors::kubernetes::snapshot::logs::LastWords;
use tapio_correlator::shards::folded;
use tapio_schemas::{Entity, Finding};

use crate::verdict::ContainerLog;

/// Containers of one finding.
const CONTAINERS_MAX: usize = 3;

/// The lines of each finding's containers.
pub fn of_findings(findings: &[Finding], said: &[LastWords]) -> Vec<ContainerLog> {
    let mut all = Vec::new();
    for finding in findings {
        let of_it = said.iter().filter(|words| is_about(finding, words)).take(CONTAINERS_MAX);
        all.extend(of_it.map(|words| ContainerLog {
            finding: finding.id,
            namespace: words.of.namespace.to_string(),
            pod: words.of.pod.to_string(),
            container: words.of.container.to_string(),
            previous: Some(words.of.previous),
            lines: folded(&words.lines),
        }));
    }
    all
}

/// What an instance has heard of the containers of its findings, as it is told of lists.
pub fn as_told(findings: &[Finding]) -> Vec<ContainerLog> {
    let of = |finding: &Finding| {
        let id = finding.id;
        finding.said.clone().into_iter().map(move |words| ContainerLog {
            finding: id,
            namespace: words.namespace.to_string(),
            pod: words.pod.to_string(),
            container: words.container.to_string(),
            previous: None,
            lines: words.lines,
        })
    };
    findings.iter().flat_map(of).collect()
}

/// The pod or its container is in the story, or the root cause is what owns it.
fn is_about(finding: &Finding, words: &LastWords) -> bool {
    let (namespace, pod) = (&words.of.namespace, words.of.pod.as_str());
    let is_pod = |entity: &Entity| {
        let name = entity.name.split('/').next().unwrap_or_default();
        entity.namespace == *namespace && ["Pod", "Container"].contains(&entity.kind.as_str()) && name == pod
    };
    // A name says nothing: `api-db-0` may be of `api-db`.
    let owns = |entity: &Entity| {
        let is = |(kind, name): &(_, _)| entity.kind == *kind && entity.name == *name;
        entity.namespace == *namespace && words.of.owners.iter().any(is)
    };
    finding.chain.iter().any(|link| is_pod(&link.entity))
        || finding.root_cause.iter().any(|root| is_pod(&root.entity) || owns(&root.entity))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tapio_agents::collectors::kubernetes::snapshot::logs::Failing;
    use tapio_schemas::UnixNanos;

    use super::*;

    fn words(pod: &str, owners: &[(&str, &str)]) -> LastWords {
        let owners = owners.iter().map(|(kind, name)| ((*kind).into(), (*name).into())).collect();
        let (namespace, pod, container) = ("shop".into(), pod.into(), "app".into());
        let of = Failing { namespace, pod, container, previous: false, owners };
        LastWords { of, lines: vec!["panic".to_owned()] }
    }

    #[test]
    fn only_lines_of_what_the_cause_owns_are_its_evidence() {
        let at = UnixNanos(1);
        let finding: Finding = serde_json::from_value(json!({
            "schema": "tapio.finding/v1", "id": format!("fnd-{:032x}", 1), "revision": 1, "status": "active",
            "cluster": "c", "severity": "error", "title": "", "story": "", "opened_at": at, "first_bad_at": at,
            "updated_at": at, "emitted_at": at, "confidence": 0.9, "hypotheses": [], "chain": [], "actions": [],
            "root_cause": {"entity": {"kind": "Deployment", "namespace": "shop", "name": "api"},
                           "cause": "process.crash", "evidence": []},
            "impact": {"business_impact": 0, "customer_facing": false, "slo_impact": false, "cascade_risk": 0,
                       "requests_affected": 0, "callers": []},
            "semantic_group": {"id": format!("grp-{:032x}", 0), "type": "", "intent": ""},
            "freshness": {"watermark": at, "gaps": []},
        }))
        .unwrap();
        let said = [
            words("api-db-0", &[("StatefulSet", "api-db")]),
            words("api-proxy-x2x2x", &[("DaemonSet", "api-proxy")]),
            words("api-0", &[("StatefulSet", "api")]),
            words("api-5f6585d649-x2x2x", &[("ReplicaSet", "api-5f6585d649"), ("Deployment", "api")]),
        ];
        let pods: Vec<_> = of_findings(&[finding], &said).into_iter().map(|log| log.pod).collect();
        assert_eq!(pods, ["api-5f6585d649-x2x2x"]);
    }
}
