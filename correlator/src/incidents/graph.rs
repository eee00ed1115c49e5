//! The entity graph: who owns, runs on, calls whom, and which names mean the same thing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::signal::{EdgeKind, Fact};
use tapio_schemas::{Entity, EntityRef, UnixNanos};

use crate::model::is_workload;

/// Most steps from a process to its owner, and over names of one thing.
const CLIMB_STEPS_MAX: usize = 8;
/// Most calls between a cause and what suffers from it.
pub const UPSTREAM_HOPS_MAX: usize = 3;

/// Entities whose home is remembered.
const HOMES_FOUND_MAX: usize = 65_536;

/// Homes around a home, against (true) or along the direction of calls.
type Neighbours = HashMap<(Entity, bool), Arc<BTreeSet<Entity>>>;

#[derive(Debug, Clone, Copy)]
struct Edge {
    last: UnixNanos,
    gone: Option<UnixNanos>,
}

/// Typed edges in both directions. Edges that are gone stay as tombstones until [`Graph::prune`] forgets them.
#[derive(Debug, Default)]
pub struct Graph {
    out: HashMap<Entity, BTreeMap<EdgeKind, BTreeMap<Entity, Edge>>>,
    into: HashMap<Entity, BTreeMap<EdgeKind, BTreeSet<Entity>>>,
    /// Workloads and services by name, for names that telemetry and Kubernetes share.
    by_name: HashMap<SmolStr, BTreeSet<Entity>>,
    edges: usize,
    edges_max: usize,
    refused: u64,
    /// What was looked up already; emptied whenever an edge or a name is new or forgotten.
    found: RefCell<Found>,
}

/// Answers that hold as long as no edge and no name changes.
#[derive(Debug, Default)]
struct Found {
    neighbours: Neighbours,
    reach: Neighbours,
    homes: HashMap<Entity, Entity>,
    machines: HashMap<Entity, Arc<BTreeSet<Entity>>>,
}

impl Found {
    fn clear(&mut self) {
        self.neighbours.clear();
        self.reach.clear();
        self.homes.clear();
        self.machines.clear();
    }
}

impl Graph {
    /// Empty, with a limit on its edges.
    pub fn new(edges_max: usize) -> Self {
        Self { edges_max, ..Self::default() }
    }

    /// Number of edges.
    pub fn len(&self) -> usize {
        self.edges
    }

    /// Edges refused because the graph was full.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// True when something that stands in an edge or was named is what is asked for: what was forgotten since is not known.
    pub fn knows(&self, is_it: impl Fn(&Entity) -> bool) -> bool {
        let named = self.by_name.values().flatten();
        self.out.keys().chain(self.into.keys()).chain(named).any(is_it)
    }

    /// Takes a fact.
    pub fn apply(&mut self, fact: &Fact) {
        if fact.gone {
            let edge = self.edge(fact.edge, &fact.from, &fact.to);
            if let Some(edge) = edge.filter(|e| e.last <= fact.at) {
                edge.gone = Some(fact.at);
            }
            return;
        }
        self.connect(fact.edge, &fact.from, &fact.to, fact.at);
    }

    /// Takes what an entity reference says about containment.
    pub fn learn(&mut self, entity: &EntityRef, at: UnixNanos) {
        let owner = entity.owner();
        self.name(&owner);
        let mut innermost = owner.clone();
        if !entity.pod.is_empty() {
            let pod = Entity::new(kinds::POD, &entity.namespace, &entity.pod, "");
            if pod != owner {
                self.connect(EdgeKind::Owns, &owner, &pod, at);
            }
            innermost = pod;
            let subject = entity.subject();
            if subject != innermost {
                self.connect(EdgeKind::Owns, &innermost, &subject, at);
            }
        }
        if !entity.node.is_empty() && innermost.kind != kinds::NODE {
            let node = Entity::new(kinds::NODE, "", &entity.node, "");
            self.connect(EdgeKind::RunsOn, &innermost, &node, at);
        }
        if !entity.service.is_empty() && owner.kind != kinds::SERVICE {
            let service = Entity::new(kinds::SERVICE, &entity.namespace, &entity.service, "");
            self.connect(EdgeKind::SameAs, &service, &owner, at);
        }
    }

    fn connect(&mut self, kind: EdgeKind, from: &Entity, to: &Entity, at: UnixNanos) {
        self.name(from);
        self.name(to);
        if let Some(edge) = self.edge(kind, from, to) {
            edge.last = edge.last.max(at);
            edge.gone = edge.gone.filter(|gone| *gone > at);
            return;
        }
        if self.edges >= self.edges_max {
            self.refused += 1;
            return;
        }
        self.found.get_mut().clear();
        let edges = self.out.entry(from.clone()).or_default().entry(kind).or_default();
        edges.insert(to.clone(), Edge { last: at, gone: None });
        self.into.entry(to.clone()).or_default().entry(kind).or_default().insert(from.clone());
        self.edges += 1;
    }

