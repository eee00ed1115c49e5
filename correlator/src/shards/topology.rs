//! Who owns, runs on, calls and is whom: edges of the entity graph from what events carry.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::payload::KubernetesData;
use tapio_schemas::signal::EdgeKind;
use tapio_schemas::{EntityRef, EventKind, Fact, UnifiedEvent, UnixNanos};

use super::record::hash_parts;
use crate::config::{SignalConfig, nanos};

/// Kinds that relations name and that live outside of namespaces.
const CLUSTER_SCOPED: [&str; 4] = [kinds::NODE, kinds::NAMESPACE, "PersistentVolume", "StorageClass"];

/// What a shard knows to have told.
pub struct Topology {
    refresh_ns: u64,
    known_max: usize,
    /// Entities seen, by the step in which they were.
    seen: BTreeMap<UnixNanos, BTreeMap<u128, Arc<EntityRef>>>,
    /// When an entity's place or an edge was last told.
    told: HashMap<u128, UnixNanos>,
}

impl Topology {
    /// Nothing told yet.
    pub fn new(config: &SignalConfig) -> Self {
        Self {
            refresh_ns: nanos(config.topology_refresh),
            known_max: config.entities_max,
            seen: BTreeMap::new(),
            told: HashMap::new(),
        }
    }

    /// An event of this entity falls into this step.
    pub fn sight(&mut self, step: UnixNanos, owner: u128, entity: &Arc<EntityRef>) {
        self.seen.entry(step).or_default().entry(owner).or_insert_with(|| Arc::clone(entity));
    }

    /// First step in which something was seen and not yet told.
    pub fn due(&self) -> Option<UnixNanos> {
        self.seen.first_key_value().map(|(step, _)| *step)
    }

    /// Tells the places of what was seen up to this step.
    pub fn tell(&mut self, step: UnixNanos, out: &mut Vec<Fact>) {
        while let Some(entry) = self.seen.first_entry() {
            if *entry.key() > step {
                break;
            }
            for (owner, entity) in entry.remove() {
                // The place may change while the identity stays (a pod learns its workload): both count.
                let place = owner
                    ^ hash_parts(&[
                        &entity.workload_kind,
                        &entity.workload,
                        &entity.node,
                        &entity.service,
                        &entity.pod,
                    ]);
                if self.is_due(place, step) {
                    place_facts(&entity, step, out);
                }
            }
        }
        self.forget();
    }

    /// An edge was seen in this step.
    pub fn edge(&mut self, step: UnixNanos, edge: EdgeKind, from: Entity, to: Entity, out: &mut Vec<Fact>) {
        if from == to || from.name.is_empty() || to.name.is_empty() {
            return;
        }
        let key = hash_parts(&[
            edge.as_str(),
            &from.kind,
            &from.namespace,
            &from.name,
            &from.node,
            &to.kind,
            &to.namespace,
            &to.name,
            &to.node,
        ]);
        if self.is_due(key, step) {
            out.push(Fact { at: step, edge, from, to, gone: false });
        }
    }

    /// Edges that an object of the Kubernetes API names, and its end.
    pub fn object(
        &mut self,
        step: UnixNanos,
        event: &UnifiedEvent,
        data: &KubernetesData,
        out: &mut Vec<Fact>,
    ) {
        let gone = event.kind == EventKind::K8sObjectDeleted;
        let namespace = &event.entity.namespace;
        let from = Entity::namespaced(&data.object_kind, namespace, &data.object_name);
        for relation in &data.relations {
            let Ok(edge) = relation.edge.parse::<EdgeKind>() else { continue };
            let cluster_scoped = CLUSTER_SCOPED.contains(&relation.kind.as_str());
            // A slice of endpoints speaks for its service.
            let service = &event.entity.service;
            let from = match edge {
                EdgeKind::Selects if !service.is_empty() => {
                    Entity::namespaced(kinds::SERVICE, namespace, service)
                }
                _ => from.clone(),
            };
            let to = Entity::namespaced(
                &relation.kind,
                if cluster_scoped { "" } else { namespace },
                &relation.name,
            );
            if gone {
                out.push(Fact { at: step, edge, from, to, gone });
            } else {
                self.edge(step, edge, from, to, out);
            }
        }
        let owner = event.entity.owner();
        if gone && owner != from {
            out.push(Fact { at: step, edge: EdgeKind::Owns, from: owner, to: from, gone });
        }
    }

    fn is_due(&mut self, key: u128, step: UnixNanos) -> bool {
        let due = self.told.get(&key).is_none_or(|told| step.since(*told) >= self.refresh_ns);
        if due {
            self.told.insert(key, step);
        }
        due
    }

    /// What was told longest ago is forgotten, and told again when it is next seen.
    fn forget(&mut self) {
        if self.told.len() <= self.known_max {
            return;
        }
        let mut ages: Vec<(UnixNanos, u128)> = self.told.iter().map(|(key, at)| (*at, *key)).collect();
        ages.sort_unstable();
        for (_, key) in ages.iter().take(self.known_max / 4) {
            self.told.remove(key);
        }
    }
}

/// The edges that an entity reference itself implies.
fn place_facts(entity: &EntityRef, at: UnixNanos, out: &mut Vec<Fact>) {
    let ns = &entity.namespace;
    let pod = Entity::namespaced(kinds::POD, ns, &entity.pod);
    let owner = entity.owner();
    let mut push = |edge, from: &Entity, to: &Entity| {
        if from != to {
            out.push(Fact { at, edge, from: from.clone(), to: to.clone(), gone: false });
        }
    };
    if !entity.pod.is_empty() {
        push(EdgeKind::Owns, &owner, &pod);
        if !entity.container.is_empty() {
            push(EdgeKind::Owns, &pod, &entity.subject());
        }
    }
    if !entity.node.is_empty() {
        let node = Entity::new(kinds::NODE, "", &entity.node, "");
        if !entity.pod.is_empty() {
            push(EdgeKind::RunsOn, &pod, &node);
        } else if !entity.unit.is_empty() || !entity.cgroup.is_empty() {
            push(EdgeKind::RunsOn, &owner, &node);
        }
    }
    if !entity.service.is_empty() && owner.kind != kinds::SERVICE && owner.kind != kinds::NODE {
        push(EdgeKind::SameAs, &Entity::namespaced(kinds::SERVICE, ns, &entity.service), &owner);
    }
}
