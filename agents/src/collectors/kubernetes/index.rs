//! Which pod a container id or a pod uid belongs to, also for some time after it is gone: the kernel's evidence
//! of a container's end may come after the API has forgotten it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smol_str::SmolStr;
use tapio_runtime::clock::SharedClock;

use super::owners::KindName;
use super::summary::Summary;
use crate::attribution::{PodIdentity, PodLookup};

/// How long a deleted pod can be found.
pub const TOMBSTONE: Duration = Duration::from_secs(15 * 60);
/// Pods kept, living and dead; when full, dead ones go first, oldest first, and then new ones are not taken.
pub const PODS_MAX: usize = 20_000;
/// Instances of containers kept of a pod, newest last.
const INSTANCES_MAX: usize = 64;

/// Pods by container id and uid. Clones share it.
#[derive(Clone)]
pub struct PodIndex(Arc<Mutex<State>>);

struct State {
    clock: SharedClock,
    pods: HashMap<SmolStr, Entry>,
    /// Container id → pod uid and container name.
    containers: HashMap<SmolStr, (SmolStr, SmolStr)>,
    /// uid of a static pod's control groups → uid of its mirror in the API.
    aliases: HashMap<SmolStr, SmolStr>,
    refused: u64,
}

struct Entry {
    identity: PodIdentity,
    instances: Vec<SmolStr>,
    alias: SmolStr,
    gone_at: Option<Duration>,
}