    fn edge(&mut self, kind: EdgeKind, from: &Entity, to: &Entity) -> Option<&mut Edge> {
        self.out.get_mut(from)?.get_mut(&kind)?.get_mut(to)
    }

    fn name(&mut self, entity: &Entity) {
        let named = is_workload(&entity.kind) || entity.kind == kinds::SERVICE;
        if named && self.by_name.len() < self.edges_max {
            let same = self.by_name.entry(entity.name.clone()).or_default();
            if same.insert(entity.clone()) {
                self.found.get_mut().clear();
            }
        }
    }

    fn targets(&self, from: &Entity, kind: EdgeKind) -> impl Iterator<Item = &Entity> {
        self.out.get(from).and_then(|kinds| kinds.get(&kind)).into_iter().flatten().map(|(to, _)| to)
    }

    fn sources(&self, to: &Entity, kind: EdgeKind) -> impl Iterator<Item = &Entity> {
        self.into.get(to).and_then(|kinds| kinds.get(&kind)).into_iter().flatten()
    }

    /// What answers for an entity: its top owner, under the one name that the cluster knows it by.
    pub fn home(&self, entity: &Entity) -> Entity {
        if let Some(known) = self.found.borrow().homes.get(entity) {
            return known.clone();
        }
        let home = self.find_home(entity);
        let homes = &mut self.found.borrow_mut().homes;
        if homes.len() >= HOMES_FOUND_MAX {
            homes.clear();
        }
        homes.insert(entity.clone(), home.clone());
        home
    }

    fn find_home(&self, entity: &Entity) -> Entity {
        let mut here = entity.clone();
        for _ in 0..CLIMB_STEPS_MAX {
            match self.step_up(&here) {
                Some(next) if next != here && next != *entity => here = next,
                _ => break,
            }
        }
        here
    }

    fn step_up(&self, here: &Entity) -> Option<Entity> {
        let groups = [kinds::NAMESPACE, kinds::NODE, kinds::CLUSTER];
        let owner = self.sources(here, EdgeKind::Owns).find(|o| !groups.contains(&o.kind.as_str()));
        if let Some(owner) = owner {
            return Some(owner.clone());
        }
        if let Some(same) = self.targets(here, EdgeKind::SameAs).next() {
            return Some(same.clone());
        }
        if here.kind != kinds::SERVICE {
            return None;
        }
        let selected = self.targets(here, EdgeKind::Selects).next().cloned();
        selected.or_else(|| self.workload_named_like(here))
    }

    /// The one workload with the name of the service, in its namespace (or either without one).
    fn workload_named_like(&self, service: &Entity) -> Option<Entity> {
        let mut same = self.by_name.get(&service.name)?.iter().filter(|e| {
            is_workload(&e.kind)
                && (e.namespace == service.namespace
                    || e.namespace.is_empty()
                    || service.namespace.is_empty())
        });
        let first = same.next()?;
        same.next().is_none().then(|| first.clone())
    }

    /// Every name under which `home` may be spoken of.
    fn names_of(&self, home: &Entity) -> BTreeSet<Entity> {
        let mut names = BTreeSet::from([home.clone()]);
        let mut open = vec![home.clone()];
        while let Some(name) = open.pop() {
            let same = self.sources(&name, EdgeKind::SameAs).chain(self.sources(&name, EdgeKind::Selects));
            let owned = self.targets(&name, EdgeKind::Owns);
            for other in same.chain(owned) {
                if names.insert(other.clone()) {
                    open.push(other.clone());
                }
            }
        }
        for other in self.by_name.get(&home.name).into_iter().flatten() {
            if other.kind == kinds::SERVICE && self.home(other) == *home {
                names.insert(other.clone());
            }
        }
        names
    }

    fn neighbours(&self, home: &Entity, backwards: bool) -> Arc<BTreeSet<Entity>> {
        let key = (home.clone(), backwards);
        if let Some(known) = self.found.borrow().neighbours.get(&key) {
            return Arc::clone(known);
        }
        let found = Arc::new(self.find_neighbours(home, backwards));
        self.found.borrow_mut().neighbours.insert(key, Arc::clone(&found));
        found
    }

    fn find_neighbours(&self, home: &Entity, backwards: bool) -> BTreeSet<Entity> {
        let mut found = BTreeSet::new();
        for name in self.names_of(home) {
            for kind in [EdgeKind::Calls, EdgeKind::ConnectsTo] {
                if backwards {
                    found.extend(self.sources(&name, kind).map(|e| self.home(e)));
                } else {
                    found.extend(self.targets(&name, kind).map(|e| self.home(e)));
                }
            }
        }
        found.remove(home);
        found
    }

