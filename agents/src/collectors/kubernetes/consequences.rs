//! What no single change says: that nothing is behind a Service any more, that nobody does what an object waits for.
//!
//! All of it is a function of the objects and of event time, live and in replay.

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
        // Each kind has a watch of its own: that a slice is empty may be heard before the change of the Service that emptied it.
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

    /// The same again, of a Service with nothing behind it.
    pub fn unserved(&self, context: &Context<'_>, service: &Summary) -> Vec<UnifiedEvent> {
        let name = (service.namespace.clone(), service.name.clone());
        let told = self.served.get(&name).filter(|_| service.kind == kinds::SERVICE);
        let Some(told) = told.and_then(|served| served.told.clone()) else { return Vec::new() };
        consequence(context, service, EventKind::K8sNoEndpoints, EventSeverity::Warning, told)
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
    let pod = |name: &SmolStr| objects.find(kinds::POD, &service.namespace, name);
    let serves = |object: &&Summary| {
        object.deleted_from.is_none() && object.condition("Ready").is_some_and(|c| c.status == "True")
    };
    let left: Vec<&Summary> = served.iter().filter_map(pod).filter(serves).collect();
    let unselected =
        left.iter().filter_map(|o| o.pod()).filter(|p| !selects(&rules.selector, &p.labels)).count();
    let owner = served.iter().filter_map(pod).find_map(|o| o.owner.as_ref());
    let other = owner.map(|owner| {
        let (kind, name) = context.owners.top(&service.namespace, owner);
        Relation { edge: SmolStr::new_static(EdgeKind::Selects.as_str()), kind, name }
    });
    let wanted: Vec<String> = rules.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let (reason, message) = if unselected > 0 {
        let wanted = wanted.join(",");
        (UNSELECTED, format!("{unselected} ready pods are there, none has the labels {wanted}"))
    } else {
        ("NoPods", "the pods that were behind it are gone or not ready".to_owned())
    };
    Consequence { reason, message, other, ..Consequence::default() }
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

#[cfg(test)]
mod tests {
    use super::super::tracker::Tracker;
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;
    use tapio_schemas::payload::Payload;

    const START: UnixNanos = UnixNanos(1_900_000_000_000_000_000);

    fn after(seconds: u64) -> UnixNanos {
        START.plus(seconds * 1_000_000_000)
    }

    /// (kind, reason) of what is told, but for what is told of every object.
    fn told(tracker: &mut Tracker, at: u64, object: &Value) -> Vec<(EventKind, String)> {
        let events = tracker.object(after(at), UnixNanos(0), WatchType::Modified, object).unwrap();
        let facts = events.into_iter().filter_map(|event| match event.payload {
            Payload::Kubernetes(data) if event.kind != EventKind::K8sObjectAdded => {
                Some((event.kind, data.reason.to_string()))
            }
            _ => None,
        });
        facts.filter(|(kind, _)| *kind != EventKind::K8sObjectChanged).collect()
    }

    fn pod(labels: Value, conditions: Value) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "api-1", "namespace": "shop", "uid": "p", "labels": labels,
            "ownerReferences": [{"kind": "StatefulSet", "name": "api", "controller": true}]},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "conditions": conditions}})
    }

    fn ready() -> Value {
        json!([{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}])
    }

    fn service(selector: &str) -> Value {
        json!({"kind": "Service", "metadata": {"name": "api", "namespace": "shop", "uid": "s"},
            "spec": {"selector": {"app": selector}}})
    }

    fn slice(endpoints: Value) -> Value {
        json!({"kind": "EndpointSlice", "metadata": {"name": "api-x", "namespace": "shop", "uid": "e",
            "ownerReferences": [{"kind": "Service", "name": "api", "controller": true}]}, "endpoints": endpoints})
    }

    fn served() -> Tracker {
        let mut tracker = Tracker::new("c", None);
        told(&mut tracker, 0, &pod(json!({"app": "api"}), ready()));
        told(&mut tracker, 0, &service("api"));
        told(&mut tracker, 0, &slice(json!([{"targetRef": {"kind": "Pod", "name": "api-1"}}])));
        tracker
    }

    #[test]
    fn a_selector_that_fits_no_pod_is_told_once_and_its_end_as_well() {
        let mut tracker = served();
        let changed = told(&mut tracker, 1, &service("other"));
        assert_eq!(changed, [(EventKind::K8sSpecChanged, "selector".to_owned())]);
        let lost = told(&mut tracker, 2, &slice(json!(null)));
        assert_eq!(lost, [(EventKind::K8sNoEndpoints, "SelectorMatchesNoPod".to_owned())]);
        assert_eq!(told(&mut tracker, 3, &slice(json!([]))), []);
        told(&mut tracker, 4, &service("api"));
        let back = told(&mut tracker, 5, &slice(json!([{"targetRef": {"kind": "Pod", "name": "api-1"}}])));
        assert_eq!(back, [(EventKind::K8sEndpoints, String::new())]);
    }

    #[test]
    fn a_selector_that_is_heard_of_after_what_it_did_is_told_all_the_same() {
        let mut tracker = served();
        let lost = told(&mut tracker, 1, &slice(json!([])));
        assert_eq!(lost, [(EventKind::K8sNoEndpoints, "NoPods".to_owned())]);
        let why = told(&mut tracker, 2, &service("other"));
        let is_told = (EventKind::K8sNoEndpoints, "SelectorMatchesNoPod".to_owned());
        assert!(why.contains(&is_told), "{why:?}");
        assert!(!told(&mut tracker, 3, &service("another")).contains(&is_told), "once");
    }

    #[test]
    fn pods_that_are_not_ready_are_no_fault_of_the_selector() {
        let mut tracker = served();
        let unready =
            json!([{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]);
        told(&mut tracker, 1, &pod(json!({"app": "api"}), unready));
        let lost = told(&mut tracker, 2, &slice(json!([])));
        assert_eq!(lost, [(EventKind::K8sNoEndpoints, "NoPods".to_owned())]);
    }

    #[test]
    fn services_that_come_and_go_leave_nothing_behind() {
        let objects = Stock::default();
        let mut consequences = Consequences::default();
        let named = |mut object: Value, n: usize| {
            object["metadata"]["name"] = json!(format!("api-{n}"));
            if let Some(owner) = object["metadata"].get_mut("ownerReferences") {
                owner[0]["name"] = json!(format!("api-{n}"));
            }
            Summary::of(&object).unwrap()
        };
        for n in 0..100 {
            let all = [
                named(service("api"), n),
                named(slice(json!([{"targetRef": {"kind": "Pod", "name": "p"}}])), n),
            ];
            for word in [WatchType::Added, WatchType::Deleted] {
                all.iter().for_each(|object| consequences.note(after(1), word, object, None, &objects));
            }
        }
        assert_eq!(consequences.served.len(), 0);
    }

    #[test]
    fn what_nobody_does_is_told_when_it_should_be_done() {
        let mut tracker = Tracker::new("c", None);
        let waiting =
            json!({"kind": "Pod", "metadata": {"name": "new", "namespace": "shop", "uid": "n"}, "spec": {}});
        told(&mut tracker, 0, &waiting);
        let gated = json!({"kind": "Pod", "metadata": {"name": "gated", "namespace": "shop", "uid": "g"},
            "spec": {"schedulingGates": [{"name": "later"}]}});
        told(&mut tracker, 0, &gated);
        let going = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "shop",
            "uid": "d", "finalizers": ["a/b"], "deletionTimestamp": "2030-03-17T17:46:40Z"}});
        told(&mut tracker, 0, &going);
        assert!(tracker.overdue(after(59)).is_empty());
        let events = tracker.overdue(after(60));
        let reasons: BTreeSet<String> = events
            .iter()
            .filter_map(|e| match &e.payload {
                Payload::Kubernetes(data) => Some(format!("{} {}", data.object_name, data.reason)),
                _ => None,
            })
            .collect();
        assert_eq!(reasons.into_iter().collect::<Vec<_>>(), ["data Terminating", "new NotScheduled"]);
        assert!(tracker.overdue(after(299)).is_empty());
        assert_eq!(tracker.overdue(after(300)).len(), 2, "who does not hear of it again takes it to be over");
    }

    #[test]
    fn a_policy_names_the_pods_it_is_for() {
        let mut tracker = served();
        let policy = json!({"kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": "shop", "uid": "np",
            "creationTimestamp": "2030-03-17T17:46:40Z"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        let events = tracker.object(after(1), UnixNanos(0), WatchType::Added, &policy).unwrap();
        let added = events.iter().find(|e| e.kind == EventKind::K8sObjectAdded).unwrap();
        let Payload::Kubernetes(data) = &added.payload else { panic!("{added:?}") };
        assert_eq!((data.relations[0].edge.as_str(), data.relations[0].name.as_str()), ("limits", "api-1"));
        assert!(events.iter().any(|e| e.kind == EventKind::K8sSpecChanged));
    }
}
