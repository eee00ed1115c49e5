//! What an event is about.

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};
use smol_str::{SmolStr, format_smolstr};
use xxhash_rust::xxh3::Xxh3;

use crate::wire::Interned;

/// Kinds of entities that Tapio itself names. Kubernetes kinds are spelled as Kubernetes spells them.
pub mod kinds {
    #![allow(missing_docs)]
    pub const CLUSTER: &str = "Cluster";
    pub const NODE: &str = "Node";
    pub const NAMESPACE: &str = "Namespace";
    pub const DEPLOYMENT: &str = "Deployment";
    pub const REPLICA_SET: &str = "ReplicaSet";
    pub const STATEFUL_SET: &str = "StatefulSet";
    pub const DAEMON_SET: &str = "DaemonSet";
    pub const JOB: &str = "Job";
    pub const CRON_JOB: &str = "CronJob";
    pub const POD: &str = "Pod";
    pub const CONTAINER: &str = "Container";
    pub const SERVICE: &str = "Service";
    pub const SYSTEMD_UNIT: &str = "SystemdUnit";
    pub const CGROUP: &str = "Cgroup";
    pub const EXTERNAL: &str = "External";
    /// A part of Tapio itself.
    pub const TAPIO: &str = "Tapio";
}

/// Short and plural names of kinds, lower case, as kubectl takes them.
const KUBECTL_NAMES: [(&str, &[&str]); 28] = [
    (kinds::POD, &["po", "pods"]),
    (kinds::DEPLOYMENT, &["deploy", "deployments"]),
    (kinds::REPLICA_SET, &["rs", "replicasets"]),
    (kinds::STATEFUL_SET, &["sts", "statefulsets"]),
    (kinds::DAEMON_SET, &["ds", "daemonsets"]),
    (kinds::JOB, &["jobs"]),
    (kinds::CRON_JOB, &["cj", "cronjobs"]),
    (kinds::SERVICE, &["svc", "services"]),
    (kinds::NODE, &["no", "nodes"]),
    (kinds::NAMESPACE, &["ns", "namespaces"]),
    (kinds::CONTAINER, &["containers"]),
    ("ConfigMap", &["cm", "configmaps"]),
    ("Secret", &["secrets"]),
    ("ServiceAccount", &["sa", "serviceaccounts"]),
    ("PersistentVolumeClaim", &["pvc", "persistentvolumeclaims"]),
    ("PersistentVolume", &["pv", "persistentvolumes"]),
    ("StorageClass", &["sc", "storageclasses"]),
    ("Ingress", &["ing", "ingresses"]),
    ("Gateway", &["gtw", "gateways"]),
    ("HTTPRoute", &["httproutes"]),
    ("NetworkPolicy", &["netpol", "networkpolicies"]),
    ("HorizontalPodAutoscaler", &["hpa", "horizontalpodautoscalers"]),
    ("PodDisruptionBudget", &["pdb", "poddisruptionbudgets"]),
    ("ResourceQuota", &["quota", "resourcequotas"]),
    ("LimitRange", &["limits", "limitranges"]),
    ("ReplicationController", &["rc", "replicationcontrollers"]),
    ("CustomResourceDefinition", &["crd", "crds", "customresourcedefinitions"]),
    ("Endpoints", &["ep"]),
];

/// The kind that is meant by `deploy`, `Deployments` or `deployment.apps`; what is not in the table stays as it is.
fn kind_of(written: &str) -> &str {
    let lower = written.to_ascii_lowercase();
    // kubectl prints the API group behind a dot; no kind has one in its name.
    let bare = lower.split('.').next().unwrap_or_default();
    let is_meant =
        |(kind, names): &&(&str, &[&str])| kind.eq_ignore_ascii_case(bare) || names.contains(&bare);
    KUBECTL_NAMES.iter().find(is_meant).map_or(written, |(kind, _)| kind)
}

/// Everything known about the thing an event is about. Empty text means "not known" or "none".
///
/// One value is shared by all events of a container, so that a batch carries it once. The process id
/// stands beside it in [`crate::UnifiedEvent::pid`], because it differs from event to event.
#[derive(
    Debug,
    Clone,
    Default,
    PartialEq,
    Eq,
    Hash,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(default)]