    /// Homes that call or connect to `home`.
    pub fn callers(&self, home: &Entity) -> Arc<BTreeSet<Entity>> {
        self.neighbours(home, true)
    }

    /// Homes that `home` calls or connects to.
    pub fn callees(&self, home: &Entity) -> Arc<BTreeSet<Entity>> {
        self.neighbours(home, false)
    }

    /// Homes reached over at most [`UPSTREAM_HOPS_MAX`] calls, against or along their direction.
    pub fn reach(&self, home: &Entity, backwards: bool) -> Arc<BTreeSet<Entity>> {
        let key = (home.clone(), backwards);
        if let Some(known) = self.found.borrow().reach.get(&key) {
            return Arc::clone(known);
        }
        let found = Arc::new(self.find_reach(home, backwards));
        self.found.borrow_mut().reach.insert(key, Arc::clone(&found));
        found
    }

    fn find_reach(&self, home: &Entity, backwards: bool) -> BTreeSet<Entity> {
        let mut found = BTreeSet::new();
        let mut frontier = BTreeSet::from([home.clone()]);
        for _ in 0..UPSTREAM_HOPS_MAX {
            let mut next = BTreeSet::new();
            for entity in &frontier {
                next.extend(self.neighbours(entity, backwards).iter().cloned());
            }
            next.retain(|e| e != home && !found.contains(e));
            found.extend(next.iter().cloned());
            frontier = next;
        }
        found
    }

    /// Machines that anything inside of `home` runs on.
    pub fn machines(&self, home: &Entity) -> Arc<BTreeSet<Entity>> {
        if let Some(known) = self.found.borrow().machines.get(home) {
            return Arc::clone(known);
        }
        let found = Arc::new(self.find_machines(home));
        self.found.borrow_mut().machines.insert(home.clone(), Arc::clone(&found));
        found
    }

    fn find_machines(&self, home: &Entity) -> BTreeSet<Entity> {
        let mut machines: BTreeSet<Entity> =
            self.names_of(home).iter().flat_map(|n| self.targets(n, EdgeKind::RunsOn)).cloned().collect();
        if !home.node.is_empty() {
            machines.insert(Entity::new(kinds::NODE, "", &home.node, ""));
        }
        machines
    }

    /// Objects (ConfigMaps, Secrets, claims) that anything inside of `home` mounts or reads its variables from.
    pub fn mounted(&self, home: &Entity) -> BTreeSet<Entity> {
        self.names_of(home).iter().flat_map(|n| self.targets(n, EdgeKind::Mounts)).cloned().collect()
    }

    /// Homes that mount `object`, read their variables from it, or are limited by it.
    pub fn mounters(&self, object: &Entity) -> BTreeSet<Entity> {
        let mounting = self.sources(object, EdgeKind::Mounts);
        mounting.chain(self.targets(object, EdgeKind::Limits)).map(|e| self.home(e)).collect()
    }

