//! What is watched: the kinds of objects of a cluster, where the API has them, and what is not seen without them.

use smol_str::SmolStr;

use super::config::{KubernetesConfig, WatchScope};

/// Custom resources that are watched; further ones of the configuration are refused by name.
pub const CUSTOM_MAX: usize = 64;
/// Where the heartbeats of nodes are.
const NODE_LEASES: &str = "kube-node-lease";

/// A kind that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Kind of its objects; of a custom resource it is learnt from the API server.
    pub kind: SmolStr,
    /// As it stands in paths.
    pub plural: SmolStr,
    /// `v1` or `group/version`, the best first: the next is used where one is not served or not allowed. Of a custom resource
    /// the group, for which the server names the version.
    pub versions: Vec<SmolStr>,
    /// The only namespace that is looked at; empty for all.
    pub namespace: SmolStr,
    /// Every cluster has it, so that its absence is a fault.
    pub is_standard: bool,
    /// It is named in the configuration.
    pub is_custom: bool,
    /// What is not seen without it.
    pub tells: SmolStr,
}

/// Kind, plural, versions, what it tells. Owners first, so that their names are known when the pods come, and Events last,
/// so that what they are about is known.
type Row = (&'static str, &'static str, &'static [&'static str], &'static str);

const STANDARD: [Row; 25] = [
    ("Deployment", "deployments", &["apps/v1"], "rollouts and changed images"),
    ("ReplicaSet", "replicasets", &["apps/v1"], "owners of pods"),
    ("StatefulSet", "statefulsets", &["apps/v1"], "rollouts and changed images of StatefulSets"),
    ("DaemonSet", "daemonsets", &["apps/v1"], "rollouts and changed images of DaemonSets"),
    ("CronJob", "cronjobs", &["batch/v1", "batch/v1beta1"], "owners of Jobs"),
    ("Job", "jobs", &["batch/v1"], "failed Jobs"),
    ("Namespace", "namespaces", &["v1"], "namespaces that do not end"),
    ("Node", "nodes", &["v1"], "conditions of nodes"),
    ("Service", "services", &["v1"], "selectors of Services"),
    ("PersistentVolumeClaim", "persistentvolumeclaims", &["v1"], "claims of storage"),
    ("PersistentVolume", "persistentvolumes", &["v1"], "volumes"),
    ("StorageClass", "storageclasses", &["storage.k8s.io/v1"], "classes of storage"),
    ("VolumeAttachment", "volumeattachments", &["storage.k8s.io/v1"], "volumes that cannot be attached"),
    ("ResourceQuota", "resourcequotas", &["v1"], "quotas"),
    ("LimitRange", "limitranges", &["v1"], "limits of namespaces"),
    ("ServiceAccount", "serviceaccounts", &["v1"], "service accounts"),
    ("PriorityClass", "priorityclasses", &["scheduling.k8s.io/v1"], "priorities"),
    ("IngressClass", "ingressclasses", &["networking.k8s.io/v1"], "classes of ingresses"),
    ("Ingress", "ingresses", &["networking.k8s.io/v1"], "ingresses"),
    (
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        &["autoscaling/v2", "autoscaling/v2beta2"],
        "autoscalers",
    ),
    ("PodDisruptionBudget", "poddisruptionbudgets", &["policy/v1", "policy/v1beta1"], "disruption budgets"),
    (
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        &["admissionregistration.k8s.io/v1"],
        "admission webhooks",
    ),
    (
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        &["admissionregistration.k8s.io/v1"],
        "admission webhooks",
    ),
    ("APIService", "apiservices", &["apiregistration.k8s.io/v1"], "extensions of the API that are down"),
    (
        "CustomResourceDefinition",
        "customresourcedefinitions",
        &["apiextensions.k8s.io/v1"],
        "custom resources that are not served",
    ),
];
const LEASE: Row = ("Lease", "leases", &["coordination.k8s.io/v1"], "heartbeats of nodes");
const CONFIG_MAP: Row = ("ConfigMap", "configmaps", &["v1"], "changed configuration");
const SECRET: Row = ("Secret", "secrets", &["v1"], "changed secrets");
/// After the pods that they are for.
const NETWORK_POLICY: Row =
    ("NetworkPolicy", "networkpolicies", &["networking.k8s.io/v1"], "network policies");
const GATEWAY: Row = ("Gateway", "gateways", &["gateway.networking.k8s.io/v1"], "gateways");
const HTTP_ROUTE: Row = ("HTTPRoute", "httproutes", &["gateway.networking.k8s.io/v1"], "routes of gateways");
const POD: Row = ("Pod", "pods", &["v1"], "pods");
const ENDPOINT_SLICE: Row = (
    "EndpointSlice",
    "endpointslices",
    &["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"],
    "the pods behind Services",
);
const EVENT: Row = ("Event", "events", &["events.k8s.io/v1", "v1"], "what the cluster reports");

impl Watched {
    fn of((kind, plural, versions, tells): Row) -> Self {
        Self {
            kind: SmolStr::new_static(kind),
            plural: SmolStr::new_static(plural),
            versions: versions.iter().map(|version| SmolStr::new_static(version)).collect(),
            namespace: SmolStr::default(),
            is_standard: true,
            is_custom: false,
            tells: SmolStr::new_static(tells),
        }
    }

    /// `certificates.cert-manager.io`, as `kubectl get` takes it.
    fn custom(name: &str) -> Option<Self> {
        let (plural, group) =
            name.split_once('.').filter(|(plural, group)| !plural.is_empty() && !group.is_empty())?;
        Some(Self {
            kind: SmolStr::new(name),
            plural: SmolStr::new(plural),
            versions: vec![SmolStr::new(group)],
            namespace: SmolStr::default(),
            is_standard: false,
            is_custom: true,
            tells: SmolStr::new(name),
        })
    }

