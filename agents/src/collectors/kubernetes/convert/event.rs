//! An Event object as an event.

use std::sync::Arc;

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::entity::{EntityRef, kinds};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{KubernetesData, Payload};

use super::Context;
use crate::collectors::kubernetes::json::{int, text, time};
use crate::collectors::kubernetes::owners::{Named, entity as entity_of, of_name};
use crate::collectors::kubernetes::summary::{NotAnObject, Summary};
use crate::convert::{Seed, deployment_of_pod};

/// An Event of `v1` or `events.k8s.io/v1`.
#[derive(Debug, Clone, PartialEq)]
pub struct EventSummary {
    /// uid of the Event itself.
    pub uid: SmolStr,
    /// How often it occurred.
    pub count: u32,
    /// Last occurrence.
    pub at: Option<UnixNanos>,
    /// What it is about: kind, namespace, name, uid.
    pub about: [SmolStr; 4],
    api_version: SmolStr,
    container: SmolStr,
    /// Reason.
    pub reason: SmolStr,
    /// Message.
    pub message: SmolStr,
    event_type: SmolStr,
    reporter: SmolStr,
}

impl EventSummary {
    /// The pod that a controller says to have made or deleted.
    pub(in crate::collectors::kubernetes) fn pod_of_controller(&self) -> Option<&str> {
        if !["SuccessfulCreate", "SuccessfulDelete"].contains(&self.reason.as_str()) {
            return None;
        }
        let (_, name) = self.message.split_once(" pod: ")?;
        Some(name.trim())
    }

    /// True when a container is waited for after it has ended.
    pub(in crate::collectors::kubernetes) fn is_restart_back_off(&self) -> bool {
        self.reason == "BackOff" && self.message.contains("restarting failed container")
    }

    /// Reads an Event.
    ///
    /// # Errors
    /// When it is not about anything.
    pub fn of(event: &Value) -> Result<Self, NotAnObject> {
        // `regarding`, `note`, … are the names of events.k8s.io/v1.
        let about =
            if event["regarding"].is_object() { &event["regarding"] } else { &event["involvedObject"] };
        let first = |pointers: &[&str]| {
            pointers
                .iter()
                .map(|pointer| text(event, pointer))
                .find(|text| !text.is_empty())
                .unwrap_or_default()
        };
        let kind = text(about, "/kind");
        if kind.is_empty() {
            return Err(NotAnObject("involvedObject.kind"));
        }
        let times = [
            "/series/lastObservedTime",
            "/lastTimestamp",
            "/deprecatedLastTimestamp",
            "/eventTime",
            "/firstTimestamp",
            "/metadata/creationTimestamp",
        ];
        let count = ["/series/count", "/count", "/deprecatedCount"].iter().map(|p| int(event, p)).max();
        Ok(Self {
            uid: text(event, "/metadata/uid"),
            count: count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0).max(1),
            at: times.iter().find_map(|pointer| time(event, pointer)),
            about: [kind, text(about, "/namespace"), text(about, "/name"), text(about, "/uid")],
            api_version: text(about, "/apiVersion"),
            container: container(&text(about, "/fieldPath")),
            reason: text(event, "/reason"),
            message: first(&["/message", "/note"]),
            event_type: text(event, "/type"),
            reporter: first(&[
                "/reportingComponent",
                "/reportingController",
                "/source/component",
                "/deprecatedSource/component",
            ]),
        })
    }
}

/// `spec.containers{app}` → `app`
fn container(field_path: &str) -> SmolStr {
    let name = field_path.split_once('{').and_then(|(_, rest)| rest.strip_suffix('}'));
    SmolStr::new(name.unwrap_or_default())
}

/// The event; `about` is what is known of the object that it is about.
pub fn event(context: &Context<'_>, event: &EventSummary, about: Option<&Summary>) -> UnifiedEvent {
    let at = event.at.map_or(context.observed_at, |at| at.min(context.observed_at));
    let [kind, namespace, name, uid] = &event.about;
    let id =
        Seed::new("k8s-event").text(&event.uid).text(kind).text(namespace).text(name).text(&event.reason);
    let warning = event.event_type == "Warning";
    let data = KubernetesData {
        api_version: event.api_version.clone(),
        object_kind: kind.clone(),
        object_name: name.clone(),
        uid: uid.clone(),
        reason: event.reason.clone(),
        message: event.message.clone(),
        event_type: event.event_type.clone(),
        reporter: event.reporter.clone(),
        count: event.count,
        ..KubernetesData::default()
    };
    UnifiedEvent {
        id: id.number(event.count.into()).event(at),
        timestamp: at,
        observed_at: context.observed_at,
        kind: EventKind::K8sEvent,
        source: Source::Kubernetes,
        severity: if warning { EventSeverity::Warning } else { EventSeverity::Info },
        entity: entity(context, event, about),
        payload: Payload::Kubernetes(Box::new(data)),
        ..UnifiedEvent::default()
    }
}

fn entity(context: &Context<'_>, event: &EventSummary, about: Option<&Summary>) -> Arc<EntityRef> {
    if let Some(object) = about {
        let known = entity_of(context.cluster, context.owners, object, &event.container);
        if event.container.is_empty() || !known.container.is_empty() {
            return known;
        }
        // Events come before the status that lists the container.
        return Arc::new(EntityRef { container: event.container.clone(), ..(*known).clone() });
    }
    let [kind, namespace, name, uid] = &event.about;
    let top = if kind == kinds::POD { workload_of_pod(name) } else { None };
    let mut unknown = of_name(context.cluster, Named { kind, namespace, name, uid }, top);
    unknown.container = event.container.clone();
    Arc::new(unknown.sealed())
}

/// The Deployment of a pod that is not known (yet), by the form of its name.
fn workload_of_pod(name: &str) -> Option<(SmolStr, SmolStr)> {
    deployment_of_pod(name)
        .map(|deployment| (SmolStr::new_static(kinds::DEPLOYMENT), SmolStr::new(deployment)))
}