pub struct EntityRef {
    /// `k8s.cluster.name`
    #[rkyv(with = Interned)]
    pub cluster: SmolStr,
    /// `k8s.namespace.name`
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub namespace: SmolStr,
    /// Kind of the top owner: `Deployment`, `StatefulSet`, `CronJob`, …
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub workload_kind: SmolStr,
    /// Name of the top owner.
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub workload: SmolStr,
    /// `k8s.pod.name`
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub pod: SmolStr,
    /// `k8s.pod.uid`
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub pod_uid: SmolStr,
    /// `k8s.container.name`
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub container: SmolStr,
    /// `container.id`
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub container_id: SmolStr,
    /// `service.name` of the telemetry's resource, or the name of a Kubernetes Service.
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub service: SmolStr,
    /// `k8s.node.name` or `host.name`
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub node: SmolStr,
    /// systemd unit, when the process is not in a pod.
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub unit: SmolStr,
    /// Control group path below its hierarchy's root.
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub cgroup: SmolStr,
    /// For an event about an object that is none of the above (a claim, a quota, …): its kind.
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub object_kind: SmolStr,
    /// … and its name.
    #[rkyv(with = Interned)]
    #[serde(skip_serializing_if = "SmolStr::is_empty")]
    pub object: SmolStr,
    /// Lineage id, filled by [`EntityRef::sealed`].
    #[serde(skip)]
    pub lineage: u128,
}

impl ArchivedEntityRef {
    /// All text fields, in the order of declaration.
    pub(crate) fn texts(&self) -> [&crate::wire::ArchivedStringIndex; 14] {
        [
            &self.cluster,
            &self.namespace,
            &self.workload_kind,
            &self.workload,
            &self.pod,
            &self.pod_uid,
            &self.container,
            &self.container_id,
            &self.service,
            &self.node,
            &self.unit,
            &self.cgroup,
            &self.object_kind,
            &self.object,
        ]
    }
}

impl EntityRef {
    /// Computes the lineage; call once when all fields are set.
    pub fn sealed(mut self) -> Self {
        self.lineage = self.compute_lineage();
        self
    }

