//! What objects wait for that is not there: a route its backends, an init container a Service, a machine that is emptied
//! the pods that may not be evicted.
//!
//! A thing is called absent only where its kind was listed to the end, or, without any lists, where others of it are known:
//! of a kind that nobody may list nothing is ever missed.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};

use super::convert::{Consequence, Context, WatchType, consequence};
use super::due::Due;
use super::hosts::service_of;
use super::json::selects;
use super::lasting::REPEAT_NS;
use super::pod::{ContainerState, PodState};
use super::stock::{Key, Stock, key_of};
use super::summary::{Detail, Route, Summary};

/// An init container that runs for this long waits for something, ns.
const INIT_NS: u64 = 60_000_000_000;
/// A new route is looked at this long after it came: what it names may come right after it.
const ROUTE_NS: u64 = 10_000_000_000;
/// All routes are looked at this long after something that routes name came, went or changed.
const ROUTES_NS: u64 = 2_000_000_000;
/// Time in which a machine that takes no more pods should be empty, and after which it is looked at again; a budget that allows
/// nothing for less waits for the pod that takes the place of the last one, ns.
const DRAIN_NS: u64 = 60_000_000_000;
/// Names of pods that one message has.
const NAMES_MAX: usize = 3;
/// Kinds that a route names.
const NAMED_BY_ROUTES: [&str; 3] = [kinds::SERVICE, "Secret", "IngressClass"];
/// Kinds that say whether somebody answers for a Service.
const BEHIND_SERVICES: [&str; 2] = [kinds::SERVICE, "EndpointSlice"];

/// What waits, and what was told of it.
#[derive(Debug, Default)]
pub(super) struct Waits {
    due: Due,
    told: BTreeMap<Key, Told>,
    routes: BTreeSet<Key>,
    /// When all routes are to be looked at.
    routes_due: Option<UnixNanos>,
    /// Since when each allows no disruption.
    budgets: BTreeMap<Key, Option<UnixNanos>>,
    /// Machines that take no more pods and that some pods have left since.
    emptied: BTreeSet<SmolStr>,
}

/// What was told of an object that waits.
#[derive(Debug)]
struct Told {
    /// The machine that a budget holds up; else empty.
    of: SmolStr,
    /// When last.
    at: UnixNanos,
}

/// What is missing.
struct Missing {
    reason: &'static str,
    message: String,
    /// `namespace/Kind/name`
    other: SmolStr,
}

impl Waits {
    /// Remembers when to look at what.
    pub fn note(
        &mut self,
        at: UnixNanos,
        watch_type: WatchType,
        new: &Summary,
        previous: Option<&Summary>,
        objects: &Stock,
    ) {
        let is_deleted = watch_type == WatchType::Deleted;
        if is_deleted {
            self.due.remove(&key_of(new));
        }
        match &new.detail {
            Detail::Route(_) if is_deleted => {
                self.routes.remove(&key_of(new));
                self.told.remove(&key_of(new));
            }
            Detail::Route(_) => {
                self.routes.insert(key_of(new));
                self.due.add(at.plus(ROUTE_NS), key_of(new));
            }
            Detail::Budget(_) if is_deleted => {
                self.budgets.remove(&key_of(new));
                self.told.remove(&key_of(new));
            }
            Detail::Budget(budget) => {
                let since = self.budgets.entry(key_of(new)).or_default();
                *since = (budget.allowed <= 0).then_some(since.unwrap_or(at));
            }
            Detail::Machine(machine) if machine.is_cordoned && !is_deleted => {
                self.note_cordoned(at, new, previous);
            }
            Detail::Machine(_) => {
                self.due.remove(&key_of(new));
                self.emptied.remove(&new.name);
                self.release(at, &new.name);
            }
            Detail::Pod(pod) => self.note_pod(at, is_deleted, new, pod, previous, objects),
            _ if NAMED_BY_ROUTES.contains(&new.kind.as_str())
                && (is_deleted || previous.is_none_or(|previous| ports(previous) != ports(new))) =>
            {
                self.look_at_routes(at);
            }
            _ => {}
        }
    }

    fn note_cordoned(&mut self, at: UnixNanos, node: &Summary, previous: Option<&Summary>) {
        if !previous.is_some_and(is_cordoned) {
            // Who left before left for another reason.
            self.emptied.remove(&node.name);
            self.due.add(at.plus(DRAIN_NS), key_of(node));
        }
    }