impl PodIndex {
    /// An empty index.
    pub fn new(clock: SharedClock) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock,
            pods: HashMap::new(),
            containers: HashMap::new(),
            aliases: HashMap::new(),
            refused: 0,
        })))
    }

    /// Adds or updates a pod; what is no pod is ignored.
    pub fn apply(&self, pod: &Summary, top_owner: Option<KindName>) {
        let Some(details) = pod.pod() else { return };
        let mut state = self.lock();
        if !state.pods.contains_key(&pod.uid) && !state.make_room() {
            state.refused += 1;
            return;
        }
        let (workload_kind, workload) = top_owner.unwrap_or_default();
        let identity = PodIdentity {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            pod_uid: pod.uid.clone(),
            container: SmolStr::default(),
            workload_kind,
            workload,
        };
        let alias = details.config_hash.clone();
        if !alias.is_empty() {
            state.aliases.insert(alias.clone(), pod.uid.clone());
        }
        let fresh = Entry { identity: identity.clone(), instances: Vec::new(), alias, gone_at: None };
        let entry = state.pods.entry(pod.uid.clone()).or_insert(fresh);
        entry.identity = identity;
        entry.gone_at = None;
        let seen = details.containers.iter().flat_map(|container| {
            let ended = container.ended.iter().map(|end| &end.id);
            ended.chain([&container.id]).map(|id| (id.clone(), container.name.clone()))
        });
        for (id, name) in seen.filter(|(id, _)| !id.is_empty()) {
            state.add_instance(&pod.uid, id, name);
        }
    }

    /// Marks a pod as gone; it is found for [`TOMBSTONE`] more.
    pub fn remove(&self, uid: &str) {
        let mut state = self.lock();
        let now = state.clock.monotonic();
        if let Some(entry) = state.pods.get_mut(uid) {
            entry.gone_at.get_or_insert(now);
        }
        state.expire(now);
    }

    /// Marks the living pods as gone of which `is_there` (namespace, name, uid) says that they are not.
    pub fn keep(&self, is_there: impl Fn(&SmolStr, &SmolStr, &SmolStr) -> bool) {
        let mut state = self.lock();
        let now = state.clock.monotonic();
        for (uid, entry) in state.pods.iter_mut().filter(|(_, entry)| entry.gone_at.is_none()) {
            if !is_there(&entry.identity.namespace, &entry.identity.pod, uid) {
                entry.gone_at = Some(now);
            }
        }
    }

    /// Number of pods, living and dead.
    pub fn len(&self) -> usize {
        self.lock().pods.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pods that were not taken because the index was full.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodLookup for PodIndex {
    fn find(&self, container_id: &str, pod_uid: &str) -> Option<PodIdentity> {
        let state = self.lock();
        let by_container = state.containers.get(container_id);
        let uid = match by_container {
            Some((uid, _)) => uid.as_str(),
            None => state.aliases.get(pod_uid).map_or(pod_uid, SmolStr::as_str),
        };
        let entry = state.pods.get(uid)?;
        if entry.gone_at.is_some_and(|gone| state.clock.monotonic().saturating_sub(gone) > TOMBSTONE) {
            return None;
        }
        let container = by_container.map(|(_, name)| name.clone()).unwrap_or_default();
        Some(PodIdentity { container, ..entry.identity.clone() })
    }
}

impl State {
    fn add_instance(&mut self, uid: &SmolStr, id: SmolStr, name: SmolStr) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        if self.containers.contains_key(&id) {
            return;
        }
        if entry.instances.len() >= INSTANCES_MAX {
            let oldest = entry.instances.remove(0);
            self.containers.remove(&oldest);
        }
        entry.instances.push(id.clone());
        self.containers.insert(id, (uid.clone(), name));
    }

    fn make_room(&mut self) -> bool {
        if self.pods.len() < PODS_MAX {
            return true;
        }
        let now = self.clock.monotonic();
        self.expire(now);
        let oldest = self.pods.iter().filter_map(|(uid, e)| Some((e.gone_at?, uid.clone()))).min();
        if let (true, Some((_, uid))) = (self.pods.len() >= PODS_MAX, oldest) {
            self.forget(&uid);
        }
        self.pods.len() < PODS_MAX
    }

    fn expire(&mut self, now: Duration) {
        let is_over = |entry: &Entry| entry.gone_at.is_some_and(|gone| now.saturating_sub(gone) > TOMBSTONE);
        let over: Vec<_> = self.pods.iter().filter(|(_, e)| is_over(e)).map(|(uid, _)| uid.clone()).collect();
        over.iter().for_each(|uid| self.forget(uid));
    }

    fn forget(&mut self, uid: &SmolStr) {
        let Some(entry) = self.pods.remove(uid) else { return };
        for id in entry.instances {
            self.containers.remove(&id);
        }
        // A static pod that was made again has the same alias and a new uid.
        if self.aliases.get(&entry.alias) == Some(uid) {
            self.aliases.remove(&entry.alias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tapio_runtime::clock::ManualClock;
    use tapio_schemas::entity::kinds;

    fn pod(uid: &str, statuses: Value) -> Summary {
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": format!("p-{uid}"), "namespace": "shop",
            "uid": uid, "annotations": {"kubernetes.io/config.hash": format!("hash-{uid}")}},
            "status": {"containerStatuses": statuses}});
        Summary::of(&pod).unwrap()
    }

    fn status(id: &str, last: &str) -> Value {
        json!([{"name": "app", "containerID": format!("containerd://{id}"),
            "lastState": {"terminated": {"containerID": format!("containerd://{last}"), "exitCode": 1}}}])
    }

    fn index() -> (PodIndex, ManualClock) {
        let clock = ManualClock::new(0);
        (PodIndex::new(clock.shared()), clock)
    }

    #[test]
    fn instances_uids_and_static_pods_are_found() {
        let (index, _clock) = index();
        let owner = Some((kinds::DEPLOYMENT.into(), "api".into()));
        index.apply(&pod("u1", status("new", "old")), owner);
        for id in ["new", "old"] {
            let found = index.find(id, "").unwrap();
            assert_eq!(
                (found.container.as_str(), found.pod.as_str(), found.workload.as_str()),
                ("app", "p-u1", "api")
            );
        }
        let by_uid = index.find("unheard-of", "u1").unwrap();
        assert_eq!((by_uid.container.as_str(), by_uid.pod_uid.as_str()), ("", "u1"));
        assert_eq!(index.find("", "hash-u1").unwrap().pod_uid, "u1");
        assert_eq!(index.find("", ""), None);
    }

    #[test]
    fn a_deleted_pod_is_found_until_its_tombstone_is_over() {
        let (index, clock) = index();
        index.apply(&pod("u1", status("a", "")), None);
        index.remove("u1");
        clock.advance(TOMBSTONE);
        assert!(index.find("a", "").is_some());
        clock.advance(Duration::from_secs(1));
        assert_eq!(index.find("a", ""), None);
        index.remove("other");
        assert_eq!(index.len(), 0, "and is then forgotten");
        assert_eq!(index.find("", "hash-u1"), None);
    }

    #[test]
    fn a_full_index_gives_up_the_dead_first() {
        let (index, clock) = index();
        for n in 0..PODS_MAX {
            index.apply(&pod(&format!("u{n}"), json!([])), None);
        }
        index.remove("u7");
        clock.advance(Duration::from_secs(1));
        index.remove("u3");
        index.apply(&pod("new", status("c", "")), None);
        assert_eq!((index.find("", "u7"), index.find("", "u3").is_some()), (None, true));
        assert!(index.find("c", "").is_some());
        index.apply(&pod("newer", json!([])), None);
        index.apply(&pod("one too many", json!([])), None);
        assert_eq!((index.refused(), index.len()), (1, PODS_MAX));
    }

    #[test]
    fn a_container_that_restarts_for_ever_stays_bounded() {
        let (index, _clock) = index();
        for n in 0..INSTANCES_MAX * 2 {
            index.apply(&pod("u1", status(&format!("c{n}"), "")), None);
        }
        assert_eq!(index.lock().containers.len(), INSTANCES_MAX);
        assert!(index.find(&format!("c{}", INSTANCES_MAX * 2 - 1), "").is_some());
    }
}
