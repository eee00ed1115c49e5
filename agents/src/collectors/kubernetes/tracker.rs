//! Follows the objects of a cluster: holds what was seen last of each, so that changes can be told.
//!
//! The same code runs behind the live watches and behind a replay of recorded ones.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::payload::Payload;

use super::consequences::{self, Consequences, ServiceName};
use super::convert::{self, Context, EventSummary, WatchType};
use super::ends::FailureTeller;
use super::index::PodIndex;
use super::lasting::Lasting;
use super::owners::Owners;
use super::retell::Retell;
use super::stock::{Key, Stock, key_of};
use super::summary::{LIMITS, NotAnObject, Summary};
use super::versions::Versions;

/// Objects whose last state is kept; the changes of further ones are told without a comparison.
pub const OBJECTS_MAX: usize = 100_000;
/// Kubernetes events whose last count is kept; then the older half is forgotten.
pub const EVENTS_MAX: usize = 20_000;

/// Follows the objects of one cluster.
pub struct Tracker {
    cluster: SmolStr,
    objects: Stock,
    owners: Owners,
    /// uid → count and order of arrival.
    events: HashMap<SmolStr, (u32, u64)>,
    arrivals: u64,
    pods: Option<PodIndex>,
    untracked: u64,
    retell: Retell,
    lasting: Lasting,
    consequences: Consequences,
    versions: Versions,
    failures: Option<FailureTeller>,
}

impl Tracker {
    /// A tracker of one cluster that also fills `pods`.
    pub fn new(cluster: &str, pods: Option<PodIndex>) -> Self {
        Self {
            cluster: SmolStr::new(cluster),
            objects: Stock::default(),
            owners: Owners::default(),
            events: HashMap::new(),
            arrivals: 0,
            pods,
            untracked: 0,
            retell: Retell::default(),
            lasting: Lasting::default(),
            consequences: Consequences::default(),
            versions: Versions::default(),
            failures: None,
        }
    }

    /// With somebody who hears of failed containers.
    #[must_use]
    pub(super) fn telling(self, failures: Option<FailureTeller>) -> Self {
        Self { failures, ..self }
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
        let key = key_of(&new);
        let is_deleted = watch_type == WatchType::Deleted;
        if !is_deleted {
            self.objects.note_listed(&key);
        }
        if !is_deleted && self.objects.is_listing(&new.kind) {
            self.versions.listed(&new);
        } else if self.versions.is_outdated(watch_type, &new, self.objects.get(&key)) {
            return events;
        }
        if is_deleted {
            self.objects.note_deleted(&key);
        }
        Consequences::complete(&mut new, &self.objects);
        let mut previous = self.objects.remove(&key);
        // The same name with another uid is another object: the end of the one before was missed.
        if let Some(old) = previous.take_if(|previous| previous.uid != new.uid) {
            events.extend(self.deleted(observed_at.minus(1), &old));
        }
        self.owners.learn(&new);
        let context = Context { cluster: &self.cluster, observed_at, owners: &self.owners, news_after };
        let of_object = convert::object(&context, watch_type, &new, previous.as_ref());
        if let (Some(failures), Some(pod)) = (&self.failures, new.pod()) {
            failures.tell(&of_object, pod);
        }
        events.extend(of_object);
        self.update_pods(watch_type, &new);
        self.consequences.note(observed_at, watch_type, &new, previous.as_ref(), &self.objects);
        let services = self.consequences.services_of(&new, previous.as_ref());
        if is_deleted {
            self.owners.forget(&new);
            self.versions.deleted(&new);
        } else {
            self.keep(observed_at, key, new);
        }
        for service in services {
            events.extend(self.endpoints(observed_at, news_after, &service));
        }
        events
    }

    fn keep(&mut self, at: UnixNanos, key: Key, object: Summary) {
        if self.objects.len() >= OBJECTS_MAX {
            self.untracked += 1;
            return;
        }
        if has_edges(&object) {
            self.retell.add(&key);
        }
        if convert::lasts(&object) {
            self.lasting.add(at, &key);
        }
        self.objects.insert(key, object);
    }

    /// Events of the end of an object that nobody told: it is held no more.
    fn deleted(&mut self, at: UnixNanos, object: &Summary) -> Vec<UnifiedEvent> {
        let context =
            Context { cluster: &self.cluster, observed_at: at, owners: &self.owners, news_after: at };
        let mut events = convert::object(&context, WatchType::Deleted, object, Some(object));
        self.update_pods(WatchType::Deleted, object);
        self.owners.forget(object);
        self.versions.deleted(object);
        self.consequences.note(at, WatchType::Deleted, object, Some(object), &self.objects);
        if let Some(service) = self.consequences.service_of(object) {
            events.extend(self.endpoints(at, at, &service));
        }
        events
    }

