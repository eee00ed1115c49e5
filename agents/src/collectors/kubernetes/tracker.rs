//! Follows the objects of a cluster: holds what was seen last of each, so that changes can be told.
//!
//! The same code runs behind the live watches and behind a replay of recorded ones.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::payload::Payload;

use super::consequences::{self, Consequences};
use super::convert::{self, Context, EventSummary, WatchType};
use super::index::PodIndex;
use super::owners::Owners;
use super::retell::Retell;
use super::summary::{NotAnObject, Summary};

/// Objects whose last state is kept; the changes of further ones are told without a comparison.
pub const OBJECTS_MAX: usize = 100_000;
/// Kubernetes events whose last count is kept; then the older half is forgotten.
pub const EVENTS_MAX: usize = 20_000;

/// Kind, namespace and name.
pub(super) type Key = (SmolStr, SmolStr, SmolStr);

/// Follows the objects of one cluster.
pub struct Tracker {
    cluster: SmolStr,
    objects: HashMap<Key, Summary>,
    owners: Owners,
    /// uid → count and order of arrival.
    events: HashMap<SmolStr, (u32, u64)>,
    arrivals: u64,
    pods: Option<PodIndex>,
    /// Kinds that are being listed: what has been seen of them in this list.
    lists: HashMap<SmolStr, HashSet<Key>>,
    untracked: u64,
    retell: Retell,
    consequences: Consequences,
}

impl Tracker {
    /// A tracker of one cluster that also fills `pods`.
    pub fn new(cluster: &str, pods: Option<PodIndex>) -> Self {
        Self {
            cluster: SmolStr::new(cluster),
            objects: HashMap::new(),
            owners: Owners::default(),
            events: HashMap::new(),
            arrivals: 0,
            pods,
            lists: HashMap::new(),
            untracked: 0,
            retell: Retell::default(),
            consequences: Consequences::default(),
        }
    }

    /// Events of a change, as a watch sends it. `news_after`: see [`Context::news_after`]; zero in replay.
    ///
    /// # Errors
    /// When it is no object.
    pub fn object(
        &mut self,
        observed_at: UnixNanos,
        news_after: UnixNanos,
        watch_type: WatchType,
        object: &Value,
    ) -> Result<Vec<UnifiedEvent>, NotAnObject> {
        Ok(self.summarized(observed_at, news_after, watch_type, Summary::of(object)?))
    }

    /// [`Self::object`] of what is already a summary.
    pub(super) fn summarized(
        &mut self,
        observed_at: UnixNanos,
        news_after: UnixNanos,
        watch_type: WatchType,
        mut new: Summary,
    ) -> Vec<UnifiedEvent> {
        let mut events = self.overdue(observed_at);
        self.consequences.complete(&mut new, &self.objects);
        let key = key(&new);
        if let Some(seen) = self.lists.get_mut(&new.kind) {
            seen.insert(key.clone());
        }
        // The same name with another uid is another object.
        let previous = self.objects.remove(&key).filter(|previous| previous.uid == new.uid);
        self.owners.learn(&new);
        let context = Context { cluster: &self.cluster, observed_at, owners: &self.owners, news_after };
        events.extend(convert::object(&context, watch_type, &new, previous.as_ref()));
        self.update_pods(watch_type, &new);
        self.consequences.note(observed_at, watch_type, &new, previous.as_ref());
        let service = self.consequences.service_of(&new);
        if watch_type == WatchType::Deleted {
            self.owners.forget(&new);
        } else if self.objects.len() < OBJECTS_MAX {
            if !new.relations.is_empty() {
                self.retell.add(&key);
            }
            self.objects.insert(key, new);
        } else {
            self.untracked += 1;
        }
        if let Some(service) = service {
            let context = Context { cluster: &self.cluster, observed_at, owners: &self.owners, news_after };
            events.extend(self.consequences.endpoints(&context, &service, &self.objects));
        }
        events
    }

    /// Events of what should have happened to objects by `now` and has not.
    pub fn overdue(&mut self, now: UnixNanos) -> Vec<UnifiedEvent> {
        let context =
            Context { cluster: &self.cluster, observed_at: now, owners: &self.owners, news_after: now };
        self.consequences.overdue(&context, &self.objects)
    }

