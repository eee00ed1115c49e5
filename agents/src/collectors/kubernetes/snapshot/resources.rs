//! The kinds that a snapshot is made of, and where the API has them.

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// Kind.
    pub kind: &'static str,
    /// `v1` or `group/version`.
    pub api_version: &'static str,
    /// The version before it, of the same meaning in what is read, for servers that do not have that one yet.
    pub older: Option<&'static str>,
    /// As it stands in paths.
    pub plural: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Only names, owners and times are asked for: what the objects hold is nobody's business.
    pub metadata_only: bool,
    /// Every cluster has it. Without it nothing can be called healthy.
    pub required: bool,
}

/// Namespaced objects that a cluster may lack.
pub const fn of(kind: &'static str, api_version: &'static str, plural: &'static str) -> Resource {
    Resource {
        kind,
        api_version,
        older: None,
        plural,
        namespaced: true,
        metadata_only: false,
        required: false,
    }
}

const fn or(older: &'static str, resource: Resource) -> Resource {
    Resource { older: Some(older), ..resource }
}

const fn cluster(resource: Resource) -> Resource {
    Resource { namespaced: false, ..resource }
}

const fn required(resource: Resource) -> Resource {
    Resource { required: true, ..resource }
}

const ADMISSION: &str = "admissionregistration.k8s.io/v1";

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// All kinds, the largest lists first.
pub const RESOURCES: [Resource; 32] = [
    required(of("Pod", "v1", "pods")),
    required(of("Event", "v1", "events")),
    of("ReplicaSet", "apps/v1", "replicasets"),
    or("discovery.k8s.io/v1beta1", of("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")),
    Resource { metadata_only: true, ..of("ConfigMap", "v1", "configmaps") },
    of("Deployment", "apps/v1", "deployments"),
    of("Job", "batch/v1", "jobs"),
    of("Service", "v1", "services"),
    of("StatefulSet", "apps/v1", "statefulsets"),
    of("DaemonSet", "apps/v1", "daemonsets"),
    or("batch/v1beta1", of("CronJob", "batch/v1", "cronjobs")),
    of("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
    or("autoscaling/v2beta2", of("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers")),
    of("ResourceQuota", "v1", "resourcequotas"),
    of("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    or("policy/v1beta1", of("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")),
    of("Ingress", "networking.k8s.io/v1", "ingresses"),
    of("Gateway", GATEWAY_API, "gateways"),
    of("HTTPRoute", GATEWAY_API, "httproutes"),
    // Whether the certificate of a route is there.
    Resource { metadata_only: true, ..of("Secret", "v1", "secrets") },
    of("LimitRange", "v1", "limitranges"),
    Resource { metadata_only: true, ..of("ServiceAccount", "v1", "serviceaccounts") },
    cluster(of("Node", "v1", "nodes")),
    cluster(of("PersistentVolume", "v1", "persistentvolumes")),
    cluster(of("StorageClass", "storage.k8s.io/v1", "storageclasses")),
    cluster(of("IngressClass", "networking.k8s.io/v1", "ingressclasses")),
    cluster(of("Namespace", "v1", "namespaces")),
    cluster(of("VolumeAttachment", "storage.k8s.io/v1", "volumeattachments")),
    cluster(of("ValidatingWebhookConfiguration", ADMISSION, "validatingwebhookconfigurations")),
    cluster(of("MutatingWebhookConfiguration", ADMISSION, "mutatingwebhookconfigurations")),
    cluster(of("APIService", "apiregistration.k8s.io/v1", "apiservices")),
    // Their schemas are large, and say nothing of how things are.
    Resource {
        metadata_only: true,
        ..cluster(of("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions"))
    },
];

impl Resource {
    /// `/api/v1/namespaces/shop/pods`; of all namespaces when `namespace` is none.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.api_version.contains('/') { "/apis" } else { "/api" };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version, self.plural),
            None => format!("{root}/{}/{}", self.api_version, self.plural),
        }
    }

    /// True for what is part of Kubernetes; the rest is there where somebody has installed it.
    pub fn is_built_in(&self) -> bool {
        self.api_version != GATEWAY_API
    }

    /// The same kind in the version before this one; none when there is none.
    pub fn in_older(self) -> Option<Self> {
        self.older.map(|api_version| Self { api_version, older: None, ..self })
    }

    /// `pods` or `deployments.apps`, as permissions name it.
    pub fn name(&self) -> String {
        match self.api_version.split_once('/') {
            Some((group, _)) => format!("{}.{group}", self.plural),
            None => self.plural.to_owned(),
        }
    }

    /// The kind that a file of a dump holds, by its name without `.json`.
    pub fn of_file(stem: &str) -> Option<&'static Self> {
        let stem = stem.replace('-', "");
        RESOURCES.iter().find(|resource| resource.plural == stem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_those_of_the_api() {
        let [pod, node] = ["pods", "nodes"].map(|plural| *Resource::of_file(plural).unwrap());
        let deployment = *Resource::of_file("deployments").unwrap();
        assert_eq!(pod.path(Some("shop")), "/api/v1/namespaces/shop/pods");
        assert_eq!(deployment.path(None), "/apis/apps/v1/deployments");
        assert_eq!(node.path(Some("shop")), "/api/v1/nodes");
        assert_eq!((pod.name(), deployment.name()), ("pods".to_owned(), "deployments.apps".to_owned()));
        let slices = *Resource::of_file("endpointslices").unwrap();
        assert_eq!(slices.in_older().unwrap().path(None), "/apis/discovery.k8s.io/v1beta1/endpointslices");
        assert_eq!(pod.in_older(), None);
        assert_eq!(Resource::of_file("replication-controllers"), None);
        assert_eq!(Resource::of_file("endpointslices").unwrap().kind, "EndpointSlice");
    }
}
