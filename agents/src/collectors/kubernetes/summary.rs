//! What is kept of an object to see the next change of it: a hundredth of its JSON.

use serde_json::Value;
use smol_str::{SmolStr, ToSmolStr};
use tapio_schemas::entity::kinds;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::payload::Relation;

use super::json::{Pairs, int, list, pairs, str_at, text, time};
use super::pod::PodState;
use super::relations;
use crate::convert::Seed;

/// Conditions kept of an object.
const CONDITIONS_MAX: usize = 32;
/// Finalizers kept of an object.
const FINALIZERS_MAX: usize = 8;
/// Kinds that say how others are to be treated.
const RULES: [&str; 10] = [
    kinds::SERVICE,
    "NetworkPolicy",
    // Of a service mesh: who may talk to whom, and how.
    "AuthorizationPolicy",
    "PeerAuthentication",
    // Who is led where from outside.
    "Gateway",
    "HTTPRoute",
    "ResourceQuota",
    "LimitRange",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
];
/// Kinds of them that limit the pods they select, or all of their namespace.
pub const LIMITS: [&str; 3] = ["NetworkPolicy", "AuthorizationPolicy", "PeerAuthentication"];
/// Ports kept of a Service; of one with more none are, so that none is missed.
const PORTS_MAX: usize = 64;
/// Backends and certificates kept of a route.
const BACKENDS_MAX: usize = 128;
/// Keys kept of a ConfigMap or Secret.
const KEYS_MAX: usize = 256;

/// Not an object of the Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Kubernetes object: `{0}` is missing")]
pub struct NotAnObject(pub &'static str);

/// What an object says, as far as it matters here.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// `v1`, `apps/v1`, …
    pub api_version: SmolStr,
    /// Kind.
    pub kind: SmolStr,
    /// Namespace; empty for what has none.
    pub namespace: SmolStr,
    /// Name.
    pub name: SmolStr,
    /// uid.
    pub uid: SmolStr,
    /// Version of its resource, which grows with every change; 0 when it has none.
    pub version: u64,
    /// Grows with every change of the spec.
    pub generation: u64,
    /// When somebody asked for its deletion.
    pub deleted_from: Option<UnixNanos>,
    /// When it was made.
    pub created: Option<UnixNanos>,
    /// When its deletion should be done: asked for, and the grace period over.
    pub gone_by: Option<UnixNanos>,
    /// Who must agree before it goes.
    pub finalizers: Vec<SmolStr>,
    /// Kind and name of the controlling owner.
    pub owner: Option<(SmolStr, SmolStr)>,
    /// Hash of the labels' pod template, which a Deployment's ReplicaSet appends to its name.
    pub template_hash: SmolStr,
    /// Who changed it last, when the object says so.
    pub changed_by: SmolStr,
    /// When that was, to the second.
    pub changed_at: Option<UnixNanos>,
    /// Edges to other objects.
    pub relations: Vec<Relation>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// By kind.
    pub detail: Detail,
}

/// A condition of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Ready`, `Progressing`, …
    pub kind: SmolStr,
    /// `True`, `False`, `Unknown`
    pub status: SmolStr,
    /// Reason.
    pub reason: SmolStr,
    /// Message.
    pub message: SmolStr,
    /// Last change of the status.
    pub since: Option<UnixNanos>,
}

/// What differs by kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Detail {
    /// A pod.
    Pod(Box<PodState>),
    /// Something with a pod template.
    Workload(WorkloadState),
    /// A ConfigMap or Secret: hash of each value by key.
    Data(Vec<(SmolStr, u64)>),
    /// What says how others are to be treated: a Service, a NetworkPolicy, a quota, ….
    Rules(Rules),
    /// What leads requests from outside to Services.
    Route(Box<Route>),
    /// How many pods may be evicted at once.
    Budget(Budget),
    /// A machine.
    Machine(Machine),
    /// Anything else.
    Other,
}

