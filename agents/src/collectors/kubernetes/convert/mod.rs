//! Changes of objects as events: pure functions of the new and the previous summary, used live and by replay.
//!
//! An event's time is the API's own where it has one (to the second, so up to a second early), else the moment
//! of observation. Ids of facts with a time of their own do not depend on the observation: the same end of a
//! container, seen again after a restart of the agent, has the same id.

mod condition;
mod event;
mod machine;
mod pods;
mod workload;

use std::sync::Arc;

use smol_str::SmolStr;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{KubernetesData, Payload, Relation};

use super::owners::{self, Owners};
use super::summary::{Detail, Summary};
use crate::convert::Seed;

pub use event::{EventSummary, event};
pub use pods::lost_readiness;

/// Kinds whose changes are a heartbeat or a copy of what other objects say.
const IGNORED: [&str; 3] = ["Lease", "Endpoints", "Event"];

/// What a conversion needs to know besides the objects.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Name of the cluster.
    pub cluster: &'a SmolStr,
    /// When the object arrived.
    pub observed_at: UnixNanos,
    /// Owners that are known.
    pub owners: &'a Owners,
    /// Of an object that is seen for the first time: ends and starts before this are not told again. Zero: all are.
    pub news_after: UnixNanos,
}

/// How a watch names a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchType {
    /// `ADDED`
    Added,
    /// `MODIFIED`
    Modified,
    /// `DELETED`
    Deleted,
}

impl WatchType {
    /// From the text of a watch; none for `BOOKMARK`, `ERROR` and unknown words.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ADDED" => Some(Self::Added),
            "MODIFIED" => Some(Self::Modified),
            "DELETED" => Some(Self::Deleted),
            _ => None,
        }
    }
}

/// Events of a change of an object, in the order of their times. `previous` decides whether it is new, not the
/// watch's word, so that a relist that adds what is known adds nothing.
pub fn object(
    context: &Context<'_>,
    watch_type: WatchType,
    new: &Summary,
    previous: Option<&Summary>,
) -> Vec<UnifiedEvent> {
    if IGNORED.contains(&new.kind.as_str()) {
        return Vec::new();
    }
    let changed_at =
        new.changed_at.filter(|at| previous.is_some_and(|p| p.changed_at.is_some_and(|p| p < *at)));
    let mut out = Changes { context, new, changed_at, events: Vec::new() };
    match (watch_type, previous) {
        (WatchType::Deleted, _) => out.push_with_relations(EventKind::K8sObjectDeleted, Fact::default()),
        (_, None) => out.push_with_relations(EventKind::K8sObjectAdded, Fact::default()),
        (_, Some(previous)) if previous.relations != new.relations => {
            out.push_with_relations(EventKind::K8sObjectChanged, Fact::default());
        }
        _ => {}
    }
    // The last state of a deleted object is news as any other: a Job's pod may be gone at once.
    match &new.detail {
        Detail::Pod(pod) => pods::changes(&mut out, pod, previous),
        Detail::Workload(_) | Detail::Data(_) => workload::changes(&mut out, previous),
        Detail::Rules(_) | Detail::Route(_) => workload::rules(&mut out, watch_type, previous),
        Detail::Machine(machine) => machine::changes(&mut out, machine, watch_type, previous),
        Detail::Budget(_) | Detail::Other => {}
    }
    condition::changes(&mut out, previous, watch_type);
    out.events.sort_by_key(|event| event.timestamp);
    out.events
}

/// An object that is known, told as when it was added: where it belongs, and nothing that happened to it.
pub fn again(context: &Context<'_>, object: &Summary) -> Vec<UnifiedEvent> {
    let mut out = Changes { context, new: object, changed_at: None, events: Vec::new() };
    out.push_with_relations(EventKind::K8sObjectAdded, Fact::default());
    out.events
}

/// True when something is wrong with the object that lasts: who does not hear of it again takes it to be over.
pub fn lasts(object: &Summary) -> bool {
    match &object.detail {
        _ if IGNORED.contains(&object.kind.as_str()) => false,
        Detail::Pod(pod) => pods::lasts(object, pod),
        _ => condition::lasts(object),
    }
}

