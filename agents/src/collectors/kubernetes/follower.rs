//! Turns what the watches say into events, one change after the other.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use smol_str::SmolStr;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use super::config::WatchScope;
use super::convert::WatchType;
use super::index::PodIndex;
use super::reflector::{Change, Said};
use super::standing::Standings;
use super::summary::NotAnObject;
use super::tracker::Tracker;
use crate::collectors::CollectorStates;

/// How often it is looked at what time alone changes.
pub const TICK: Duration = Duration::from_secs(1);

/// A label value out of a closed set.
type Label = &'static str;

/// Counts of changes and sizes of what is held.
#[derive(Clone)]
pub struct FollowerMetrics {
    changes: Family<[(&'static str, Label); 2], Counter>,
    objects: Gauge,
    untracked: Gauge,
    outdated: Gauge,
    refused_pods: Gauge,
    dropped: Gauge,
    silence: Gauge,
}

impl FollowerMetrics {
    /// Those of this process.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            changes: metrics.shared(
                "kubernetes_changes",
                "Changes from watches of the API server, by kind of change and outcome",
            ),
            objects: metrics.shared("kubernetes_objects", "Objects that are followed"),
            untracked: metrics.shared(
                "kubernetes_untracked_changes",
                "Changes of objects beyond the limit of followed ones, told without a comparison",
            ),
            outdated: metrics.shared(
                "kubernetes_outdated_changes",
                "States of objects that were told after newer ones, and not taken",
            ),
            refused_pods: metrics
                .shared("kubernetes_refused_pods", "Updates of pods that the full pod index did not take"),
            dropped: metrics.shared(
                "kubernetes_dropped_looks",
                "Looks at what waits or lasts that are left out, because too much does",
            ),
            silence: metrics.shared(
                "kubernetes_watch_silence_seconds",
                "Time for which the longest silent of the watches that are allowed has not been heard",
            ),
        }
    }

    fn count(&self, change: Label, outcome: Label) {
        self.changes.get_or_create(&[("change", change), ("outcome", outcome)]).inc();
    }
}

/// What a follower is made of.
pub struct Follower {
    /// Objects of the cluster.
    pub tracker: Tracker,
    /// What is older is not told again.
    pub news_after: UnixNanos,
    /// How the watches stand.
    pub standings: Standings,
    /// Who runs where.
    pub pods: PodIndex,
    /// What is watched.
    pub scope: WatchScope,
    /// Time within which all objects are told again; zero = never.
    pub retell: Duration,
    /// Next look at what time alone changes.
    pub next_look: Duration,
    /// Where the collector says how it is.
    pub states: Option<CollectorStates>,
    /// Counts.
    pub metrics: FollowerMetrics,
    /// This agent, of whom gaps are told.
    pub node: Arc<EntityRef>,
}

impl Follower {
    /// What time alone brings, once per [`TICK`]: objects whose turn to be told again it is, what should have happened
    /// and has not, and what is not seen.
    pub fn look(&mut self, clock: &SharedClock) -> Vec<UnifiedEvent> {
        let now = clock.monotonic();
        if now < self.next_look {
            return Vec::new();
        }
        self.next_look = now + TICK;
        let at = UnixNanos(clock.now_unix_nanos());
        self.report(at);
        self.metrics.silence.set(i64::try_from(self.standings.silence(at).as_secs()).unwrap_or(i64::MAX));
        let mut events = self.tracker.overdue(at);
        events.extend(self.tracker.lasting(at));
        self.metrics.dropped.set(signed(self.tracker.dropped()));
        if !self.retell.is_zero() {
            events.extend(self.tracker.retell(at, now, self.retell));
        }
        if self.scope == WatchScope::Node {
            // Looked at all the same, so that what is gone is not kept; told by the agent that watches the whole cluster.
            return Vec::new();
        }
        events.extend(self.standings.gaps(at).iter().map(|gap| gap.event(&self.node)));
        events
    }

    /// Events of what the watch at `place` says.
    pub fn follow(&mut self, now: UnixNanos, place: usize, change: Change) -> Vec<UnifiedEvent> {
        self.standings.note(place, &change, now);
        let kind = self.standings.kind(place);
        let (name, result) = match change {
            Change::ListBegins(_) => {
                self.tracker.list_begins(&kind);
                return Vec::new();
            }
            Change::ListEnds => ("list_ends", Ok(self.tracker.list_ends(now, &kind))),
            Change::Listed(said) => ("listed", self.change(now, WatchType::Added, said)),
            Change::Applied(said) => ("applied", self.change(now, WatchType::Modified, said)),
            Change::Deleted(said) => ("deleted", self.change(now, WatchType::Deleted, said)),
            Change::Alive => return Vec::new(),
            Change::Failed(_) | Change::Forbidden(_) | Change::Absent => {
                self.tracker.list_breaks(&kind);
                self.metrics.count("failed", "error");
                self.report(now);
                return Vec::new();
            }
        };
        self.metrics.count(name, if result.is_ok() { "converted" } else { "malformed" });
        self.metrics.objects.set(signed(self.tracker.len() as u64));
        self.metrics.untracked.set(signed(self.tracker.untracked()));
        self.metrics.outdated.set(signed(self.tracker.outdated()));
        self.metrics.refused_pods.set(signed(self.pods.refused()));
        // The agent that watches the whole cluster tells what happens to this node's pods as well.
        if self.scope == WatchScope::Node { Vec::new() } else { result.unwrap_or_default() }
    }

    fn change(
        &mut self,
        now: UnixNanos,
        watch_type: WatchType,
        said: Said,
    ) -> Result<Vec<UnifiedEvent>, NotAnObject> {
        match said {
            // Events expire; that says nothing.
            Said::Event(_) if watch_type == WatchType::Deleted => Ok(Vec::new()),
            Said::Event(event) => {
                Ok(self.tracker.summarized_event(now, self.news_after, &event).into_iter().collect())
            }
            Said::Object(object) => Ok(self.tracker.summarized(now, self.news_after, watch_type, *object)),
            Said::Malformed(error) => Err(error),
        }
    }

    fn report(&mut self, now: UnixNanos) {
        let Some(states) = &self.states else { return };
        states.set_watches(self.standings.words(now));
        if let Some(state) = self.standings.news() {
            states.set("kubernetes", state);
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The agent as an entity: a machine of the cluster.
pub fn agent_entity(cluster: &SmolStr, node: &SmolStr) -> Arc<EntityRef> {
    let entity = EntityRef { cluster: cluster.clone(), node: node.clone(), ..EntityRef::default() };
    Arc::new(entity.sealed())
}