    /// Forgets edges gone before `gone_before` and those nobody has mentioned since `silent_before`.
    pub fn prune(&mut self, gone_before: UnixNanos, silent_before: UnixNanos) {
        let into = &mut self.into;
        let mut removed = 0;
        self.out.retain(|from, kinds| {
            kinds.retain(|kind, edges| {
                // What a pod mounts is told once, when the pod is made, and holds until it is gone.
                let told_once = matches!(kind, EdgeKind::Mounts | EdgeKind::Limits);
                edges.retain(|to, edge| {
                    let silent = !told_once && edge.last < silent_before;
                    let keep = edge.gone.is_none_or(|gone| gone >= gone_before) && !silent;
                    if !keep {
                        removed += 1;
                        if let Some(sources) = into.get_mut(to).and_then(|kinds| kinds.get_mut(kind)) {
                            sources.remove(from);
                        }
                    }
                    keep
                });
                !edges.is_empty()
            });
            !kinds.is_empty()
        });
        for kinds in into.values_mut() {
            kinds.retain(|_, sources| !sources.is_empty());
        }
        into.retain(|_, sources| !sources.is_empty());
        self.edges -= removed;
        if removed > 0 {
            self.found.get_mut().clear();
            let (out, into) = (&self.out, &self.into);
            self.by_name.retain(|_, entities| {
                entities.retain(|e| out.contains_key(e) || into.contains_key(e));
                !entities.is_empty()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(edge: EdgeKind, from: Entity, to: Entity) -> Fact {
        Fact { at: UnixNanos(10), edge, from, to, gone: false }
    }

    fn database() -> EntityRef {
        EntityRef {
            namespace: "shop".into(),
            workload_kind: "StatefulSet".into(),
            workload: "db".into(),
            pod: "db-0".into(),
            container: "postgres".into(),
            node: "n1".into(),
            ..EntityRef::default()
        }
    }

    #[test]
    fn containers_services_and_addresses_lead_home() {
        let mut graph = Graph::new(100);
        graph.learn(&database(), UnixNanos(10));
        let db = Entity::namespaced("StatefulSet", "shop", "db");
        let address = Entity::new(kinds::EXTERNAL, "", "10.0.0.5:5432", "");
        graph.apply(&fact(EdgeKind::SameAs, address.clone(), Entity::namespaced(kinds::POD, "shop", "db-0")));
        assert_eq!(graph.home(&Entity::namespaced(kinds::CONTAINER, "shop", "db-0/postgres")), db);
        assert_eq!(graph.home(&Entity::namespaced(kinds::SERVICE, "shop", "db")), db);
        assert_eq!(graph.home(&Entity::namespaced(kinds::SERVICE, "", "db")), db);
        assert_eq!(graph.home(&address), db);
        assert_ne!(graph.home(&Entity::namespaced(kinds::SERVICE, "other", "db")), db);
    }

    #[test]
    fn calls_are_found_under_every_name_and_over_hops() {
        let mut graph = Graph::new(100);
        graph.learn(&database(), UnixNanos(10));
        let service = |name: &str| Entity::namespaced(kinds::SERVICE, "shop", name);
        graph.apply(&fact(EdgeKind::Calls, service("api"), service("db")));
        graph.apply(&fact(EdgeKind::Calls, service("web"), service("api")));
        let db = Entity::namespaced("StatefulSet", "shop", "db");
        assert_eq!(*graph.callers(&db), BTreeSet::from([service("api")]));
        assert_eq!(*graph.reach(&db, true), BTreeSet::from([service("api"), service("web")]));
        assert_eq!(*graph.callees(&service("api")), BTreeSet::from([db.clone()]));
        assert_eq!(*graph.machines(&db), BTreeSet::from([Entity::new(kinds::NODE, "", "n1", "")]));
    }

    #[test]
    fn what_a_pod_mounts_is_mounted_by_its_workload() {
        let mut graph = Graph::new(100);
        graph.learn(&database(), UnixNanos(10));
        let settings = Entity::namespaced("ConfigMap", "shop", "db");
        let pod = Entity::namespaced(kinds::POD, "shop", "db-0");
        graph.apply(&fact(EdgeKind::Mounts, pod, settings.clone()));
        let db = Entity::namespaced("StatefulSet", "shop", "db");
        assert_eq!(graph.mounters(&settings), BTreeSet::from([db.clone()]));
        assert_eq!(graph.mounted(&db), BTreeSet::from([settings.clone()]));
        graph.prune(UnixNanos(0), UnixNanos(1_000));
        graph.learn(&database(), UnixNanos(1_000));
        assert_eq!(graph.mounters(&settings), BTreeSet::from([db.clone()]), "told once, however long ago");
        // A name that a workload and its settings share stays the workload's.
        assert_eq!(graph.home(&Entity::namespaced(kinds::SERVICE, "shop", "db")), db);
        assert_eq!(graph.home(&settings), settings);
    }

    #[test]
    fn tombstones_are_kept_then_forgotten_and_the_graph_is_bounded() {
        let mut graph = Graph::new(1);
        let (a, b) = (Entity::new("Service", "", "a", ""), Entity::new("Service", "", "b", ""));
        graph.apply(&fact(EdgeKind::Calls, a.clone(), b.clone()));
        graph.apply(&fact(EdgeKind::Calls, b.clone(), a.clone()));
        assert_eq!((graph.len(), graph.refused()), (1, 1));
        graph.apply(&Fact { gone: true, at: UnixNanos(20), ..fact(EdgeKind::Calls, a.clone(), b.clone()) });
        graph.prune(UnixNanos(20), UnixNanos(0));
        assert_eq!(graph.callers(&b).len(), 1);
        graph.prune(UnixNanos(21), UnixNanos(0));
        assert_eq!((graph.callers(&b).len(), graph.len()), (0, 0));
    }

    #[test]
    fn circles_of_names_end() {
        let mut graph = Graph::new(10);
        let (a, b) = (Entity::new("Service", "", "a", ""), Entity::new("Service", "", "b", ""));
        graph.apply(&fact(EdgeKind::SameAs, a.clone(), b.clone()));
        graph.apply(&fact(EdgeKind::SameAs, b.clone(), a.clone()));
        assert_eq!(graph.home(&a), b);
        assert_eq!(graph.home(&b), a);
    }
}
