//! What is kept of an object to see the next change of it: a hundredth of its JSON.

use serde_json::Value;
use smol_str::SmolStr;
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
const RULES: [&str; 6] = [
    kinds::SERVICE,
    "NetworkPolicy",
    "ResourceQuota",
    "LimitRange",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
];
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
        _ => Detail::Other,
    }
}

fn rules(kind: &str, object: &Value) -> Rules {
    let pointer = if kind == kinds::SERVICE { "/spec/selector" } else { "/spec/podSelector/matchLabels" };
    let selector = pairs(object, pointer);
    let spec =
        object.get("spec").or_else(|| object.get("webhooks")).map(Value::to_string).unwrap_or_default();
    let has_expressions = !list(object, "/spec/podSelector/matchExpressions").is_empty();
    Rules {
        selects_all: kind == "NetworkPolicy" && selector.is_empty() && !has_expressions,
        selector,
        spec: Seed::new("rules").text(&spec).hash(),
    }
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
    list(object, "/status/conditions")
        .iter()
        .take(CONDITIONS_MAX)
        .map(|condition| Condition {
            kind: text(condition, "/type"),
            status: text(condition, "/status"),
            reason: text(condition, "/reason"),
            message: text(condition, "/message"),
            since: time(condition, "/lastTransitionTime"),
        })
        .collect()
}

/// Manager and time of the newest change that is not of a status.
fn last_change(object: &Value) -> (SmolStr, Option<UnixNanos>) {
    let entries = list(object, "/metadata/managedFields").iter();
    let changes = entries.filter(|entry| str_at(entry, "/subresource") != "status");
    let newest = changes.max_by_key(|entry| str_at(entry, "/time"));
    newest.map(|entry| (text(entry, "/manager"), time(entry, "/time"))).unwrap_or_default()
}
