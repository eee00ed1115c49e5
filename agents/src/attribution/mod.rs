//! From a control group to the thing it belongs to: container → pod → workload, systemd unit, plain group.
//!
//! Ids are learned by walking the trees (at the start, with every sampling, and when an unknown id comes) and
//! kept for [`TOMBSTONE`] after a group is gone, because a group often dies before the evidence arrives. Ids are
//! unique per tree only, so each tree has its own map. Where memory has a tree of its own (v1, hybrid) its path
//! names the owner, unless it is the root; else the v2 path does.

mod hierarchy;
mod learned;
mod namespace;
mod path;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smol_str::SmolStr;
use tapio_runtime::clock::SharedClock;
use tapio_schemas::entity::EntityRef;

pub use hierarchy::{
    CGROUP_ROOT, CgroupVersion, Group, Hierarchies, NoCgroups, V1_CONTROLLERS, WALK_GROUPS_MAX, walk,
};
pub use learned::TOMBSTONE;
pub use path::{CgroupOwner, owner_of};

use learned::Learned;
use namespace::{Namespace, is_memory, lines};

/// Completed entities kept, so that a batch carries each once.
const COMPLETED_MAX: usize = 16_384;
/// Entities by path that are kept.
const PATHS_MAX: usize = 16_384;
/// An unknown id starts a walk at most this often: ids of groups that are gone would otherwise walk for ever.
const WALK_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// An entity whose pod is not known yet is looked up again after this time.
const RETRY_POD: Duration = Duration::from_secs(1);

/// Ids of the control groups of one process, as the kernel programs report them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CgroupIds {
    /// In the tree where its memory is charged.
    pub memory: Option<u64>,
    /// In the v2 tree.
    pub unified: Option<u64>,
}

/// What is known of a container or pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// Namespace.
    pub namespace: SmolStr,
    /// Pod name.
    pub pod: SmolStr,
    /// Pod uid.
    pub pod_uid: SmolStr,
    /// Container name; empty for the pod as a whole.
    pub container: SmolStr,
    /// Kind of the top owner; empty for a bare pod.
    pub workload_kind: SmolStr,
    /// Name of the top owner; empty for a bare pod.
    pub workload: SmolStr,
}

/// Where pods are looked up.
pub trait PodLookup: Send + Sync {
    /// By container id or pod uid, of which either may be empty.
    fn find(&self, container_id: &str, pod_uid: &str) -> Option<PodIdentity>;
}

/// Resolves control groups and completes entities. Shared by collectors and the node thread.
pub struct Attribution {
    cluster: SmolStr,
    node: SmolStr,
    node_entity: Arc<EntityRef>,
    trees: Option<Hierarchies>,
    namespace: Namespace,
    pods: Option<Arc<dyn PodLookup>>,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Learned,
    unified: Learned,
    last_walk: Option<Duration>,
    paths: HashMap<Arc<str>, PathEntity>,
    completed: HashMap<EntityRef, Arc<EntityRef>>,
}

struct PathEntity {
    entity: Arc<EntityRef>,
    /// When to ask again for the pod; `None` when the entity is complete.
    retry_at: Option<Duration>,
}

impl Attribution {
    /// `trees` is `None` where there are no control groups: then everything is the node's.
    pub fn new(
        cluster: &str,
        node: &str,
        trees: Option<Hierarchies>,
        pods: Option<Arc<dyn PodLookup>>,
        clock: SharedClock,
    ) -> Arc<Self> {
        let node_entity = EntityRef { cluster: cluster.into(), node: node.into(), ..EntityRef::default() };
        let attribution = Self {
            cluster: cluster.into(),
            node: node.into(),
            node_entity: Arc::new(node_entity.sealed()),
            namespace: Namespace::of_this_process(trees.as_ref()),
            trees,
            pods,
            clock,
            state: Mutex::default(),
        };
        attribution.refresh();
        Arc::new(attribution)
    }

    /// The trees of this machine.
    pub fn trees(&self) -> Option<&Hierarchies> {
        self.trees.as_ref()
    }

    /// This machine.
    pub fn node(&self) -> Arc<EntityRef> {
        Arc::clone(&self.node_entity)
    }