/// What says how others are to be treated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Labels of the pods that it is for, where it has such.
    pub selector: Pairs,
    /// It is for every pod of its namespace.
    pub selects_all: bool,
    /// Hash of what it says.
    pub spec: u128,
    /// Names and numbers of the ports of a Service.
    pub ports: Vec<SmolStr>,
}

/// An Ingress.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// What is told when it is changed.
    pub rules: Rules,
    /// Name of its class; empty for the default one.
    pub class: SmolStr,
    /// Services that it sends to, and their ports by name or number.
    pub backends: Vec<(SmolStr, SmolStr)>,
    /// Secrets with its certificates.
    pub secrets: Vec<SmolStr>,
}

/// A PodDisruptionBudget.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Budget {
    /// Labels of the pods that it is for.
    pub selector: Pairs,
    /// Pods that may be evicted now.
    pub allowed: i64,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Another one after each start.
    pub boot: SmolStr,
    /// It takes no more pods.
    pub is_cordoned: bool,
}

/// Something with a pod template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadState {
    /// Image by container.
    pub images: Vec<(SmolStr, SmolStr)>,
    /// Wanted replicas, where it has such a number.
    pub replicas: Option<i64>,
    /// Hash of the pod template.
    pub template: u128,
}

impl Summary {
    /// Summary of an object as the API sends it.
    ///
    /// # Errors
    /// When kind or name are missing.
    pub fn of(object: &Value) -> Result<Self, NotAnObject> {
        let required = |pointer, name| match text(object, pointer) {
            text if text.is_empty() => Err(NotAnObject(name)),
            text => Ok(text),
        };
        let kind = required("/kind", "kind")?;
        let name = required("/metadata/name", "metadata.name")?;
        let (changed_by, changed_at) = last_change(object);
        let owner = list(object, "/metadata/ownerReferences")
            .iter()
            .find(|owner| owner["controller"] == Value::Bool(true))
            .map(|owner| (text(owner, "/kind"), text(owner, "/name")));
        Ok(Self {
            api_version: text(object, "/apiVersion"),
            namespace: text(object, "/metadata/namespace"),
            uid: text(object, "/metadata/uid"),
            version: str_at(object, "/metadata/resourceVersion").parse().unwrap_or(0),
            generation: u64::try_from(int(object, "/metadata/generation")).unwrap_or(0),
            deleted_from: deleted_from(object),
            created: time(object, "/metadata/creationTimestamp"),
            gone_by: time(object, "/metadata/deletionTimestamp"),
            finalizers: finalizers(object),
            owner,
            template_hash: text(object, "/metadata/labels/pod-template-hash"),
            changed_by,
            changed_at,
            relations: relations::of(&kind, object),
            conditions: conditions(object),
            detail: detail(&kind, object),
            kind,
            name,
        })
    }

    /// The condition of that kind.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// What it says of others, when it does.
    pub fn rules(&self) -> Option<&Rules> {
        match &self.detail {
            Detail::Rules(rules) => Some(rules),
            Detail::Route(route) => Some(&route.rules),
            _ => None,
        }
    }

    /// The pod's state, when it is a pod.
    pub fn pod(&self) -> Option<&PodState> {
        if let Detail::Pod(pod) = &self.detail { Some(pod) } else { None }
    }
}

/// The API tells the end of the grace period, not its begin.
fn deleted_from(object: &Value) -> Option<UnixNanos> {
    let grace_s = u64::try_from(int(object, "/metadata/deletionGracePeriodSeconds")).unwrap_or(0);
    Some(time(object, "/metadata/deletionTimestamp")?.minus(grace_s.saturating_mul(1_000_000_000)))
}