    /// 128-bit hash of the owning workload, or of what owns the thing outside of pods.
    ///
    /// All events about one workload carry it, from whichever node or API they come.
    fn compute_lineage(&self) -> u128 {
        let owner = self.owner();
        let mut hash = Xxh3::new();
        for part in [&self.cluster, &owner.node, &owner.namespace, &owner.kind, &owner.name] {
            hash.update(&(part.len() as u32).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.digest128()
    }

    /// The most specific thing named: container, pod, object, workload, unit, cgroup, service, node.
    pub fn subject(&self) -> Entity {
        let ns = &self.namespace;
        if !self.container.is_empty() && !self.pod.is_empty() {
            let name = format_smolstr!("{}/{}", self.pod, self.container);
            return Entity::new(kinds::CONTAINER, ns, &name, "");
        }
        if !self.pod.is_empty() {
            return Entity::new(kinds::POD, ns, &self.pod, "");
        }
        if !self.object.is_empty() {
            return Entity::new(&self.object_kind, ns, &self.object, "");
        }
        self.owner()
    }

    /// What is responsible for the thing: workload, else pod, unit, cgroup, service, node, cluster.
    pub fn owner(&self) -> Entity {
        let ns = &self.namespace;
        if !self.workload.is_empty() {
            return Entity::new(&self.workload_kind, ns, &self.workload, "");
        }
        if !self.pod.is_empty() {
            return Entity::new(kinds::POD, ns, &self.pod, "");
        }
        if !self.unit.is_empty() {
            return Entity::new(kinds::SYSTEMD_UNIT, "", &self.unit, &self.node);
        }
        if !self.cgroup.is_empty() {
            return Entity::new(kinds::CGROUP, "", &self.cgroup, &self.node);
        }
        if !self.service.is_empty() {
            return Entity::new(kinds::SERVICE, ns, &self.service, "");
        }
        if !self.object.is_empty() {
            return Entity::new(&self.object_kind, ns, &self.object, "");
        }
        if !self.node.is_empty() {
            return Entity::new(kinds::NODE, "", &self.node, "");
        }
        if !ns.is_empty() {
            return Entity::new(kinds::NAMESPACE, "", ns, "");
        }
        Entity::new(kinds::CLUSTER, "", &self.cluster, "")
    }
}

/// Address of a node of the entity graph.
///
/// A container's name is `pod/container`. `node` is set only for what exists per machine (units, cgroups).
#[derive(
    Clone,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Entity {
    /// Kind, see [`kinds`].
    #[rkyv(with = Interned)]
    pub kind: SmolStr,
    /// Namespace, empty for cluster-scoped things.
    #[rkyv(with = Interned)]
    #[serde(default, skip_serializing_if = "SmolStr::is_empty")]
    pub namespace: SmolStr,
    /// Name.
    #[rkyv(with = Interned)]
    pub name: SmolStr,
    /// Machine, for what exists per machine.
    #[rkyv(with = Interned)]
    #[serde(default, skip_serializing_if = "SmolStr::is_empty")]
    pub node: SmolStr,
}

impl Entity {
    /// All four parts.
    pub fn new(kind: &str, namespace: &str, name: &str, node: &str) -> Self {
        Self {
            kind: SmolStr::new(kind),
            namespace: SmolStr::new(namespace),
            name: SmolStr::new(name),
            node: SmolStr::new(node),
        }
    }

    /// A namespaced thing.
    pub fn namespaced(kind: &str, namespace: &str, name: &str) -> Self {
        Self::new(kind, namespace, name, "")
    }

    /// Reads `kind/name`, `namespace/kind/name` or a bare `name` (kind empty), as the command line takes it. Kinds may
    /// be written as for kubectl: `deploy/api`, `pods/api-0`, `deployment.apps/api`.
    ///
    /// A cgroup path (`/a/b`) is a bare name.
    pub fn parse_query(text: &str) -> Self {
        if text.starts_with('/') {
            return Self::new("", "", text, "");
        }
        match text.splitn(3, '/').collect::<Vec<_>>()[..] {
            [kind, name] => Self::new(kind_of(kind), "", name, ""),
            [namespace, kind, name] => Self::new(kind_of(kind), namespace, name, ""),
            _ => Self::new("", "", text, ""),
        }
    }

    /// True when this (possibly partial) query names `other`: kinds compare without case, empty parts match all.
    pub fn matches(&self, other: &Entity) -> bool {
        let part = |want: &str, have: &str| want.is_empty() || want == have;
        let name = self.name == other.name
            || other.name.split('/').next() == Some(self.name.as_str())
            || other.name.trim_start_matches('/') == self.name.trim_start_matches('/');
        (self.kind.is_empty() || self.kind.eq_ignore_ascii_case(&other.kind))
            && part(&self.namespace, &other.namespace)
            && name
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{} {}", self.kind, self.name)?;
        if !self.node.is_empty() {
            write!(f, " on {}", self.node)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, pod: &str) -> EntityRef {
        EntityRef {
            cluster: "c".into(),
            namespace: "shop".into(),
            workload_kind: kinds::DEPLOYMENT.into(),
            workload: "api".into(),
            pod: pod.into(),
            node: node.into(),
            ..EntityRef::default()
        }
        .sealed()
    }

    #[test]
    fn events_of_one_workload_share_a_lineage_from_any_node() {
        assert_eq!(pod("n1", "api-1").lineage, pod("n2", "api-2").lineage);
        let unit = EntityRef {
            cluster: "c".into(),
            node: "n1".into(),
            unit: "ssh.service".into(),
            ..Default::default()
        };
        let other = EntityRef { node: "n2".into(), ..unit.clone() };
        assert_ne!(unit.sealed().lineage, other.sealed().lineage);
    }

    #[test]
    fn queries_match_by_what_they_name() {
        let api = Entity::namespaced(kinds::DEPLOYMENT, "shop", "api");
        assert!(Entity::parse_query("api").matches(&api));
        assert!(Entity::parse_query("deployment/api").matches(&api));
        assert!(Entity::parse_query("shop/deployment/api").matches(&api));
        assert!(!Entity::parse_query("other/deployment/api").matches(&api));
        let cgroup = Entity::new(kinds::CGROUP, "", "/tapio-demo", "n1");
        assert!(Entity::parse_query("/tapio-demo").matches(&cgroup));
        assert!(Entity::parse_query("tapio-demo").matches(&cgroup));
    }

    #[test]
    fn kinds_may_be_written_as_for_kubectl() {
        let read = |text| Entity::parse_query(text);
        for text in ["deploy/api", "Deployments/api", "deployment/api", "deployment.apps/api"] {
            assert_eq!(read(text), Entity::namespaced(kinds::DEPLOYMENT, "", "api"), "{text}");
        }
        assert_eq!(read("shop/po/a"), Entity::namespaced(kinds::POD, "shop", "a"));
        assert_eq!(read("External/db.example:5432").kind, "External");
        assert_eq!(read("api"), Entity::namespaced("", "", "api"));
        let mut names: Vec<&str> = KUBECTL_NAMES.iter().flat_map(|(_, names)| *names).copied().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a name means one kind");
    }
}
