//! What objects wait for that is not there: a route its backends, an init container a Service, a machine that is emptied
//! the pods that may not be evicted.
//!
//! A thing is called absent only where others of its kind are known, so that a kind that nobody may list is never missed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};

use super::convert::{Consequence, Context, WatchType, consequence};
use super::json::selects;
use super::pod::PodState;
use super::summary::{Detail, Route, Summary};
use super::tracker::Key;

/// An init container that runs for this long waits for something, ns.
const INIT_NS: u64 = 60_000_000_000;
/// A new route is looked at this long after it came: what it names may come right after it.
const ROUTE_NS: u64 = 10_000_000_000;
/// Time in which a machine that takes no more pods should be empty, and after which it is looked at again, ns.
const DRAIN_NS: u64 = 60_000_000_000;
/// Objects that are waited for; further ones are not.
const DUE_MAX: usize = 20_000;
/// Names of pods that one message has.
const NAMES_MAX: usize = 3;

type Objects = HashMap<Key, Summary>;

/// What waits, and what was told of it.
#[derive(Debug, Default)]
pub struct Waits {
    due: BTreeSet<(UnixNanos, Key)>,
    /// Objects of which it was told, with the object that a budget holds up.
    told: BTreeMap<Key, SmolStr>,
    routes: BTreeSet<Key>,
    /// Machines that take no more pods and that some pods have left since.
    emptied: BTreeSet<SmolStr>,
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
    pub fn note(&mut self, at: UnixNanos, watch_type: WatchType, new: &Summary, previous: Option<&Summary>) {
        let key = || (new.kind.clone(), new.namespace.clone(), new.name.clone());
        let is_deleted = watch_type == WatchType::Deleted;
        match &new.detail {
            Detail::Route(_) if is_deleted => {
                self.routes.remove(&key());
                self.told.remove(&key());
            }
            Detail::Route(_) => {
                self.routes.insert(key());
                self.wait(at.plus(ROUTE_NS), key());
            }
            Detail::Machine(machine) if machine.is_cordoned && !is_deleted => {
                let was = previous.is_some_and(|p| matches!(&p.detail, Detail::Machine(m) if m.is_cordoned));
                if !was {
                    self.wait(at.plus(DRAIN_NS), key());
                }
            }
            Detail::Machine(_) => {
                self.emptied.remove(&new.name);
            }
            Detail::Pod(pod) => {
                let is_new = previous.and_then(Summary::pod).and_then(waiting_init).is_none();
                if let Some(since) = waiting_init(pod).filter(|_| is_new && !is_deleted) {
                    self.wait(since.max(at).plus(INIT_NS), key());
                }
                if (is_deleted || new.deleted_from.is_some()) && !pod.node.is_empty() {
                    self.emptied.insert(pod.node.clone());
                }
            }
            _ if [kinds::SERVICE, "Secret", "IngressClass"].contains(&new.kind.as_str()) => {
                for route in self.routes.clone() {
                    self.wait(at.plus(ROUTE_NS / 5), route);
                }
            }
            _ => {}
        }
    }

    fn wait(&mut self, at: UnixNanos, key: Key) {
        if self.due.len() < DUE_MAX {
            self.due.insert((at, key));
        }
    }

    /// Events of what waits in vain by now, and of what waits no longer. `has_pods`: whether pods are known to be behind a
    /// Service (namespace, name); none when nothing is known of it.
    pub fn look(
        &mut self,
        context: &Context<'_>,
        objects: &Objects,
        has_pods: impl Fn(&SmolStr, &SmolStr) -> Option<bool>,
    ) -> Vec<UnifiedEvent> {
        let mut events = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= context.observed_at) {
            let Some((_, key)) = self.due.pop_first() else { break };
            let Some(object) = objects.get(&key) else { continue };
            match &object.detail {
                Detail::Route(route) => {
                    let missing = unresolved(object, route, objects);
                    events.extend(self.tell(context, object, SmolStr::default(), missing));
                }
                Detail::Pod(pod) => {
                    let missing = init_waits(object, pod, objects, &has_pods);
                    events
                        .extend(missing.map(|missing| stuck(context, object, missing)).into_iter().flatten());
                }
                Detail::Machine(machine) => {
                    events.extend(self.drain(context, object, objects));
                    if machine.is_cordoned {
                        self.wait(context.observed_at.plus(DRAIN_NS), key);
                    }
                }
                _ => {}
            }
        }
        events
    }

    /// Tells what is missing to an object, once, and that it is not any more.
    fn tell(
        &mut self,
        context: &Context<'_>,
        object: &Summary,
        of: SmolStr,
        missing: Option<Missing>,
    ) -> Vec<UnifiedEvent> {
        let key = (object.kind.clone(), object.namespace.clone(), object.name.clone());
        match missing {
            Some(missing) => match self.told.insert(key, of) {
                None => stuck(context, object, missing),
                Some(_) => Vec::new(),
            },
            None if self.told.remove(&key).is_some() => consequence(
                context,
                object,
                EventKind::K8sUnstuck,
                EventSeverity::Info,
                Consequence::default(),
            ),
            None => Vec::new(),
        }
    }

    /// Budgets that keep pods on a machine that others have left already.
    fn drain(&mut self, context: &Context<'_>, node: &Summary, objects: &Objects) -> Vec<UnifiedEvent> {
        let is_emptied =
            matches!(&node.detail, Detail::Machine(m) if m.is_cordoned) && self.emptied.contains(&node.name);
        let mut budgets: Vec<&Summary> =
            objects.values().filter(|object| matches!(object.detail, Detail::Budget(_))).collect();
        budgets.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut events = Vec::new();
        for budget in budgets {
            let key = (budget.kind.clone(), budget.namespace.clone(), budget.name.clone());
            if self.told.get(&key).is_some_and(|of| *of != node.name) {
                continue;
            }
            let kept = if is_emptied { kept(budget, node, objects) } else { Vec::new() };
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
            events.extend(self.tell(context, budget, node.name.clone(), missing));
        }
        events
    }
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

