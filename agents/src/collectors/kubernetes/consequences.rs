//! What no single change says: that nothing is behind a Service any more, that nobody does what an object waits for.
//!
//! All of it is a function of the objects and of event time, live and in replay.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::Relation;
use tapio_schemas::signal::EdgeKind;

use super::convert::{Consequence, Context, EventSummary, WatchType, consequence};
use super::due::Due;
use super::json::selects;
use super::lasting::REPEAT_NS;
use super::stock::{Stock, key_of};
use super::summary::{Detail, LIMITS, Summary};
use super::waits::Waits;

/// A pod that the scheduler has not looked at for this long, ns; a busy one looks within seconds.
const UNSCHEDULED_NS: u64 = 60_000_000_000;
/// An object whose deletion should have been done this long ago, ns.
const TERMINATING_NS: u64 = 60_000_000_000;
/// Why no pod is behind a Service: its selector.
const UNSELECTED: &str = "SelectorMatchesNoPod";
/// Why no pod is behind a Service: the pods.
const UNSERVED: &str = "NoPods";
/// Pods that a NetworkPolicy is told to be for; further ones of it are left out.
const LIMITED_MAX: usize = 1024;
/// Services of which it is remembered who served; further ones are not, and counted.
const SERVED_MAX: usize = 20_000;

/// Namespace and name of a Service.
pub(super) type ServiceName = (SmolStr, SmolStr);

#[derive(Debug, Default)]
struct Served {
    /// Ready pods of each of its slices.
    slices: BTreeMap<SmolStr, usize>,
    /// Pods of the slice that had some last.
    pods: Vec<SmolStr>,
    /// What was told when none were any more.
    told: Option<Consequence>,
}

/// What is remembered to see consequences.
#[derive(Debug, Default)]
pub(super) struct Consequences {
    due: Due,
    /// Slices of Services that are not remembered.
    unserved: u64,
    served: HashMap<ServiceName, Served>,
    waits: Waits,
}

impl Consequences {
    /// Adds to an object what follows from others: the pods that a NetworkPolicy is for.
    pub fn complete(new: &mut Summary, objects: &Stock) {
        let Some(rules) = new.rules() else { return };
        if !LIMITS.contains(&new.kind.as_str()) {
            return;
        }
        let limited = objects.pods_of(&new.namespace).filter(|object| {
            object.pod().is_some_and(|pod| rules.selects_all || selects(&rules.selector, &pod.labels))
        });
        let limits = |pod: &Summary| relation(EdgeKind::Limits, kinds::POD, pod.name.clone());
        new.relations = limited.take(LIMITED_MAX).map(limits).collect();
    }

    /// Remembers when to look at an object again.
    pub fn note(
        &mut self,
        observed_at: UnixNanos,
        watch_type: WatchType,
        new: &Summary,
        previous: Option<&Summary>,
        objects: &Stock,
    ) {
        self.count(watch_type, new, objects);
        self.waits.note(observed_at, watch_type, new, previous, objects);
        if watch_type == WatchType::Deleted {
            self.due.remove(&key_of(new));
            return;
        }
        if is_unnoticed(new) && previous.is_none_or(|previous| !is_unnoticed(previous)) {
            self.due.add(observed_at.plus(UNSCHEDULED_NS), key_of(new));
        }
        if let Some(gone_by) = new.gone_by
            && previous.is_none_or(|previous| previous.gone_by.is_none())
        {
            self.due.add(gone_by.max(observed_at).plus(TERMINATING_NS), key_of(new));
        }
    }

    /// A list of a kind is complete.
    pub fn list_ended(&mut self, at: UnixNanos, kind: &str) {
        self.waits.list_ended(at, kind);
    }

    /// Objects that were not waited for, because too many were.
    pub fn dropped(&self) -> u64 {
        self.due.dropped() + self.waits.dropped() + self.unserved
    }

    /// Events of what should have happened by now and has not.
    pub fn overdue(&mut self, context: &Context<'_>, objects: &Stock) -> Vec<UnifiedEvent> {
        let mut events = Vec::new();
        let now = context.observed_at;
        while let Some(key) = self.due.pop(now) {
            let Some(object) = objects.get(&key) else { continue };
            // It was looked at for another reason, and its deletion has time yet.
            if let Some(by) = object.gone_by.map(|by| by.plus(TERMINATING_NS)).filter(|by| *by > now) {
                self.due.add(by, key);
            } else if let Some(stuck) = stuck(object) {
                let kind = EventKind::K8sStuck;
                events.extend(consequence(context, object, kind, EventSeverity::Error, stuck));
                self.due.add(now.plus(REPEAT_NS), key);
            }
        }
        let served = &self.served;
        let has_pods = |namespace: &SmolStr, name: &SmolStr| {
            let served = served.get(&(namespace.clone(), name.clone()))?;
            Some(served.slices.values().any(|ready| *ready > 0))
        };
        events.extend(self.waits.look(context, objects, has_pods));
        events
    }