    fn note_pod(
        &mut self,
        at: UnixNanos,
        is_deleted: bool,
        new: &Summary,
        pod: &PodState,
        previous: Option<&Summary>,
        objects: &Stock,
    ) {
        let before = previous.and_then(Summary::pod).and_then(waiting_init);
        if let Some((container, since)) = waiting_init(pod).filter(|_| !is_deleted && !pod.asked.is_empty())
            && before.is_none_or(|(before, known)| (&before.name, known) != (&container.name, since))
        {
            self.due.add(since.plus(INIT_NS).max(at), key_of(new));
        }
        // The last word of a pod may say how it ended.
        let ran = [Some(new), previous].into_iter().flatten().any(is_evictable);
        // Of a machine that is gone nobody ever says that it takes pods again.
        let is_emptied = (is_deleted || new.deleted_from.is_some())
            && ran
            && objects.find(kinds::NODE, &SmolStr::default(), &pod.node).is_some_and(is_cordoned);
        if is_emptied {
            self.emptied.insert(pod.node.clone());
        }
    }

    /// A list of a kind is complete: only now is known what is not there.
    pub fn list_ended(&mut self, at: UnixNanos, kind: &str) {
        if NAMED_BY_ROUTES.contains(&kind) {
            self.look_at_routes(at);
        }
    }

    /// Objects that were not waited for, because too many were.
    pub fn dropped(&self) -> u64 {
        self.due.dropped()
    }

    fn look_at_routes(&mut self, at: UnixNanos) {
        if !self.routes.is_empty() {
            self.routes_due.get_or_insert(at.plus(ROUTES_NS));
        }
    }

    /// Budgets that held up a machine are looked at: it is gone, or takes pods again.
    fn release(&mut self, at: UnixNanos, node: &SmolStr) {
        let held: Vec<Key> =
            self.told.iter().filter(|(_, told)| told.of == *node).map(|(key, _)| key.clone()).collect();
        held.into_iter().for_each(|key| self.due.add(at, key));
    }

    /// Events of what waits in vain by now, and of what waits no longer. `has_pods`: whether pods are known to be behind a
    /// Service (namespace, name); none when nothing is known of it.
    pub fn look(
        &mut self,
        context: &Context<'_>,
        objects: &Stock,
        has_pods: impl Fn(&SmolStr, &SmolStr) -> Option<bool>,
    ) -> Vec<UnifiedEvent> {
        let now = context.observed_at;
        let mut events = Vec::new();
        if self.routes_due.is_some_and(|at| at <= now) && !is_listing(objects, &NAMED_BY_ROUTES) {
            self.routes_due = None;
            // Those that are not followed are not known to go either.
            self.routes.retain(|key| objects.get(key).is_some());
            for key in self.routes.clone() {
                events.extend(self.route(context, &key, objects));
            }
        }
        while let Some(key) = self.due.pop(now) {
            let Some(object) = objects.get(&key) else { continue };
            match &object.detail {
                // The end of the list is waited for.
                Detail::Route(_) if is_listing(objects, &NAMED_BY_ROUTES) => {
                    self.due.add(now.plus(ROUTE_NS), key);
                }
                Detail::Route(_) => events.extend(self.route(context, &key, objects)),
                Detail::Pod(pod) => events.extend(self.pod(context, object, pod, objects, &has_pods)),
                Detail::Machine(_) => {
                    events.extend(self.drain(context, object, objects));
                    self.due.add(now.plus(DRAIN_NS), key);
                }
                Detail::Budget(_) => events.extend(self.budget(context, object, objects)),
                _ => {}
            }
        }
        events
    }

    /// A pod with an init container that runs, looked at again for as long as it does.
    fn pod(
        &mut self,
        context: &Context<'_>,
        object: &Summary,
        pod: &PodState,
        objects: &Stock,
        has_pods: &impl Fn(&SmolStr, &SmolStr) -> Option<bool>,
    ) -> Vec<UnifiedEvent> {
        let now = context.observed_at;
        let Some((container, since)) = waiting_init(pod).filter(|_| object.deleted_from.is_none()) else {
            return Vec::new();
        };
        // One that was started anew waits since its first start, which nobody tells any more.
        let is_young = container.restarts == 0 && since.plus(INIT_NS) > now;
        if is_young || is_listing(objects, &BEHIND_SERVICES) {
            let next = if is_young { since.plus(INIT_NS) } else { now.plus(ROUTE_NS) };
            self.due.add(next, key_of(object));
            return Vec::new();
        }
        self.due.add(now.plus(REPEAT_NS), key_of(object));
        let missing = init_waits(object, pod, container, objects, has_pods);
        missing.map(|missing| stuck(context, object, missing)).unwrap_or_default()
    }

