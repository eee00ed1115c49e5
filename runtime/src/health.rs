//! Health as progress: a component is ready when it has moved recently, not when it exists.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::clock::SharedClock;

/// No tick yet; a real stamp is below this for 584 years.
const NEVER: u64 = u64::MAX;

/// State of one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Registered and within its first allowance, but has not ticked yet.
    Starting,
    /// Ticked within its allowance.
    Ok,
    /// Has not ticked within its allowance.
    Stale,
    /// Said it failed, or was given up by the supervisor.
    Failed,
}

/// What [`Health::report`] says of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentHealth {
    /// Name given at registration.
    pub name: String,
    /// Its state now.
    pub state: HealthState,
    /// Time since the last tick, or since registration.
    pub progress_age: Duration,
    /// Reason of a failure.
    pub detail: Option<String>,
    /// What it says of itself, whatever its state.
    pub note: Option<String>,
}

/// Registry of the components of a process. Clones share it.
#[derive(Clone)]
pub struct Health {
    clock: SharedClock,
    components: Arc<Mutex<BTreeMap<String, Arc<Component>>>>,
}

struct Component {
    stale_after: Option<Duration>,
    registered_nanos: u64,
    ticked_nanos: AtomicU64,
    failure: Mutex<Option<String>>,
    note: Mutex<Option<String>>,
}

/// A component's way to say that it moves. Cheap to clone and to tick.
#[derive(Clone)]
pub struct Progress {
    clock: SharedClock,
    component: Arc<Component>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.report()).finish()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("age", &self.age()).finish()
    }
}

impl Health {
    /// An empty registry on this clock's monotonic time.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, components: Arc::default() }
    }

    /// Adds a component that must tick at least every `stale_after`; `None` means that it is only
    /// unhealthy when it says so. The same name again replaces the old one.
    pub fn register(&self, name: &str, stale_after: Option<Duration>) -> Progress {
        let component = Arc::new(Component {
            stale_after,
            registered_nanos: nanos(self.clock.monotonic()),
            ticked_nanos: AtomicU64::new(NEVER),
            failure: Mutex::new(None),
            note: Mutex::new(None),
        });
        self.lock().insert(name.to_owned(), Arc::clone(&component));
        Progress { clock: self.clock.clone(), component }
    }

    /// Forgets a component that ended well.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// All components by name.
    pub fn report(&self) -> Vec<ComponentHealth> {
        let now = nanos(self.clock.monotonic());
        self.lock().iter().map(|(name, component)| component.health(name, now)).collect()
    }

    /// Whether every component makes progress. A process without components is not ready.
    pub fn is_ready(&self) -> bool {
        let report = self.report();
        !report.is_empty() && report.iter().all(|component| component.state == HealthState::Ok)
    }

    /// Whether a restart of the process would not help: nothing failed for good.
    pub fn is_live(&self) -> bool {
        self.report().iter().all(|component| component.state != HealthState::Failed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Component>>> {
        self.components.lock().expect("health registry lock")
    }
}

impl Component {
    fn age(&self, now_nanos: u64) -> Duration {
        let ticked = self.ticked_nanos.load(Ordering::Relaxed);
        let since = if ticked == NEVER { self.registered_nanos } else { ticked };
        Duration::from_nanos(now_nanos.saturating_sub(since))
    }

    fn health(&self, name: &str, now_nanos: u64) -> ComponentHealth {
        let detail = self.failure.lock().expect("component failure lock").clone();
        let progress_age = self.age(now_nanos);
        let state = if detail.is_some() {
            HealthState::Failed
        } else if self.stale_after.is_some_and(|limit| progress_age > limit) {
            HealthState::Stale
        } else if self.stale_after.is_some() && self.ticked_nanos.load(Ordering::Relaxed) == NEVER {
            HealthState::Starting
        } else {
            HealthState::Ok
        };
        let note = self.note.lock().expect("component note lock").clone();
        ComponentHealth { name: name.to_owned(), state, progress_age, detail, note }
    }
}

impl Progress {
    /// The component has moved. One relaxed store: fit for a hot loop, once a batch.
    pub fn tick(&self) {
        self.component.ticked_nanos.store(nanos(self.clock.monotonic()), Ordering::Relaxed);
    }

    /// The component cannot do its work.
    pub fn fail(&self, reason: impl Into<String>) {
        *self.component.failure.lock().expect("component failure lock") = Some(reason.into());
    }

    /// Says something of the component, for those who look at its health; changes nothing.
    pub fn note(&self, text: impl Into<String>) {
        *self.component.note.lock().expect("component note lock") = Some(text.into());
    }

    /// Takes back a failure and counts as a tick.
    pub fn recover(&self) {
        *self.component.failure.lock().expect("component failure lock") = None;
        self.tick();
    }

    /// Time since the last tick, or since registration.
    pub fn age(&self) -> Duration {
        self.component.age(nanos(self.clock.monotonic()))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn readiness_follows_progress() {
        let clock = ManualClock::new(0);
        let health = Health::new(clock.shared());
        assert!(!health.is_ready(), "nothing registered");
        let worker = health.register("worker", Some(Duration::from_secs(5)));
        let passive = health.register("passive", None);
        assert_eq!(health.report()[1].state, HealthState::Starting);
        assert!(!health.is_ready());
        worker.tick();
        assert!(health.is_ready());
        clock.advance(Duration::from_secs(6));
        assert_eq!(health.report()[1].state, HealthState::Stale);
        assert_eq!(worker.age(), Duration::from_secs(6));
        assert!(!health.is_ready() && health.is_live());
        worker.tick();
        assert!(health.is_ready());
        passive.fail("socket gone");
        assert!(!health.is_ready() && !health.is_live());
        assert_eq!(health.report()[0].detail.as_deref(), Some("socket gone"));
        passive.recover();
        passive.note("circuit closed");
        assert_eq!(health.report()[0].note.as_deref(), Some("circuit closed"));
        assert!(health.is_ready());
        health.remove("worker");
        assert_eq!(health.report().len(), 1);
    }
}
