//! What people did, out of audit events: changes that the API server has made for somebody.

use serde::Deserialize;
use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{ChangeData, Payload};

use crate::collectors::kubernetes::objects::by_plural;
use crate::collectors::kubernetes::owners::{Named, of_name};
use crate::convert::{Seed, cut};

/// Bytes of a name or value.
const TEXT_BYTES_MAX: usize = 256;
/// Verbs that change something.
const CHANGES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
/// Somebody who uses the certificate that comes with a cluster.
const ADMIN: &str = "system:admin";
/// Kinds that change all the time and mean nothing by it.
const NOISE: [&str; 7] = [
    "events",
    "leases",
    "endpoints",
    "endpointslices",
    "tokenreviews",
    "subjectaccessreviews",
    "selfsubjectaccessreviews",
];

/// `audit.k8s.io/v1 EventList`.
#[derive(Debug, Deserialize)]
pub struct EventList {
    /// Must be `EventList`.
    pub kind: String,
    /// Events, each read for itself: one that cannot be read is counted.
    #[serde(default)]
    pub items: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuditEvent {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
    user_agent: String,
    impersonated_user: Option<User>,
    object_ref: ObjectRef,
    response_status: Status,
    request_object: Value,
    stage_timestamp: Option<UnixNanos>,
    request_received_timestamp: Option<UnixNanos>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
}

/// Why an event tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It cannot be read.
    Malformed,
    /// Nothing was changed, the request is not over, or it was only to be seen what would happen.
    NoChange,
    /// A part of the system did it in the course of its work.
    System,
}

impl Left {
    /// As a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoChange => "no_change",
            Self::System => "system",
        }
    }
}

/// The change that an audit event tells of.
///
/// # Errors
/// Why it tells of none.
pub fn change(cluster: &SmolStr, event: &Value, now: UnixNanos) -> Result<UnifiedEvent, Left> {
    let event = AuditEvent::deserialize(event).map_err(|_| Left::Malformed)?;
    let of = &event.object_ref;
    if event.audit_id.is_empty() || event.verb.is_empty() {
        return Err(Left::Malformed);
    }
    let is_made = (200..300).contains(&event.response_status.code);
    let is_change = CHANGES.contains(&event.verb.as_str())
        && !NOISE.contains(&of.resource.as_str())
        && !["status", "eviction", "binding", "token"].contains(&of.subresource.as_str());
    if event.stage != "ResponseComplete" || !is_made || !is_change || is_dry_run(&event) {
        return Err(Left::NoChange);
    }
    let user = event.impersonated_user.as_ref().unwrap_or(&event.user);
    // Service accounts of people's own tools are told; those of the cluster itself only carry out what somebody asked for.
    let name = user.username.as_str();
    if name.is_empty() || (name.starts_with("system:") && name != ADMIN && !is_of_a_tool(name)) {
        return Err(Left::System);
    }
    let kind = by_plural(&of.resource)
        .map_or_else(|| SmolStr::new(&of.resource), |resource| SmolStr::new(resource.kind));
    // The name of what is created may be only in the object.
    let named =
        if of.name.is_empty() { text(&event.request_object, "/metadata/name") } else { of.name.as_str() };
    let name = cut(if named.is_empty() { "*" } else { named }, TEXT_BYTES_MAX);
    let namespace = cut(&of.namespace, TEXT_BYTES_MAX);
    let uid = SmolStr::default();
    let object = Named { kind: &kind, namespace: &namespace, name: &name, uid: &uid };
    let at = event.stage_timestamp.or(event.request_received_timestamp).unwrap_or(now);
    let data = ChangeData { who: who(user, &event.user_agent), ..what(&event, &kind) };
    Ok(UnifiedEvent {
        id: Seed::new("audit").text(&event.audit_id).event(at),
        timestamp: at,
        observed_at: now,
        kind: EventKind::Change,
        source: Source::Audit,
        severity: EventSeverity::Info,
        entity: std::sync::Arc::new(of_name(cluster, object, None).sealed()),
        payload: Payload::Change(Box::new(data)),
        ..UnifiedEvent::default()
    })
}

/// `system:serviceaccount:ci:deployer`, but none of kube-system.
fn is_of_a_tool(user: &str) -> bool {
    user.strip_prefix("system:serviceaccount:").is_some_and(|rest| !rest.starts_with("kube-system:"))
}

/// `?dryRun=All`, or the same in the options of a deletion.
fn is_dry_run(event: &AuditEvent) -> bool {
    let query = event.request_uri.split_once('?').map_or("", |(_, query)| query);
    let asked = query.split('&').filter_map(|pair| pair.strip_prefix("dryRun="));
    asked.into_iter().any(|value| !value.is_empty())
        || event.request_object["dryRun"].as_array().is_some_and(|values| !values.is_empty())
}

/// A server-side apply carries the whole object, whether anything of it is new or not; other patches only what they change.
fn is_apply(event: &AuditEvent) -> bool {
    event.verb == "patch" && !text(&event.request_object, "/apiVersion").is_empty()
}

/// The user, and the program in whose name it was done.
fn who(user: &User, agent: &str) -> SmolStr {
    let program = agent.split(['/', ' ']).next().unwrap_or_default();
    let by = if program.is_empty() { String::new() } else { format!(" with {program}") };
    cut(&format!("{}{by}", user.username), TEXT_BYTES_MAX)
}