fn detail(kind: &str, object: &Value) -> Detail {
    match kind {
        kinds::POD => Detail::Pod(Box::new(PodState::of(object))),
        kinds::DEPLOYMENT | kinds::STATEFUL_SET | kinds::DAEMON_SET | kinds::REPLICA_SET => {
            Detail::Workload(workload(object, "/spec/template"))
        }
        kinds::CRON_JOB => Detail::Workload(workload(object, "/spec/jobTemplate/spec/template")),
        "ConfigMap" | "Secret" => Detail::Data(data(object)),
        kind if RULES.contains(&kind) => Detail::Rules(rules(kind, object)),
        "Ingress" => Detail::Route(Box::new(route(object))),
        "PodDisruptionBudget" => Detail::Budget(Budget {
            selector: budget_selector(object),
            allowed: int(object, "/status/disruptionsAllowed"),
        }),
        kinds::NODE => Detail::Machine(Machine {
            boot: text(object, "/status/nodeInfo/bootID"),
            is_cordoned: object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)),
        }),
        _ => Detail::Other,
    }
}

fn rules(kind: &str, object: &Value) -> Rules {
    let pointer = match kind {
        kinds::SERVICE => "/spec/selector",
        "AuthorizationPolicy" | "PeerAuthentication" => "/spec/selector/matchLabels",
        _ => "/spec/podSelector/matchLabels",
    };
    let selector = pairs(object, pointer);
    let spec =
        object.get("spec").or_else(|| object.get("webhooks")).map(Value::to_string).unwrap_or_default();
    let has_expressions = !list(object, "/spec/podSelector/matchExpressions").is_empty();
    Rules {
        selects_all: LIMITS.contains(&kind) && selector.is_empty() && !has_expressions,
        selector,
        spec: Seed::new("rules").text(&spec).hash(),
        ports: if kind == kinds::SERVICE { ports(object) } else { Vec::new() },
    }
}

/// Names and numbers, by either of which a route may ask for a port.
fn ports(service: &Value) -> Vec<SmolStr> {
    let ports = list(service, "/spec/ports");
    if ports.len() > PORTS_MAX {
        return Vec::new();
    }
    let both = ports.iter().flat_map(|port| [text(port, "/name"), number_or_text(port, "/port")]);
    both.filter(|port| !port.is_empty()).collect()
}

fn number_or_text(value: &Value, pointer: &str) -> SmolStr {
    match value.pointer(pointer).and_then(Value::as_i64) {
        Some(number) => number.to_smolstr(),
        None => text(value, pointer),
    }
}

fn route(object: &Value) -> Route {
    let default = object.pointer("/spec/defaultBackend").into_iter();
    let paths = list(object, "/spec/rules").iter().flat_map(|rule| list(rule, "/http/paths"));
    let backends = default.chain(paths.filter_map(|path| path.get("backend")));
    let mut backends: Vec<(SmolStr, SmolStr)> = backends
        .filter(|backend| backend.get("service").is_some())
        .map(|backend| {
            let port = match text(backend, "/service/port/name") {
                name if name.is_empty() => number_or_text(backend, "/service/port/number"),
                name => name,
            };
            (text(backend, "/service/name"), port)
        })
        .take(BACKENDS_MAX)
        .collect();
    backends.sort();
    backends.dedup();
    let secrets = list(object, "/spec/tls").iter().map(|tls| text(tls, "/secretName"));
    Route {
        rules: rules("Ingress", object),
        class: text(object, "/spec/ingressClassName"),
        backends,
        secrets: secrets.filter(|name| !name.is_empty()).take(BACKENDS_MAX).collect(),
    }
}

/// Labels alone. With expressions as well it is for fewer pods, and for none as far as is known here.
fn budget_selector(object: &Value) -> Pairs {
    let has_expressions = !list(object, "/spec/selector/matchExpressions").is_empty();
    if has_expressions { Pairs::new() } else { pairs(object, "/spec/selector/matchLabels") }
}

fn finalizers(object: &Value) -> Vec<SmolStr> {
    let names = list(object, "/metadata/finalizers").iter().filter_map(Value::as_str);
    names.take(FINALIZERS_MAX).map(SmolStr::new).collect()
}