    /// The Services of which it may have changed with this object whether anything is behind them, or why nothing is.
    pub fn services_of(&self, new: &Summary, previous: Option<&Summary>) -> Vec<ServiceName> {
        let Some(pod) = new.pod() else { return self.service_of(new).into_iter().collect() };
        if previous.and_then(Summary::pod).is_none_or(|previous| previous.labels == pod.labels) {
            return Vec::new();
        }
        // Few pods get other labels while they run. That their slice is empty may be heard before that they did.
        let is_of = |name: &ServiceName, served: &Served| {
            name.0 == new.namespace && served.told.is_some() && served.pods.contains(&new.name)
        };
        let told = self.served.iter().filter(|(name, served)| is_of(name, served));
        told.map(|(name, _)| name.clone()).collect()
    }

    /// The Service whose endpoints may have changed with this object.
    pub fn service_of(&self, object: &Summary) -> Option<ServiceName> {
        let name = match (object.kind.as_str(), &object.owner) {
            (kinds::SERVICE, _) => object.name.clone(),
            ("EndpointSlice", Some((kind, owner))) if kind == kinds::SERVICE => owner.clone(),
            _ => return None,
        };
        Some((object.namespace.clone(), name))
    }

    /// The event when a Service has lost the last pod behind it, or has one again.
    pub fn endpoints(
        &mut self,
        context: &Context<'_>,
        name: &ServiceName,
        objects: &Stock,
    ) -> Vec<UnifiedEvent> {
        let service = objects.find(kinds::SERVICE, &name.0, &name.1);
        let (Some(service), Some(served)) = (service, self.served.get_mut(name)) else {
            return Vec::new();
        };
        let serves = served.slices.values().any(|ready| *ready > 0);
        if serves {
            let was_told = served.told.take().is_some();
            let back = || {
                let (kind, severity) = (EventKind::K8sEndpoints, EventSeverity::Info);
                consequence(context, service, kind, severity, Consequence::default())
            };
            return if was_told { back() } else { Vec::new() };
        }
        if served.pods.is_empty() {
            return Vec::new();
        }
        let emptied = emptied(context, service, &served.pods, objects);
        // Each kind has a watch of its own: that a slice is empty may be heard before the change of the Service, or of the labels of
        // its pods, that emptied it.
        let is_why = |told: &Consequence| told.reason != emptied.reason && emptied.reason == UNSELECTED;
        if served.told.as_ref().is_some_and(|told| !is_why(told)) {
            return Vec::new();
        }
        served.told = Some(emptied.clone());
        consequence(context, service, EventKind::K8sNoEndpoints, EventSeverity::Warning, emptied)
    }

    /// True when it was told that nothing is behind this Service any more, and that still is so.
    pub fn is_unserved(&self, name: &ServiceName) -> bool {
        self.served.get(name).is_some_and(|served| served.told.is_some())
    }

    /// The same again, of a Service with nothing behind it, for the reason that the pods as they are now show.
    pub fn unserved(
        &mut self,
        context: &Context<'_>,
        service: &Summary,
        objects: &Stock,
    ) -> Vec<UnifiedEvent> {
        let name = (service.namespace.clone(), service.name.clone());
        let served = self.served.get_mut(&name).filter(|_| service.kind == kinds::SERVICE);
        let Some(Served { pods, told: Some(told), .. }) = served else { return Vec::new() };
        // That the pods which showed it go as well is not why.
        if told.reason != UNSELECTED || ready(service, pods, objects).next().is_some() {
            let now = emptied(context, service, pods, objects);
            // Whose pods they were is known while they are there: it stays the same deviation when they are gone.
            *told = Consequence { other: now.other.or(told.other.take()), ..now };
        }
        consequence(context, service, EventKind::K8sNoEndpoints, EventSeverity::Warning, told.clone())
    }