    /// Walks the trees now.
    pub fn refresh(&self) {
        let mut state = self.lock();
        self.walk_trees(&mut state);
    }

    /// What owns the groups; the node, when they are unknown or the root. `pid` helps while it is alive.
    pub fn resolve(&self, ids: CgroupIds, pid: Option<u32>) -> Arc<EntityRef> {
        self.resolve_known(ids, pid).0
    }

    /// As [`Attribution::resolve`], and whether all of the groups are known: if not, the answer may change.
    pub fn resolve_known(&self, ids: CgroupIds, pid: Option<u32>) -> (Arc<EntityRef>, bool) {
        let mut state = self.lock();
        let mut found = self.find(&mut state, ids);
        if found.is_none() && self.is_unknown(&state, ids) {
            if let Some(pid) = pid {
                self.learn_from_process(&mut state, ids, pid);
                found = self.find(&mut state, ids);
            }
            if found.is_none() && self.may_walk(&state) {
                self.walk_trees(&mut state);
                found = self.find(&mut state, ids);
            }
        }
        let is_known = !self.is_unknown(&state, ids);
        match found {
            Some(path) => (self.entity_of(&mut state, &path), is_known),
            None => (self.node(), is_known),
        }
    }

    /// What owns a process that lives, by `/proc`; the node, when it is gone.
    pub fn resolve_process(&self, pid: u32) -> Arc<EntityRef> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path_of = |is_wanted: fn(&str) -> bool| {
            let (controllers, path) = lines(&text).find(|(controllers, _)| is_wanted(controllers))?;
            self.namespace.absolute(controllers, path).filter(|path| path != "/")
        };
        self.resolve_path(&path_of(is_memory).or_else(|| path_of(str::is_empty)).unwrap_or_default())
    }

    /// What owns the group at `path` below its tree's root.
    pub fn resolve_path(&self, path: &str) -> Arc<EntityRef> {
        if path.is_empty() || path == "/" {
            return self.node();
        }
        let mut state = self.lock();
        self.entity_of(&mut state, &Arc::from(path))
    }

    /// Fills what an entity from elsewhere leaves out: cluster, and workload and names by pod uid or container
    /// id. Equal entities give the same shared value.
    pub fn complete(&self, entity: &Arc<EntityRef>) -> Arc<EntityRef> {
        let wants_pod =
            entity.workload.is_empty() && (!entity.container_id.is_empty() || !entity.pod_uid.is_empty());
        if !entity.cluster.is_empty() && entity.lineage != 0 && !wants_pod {
            return Arc::clone(entity);
        }
        let mut state = self.lock();
        if let Some(done) = state.completed.get(&**entity) {
            return Arc::clone(done);
        }
        let mut full = EntityRef::clone(entity);
        if full.cluster.is_empty() {
            full.cluster = self.cluster.clone();
        }
        let known = !wants_pod || self.fill_pod(&mut full);
        let full = Arc::new(full.sealed());
        if known {
            if state.completed.len() >= COMPLETED_MAX {
                // A generation at a time: what is in use comes back at once.
                state.completed.clear();
            }
            state.completed.insert(EntityRef::clone(entity), Arc::clone(&full));
        }
        full
    }

    fn find(&self, state: &mut State, ids: CgroupIds) -> Option<Arc<str>> {
        let now = self.clock.monotonic();
        let memory = ids.memory.and_then(|id| state.memory.get(id, now));
        let unified = ids.unified.and_then(|id| state.unified.get(id, now));
        let is_group = |path: &Arc<str>| &**path != "/";
        if self.trees.as_ref().is_some_and(Hierarchies::memory_is_v1) {
            return memory.filter(is_group).or(unified.filter(is_group));
        }
        // One tree: the process's own group is at or below the one its memory is charged to.
        unified.or(memory).filter(is_group)
    }

    /// True when an id was given that no map holds.
    fn is_unknown(&self, state: &State, ids: CgroupIds) -> bool {
        let missing = |id: Option<u64>, map: &Learned| id.is_some_and(|id| !map.contains(id));
        missing(ids.memory, &state.memory) || missing(ids.unified, &state.unified)
    }

    fn may_walk(&self, state: &State) -> bool {
        let now = self.clock.monotonic();
        state.last_walk.is_none_or(|last| now.saturating_sub(last) >= WALK_INTERVAL_MIN)
    }

    fn walk_trees(&self, state: &mut State) {
        let now = self.clock.monotonic();
        state.last_walk = Some(now);
        let Some(trees) = &self.trees else { return };
        if let Some(tree) = trees.memory_tree() {
            learn_tree(&mut state.memory, tree, now);
        }
        if let Some(tree) = &trees.unified {
            learn_tree(&mut state.unified, tree, now);
        }
    }

    /// `/proc/<pid>/cgroup` of a process that still lives, believed only when the inode agrees.
    fn learn_from_process(&self, state: &mut State, ids: CgroupIds, pid: u32) {
        let Some(trees) = &self.trees else { return };
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return };
        let now = self.clock.monotonic();
        for (controllers, path) in lines(&text) {
            let Some(path) = self.namespace.absolute(controllers, path) else { continue };
            if is_memory(controllers) {
                let tree = trees.v1_tree("memory");
                learn_one(&mut state.memory, tree, &path, ids.memory, now);
            } else if controllers.is_empty() {
                learn_one(&mut state.unified, trees.unified.as_deref(), &path, ids.unified, now);
                if !trees.memory_is_v1() {
                    learn_one(&mut state.memory, trees.unified.as_deref(), &path, ids.memory, now);
                }
            }
        }
    }

    fn entity_of(&self, state: &mut State, path: &Arc<str>) -> Arc<EntityRef> {
        let now = self.clock.monotonic();
        if let Some(known) = state.paths.get(path)
            && known.retry_at.is_none_or(|at| now < at)
        {
            return Arc::clone(&known.entity);
        }
        let (owner, own_path) = owner_of(path);
        let mut entity = EntityRef {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            cgroup: SmolStr::new(own_path),
            ..EntityRef::default()
        };
        let complete = match owner {
            CgroupOwner::Container { pod_uid, container_id } => {
                (entity.pod_uid, entity.container_id) = (pod_uid, container_id);
                self.fill_pod(&mut entity)
            }
            CgroupOwner::Pod { pod_uid } => {
                entity.pod_uid = pod_uid;
                self.fill_pod(&mut entity)
            }
            CgroupOwner::Unit { name } => {
                entity.unit = name;
                true
            }
            CgroupOwner::Root | CgroupOwner::Plain => true,
        };
        let entity = Arc::new(entity.sealed());
        if state.paths.len() >= PATHS_MAX {
            state.paths.clear();
        }
        let retry_at = (!complete && self.pods.is_some()).then(|| now + RETRY_POD);
        state.paths.insert(Arc::clone(path), PathEntity { entity: Arc::clone(&entity), retry_at });
        entity
    }

    /// True when the pod is known.
    fn fill_pod(&self, entity: &mut EntityRef) -> bool {
        let Some(pods) = &self.pods else { return false };
        let Some(pod) = pods.find(&entity.container_id, &entity.pod_uid) else { return false };
        entity.namespace = pod.namespace;
        entity.pod = pod.pod;
        entity.pod_uid = pod.pod_uid;
        entity.workload_kind = pod.workload_kind;
        entity.workload = pod.workload;
        if !pod.container.is_empty() {
            entity.container = pod.container;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn learn_tree(map: &mut Learned, tree: &Path, now: Duration) {
    if let Ok(root) = fs::metadata(tree) {
        map.learn(root.ino(), "/", now);
    }
    for group in walk(tree) {
        map.learn(group.id, &group.path, now);
    }
    map.prune(now);
}

fn learn_one(map: &mut Learned, tree: Option<&Path>, path: &str, id: Option<u64>, now: Duration) {
    let (Some(tree), Some(id)) = (tree, id) else { return };
    let Ok(meta) = fs::metadata(format!("{}{path}", tree.display())) else { return };
    if meta.ino() == id {
        map.learn(id, path, now);
    }
}

#[cfg(test)]
mod tests;