/// What is wrong with the object and lasts, told as of now.
pub fn lasting(context: &Context<'_>, object: &Summary) -> Vec<UnifiedEvent> {
    let mut out = Changes { context, new: object, changed_at: None, events: Vec::new() };
    match &object.detail {
        _ if IGNORED.contains(&object.kind.as_str()) => {}
        Detail::Pod(pod) => pods::lasting(&mut out, pod),
        _ => condition::lasting(&mut out),
    }
    out.events
}

/// What follows from several objects, told of one of them.
#[derive(Debug, Clone, Default)]
pub struct Consequence {
    /// Why.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// The other object that it is about.
    pub other: Option<Relation>,
    /// The same where it may be in another namespace or in none: `namespace/Kind/name`.
    pub about: SmolStr,
}

/// An event about an object that follows from others, or from time.
pub fn consequence(
    context: &Context<'_>,
    about: &Summary,
    kind: EventKind,
    severity: EventSeverity,
    of: Consequence,
) -> Vec<UnifiedEvent> {
    let mut out = Changes { context, new: about, changed_at: None, events: Vec::new() };
    let data = KubernetesData {
        reason: SmolStr::new_static(of.reason),
        message: SmolStr::new(of.message),
        relations: of.other.into_iter().collect(),
        changed_by: of.about,
        ..KubernetesData::default()
    };
    out.push(kind, severity, Fact { distinct: SmolStr::new_static(of.reason), data, ..Fact::default() });
    out.events
}

/// Collects the events of one change.
struct Changes<'a> {
    context: &'a Context<'a>,
    new: &'a Summary,
    /// When somebody changed the object, if that is what this change is.
    changed_at: Option<UnixNanos>,
    events: Vec<UnifiedEvent>,
}

/// What an event says besides its object.
#[derive(Debug, Clone, Default)]
struct Fact<'a> {
    /// The API's own time; none for the moment of observation.
    at: Option<UnixNanos>,
    /// Container, for facts about one.
    container: &'a str,
    /// Id of the container's instance that it is about.
    container_id: SmolStr,
    /// Tells facts of one kind and time apart.
    distinct: SmolStr,
    data: KubernetesData,
}

impl Changes<'_> {
    fn push(&mut self, kind: EventKind, severity: EventSeverity, fact: Fact<'_>) {
        let (context, new) = (self.context, self.new);
        // The API's clock may be ahead of ours.
        let at = fact.at.map_or(context.observed_at, |at| at.min(context.observed_at));
        let mut entity = owners::entity(context.cluster, context.owners, new, fact.container);
        if !fact.container_id.is_empty() && fact.container_id != entity.container_id {
            entity = Arc::new(EntityRef { container_id: fact.container_id, ..(*entity).clone() });
        }
        let id = Seed::new("k8s")
            .text(kind.as_str())
            .text(&new.kind)
            .text(&new.namespace)
            .text(&new.name)
            .text(&new.uid)
            .text(fact.container)
            .text(&fact.distinct)
            .event(at);
        // A slice is a part of its Service's list of endpoints: the edges are the Service's.
        let (object_kind, object_name) = match &new.owner {
            Some((kind, name)) if new.kind == "EndpointSlice" => (kind.clone(), name.clone()),
            _ => (new.kind.clone(), new.name.clone()),
        };
        let data = KubernetesData {
            api_version: new.api_version.clone(),
            object_kind,
            object_name,
            uid: new.uid.clone(),
            generation: new.generation,
            ..fact.data
        };
        self.events.push(UnifiedEvent {
            id,
            timestamp: at,
            observed_at: context.observed_at,
            kind,
            source: Source::Kubernetes,
            severity,
            entity,
            payload: Payload::Kubernetes(Box::new(data)),
            ..UnifiedEvent::default()
        });
    }

    fn push_with_relations(&mut self, kind: EventKind, fact: Fact<'_>) {
        let data = KubernetesData { relations: self.new.relations.clone(), ..fact.data };
        self.push(kind, EventSeverity::Info, Fact { data, ..fact });
    }

    /// Whether a fact with that time is news: always, unless the object is seen for the first time.
    fn is_news(&self, at: Option<UnixNanos>, previous: Option<&Summary>) -> bool {
        previous.is_some() || at.is_none_or(|at| at >= self.context.news_after)
    }
}