fn workload(object: &Value, template: &str) -> WorkloadState {
    let containers = list(object, &format!("{template}/spec/containers"));
    let images = containers.iter().map(|c| (text(c, "/name"), text(c, "/image"))).collect();
    let template = object.pointer(template).map(Value::to_string).unwrap_or_default();
    WorkloadState {
        images,
        replicas: object.pointer("/spec/replicas").and_then(Value::as_i64),
        template: Seed::new("template").text(&template).hash(),
    }
}

/// Values are hashed at once: what a Secret says is nobody's business here.
fn data(object: &Value) -> Vec<(SmolStr, u64)> {
    let parts = ["data", "binaryData"].into_iter().filter_map(|part| object[part].as_object());
    let mut keys: Vec<_> = parts
        .flatten()
        .map(|(key, value)| {
            (SmolStr::new(key), xxhash_rust::xxh3::xxh3_64(value.as_str().unwrap_or_default().as_bytes()))
        })
        .take(KEYS_MAX)
        .collect();
    keys.sort();
    keys
}

fn conditions(object: &Value) -> Vec<Condition> {
    let mut conditions: Vec<Condition> =
        list(object, "/status/conditions").iter().take(CONDITIONS_MAX).map(condition).collect();
    // A route of the Gateway API has some for each of its gateways: the worst of each kind says how it stands.
    let parents = list(object, "/status/parents").iter();
    for of_parent in parents.flat_map(|parent| list(parent, "/conditions")).map(condition) {
        match conditions.iter().position(|known| known.kind == of_parent.kind) {
            Some(place) if badness(&of_parent) > badness(&conditions[place]) => conditions[place] = of_parent,
            Some(_) => {}
            None if conditions.len() < CONDITIONS_MAX => conditions.push(of_parent),
            None => {}
        }
    }
    conditions
}

fn condition(condition: &Value) -> Condition {
    Condition {
        kind: text(condition, "/type"),
        status: text(condition, "/status"),
        reason: text(condition, "/reason"),
        message: text(condition, "/message"),
        since: time(condition, "/lastTransitionTime"),
    }
}

/// Of a condition that is good when it is `True`, as those of routes are.
fn badness(condition: &Condition) -> u8 {
    match condition.status.as_str() {
        "True" => 0,
        "False" => 2,
        _ => 1,
    }
}

/// Manager and time of the newest change that is not of a status. Servers before 1.22 do not say which request wrote a field:
/// there who has fields of the status and none of the specification has written the status.
fn last_change(object: &Value) -> (SmolStr, Option<UnixNanos>) {
    let of_status = |entry: &&Value| {
        let has = |part: &str| entry.get("fieldsV1").and_then(|fields| fields.get(part)).is_some();
        str_at(entry, "/subresource") == "status" || (has("f:status") && !has("f:spec"))
    };
    let entries = list(object, "/metadata/managedFields").iter();
    let changes = entries.filter(|entry| !of_status(entry));
    let newest = changes.max_by_key(|entry| str_at(entry, "/time"));
    newest.map(|entry| (text(entry, "/manager"), time(entry, "/time"))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_writes_a_status_has_changed_nothing() {
        let entry = |manager: &str, at: u8, more: Value| {
            let mut entry = json!({"manager": manager, "time": format!("2030-01-01T00:00:0{at}Z")});
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            entry
        };
        let by = |entries: Value| last_change(&json!({"metadata": {"managedFields": entries}})).0;
        let user =
            entry("kubectl", 1, json!({"fieldsV1": {"f:metadata": null, "f:spec": null, "f:status": null}}));
        let controller = json!({"fieldsV1": {"f:metadata": null, "f:status": null}});
        assert_eq!(by(json!([user, entry("controller", 2, controller.clone())])), "kubectl");
        assert_eq!(by(json!([user, entry("controller", 2, json!({"subresource": "status"}))])), "kubectl");
        let labels = json!({"fieldsV1": {"f:metadata": null}});
        assert_eq!(by(json!([user, entry("labeller", 2, labels)])), "labeller");
        assert_eq!(by(json!([entry("controller", 2, controller)])), "");
    }
}
