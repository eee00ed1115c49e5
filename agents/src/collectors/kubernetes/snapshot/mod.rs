//! A cluster at one moment, as lists of its objects tell it: lists of an API server, or files that hold such lists.
//!
//! What is kept of each object is its summary; [`Snapshot::into_events`] makes of all of them the events that watches
//! would have told, as far as the objects still say so.

pub mod api;
pub mod decode;
mod gone;
mod history;
pub mod logs;
pub mod resources;
pub mod selector;
mod timeline;
mod times;

use std::collections::BTreeSet;

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::Entity;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use super::convert::EventSummary;
use super::json::{str_at, time};
use super::summary::{NotAnObject, Summary};
use super::tracker::OBJECTS_MAX;
use selector::Selector;

/// Events that are kept; further ones are counted and left out.
pub const EVENTS_MAX: usize = 20_000;

/// How far back a snapshot tells: as long as an API server keeps Events by default, and as the correlator takes news.
pub const WINDOW_NS: u64 = 3_600_000_000_000;

/// What one object says.
#[derive(Debug, Clone)]
struct Standing {
    summary: Summary,
    created: Option<UnixNanos>,
    /// Last time that its progress was updated, where it says so.
    updated: Option<UnixNanos>,
    /// Number of the revision that a ReplicaSet stands for; zero for none.
    revision: u64,
}

/// What one Event says.
#[derive(Debug, Clone)]
struct Told {
    summary: EventSummary,
    /// First time it happened.
    first: Option<UnixNanos>,
}

/// Objects and Events of one cluster at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    objects: Vec<Standing>,
    events: Vec<Told>,
    newest: UnixNanos,
    selector: Option<Selector>,
    selected: BTreeSet<Named>,
    listed: BTreeSet<Listed>,
    /// Objects beyond the limit.
    left_out: u64,
    /// Events beyond theirs.
    events_left_out: u64,
}

/// A kind of which all was listed, and the only namespace of which it was; none for all.
type Listed = (SmolStr, Option<SmolStr>);

/// Kind, namespace and name.
pub type Named = (SmolStr, SmolStr, SmolStr);

impl Snapshot {
    /// An empty one; `selector` says which objects are to be found again by [`Self::selected`].
    pub fn new(selector: Option<Selector>) -> Self {
        Self { selector, ..Self::default() }
    }

    /// Takes an object or an Event, as the API writes it. What is beyond the limits is counted and left out.
    ///
    /// # Errors
    /// When it is no object of the API.
    pub fn take(&mut self, object: &Value) -> Result<(), NotAnObject> {
        self.absorb(Part::of(object)?);
        Ok(())
    }

    fn absorb(&mut self, part: Part) {
        self.newest = self.newest.max(part.newest);
        match part.said {
            Said::Event(told) => self.keep_event(*told),
            Said::Object(_, _) if self.objects.len() >= OBJECTS_MAX => self.left_out += 1,
            Said::Object(standing, labels) => {
                if self.selector.as_ref().is_some_and(|selector| selector.matches(&labels)) {
                    self.select(&standing.summary);
                }
                self.objects.push(*standing);
            }
        }
    }

    fn keep_event(&mut self, told: Told) {
        if self.events.len() < EVENTS_MAX {
            self.events.push(told);
        } else {
            self.events_left_out += 1;
        }
    }

    /// What is selected, and who owns it: a verdict is often about the owner.
    fn select(&mut self, object: &Summary) {
        self.selected.insert((object.kind.clone(), object.namespace.clone(), object.name.clone()));
        if let Some((kind, name)) = &object.owner {
            self.selected.insert((kind.clone(), object.namespace.clone(), name.clone()));
        }
    }

    /// Puts another part of the same cluster to this one.
    pub fn merge(&mut self, other: Self) {
        self.left_out += other.left_out;
        self.events_left_out += other.events_left_out;
        self.newest = self.newest.max(other.newest);
        let room = OBJECTS_MAX.saturating_sub(self.objects.len());
        self.left_out += other.objects.len().saturating_sub(room) as u64;
        self.objects.extend(other.objects.into_iter().take(room));
        other.events.into_iter().for_each(|told| self.keep_event(told));
        self.selected.extend(other.selected);
        self.listed.extend(other.listed);
    }

    /// All objects of a kind are in it, of one namespace or of all: what is not among them is not there.
    pub fn was_listed(&mut self, kind: &str, only: Option<&str>) {
        self.listed.insert((SmolStr::new(kind), only.map(SmolStr::new)));
    }

    /// Number of objects, without the Events.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Number of Events.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Number of objects of a kind.
    pub fn count_of(&self, kind: &str) -> usize {
        self.objects.iter().filter(|object| object.summary.kind == kind).count()
    }

    /// Newest time that any object or Event tells; the epoch when none does.
    pub fn newest(&self) -> UnixNanos {
        self.newest
    }

    /// Objects and Events beyond the limits.
    pub fn left_out(&self) -> u64 {
        self.left_out + self.events_left_out
    }

    /// What the selector matches, with the owners.
    pub fn selected(&self) -> &BTreeSet<Named> {
        &self.selected
    }

    /// True when one of the objects is asked for.
    pub fn has(&self, is_asked_for: impl Fn(&Entity) -> bool) -> bool {
        self.objects.iter().any(|object| {
            let object = &object.summary;
            is_asked_for(&Entity::namespaced(&object.kind, &object.namespace, &object.name))
        })
    }

    /// The events of the hour before `now`, in the order of their times.
    pub fn into_events(self, cluster: &str, now: UnixNanos) -> Vec<UnifiedEvent> {
        // The objects beyond the limit may be of any kind.
        let listed = if self.left_out == 0 { self.listed } else { BTreeSet::new() };
        timeline::events(self.objects, self.events, &listed, cluster, now)
    }
}

/// One object or Event, read and not yet taken.
struct Part {
    newest: UnixNanos,
    said: Said,
}

enum Said {
    Event(Box<Told>),
    /// With its labels.
    Object(Box<Standing>, Value),
}

impl Part {
    fn of(object: &Value) -> Result<Self, NotAnObject> {
        let newest = times::newest(object);
        if str_at(object, "/kind") == "Event" {
            let told = Told { summary: EventSummary::of(object)?, first: first_time(object) };
            return Ok(Self { newest, said: Said::Event(Box::new(told)) });
        }
        let standing = Standing {
            summary: Summary::of(object)?,
            created: time(object, "/metadata/creationTimestamp"),
            updated: times::updated(object),
            revision: times::revision(object),
        };
        let labels = object["metadata"]["labels"].clone();
        Ok(Self { newest, said: Said::Object(Box::new(standing), labels) })
    }
}

fn first_time(event: &Value) -> Option<UnixNanos> {
    let pointers =
        ["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    pointers.iter().find_map(|pointer| time(event, pointer))
}