    fn route(&mut self, context: &Context<'_>, key: &Key, objects: &Stock) -> Vec<UnifiedEvent> {
        let Some(object) = objects.get(key) else { return Vec::new() };
        let Detail::Route(route) = &object.detail else { return Vec::new() };
        self.tell(context, object, SmolStr::default(), unresolved(object, route, objects))
    }

    /// Tells what is missing to an object, again as long as it is, and once that it is not any more.
    fn tell(
        &mut self,
        context: &Context<'_>,
        object: &Summary,
        of: SmolStr,
        missing: Option<Missing>,
    ) -> Vec<UnifiedEvent> {
        let (key, at) = (key_of(object), context.observed_at);
        match (missing, self.told.get(&key).map(|told| told.at)) {
            (Some(_), Some(last)) if at.since(last) < REPEAT_NS => {
                self.due.add(last.plus(REPEAT_NS), key);
                Vec::new()
            }
            (Some(missing), _) => {
                self.told.insert(key.clone(), Told { of, at });
                self.due.add(at.plus(REPEAT_NS), key);
                stuck(context, object, missing)
            }
            (None, Some(_)) => {
                self.told.remove(&key);
                let nothing = Consequence::default();
                consequence(context, object, EventKind::K8sUnstuck, EventSeverity::Info, nothing)
            }
            (None, None) => Vec::new(),
        }
    }

    /// Budgets that keep pods on a machine that others have left already.
    fn drain(&mut self, context: &Context<'_>, node: &Summary, objects: &Stock) -> Vec<UnifiedEvent> {
        let is_emptied = self.is_emptied(node);
        if !is_emptied && !self.told.values().any(|told| told.of == node.name) {
            return Vec::new();
        }
        let left = if is_emptied { left_on(node, objects) } else { Vec::new() };
        let mut events = Vec::new();
        self.budgets.retain(|key, _| objects.get(key).is_some());
        for key in self.budgets.keys().cloned().collect::<Vec<_>>() {
            let Some(budget) = objects.get(&key) else { continue };
            if self.told.get(&key).is_none_or(|told| told.of == node.name) {
                events.extend(self.hold_up(context, budget, node, &left));
            }
        }
        events
    }

    /// A budget of which it was told that it holds up a machine.
    fn budget(&mut self, context: &Context<'_>, budget: &Summary, objects: &Stock) -> Vec<UnifiedEvent> {
        let Some(told) = self.told.get(&key_of(budget)) else { return Vec::new() };
        match objects.find(kinds::NODE, &SmolStr::default(), &told.of) {
            Some(node) if self.is_emptied(node) => {
                self.hold_up(context, budget, node, &left_on(node, objects))
            }
            _ => self.tell(context, budget, SmolStr::default(), None),
        }
    }

    fn is_emptied(&self, node: &Summary) -> bool {
        is_cordoned(node) && self.emptied.contains(&node.name)
    }

    fn hold_up(
        &mut self,
        context: &Context<'_>,
        budget: &Summary,
        node: &Summary,
        left: &[&Summary],
    ) -> Vec<UnifiedEvent> {
        let since = self.budgets.get(&key_of(budget)).copied().flatten();
        let is_firm = since.is_some_and(|since| context.observed_at.since(since) >= DRAIN_NS);
        let kept = if is_firm { kept(budget, left) } else { Vec::new() };
        let missing = (!kept.is_empty()).then(|| Missing {
            reason: "DrainBlocked",
            message: format!(
                "{} of {} that takes no more pods may not be evicted: {}",
                if kept.len() == 1 { "a pod".to_owned() } else { format!("{} pods", kept.len()) },
                node.name,
                names(&kept)
            ),
            other: format_smolstr!("/{}/{}", kinds::NODE, node.name),
        });
        self.tell(context, budget, node.name.clone(), missing)
    }
}

fn is_listing(objects: &Stock, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| objects.is_listing(kind))
}

/// Ports of a Service; empty for anything else.
fn ports(object: &Summary) -> &[SmolStr] {
    if let Detail::Rules(rules) = &object.detail { &rules.ports } else { &[] }
}

fn stuck(context: &Context<'_>, object: &Summary, missing: Missing) -> Vec<UnifiedEvent> {
    let told =
        Consequence { reason: missing.reason, message: missing.message, about: missing.other, other: None };
    consequence(context, object, EventKind::K8sStuck, EventSeverity::Error, told)
}

fn names(all: &[&SmolStr]) -> String {
    let mut text = all.iter().take(NAMES_MAX).map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    if all.len() > NAMES_MAX {
        text.push_str(", …");
    }
    text
}

fn is_cordoned(object: &Summary) -> bool {
    matches!(&object.detail, Detail::Machine(machine) if machine.is_cordoned)
}