    /// `/apis/apps/v1/deployments`
    pub fn path(&self, version: &str) -> String {
        let root = if version.contains('/') { "/apis" } else { "/api" };
        match self.namespace.as_str() {
            "" => format!("{root}/{version}/{}", self.plural),
            namespace => format!("{root}/{version}/namespaces/{namespace}/{}", self.plural),
        }
    }

    /// `pods` or `deployments.apps`, as permissions name it; of the version that is wanted most.
    pub fn name(&self) -> String {
        match self.group() {
            "" => self.plural.to_string(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Its API group; empty for the first one.
    pub fn group(&self) -> &str {
        let version = self.versions.first().map(SmolStr::as_str).unwrap_or_default();
        match version.split_once('/') {
            Some((group, _)) => group,
            None if self.is_custom => version,
            None => "",
        }
    }

    /// The permission that it takes, in words.
    pub fn permission(&self) -> String {
        let place = match self.namespace.as_str() {
            "" => "in all namespaces".to_owned(),
            namespace => format!("in namespace {namespace}"),
        };
        format!("grant get, list and watch of {} {place}", self.name())
    }
}

/// All that a configuration asks for, in the order in which it is listed; and what of it makes no sense.
pub fn of(config: &KubernetesConfig) -> (Vec<Watched>, Vec<String>) {
    if config.scope == WatchScope::Node {
        return (vec![Watched::of(POD)], Vec::new());
    }
    let mut kinds: Vec<Watched> = STANDARD.into_iter().map(Watched::of).collect();
    kinds.push(Watched { namespace: SmolStr::new_static(NODE_LEASES), ..Watched::of(LEASE) });
    kinds.extend(config.config_maps.then(|| Watched::of(CONFIG_MAP)));
    kinds.extend(config.secrets.then(|| Watched::of(SECRET)));
    kinds.extend([GATEWAY, HTTP_ROUTE].map(|row| Watched { is_standard: false, ..Watched::of(row) }));
    let mut refused = Vec::new();
    for (at, name) in config.custom_resources.iter().enumerate() {
        match Watched::custom(name) {
            _ if at >= CUSTOM_MAX => {
                refused.push(format!("kubernetes.custom_resources: {name} is left out, at most {CUSTOM_MAX} are watched"));
            }
            Some(kind) => kinds.push(kind),
            None => refused.push(format!(
                "kubernetes.custom_resources: {name} is no name of a custom resource, write it as in certificates.cert-manager.io"
            )),
        }
    }
    kinds.extend([POD, ENDPOINT_SLICE, NETWORK_POLICY, EVENT].map(Watched::of));
    (kinds, refused)
}

/// True for the kinds that need no configuration.
pub fn is_known(kind: &str) -> bool {
    let others = [LEASE, CONFIG_MAP, SECRET, GATEWAY, HTTP_ROUTE, POD, ENDPOINT_SLICE, NETWORK_POLICY, EVENT];
    STANDARD.iter().chain(&others).any(|row| row.0 == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectors::kubernetes::snapshot::resources::RESOURCES;

    fn all() -> Vec<Watched> {
        of(&KubernetesConfig { secrets: true, ..KubernetesConfig::default() }).0
    }

    #[test]
    fn what_a_list_shows_is_watched_as_well() {
        let kinds = all();
        for resource in RESOURCES {
            let watched = kinds.iter().find(|kind| kind.kind == resource.kind).expect(resource.kind);
            assert!(watched.versions.iter().any(|version| version == resource.api_version), "{resource:?}");
            assert_eq!(watched.plural, resource.plural);
        }
    }

    #[test]
    fn paths_and_permissions_are_those_of_the_api() {
        let kinds = all();
        let find = |kind: &str| kinds.iter().find(|k| k.kind == kind).unwrap().clone();
        assert_eq!(find("Deployment").path("apps/v1"), "/apis/apps/v1/deployments");
        assert_eq!(find("Pod").path("v1"), "/api/v1/pods");
        assert_eq!(
            find("Lease").path("coordination.k8s.io/v1"),
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        );
        assert_eq!(
            find("Lease").permission(),
            "grant get, list and watch of leases.coordination.k8s.io in namespace kube-node-lease"
        );
        assert_eq!(find("Secret").permission(), "grant get, list and watch of secrets in all namespaces");
        let position = |kind: &str| kinds.iter().position(|k| k.kind == kind).unwrap();
        assert!(position("ReplicaSet") < position("Pod") && position("Pod") < position("Event"));
    }

    #[test]
    fn custom_resources_are_named_as_kubectl_takes_them() {
        let custom_resources = vec!["certificates.cert-manager.io".to_owned(), "Certificate".to_owned()];
        let (kinds, refused) = of(&KubernetesConfig { custom_resources, ..KubernetesConfig::default() });
        let custom = kinds.iter().find(|kind| kind.is_custom).unwrap();
        assert_eq!(
            (custom.name().as_str(), custom.group()),
            ("certificates.cert-manager.io", "cert-manager.io")
        );
        assert_eq!(refused.len(), 1);
        assert!(refused[0].contains("Certificate is no name"), "{refused:?}");
    }

    #[test]
    fn a_node_agent_watches_pods_alone() {
        let (kinds, _) = of(&KubernetesConfig { scope: WatchScope::Node, ..KubernetesConfig::default() });
        assert_eq!(kinds.iter().map(|kind| kind.kind.as_str()).collect::<Vec<_>>(), ["Pod"]);
    }
}
