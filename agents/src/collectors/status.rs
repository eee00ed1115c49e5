//! What each collector says of itself: an agent with half of its collectors is worth having, and says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::status::WatchStatus;

/// State of a collector.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum CollectorState {
    /// At work.
    Running,
    /// At work with less, or waiting for what it lacks; why, and what to do.
    Degraded(String),
    /// Not wanted, or nothing there to collect; why.
    Disabled(String),
}

/// States of all collectors of an agent. Clones share them.
#[derive(Clone)]
pub struct CollectorStates {
    states: Arc<Mutex<BTreeMap<String, CollectorState>>>,
    watches: Arc<Mutex<Vec<WatchStatus>>>,
    up: Family<[(&'static str, String); 1], Gauge>,
}

impl CollectorStates {
    /// No collectors yet.
    pub fn new(metrics: &Metrics) -> Self {
        let up = metrics.shared("agent_collector_up", "1 when the collector is fully at work");
        Self { states: Arc::default(), watches: Arc::default(), up }
    }

    /// Sets a collector's state and logs a change for the worse.
    pub fn set(&self, collector: &str, state: CollectorState) {
        let up = self.up.get_or_create(&[("collector", collector.to_owned())]);
        up.set(i64::from(state == CollectorState::Running));
        let before = self.lock().insert(collector.to_owned(), state.clone());
        if before.as_ref() == Some(&state) {
            return;
        }
        match state {
            CollectorState::Running => tracing::info!(collector, "collector runs"),
            CollectorState::Degraded(reason) => tracing::warn!(collector, reason, "collector is degraded"),
            CollectorState::Disabled(reason) => tracing::info!(collector, reason, "collector is disabled"),
        }
    }

    /// Says how the watches of the cluster stand.
    pub fn set_watches(&self, watches: Vec<WatchStatus>) {
        *self.watches.lock().unwrap_or_else(PoisonError::into_inner) = watches;
    }

    /// How the watches of the cluster stand; none when there are none.
    pub fn watches(&self) -> Vec<WatchStatus> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// States by name.
    pub fn all(&self) -> BTreeMap<String, CollectorState> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, CollectorState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