    /// The event of a Kubernetes Event; none when this count of it was told before.
    ///
    /// # Errors
    /// When it is about nothing.
    pub fn event(
        &mut self,
        observed_at: UnixNanos,
        news_after: UnixNanos,
        event: &Value,
    ) -> Result<Option<UnifiedEvent>, NotAnObject> {
        Ok(self.summarized_event(observed_at, news_after, &EventSummary::of(event)?))
    }

    /// [`Self::event`] of what is already a summary.
    pub(super) fn summarized_event(
        &mut self,
        observed_at: UnixNanos,
        news_after: UnixNanos,
        event: &EventSummary,
    ) -> Option<UnifiedEvent> {
        let told = self.events.get(&event.uid).is_some_and(|(count, _)| *count >= event.count);
        let old = event.at.is_some_and(|at| at < news_after);
        if told && !event.uid.is_empty() {
            return None;
        }
        self.remember_event(event);
        if old {
            return None;
        }
        let [kind, namespace, name, uid] = &event.about;
        let about = self
            .objects
            .get(&(kind.clone(), namespace.clone(), name.clone()))
            .filter(|object| uid.is_empty() || object.uid == *uid);
        let context = Context { cluster: &self.cluster, observed_at, owners: &self.owners, news_after };
        let preemptor = consequences::preemptor(&context, event, &self.objects);
        let mut told = convert::event(&context, event, about);
        if let (Some(preemptor), Payload::Kubernetes(data)) = (preemptor, &mut told.payload) {
            data.changed_by = preemptor;
        }
        Some(told)
    }

    /// A full list of a kind begins.
    pub fn list_begins(&mut self, kind: &str) {
        self.lists.insert(SmolStr::new(kind), HashSet::new());
    }

    /// A full list of a kind is complete: what was not in it is gone, and its deletion was missed.
    pub fn list_ends(&mut self, observed_at: UnixNanos, kind: &str) -> Vec<UnifiedEvent> {
        let Some(seen) = self.lists.remove(kind) else { return Vec::new() };
        let mut gone: Vec<Key> =
            self.objects.keys().filter(|key| key.0 == kind && !seen.contains(*key)).cloned().collect();
        gone.sort();
        let mut events = Vec::new();
        for key in gone {
            let Some(object) = self.objects.remove(&key) else { continue };
            let context = Context {
                cluster: &self.cluster,
                observed_at,
                owners: &self.owners,
                news_after: observed_at,
            };
            events.extend(convert::object(&context, WatchType::Deleted, &object, Some(&object)));
            self.update_pods(WatchType::Deleted, &object);
            self.owners.forget(&object);
        }
        events
    }

    /// Tells again what belongs to what, each object once per `interval`: the next few whose turn it is at `monotonic`.
    pub fn retell(
        &mut self,
        observed_at: UnixNanos,
        monotonic: Duration,
        interval: Duration,
    ) -> Vec<UnifiedEvent> {
        let objects = &self.objects;
        let has_relations = |key: &Key| objects.get(key).is_some_and(|o| !o.relations.is_empty());
        let due = self.retell.turn(monotonic, interval, has_relations);
        let context =
            Context { cluster: &self.cluster, observed_at, owners: &self.owners, news_after: observed_at };
        due.iter()
            .filter_map(|key| objects.get(key))
            .flat_map(|object| convert::again(&context, object))
            .collect()
    }

    /// Number of objects that are followed.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// True when none are.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Changes of objects beyond [`OBJECTS_MAX`].
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    fn update_pods(&self, watch_type: WatchType, object: &Summary) {
        let Some(pods) = self.pods.as_ref().filter(|_| object.pod().is_some()) else { return };
        let top = object.owner.as_ref().map(|owner| self.owners.top(&object.namespace, owner));
        // A last status may name containers that were never seen.
        pods.apply(object, top);
        if watch_type == WatchType::Deleted {
            pods.remove(&object.uid);
        }
    }

    fn remember_event(&mut self, event: &EventSummary) {
        if self.events.len() >= EVENTS_MAX {
            let keep_from = self.arrivals - (EVENTS_MAX / 2) as u64;
            self.events.retain(|_, (_, arrival)| *arrival >= keep_from);
        }
        self.events.insert(event.uid.clone(), (event.count, self.arrivals));
        self.arrivals += 1;
    }
}

fn key(object: &Summary) -> Key {
    (object.kind.clone(), object.namespace.clone(), object.name.clone())
}