/// What was changed, as far as the request says so. Values of ConfigMaps and Secrets are never read.
fn what(event: &AuditEvent, kind: &str) -> ChangeData {
    let request = &event.request_object;
    let template = request.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let images = template.into_iter().flatten().filter_map(|container| container["image"].as_str());
    let image = images.collect::<Vec<_>>().join(",");
    let replicas = request.pointer("/spec/replicas").and_then(Value::as_u64);
    let of = |what: &str, new: String| ChangeData {
        what: what.into(),
        new_value: cut(&new, TEXT_BYTES_MAX),
        ..ChangeData::default()
    };
    match (kind, event.verb.as_str()) {
        (_, "patch") if is_apply(event) => {
            of(if event.response_status.code == 201 { "created" } else { "changed" }, String::new())
        }
        ("ConfigMap" | "Secret", "update" | "patch") => of("config", String::new()),
        // A patch names what it changes; an update repeats all the rest.
        (_, "patch") if !image.is_empty() => of("image", image),
        (_, "patch" | "update") if event.object_ref.subresource == "scale" => {
            of("replicas", replicas.map(|count| count.to_string()).unwrap_or_default())
        }
        (_, "create") => of("created", String::new()),
        (_, "delete" | "deletecollection") => of("deleted", String::new()),
        _ => of("changed", String::new()),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tapio_schemas::Entity;

    use super::*;

    fn event(verb: &str, resource: &str, user: &str, rest: Value) -> Value {
        let mut event = json!({"auditID": "a-1", "stage": "ResponseComplete", "verb": verb,
            "user": {"username": user}, "userAgent": "kubectl/v1.33.0 (linux/amd64)",
            "objectRef": {"resource": resource, "namespace": "shop", "name": "api"},
            "responseStatus": {"code": 200}, "stageTimestamp": "2026-01-01T10:00:00.000000Z"});
        for (key, value) in rest.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    }

    fn told(event: &Value) -> Result<(Entity, ChangeData), Left> {
        let event = change(&"c".into(), event, UnixNanos(1))?;
        let Payload::Change(data) = event.payload else { panic!("{event:?}") };
        assert_eq!(event.timestamp.to_string(), "2026-01-01T10:00:00.000Z");
        Ok((event.entity.subject(), *data))
    }

    #[test]
    fn who_changed_what_is_told() {
        let image =
            json!({"requestObject": {"spec": {"template": {"spec": {"containers": [{"image": "api:2"}]}}}}});
        let (entity, data) = told(&event("patch", "deployments", "jane", image)).unwrap();
        assert_eq!(entity, Entity::namespaced("Deployment", "shop", "api"));
        assert_eq!((data.what.as_str(), data.new_value.as_str()), ("image", "api:2"));
        assert_eq!(data.who, "jane with kubectl");
        let scale = json!({"objectRef": {"resource": "deployments", "subresource": "scale", "namespace": "shop", "name": "api"},
            "requestObject": {"spec": {"replicas": 0}}});
        let (_, data) = told(&event("patch", "deployments", "jane", scale)).unwrap();
        assert_eq!((data.what.as_str(), data.new_value.as_str()), ("replicas", "0"));
        let secret = json!({"requestObject": {"data": {"password": "aHVudGVyMg=="}}});
        let (entity, data) =
            told(&event("update", "secrets", "system:serviceaccount:ci:deployer", secret)).unwrap();
        assert_eq!(data.what, "config");
        assert!(!format!("{entity:?}{data:?}").contains("aHVudGVyMg"));
        let (_, data) = told(&event("delete", "services", "jane", json!({}))).unwrap();
        assert_eq!(data.what, "deleted");
    }

    #[test]
    fn an_apply_says_what_is_wanted_and_not_what_is_new() {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "spec": {"template": {"spec": {"containers": [{"image": "api:2"}]}}}});
        let rest = json!({"requestObject": object});
        let (_, data) = told(&event("patch", "deployments", "jane", rest.clone())).unwrap();
        assert_eq!((data.what.as_str(), data.new_value.as_str()), ("changed", ""));
        let mut created = event("patch", "deployments", "jane", rest);
        created["responseStatus"]["code"] = json!(201);
        assert_eq!(told(&created).unwrap().1.what, "created");
    }

    #[test]
    fn whoever_has_the_clusters_own_certificate_is_a_person() {
        let (_, data) = told(&event("delete", "services", "system:admin", json!({}))).unwrap();
        assert_eq!(data.who, "system:admin with kubectl");
    }

    #[test]
    fn what_changes_nothing_failed_or_is_the_systems_own_work_is_left_out() {
        for (event, expected) in [
            (event("get", "pods", "jane", json!({})), Left::NoChange),
            (event("patch", "pods", "jane", json!({"stage": "RequestReceived"})), Left::NoChange),
            (event("patch", "pods", "jane", json!({"responseStatus": {"code": 403}})), Left::NoChange),
            (event("update", "leases", "jane", json!({})), Left::NoChange),
            (
                event("patch", "pods", "jane", json!({"requestURI": "/api/v1/pods/a?x=y&dryRun=All"})),
                Left::NoChange,
            ),
            (event("delete", "pods", "jane", json!({"requestObject": {"dryRun": ["All"]}})), Left::NoChange),
            (event("patch", "pods", "system:node:n1", json!({})), Left::System),
            (
                event("delete", "pods", "system:serviceaccount:kube-system:job-controller", json!({})),
                Left::System,
            ),
            (json!({"verb": 7}), Left::Malformed),
            (json!("text"), Left::Malformed),
        ] {
            assert_eq!(told(&event).unwrap_err(), expected, "{event}");
        }
    }
}
