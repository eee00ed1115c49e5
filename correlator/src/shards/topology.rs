//! Who owns, runs on, calls and is whom: edges of the entity graph from what events carry.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::payload::{ArchivedNetworkData, KubernetesData};
use tapio_schemas::signal::EdgeKind;
use tapio_schemas::{EntityRef, EventKind, Fact, UnifiedEvent, UnixNanos};

use super::counters::Counters;
use super::entities::Known;
use super::news;
use super::record::{entity_identity, hash_parts};
use crate::config::{SignalConfig, nanos};

/// Kinds that relations name and that live outside of namespaces.
const CLUSTER_SCOPED: [&str; 4] = [kinds::NODE, kinds::NAMESPACE, "PersistentVolume", "StorageClass"];

/// What waits for its step to be told.
enum Seen {
    /// An entity at its place.
    Place(Arc<Known>),
    /// An entity that reached another.
    Reached(Arc<Known>, Entity),
}

/// What a shard knows to have told.
pub struct Topology {
    refresh_ns: u64,
    known_max: usize,
    /// What was seen, by the step in which it was and by its identity.
    seen: BTreeMap<UnixNanos, BTreeMap<u128, Seen>>,
    /// How many they are.
    seen_count: usize,
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
            seen_count: 0,
            told: HashMap::new(),
        }
    }

    /// An event of this entity falls into this step.
    pub fn sight(&mut self, step: UnixNanos, known: &Arc<Known>, counters: &mut Counters) {
        // What is told by an earlier step need not wait to be left out.
        if !self.is_told(known.place, step) {
            self.wait(step, known.place, || Some(Seen::Place(Arc::clone(known))), counters);
        }
    }

    /// A connection of this entity falls into this step.
    pub fn connection(
        &mut self,
        step: UnixNanos,
        known: &Arc<Known>,
        data: &ArchivedNetworkData,
        peer: &str,
        counters: &mut Counters,
    ) {
        let remote = (data.remote_addr, data.remote_port.to_native());
        let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
        hash.update(&known.tenant_id.to_le_bytes());
        hash.update(&remote.0);
        hash.update(&remote.1.to_le_bytes());
        hash.update(peer.as_bytes());
        let key = hash.digest128();
        if self.is_told(key, step) {
            return;
        }
        let reached = || {
            let peer = news::peer_of(&known.entity.namespace, peer, remote.0, remote.1)?;
            Some(Seen::Reached(Arc::clone(known), peer))
        };
        self.wait(step, key, reached, counters);
    }

    /// What is seen waits for its step, once.
    fn wait(
        &mut self,
        step: UnixNanos,
        key: u128,
        seen: impl FnOnce() -> Option<Seen>,
        counters: &mut Counters,
    ) {
        let is_full = self.seen_count >= self.known_max;
        let Entry::Vacant(place) = self.seen.entry(step).or_default().entry(key) else { return };
        if is_full {
            counters.evicted.sights += 1;
        } else if let Some(seen) = seen() {
            place.insert(seen);
            self.seen_count += 1;
        }
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
            let of_step = entry.remove();
            self.seen_count -= of_step.len();
            for (key, seen) in of_step {
                if !self.is_due(key, step) {
                    continue;
                }
                match seen {
                    Seen::Place(known) => place_facts(&known.entity, step, out),
                    Seen::Reached(known, peer) => {
                        let to = entity_identity(&peer);
                        self.edge_of(
                            step,
                            EdgeKind::ConnectsTo,
                            (&known.tenant, known.tenant_id),
                            (&peer, to),
                            out,
                        );
                    }
                }
            }
        }
        self.forget();
    }

    /// An edge was seen in this step.
    pub fn edge(&mut self, step: UnixNanos, edge: EdgeKind, from: &Entity, to: &Entity, out: &mut Vec<Fact>) {
        self.edge_of(step, edge, (from, entity_identity(from)), (to, entity_identity(to)), out);
    }

    /// An edge was seen in this step, between nodes of known identity.
    pub fn edge_of(
        &mut self,
        step: UnixNanos,
        edge: EdgeKind,
        (from, from_id): (&Entity, u128),
        (to, to_id): (&Entity, u128),
        out: &mut Vec<Fact>,
    ) {
        if from_id == to_id || from.name.is_empty() || to.name.is_empty() {
            return;
        }
        // Turned, so that there and back differ.
        let key = from_id ^ to_id.rotate_left(1 + edge as u32);
        if self.is_due(key, step) {
            out.push(Fact { at: step, edge, from: from.clone(), to: to.clone(), gone: false });
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
                self.edge(step, edge, &from, &to, out);
            }
        }
        let owner = event.entity.owner();
        if gone && owner != from {
            out.push(Fact { at: step, edge: EdgeKind::Owns, from: owner, to: from, gone });
        }
    }

    fn is_told(&self, key: u128, step: UnixNanos) -> bool {
        self.told.get(&key).is_some_and(|told| step.since(*told) < self.refresh_ns)
    }

    fn is_due(&mut self, key: u128, step: UnixNanos) -> bool {
        let due = !self.is_told(key, step);
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
        let surplus = self.told.len() - self.known_max * 3 / 4;
        ages.select_nth_unstable(surplus - 1);
        for (_, key) in &ages[..surplus] {
            self.told.remove(key);
        }
    }
}

/// Identity of an entity at its place. The place may change while the owner stays (a pod learns its workload): both count.
pub fn place_identity(owner: u128, entity: &EntityRef) -> u128 {
    owner ^ hash_parts(&[&entity.workload_kind, &entity.workload, &entity.node, &entity.service, &entity.pod])
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