/// Whether it is one that somebody who empties its machine evicts, and that runs there.
fn is_evictable(object: &Summary) -> bool {
    let stays = |kind: &SmolStr| [kinds::DAEMON_SET, kinds::NODE].contains(&kind.as_str());
    object.pod().is_some_and(|pod| pod.phase == "Running")
        && !object.owner.as_ref().is_some_and(|(kind, _)| stays(kind))
}

/// Pods that somebody who empties a machine has still to evict.
fn left_on<'a>(node: &Summary, objects: &'a Stock) -> Vec<&'a Summary> {
    let is_left = |object: &&Summary| object.deleted_from.is_none() && is_evictable(object);
    objects.pods_on(&node.name).filter(is_left).collect()
}

/// Those of them that a budget with no disruption left is for.
fn kept<'a>(budget: &Summary, left: &[&'a Summary]) -> Vec<&'a SmolStr> {
    let Detail::Budget(rule) = &budget.detail else { return Vec::new() };
    if rule.allowed > 0 {
        return Vec::new();
    }
    let is_kept = |object: &&&Summary| {
        object.namespace == budget.namespace
            && object.pod().is_some_and(|pod| selects(&rule.selector, &pod.labels))
    };
    left.iter().filter(is_kept).map(|object| &object.name).collect()
}

/// The init container that runs, and since when.
fn waiting_init(pod: &PodState) -> Option<(&ContainerState, UnixNanos)> {
    let mut running = pod.containers.iter().filter(|container| container.is_init);
    running.find_map(|container| Some((container, container.running_since?)))
}

/// The Service that an init container asks for and that is not there, or has no pod behind it.
fn init_waits(
    object: &Summary,
    pod: &PodState,
    container: &ContainerState,
    objects: &Stock,
    has_pods: &impl Fn(&SmolStr, &SmolStr) -> Option<bool>,
) -> Option<Missing> {
    let asked = pod.asked.iter().filter(|(name, _)| *name == container.name).map(|(_, host)| host);
    asked.into_iter().find_map(|host| {
        let (name, namespace) = service_of(host, &object.namespace)?;
        let (name, namespace) = (SmolStr::new(name), SmolStr::new(namespace));
        let what = match objects.find(kinds::SERVICE, &namespace, &name) {
            None if objects.knows_in(kinds::SERVICE, &namespace) => "which does not exist",
            // What is behind one without a selector are no pods.
            Some(service)
                if service.rules().is_some_and(|rules| !rules.selector.is_empty())
                    && has_pods(&namespace, &name) == Some(false) =>
            {
                "which has no ready pod behind it"
            }
            _ => return None,
        };
        Some(Missing {
            reason: "InitWaits",
            message: format!(
                "its init container {} waits for Service {namespace}/{name}, {what}",
                container.name
            ),
            other: format_smolstr!("{namespace}/{}/{name}", kinds::SERVICE),
        })
    })
}

/// What a route names and is not there.
fn unresolved(object: &Summary, route: &Route, objects: &Stock) -> Option<Missing> {
    let namespace = &object.namespace;
    let missing = |reason, what: &str, kind: &str, namespace: &str, name: &SmolStr| {
        let other = format_smolstr!("{namespace}/{kind}/{name}");
        Some(Missing { reason, message: format!("{what} {name}, which is not there"), other })
    };
    let nowhere = SmolStr::default();
    if !route.class.is_empty()
        && objects.knows("IngressClass")
        && objects.find("IngressClass", &nowhere, &route.class).is_none()
    {
        return missing("ClassAbsent", "it is of the class", "IngressClass", "", &route.class);
    }
    let is_known = |kind| objects.knows(kind) || objects.knows_in(kind, namespace);
    for (name, port) in route.backends.iter().filter(|_| is_known(kinds::SERVICE)) {
        let Some(service) = objects.find(kinds::SERVICE, namespace, name) else {
            return missing("BackendAbsent", "it sends to Service", kinds::SERVICE, namespace, name);
        };
        let Detail::Rules(rules) = &service.detail else { continue };
        if !rules.ports.is_empty() && !port.is_empty() && !rules.ports.contains(port) {
            return Some(Missing {
                reason: "PortAbsent",
                message: format!(
                    "it sends to port {port} of Service {name}, which has {}",
                    rules.ports.join(", ")
                ),
                other: format_smolstr!("{namespace}/{}/{name}", kinds::SERVICE),
            });
        }
    }
    let absent = route
        .secrets
        .iter()
        .filter(|_| is_known("Secret"))
        .find(|name| objects.find("Secret", namespace, name).is_none())?;
    missing("TlsSecretAbsent", "its certificate is in Secret", "Secret", namespace, absent)
}