/// Pods of a machine that a budget with no disruption left is for.
fn kept<'a>(budget: &Summary, node: &Summary, objects: &'a Objects) -> Vec<&'a SmolStr> {
    let Detail::Budget(rule) = &budget.detail else { return Vec::new() };
    if rule.allowed > 0 {
        return Vec::new();
    }
    let is_kept = |object: &&Summary| {
        object.namespace == budget.namespace
            && object.deleted_from.is_none()
            && object.owner.as_ref().is_none_or(|(kind, _)| kind != kinds::DAEMON_SET)
            && object.pod().is_some_and(|pod| {
                pod.node == node.name && pod.phase == "Running" && selects(&rule.selector, &pod.labels)
            })
    };
    let mut found: Vec<&SmolStr> = objects.values().filter(is_kept).map(|object| &object.name).collect();
    found.sort();
    found
}

/// Since when an init container runs that is not done.
fn waiting_init(pod: &PodState) -> Option<UnixNanos> {
    pod.containers.iter().filter(|container| container.is_init).find_map(|container| container.running_since)
}

/// The Service that an init container asks for and that is not there, or has no pod behind it.
fn init_waits(
    object: &Summary,
    pod: &PodState,
    objects: &Objects,
    has_pods: &impl Fn(&SmolStr, &SmolStr) -> Option<bool>,
) -> Option<Missing> {
    let container = pod.containers.iter().find(|c| c.is_init && c.running_since.is_some())?;
    if object.deleted_from.is_some() || !is_known(objects, kinds::SERVICE) {
        return None;
    }
    let asked = pod.asked.iter().filter(|(name, _)| *name == container.name).map(|(_, host)| host);
    asked.into_iter().find_map(|host| {
        let (name, namespace) =
            host.split_once('.').map_or((host.as_str(), object.namespace.as_str()), |(name, rest)| {
                (name, rest.split('.').next().unwrap_or_default())
            });
        let (name, namespace) = (SmolStr::new(name), SmolStr::new(namespace));
        let is_there =
            objects.contains_key(&(SmolStr::new_static(kinds::SERVICE), namespace.clone(), name.clone()));
        let what = match (is_there, has_pods(&namespace, &name)) {
            (false, _) => "which does not exist",
            (true, Some(false)) => "which has no ready pod behind it",
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

fn is_known(objects: &Objects, kind: &str) -> bool {
    objects.keys().any(|key| key.0 == kind)
}

/// What a route names and is not there.
fn unresolved(object: &Summary, route: &Route, objects: &Objects) -> Option<Missing> {
    let namespace = &object.namespace;
    let find = |kind: &'static str, namespace: &SmolStr, name: &SmolStr| {
        objects.get(&(SmolStr::new_static(kind), namespace.clone(), name.clone()))
    };
    let missing = |reason, what: &str, kind: &str, namespace: &str, name: &SmolStr| {
        let other = format_smolstr!("{namespace}/{kind}/{name}");
        Some(Missing { reason, message: format!("{what} {name}, which is not there"), other })
    };
    let nowhere = SmolStr::default();
    if !route.class.is_empty()
        && is_known(objects, "IngressClass")
        && find("IngressClass", &nowhere, &route.class).is_none()
    {
        return missing("ClassAbsent", "it is of the class", "IngressClass", "", &route.class);
    }
    for (name, port) in route.backends.iter().filter(|_| is_known(objects, kinds::SERVICE)) {
        let Some(service) = find(kinds::SERVICE, namespace, name) else {
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
        .filter(|_| is_known(objects, "Secret"))
        .find(|name| find("Secret", namespace, name).is_none())?;
    missing("TlsSecretAbsent", "its certificate is in Secret", "Secret", namespace, absent)
}