    /// Counts the pods of a slice; forgets a Service that is gone.
    fn count(&mut self, watch_type: WatchType, object: &Summary, objects: &Stock) {
        let Some(name) = self.service_of(object) else { return };
        let is_deleted = watch_type == WatchType::Deleted;
        if object.kind == kinds::SERVICE {
            if is_deleted {
                self.served.remove(&name);
            }
            return;
        }
        if is_deleted {
            let Some(served) = self.served.get_mut(&name) else { return };
            served.slices.remove(&object.name);
            // The slices of a Service may go before it or after it.
            if served.slices.is_empty() && objects.find(kinds::SERVICE, &name.0, &name.1).is_none() {
                self.served.remove(&name);
            }
            return;
        }
        if !self.served.contains_key(&name) && self.served.len() >= SERVED_MAX {
            self.unserved += 1;
            return;
        }
        let served = self.served.entry(name).or_default();
        served.slices.insert(object.name.clone(), object.relations.len());
        if !object.relations.is_empty() {
            served.pods = object.relations.iter().map(|relation| relation.name.clone()).collect();
        }
    }
}

/// Why no pod is behind a Service: those that were are there and ready, and it no longer selects them; or they are not.
fn emptied(context: &Context<'_>, service: &Summary, served: &[SmolStr], objects: &Stock) -> Consequence {
    let Detail::Rules(rules) = &service.detail else { return Consequence::default() };
    let left = || ready(service, served, objects);
    let unselected =
        left().filter_map(Summary::pod).filter(|pod| !selects(&rules.selector, &pod.labels)).count();
    let owner = served.iter().find_map(|name| {
        objects.find(kinds::POD, &service.namespace, name).and_then(|pod| pod.owner.as_ref())
    });
    let other = owner.map(|owner| {
        let (kind, name) = context.owners.top(&service.namespace, owner);
        Relation { edge: SmolStr::new_static(EdgeKind::Selects.as_str()), kind, name }
    });
    let (reason, message) = match (unselected, left().count()) {
        (0, 0) => (UNSERVED, "the pods that were behind it are gone or not ready".to_owned()),
        (0, left) => (UNSERVED, format!("{left} ready pods that it selects are not among its endpoints")),
        (unselected, _) => {
            let wanted: Vec<String> = rules.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let wanted = wanted.join(",");
            (UNSELECTED, format!("{unselected} ready pods are there, none has the labels {wanted}"))
        }
    };
    Consequence { reason, message, other, ..Consequence::default() }
}

/// Those of the pods that were behind a Service which are there and ready.
fn ready<'a>(
    service: &'a Summary,
    served: &'a [SmolStr],
    objects: &'a Stock,
) -> impl Iterator<Item = &'a Summary> {
    let there = served.iter().filter_map(|name| objects.find(kinds::POD, &service.namespace, name));
    there.filter(|pod| {
        pod.deleted_from.is_none() && pod.condition("Ready").is_some_and(|c| c.status == "True")
    })
}

fn relation(edge: EdgeKind, kind: &'static str, name: SmolStr) -> Relation {
    Relation { edge: SmolStr::new_static(edge.as_str()), kind: SmolStr::new_static(kind), name }
}

/// A pod that the scheduler has not looked at.
fn is_unnoticed(object: &Summary) -> bool {
    object.pod().is_some_and(|pod| {
        pod.node.is_empty()
            && matches!(pod.phase.as_str(), "" | "Pending")
            && !pod.is_gated
            && object.condition("PodScheduled").is_none()
    }) && object.deleted_from.is_none()
}

fn stuck(object: &Summary) -> Option<Consequence> {
    if object.gone_by.is_some() {
        let message = match object.finalizers.as_slice() {
            [] => "its deletion was asked for and is not done".to_owned(),
            names => format!("it waits for its finalizers {}", names.join(", ")),
        };
        return Some(Consequence { reason: "Terminating", message, ..Consequence::default() });
    }
    is_unnoticed(object).then(|| Consequence {
        reason: "NotScheduled",
        message: "the scheduler has not looked at it".to_owned(),
        ..Consequence::default()
    })
}

/// Who took the place of a preempted pod, as `namespace/Kind/name` of its owner.
pub fn preemptor(context: &Context<'_>, event: &EventSummary, objects: &Stock) -> Option<SmolStr> {
    if event.reason != "Preempted" {
        return None;
    }
    let (_, rest) = event.message.split_once("by pod ")?;
    let uid = rest.split([' ', ',']).next()?;
    // Once per preemption, which is rare.
    let pod = objects.pods().find(|pod| pod.uid == uid)?;
    let (kind, name) = match &pod.owner {
        Some(owner) => context.owners.top(&pod.namespace, owner),
        None => (pod.kind.clone(), pod.name.clone()),
    };
    Some(format_smolstr!("{}/{kind}/{name}", pod.namespace))
}
