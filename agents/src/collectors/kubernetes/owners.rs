//! The top owner of an object, and the entity that an object is.

use std::collections::HashMap;
use std::sync::Arc;

use smol_str::SmolStr;
use tapio_schemas::entity::{EntityRef, kinds};

use super::summary::{Detail, Summary};
use crate::convert::{cron_job_of_job, deployment_of_replica_set};

/// Kinds that may stand between a pod and its top owner.
const BETWEEN: [&str; 2] = [kinds::REPLICA_SET, kinds::JOB];
/// Longest chain of owners that is followed.
const CHAIN_MAX: usize = 4;
/// Objects whose owner is kept.
const OWNERS_MAX: usize = 100_000;

/// Kind and name.
pub type KindName = (SmolStr, SmolStr);

/// Owners of the objects between pods and workloads.
#[derive(Debug, Default)]
pub struct Owners(HashMap<(SmolStr, SmolStr, SmolStr), KindName>);

impl Owners {
    /// Remembers whose an object is, when it stands between.
    pub fn learn(&mut self, object: &Summary) {
        let Some(owner) = &object.owner else { return };
        // When full, names are read instead: the answer is nearly always the same.
        if BETWEEN.contains(&object.kind.as_str()) && self.0.len() < OWNERS_MAX {
            let key = (object.namespace.clone(), object.kind.clone(), object.name.clone());
            self.0.insert(key, owner.clone());
        }
    }

    /// Forgets a deleted object.
    pub fn forget(&mut self, object: &Summary) {
        if BETWEEN.contains(&object.kind.as_str()) {
            self.0.remove(&(object.namespace.clone(), object.kind.clone(), object.name.clone()));
        }
    }

    /// The top owner of what is owned by `owner`.
    pub fn top(&self, namespace: &SmolStr, owner: &KindName) -> KindName {
        let mut top = owner.clone();
        for _ in 0..CHAIN_MAX {
            let key = (namespace.clone(), top.0.clone(), top.1.clone());
            match self.0.get(&key) {
                Some(next) => top = next.clone(),
                // A pod may be seen before its ReplicaSet; the name tells as much.
                None => return by_name(&top).unwrap_or(top),
            }
        }
        top
    }
}

fn by_name((kind, name): &KindName) -> Option<KindName> {
    let (kind, owner) = match kind.as_str() {
        kinds::REPLICA_SET => (kinds::DEPLOYMENT, deployment_of_replica_set(name)?),
        kinds::JOB => (kinds::CRON_JOB, cron_job_of_job(name)?),
        _ => return None,
    };
    Some((SmolStr::new_static(kind), SmolStr::new(owner)))
}

/// Kinds that are workloads when nobody owns them.
fn is_workload(kind: &str) -> bool {
    const KINDS: [&str; 6] = [
        kinds::DEPLOYMENT,
        kinds::STATEFUL_SET,
        kinds::DAEMON_SET,
        kinds::REPLICA_SET,
        kinds::JOB,
        kinds::CRON_JOB,
    ];
    KINDS.contains(&kind)
}

/// The entity of an object; a container of a pod when `container` is given.
pub fn entity(cluster: &SmolStr, owners: &Owners, object: &Summary, container: &str) -> Arc<EntityRef> {
    let namespace = &object.namespace;
    let top = object.owner.as_ref().map(|owner| owners.top(namespace, owner));
    let named = Named { kind: &object.kind, namespace, name: &object.name, uid: &object.uid };
    let mut entity = of_name(cluster, named, top);
    if let Detail::Pod(pod) = &object.detail {
        entity.node = pod.node.clone();
        if let Some(state) = pod.container(container) {
            entity.container = state.name.clone();
            entity.container_id = state.id.clone();
        }
    }
    Arc::new(entity.sealed())
}

/// An object by name.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// Kind.
    pub kind: &'a SmolStr,
    /// Namespace.
    pub namespace: &'a SmolStr,
    /// Name.
    pub name: &'a SmolStr,
    /// uid.
    pub uid: &'a SmolStr,
}

/// The entity of an object of which only the name and perhaps the top owner are known; not sealed.
pub fn of_name(cluster: &SmolStr, object: Named<'_>, top: Option<KindName>) -> EntityRef {
    let (kind, name) = (object.kind.as_str(), object.name.clone());
    let mut entity =
        EntityRef { cluster: cluster.clone(), namespace: object.namespace.clone(), ..EntityRef::default() };
    match kind {
        kinds::POD => (entity.pod, entity.pod_uid) = (name, object.uid.clone()),
        kinds::NODE => (entity.node, entity.namespace) = (name, SmolStr::default()),
        kinds::NAMESPACE => entity.namespace = name,
        kinds::SERVICE => entity.service = name,
        kind if is_workload(kind) && top.is_none() => {
            let owner = by_name(&(SmolStr::new(kind), name.clone()));
            if let Some((kind, owner)) = owner {
                (entity.workload_kind, entity.workload) = (kind, owner);
                (entity.object_kind, entity.object) = (object.kind.clone(), name);
            } else {
                (entity.workload_kind, entity.workload) = (object.kind.clone(), name);
            }
        }
        _ => (entity.object_kind, entity.object) = (object.kind.clone(), name),
    }
    // The owner of a slice is its Service; of a volume, nothing that runs.
    match top {
        Some((owner_kind, owner)) if owner_kind == kinds::SERVICE => entity.service = owner,
        Some((owner_kind, owner)) if owner_kind != kinds::NODE => {
            (entity.workload_kind, entity.workload) = (owner_kind, owner);
        }
        _ => {}
    }
    entity
}