    /// The event when the last pod behind a Service has gone, or one is behind it again.
    fn endpoints(
        &mut self,
        observed_at: UnixNanos,
        news_after: UnixNanos,
        service: &ServiceName,
    ) -> Vec<UnifiedEvent> {
        let context = Context { cluster: &self.cluster, observed_at, owners: &self.owners, news_after };
        let events = self.consequences.endpoints(&context, service, &self.objects);
        if self.consequences.is_unserved(service) {
            let key = (SmolStr::new_static(kinds::SERVICE), service.0.clone(), service.1.clone());
            self.lasting.add(observed_at, &key);
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

    /// Events of what is wrong since some time and still is at `now`: each state every four minutes, for as long as it lasts.
    pub fn lasting(&mut self, now: UnixNanos) -> Vec<UnifiedEvent> {
        let mut events = Vec::new();
        for key in self.lasting.turn(now) {
            let Some(object) = self.objects.get(&key) else { continue };
            let context =
                Context { cluster: &self.cluster, observed_at: now, owners: &self.owners, news_after: now };
            let mut told = convert::lasting(&context, object);
            told.extend(self.consequences.unserved(&context, object, &self.objects));
            if !told.is_empty() {
                self.lasting.add(now, &key);
            }
            events.extend(told);
        }
        events
    }

    /// A full list of a kind begins.
    pub fn list_begins(&mut self, kind: &str) {
        self.objects.list_begins(kind);
    }

    /// A list of a kind was read to its end, of one namespace or of all; what was in it is told one by one.
    pub(super) fn was_listed(&mut self, kind: &SmolStr, only: Option<&SmolStr>) {
        self.objects.was_listed(kind, only);
    }

    /// A list of a kind that has begun will not be finished.
    pub fn list_breaks(&mut self, kind: &str) {
        self.objects.list_breaks(kind);
    }

    /// A full list of a kind is complete: what was not in it is gone, and its deletion was missed.
    pub fn list_ends(&mut self, observed_at: UnixNanos, kind: &str) -> Vec<UnifiedEvent> {
        let Some(seen) = self.objects.list_ends(kind) else { return Vec::new() };
        let mut events = Vec::new();
        for key in self.objects.missing(kind, &seen) {
            if let Some(object) = self.objects.remove(&key) {
                events.extend(self.deleted(observed_at, &object));
            }
        }
        if let Some(pods) = self.pods.as_ref().filter(|_| kind == kinds::POD) {
            // Of those that are not followed only the name is known.
            pods.keep(|namespace, name, uid| {
                let key = (SmolStr::new_static(kinds::POD), namespace.clone(), name.clone());
                match self.objects.get(&key) {
                    Some(pod) => pod.uid == *uid,
                    None => seen.contains(&key),
                }
            });
        }
        self.consequences.list_ended(observed_at, kind);
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
        let due = self.retell.turn(monotonic, interval, |key: &Key| objects.get(key).is_some_and(has_edges));
        let mut events = Vec::new();
        for key in due {
            // Pods may have come and gone since the policy that is for them came.
            if let Some(mut policy) = self.objects.get(&key).filter(|object| is_limit(object)).cloned() {
                Consequences::complete(&mut policy, &self.objects);
                self.objects.insert(key.clone(), policy);
            }
            let context = Context {
                cluster: &self.cluster,
                observed_at,
                owners: &self.owners,
                news_after: observed_at,
            };
            let object = self.objects.get(&key).filter(|object| !object.relations.is_empty());
            events.extend(object.into_iter().flat_map(|object| convert::again(&context, object)));
        }
        events
    }

    /// Number of objects that are followed.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// True when none are.
    pub fn is_empty(&self) -> bool {
        self.objects.len() == 0
    }

    /// Changes of objects beyond [`OBJECTS_MAX`].
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// States that were told after newer ones, and not taken.
    pub fn outdated(&self) -> u64 {
        self.versions.outdated
    }

    /// What was to be looked at later and is not, because too much was.
    pub fn dropped(&self) -> u64 {
        self.consequences.dropped() + self.lasting.dropped()
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

fn is_limit(object: &Summary) -> bool {
    LIMITS.contains(&object.kind.as_str())
}

/// Whether an object names others, or may do so later.
fn has_edges(object: &Summary) -> bool {
    !object.relations.is_empty() || is_limit(object)
}
