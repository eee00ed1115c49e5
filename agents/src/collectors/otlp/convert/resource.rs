//! An OTLP resource as an entity.

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use smol_str::SmolStr;
use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::{EntityRef, kinds};

use super::attributes::{first_int, first_text, identity, text};
use super::{ATTRIBUTE_BYTES_MAX, Scope};
use crate::convert::{cron_job_of_job, cut, deployment_of_pod, deployment_of_replica_set};

/// Attributes that name a workload, top owners first, with the kind they mean.
const WORKLOADS: [(&str, &str); 6] = [
    ("k8s.deployment.name", kinds::DEPLOYMENT),
    ("k8s.statefulset.name", kinds::STATEFUL_SET),
    ("k8s.daemonset.name", kinds::DAEMON_SET),
    ("k8s.cronjob.name", kinds::CRON_JOB),
    ("k8s.job.name", kinds::JOB),
    ("k8s.replicaset.name", kinds::REPLICA_SET),
];

/// Where items come from: what all items of one resource share.
pub struct Origin {
    pub entity: Arc<EntityRef>,
    pub pid: u32,
    /// Hash of all attributes of the resource, for ids.
    pub identity: u128,
    /// Attributes of the resource that the entity has no place for and that tell a series or a release apart.
    pub extra: Vec<Attribute>,
}

impl Origin {
    pub fn new(scope: &Scope, resource: Option<&Resource>) -> Self {
        let attributes = resource.map_or(&[][..], |r| &r.attributes);
        let entity = Arc::new(entity(scope, attributes));
        let pid =
            first_int(attributes, &["process.pid"]).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        // A pod's name tells its instances apart already.
        let instance = if entity.pod.is_empty() { "service.instance.id" } else { "" };
        let extra = ["service.version", instance, "k8s.volume.name", "k8s.persistentvolumeclaim.name"]
            .into_iter()
            .map(|key| (key, text(attributes, key)))
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .map(|(key, value)| Attribute::new(key, cut(value, ATTRIBUTE_BYTES_MAX).as_str()))
            .collect();
        Self { entity, pid, identity: identity(attributes), extra }
    }
}

fn entity(scope: &Scope, attributes: &[KeyValue]) -> EntityRef {
    let get = |keys: &[&str]| cut(first_text(attributes, keys), ATTRIBUTE_BYTES_MAX);
    let (workload_kind, workload) = workload(attributes);
    EntityRef {
        cluster: scope.cluster.clone(),
        namespace: get(&["k8s.namespace.name", "service.namespace"]),
        workload_kind: SmolStr::new_static(workload_kind),
        workload,
        pod: get(&["k8s.pod.name"]),
        pod_uid: get(&["k8s.pod.uid"]),
        container: get(&["k8s.container.name"]),
        container_id: get(&["container.id"]),
        service: get(&["service.name"]),
        node: get(&["k8s.node.name", "host.name"]),
        ..EntityRef::default()
    }
    .sealed()
}

fn workload(attributes: &[KeyValue]) -> (&'static str, SmolStr) {
    for (key, kind) in WORKLOADS {
        let name = text(attributes, key);
        if name.is_empty() {
            continue;
        }
        let owner = match kind {
            kinds::REPLICA_SET => deployment_of_replica_set(name).map(|owner| (kinds::DEPLOYMENT, owner)),
            kinds::JOB => cron_job_of_job(name).map(|owner| (kinds::CRON_JOB, owner)),
            _ => None,
        };
        let (kind, name) = owner.unwrap_or((kind, name));
        return (kind, cut(name, ATTRIBUTE_BYTES_MAX));
    }
    // With an id the node agent can ask who the pod is; with the name alone its form must do.
    let has_id = ["container.id", "k8s.pod.uid"].iter().any(|key| !text(attributes, key).is_empty());
    match deployment_of_pod(text(attributes, "k8s.pod.name")) {
        Some(name) if !has_id => (kinds::DEPLOYMENT, cut(name, ATTRIBUTE_BYTES_MAX)),
        _ => ("", SmolStr::default()),
    }
}
