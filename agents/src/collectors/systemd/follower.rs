//! From states of units to events: each failure, each end that is followed by a restart, and each start once.
//!
//! | what is seen | event |
//! |---|---|
//! | `failed`, once per run, and still so a moment later: a unit that is restarted passes through it | `systemd.unit_failed` |
//! | `auto-restart` after an error, once per run | `systemd.unit_stopped`, a warning, with its result and the number of restarts |
//! | a service or a unit that had failed is up again, or ran once more and ended well | `systemd.unit_started` |
//! | a service that was up or waited for its restart is not, without an error; a failure that somebody reset | `systemd.unit_stopped` |

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{Payload, SystemdData};

use super::properties::{UNIT_INTERFACE, UnitState, Values};
use crate::convert::Seed;

/// A failure that is not followed by a restart within this time is one; the manager tells both in one breath.
pub const HOLD: Duration = Duration::from_millis(100);
/// Units followed; changes of further ones are counted and not told.
pub const UNITS_MAX: usize = 16_384;

/// Follows the units of one manager.
pub struct Follower {
    cluster: SmolStr,
    node: SmolStr,
    units: HashMap<SmolStr, Followed>,
    /// Units whose failure is held back, in order, with the end of the wait.
    held: VecDeque<(UnixNanos, SmolStr)>,
    untracked: u64,
}

#[derive(Default)]
struct Followed {
    entity: Arc<EntityRef>,
    state: UnitState,
    /// State at the last judgement.
    judged: UnitState,
    /// The run in which it failed, until it recovers.
    failed: Option<(u64, u64)>,
    /// The manager has forgotten it.
    gone: bool,
    /// A failure, or the end of a wait, that may be followed by a restart.
    held: Option<UnifiedEvent>,
    /// Run whose end before a restart was told.
    restarting: Option<(u64, u64)>,
}

/// What is told of a unit, besides its state.
type Told = (EventKind, EventSeverity);

impl Follower {
    /// Knows no units yet.
    pub fn new(cluster: &str, node: &str) -> Self {
        let (cluster, node) = (SmolStr::new(cluster), SmolStr::new(node));
        Self { cluster, node, units: HashMap::new(), held: VecDeque::new(), untracked: 0 }
    }

    /// A set of properties of a unit that is already followed or begins to be. The set that every unit has comes
    /// last and is when the unit is judged.
    pub fn changed(
        &mut self,
        now: UnixNanos,
        unit: &SmolStr,
        interface: &str,
        values: &Values,
    ) -> Vec<UnifiedEvent> {
        let Some(followed) = self.follow(unit) else { return Vec::new() };
        followed.state.update(values);
        if interface != UNIT_INTERFACE {
            return Vec::new();
        }
        let waited = followed.judged.waits_for_restart();
        let told = followed.judge(unit);
        let event = told.map(|told| followed.event(now, unit, told));
        let is_inactive = followed.state.active == "inactive";
        // On its way from a wait to the next start a unit is inactive as well, for a moment.
        let may_be_passing = followed.state.active == "failed" || is_inactive && waited;
        if may_be_passing || is_inactive && followed.holds_stop() {
            // Without news, what is held stays so.
            if event.is_some() {
                followed.held = event;
                let until = now.plus(u64::try_from(HOLD.as_nanos()).unwrap_or(u64::MAX));
                self.held.push_back((until, unit.clone()));
            }
            return Vec::new();
        }
        let starts_anew = followed.holds_stop() || followed.state.waits_for_restart();
        let held = followed.held.take().filter(|_| !starts_anew);
        held.into_iter().chain(event).collect()
    }

    /// Failures that were held long enough.
    pub fn due(&mut self, now: UnixNanos) -> Vec<UnifiedEvent> {
        let mut events = Vec::new();
        while let Some((_, unit)) = self.held.pop_front_if(|(until, _)| *until <= now) {
            // It may have failed once more; then it waits anew, and this is too early for that.
            let is_last = !self.held.iter().any(|(_, other)| *other == unit);
            events.extend(self.units.get_mut(&unit).filter(|_| is_last).and_then(|f| f.held.take()));
            if self.units.get(&unit).is_some_and(|f| f.gone && f.failed.is_none() && f.held.is_none()) {
                self.units.remove(&unit);
            }
        }
        events
    }

    /// How long until [`Follower::due`] has something; none when nothing is held.
    pub fn next_due(&self, now: UnixNanos) -> Option<Duration> {
        self.held.front().map(|(until, _)| Duration::from_nanos(until.since(now)))
    }

    /// A unit as a list shows it. Without properties it is only the begin of a comparison.
    pub fn listed(&mut self, unit: &SmolStr, active: &str, sub: &str) {
        let Some(followed) = self.follow(unit) else { return };
        // Known from before a reconnection: what has changed since is for its properties to say.
        if followed.judged.active.is_empty() {
            (followed.state.active, followed.state.sub) = (active.into(), sub.into());
            followed.judged = followed.state.clone();
        }
    }

    /// All properties of a unit that is listed as failed. Nothing is told when it failed before `news_after`.
    pub fn listed_failed(
        &mut self,
        now: UnixNanos,
        news_after: UnixNanos,
        unit: &SmolStr,
        values: &Values,
    ) -> Option<UnifiedEvent> {
        let followed = self.follow(unit)?;
        followed.state.update(values);
        let told = followed.judge(unit)?;
        let at = followed.state.ended_at;
        let old = at < news_after && at.0 != 0;
        (!old).then(|| followed.event(now, unit, told))
    }

    /// The manager has forgotten a unit.
    pub fn removed(&mut self, unit: &str) {
        let Some(followed) = self.units.get_mut(unit) else { return };
        // A manager that executes itself anew says that all are removed, and then has them still: what is known of a
        // failure stays, so that it is not told again. And a unit that nothing needs any more is forgotten at once when
        // its wait for a restart is ended: that end is still held, and now it is one.
        if followed.failed.is_some() || followed.held.is_some() {
            followed.gone = true;
        } else {
            self.units.remove(unit);
        }
    }

    /// Units that had failed when last seen: worth a look after a reconnection.
    pub fn had_failed(&self) -> Vec<SmolStr> {
        self.units.iter().filter(|(_, f)| f.failed.is_some()).map(|(unit, _)| unit.clone()).collect()
    }

    /// Changes of units beyond [`UNITS_MAX`].
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    fn follow(&mut self, unit: &SmolStr) -> Option<&mut Followed> {
        if !self.units.contains_key(unit) {
            if self.units.len() >= UNITS_MAX {
                self.units.retain(|_, followed| !followed.gone);
            }
            if self.units.len() >= UNITS_MAX {
                self.untracked += 1;
                return None;
            }
            // As attribution names it, so that what its processes do and what the manager says are one thing.
            let entity = EntityRef {
                cluster: self.cluster.clone(),
                node: self.node.clone(),
                unit: unit.clone(),
                ..EntityRef::default()
            };
            let followed = Followed { entity: Arc::new(entity.sealed()), ..Followed::default() };
            self.units.insert(unit.clone(), followed);
        }
        let followed = self.units.get_mut(unit)?;
        followed.gone = false;
        Some(followed)
    }
}

impl Followed {
    /// Whether the end of a wait for a restart is held back.
    fn holds_stop(&self) -> bool {
        self.held.as_ref().is_some_and(|event| event.kind == EventKind::SystemdUnitStopped)
    }

    fn judge(&mut self, unit: &str) -> Option<Told> {
        let before = std::mem::replace(&mut self.judged, self.state.clone());
        let state = &self.state;
        let is_service = unit.ends_with(".service");
        let again = state.run != before.run;
        if state.active == "failed" {
            let known = self.failed == Some(state.run);
            self.failed = Some(state.run);
            return (!known).then_some((EventKind::SystemdUnitFailed, EventSeverity::Error));
        }
        if state.waits_for_restart() {
            // Passed through; and once it waits, the time it left `inactive` is another.
            self.failed = None;
            let known = self.restarting == Some(state.run);
            self.restarting = Some(state.run);
            return (!known).then_some((EventKind::SystemdUnitStopped, EventSeverity::Warning));
        }
        let had_failed = self.failed.is_some();
        if state.is_active() {
            let came_up = !before.is_active() || again;
            self.failed = None;
            // A unit seen for the first time was not seen to start.
            let is_news = had_failed || (is_service && !before.active.is_empty());
            return (came_up && is_news).then_some((EventKind::SystemdUnitStarted, EventSeverity::Info));
        }
        if state.active == "inactive" {
            // Somebody may also have ended the wait for its next restart.
            let was_up = before.is_active() || before.active == "deactivating" || before.waits_for_restart();
            if let Some(failed_run) = self.failed.take() {
                // It ran again and is done; without a new run, somebody only took note of the failure.
                let ran = failed_run != state.run && state.succeeded();
                let kind = if ran { EventKind::SystemdUnitStarted } else { EventKind::SystemdUnitStopped };
                return Some((kind, EventSeverity::Info));
            }
            return (is_service && was_up).then_some((EventKind::SystemdUnitStopped, EventSeverity::Info));
        }
        None
    }

    fn event(&self, now: UnixNanos, unit: &SmolStr, (kind, severity): Told) -> UnifiedEvent {
        let state = &self.state;
        let is_end = kind == EventKind::SystemdUnitFailed && state.ended_at.0 != 0;
        let at = if is_end { state.ended_at } else { state.changed_at };
        let at = if at.0 == 0 { now } else { at.min(now) };
        let data = SystemdData {
            unit: unit.clone(),
            active_state: state.active.clone(),
            sub_state: state.sub.clone(),
            result: state.result.clone(),
            exit_code: state.status,
            restarts: state.restarts,
            message: SmolStr::default(),
        };
        // The same after a restart of the agent: the failure it finds then is the one it told before.
        let id = Seed::new("systemd").text(kind.as_str()).text(&self.entity.node).text(unit).event(at);
        UnifiedEvent {
            id,
            timestamp: at,
            observed_at: now,
            kind,
            source: Source::Journald,
            severity,
            pid: state.pid,
            entity: Arc::clone(&self.entity),
            payload: Payload::Systemd(Box::new(data)),
            ..UnifiedEvent::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::{OwnedVariant, Variant};

    const START: UnixNanos = UnixNanos(1_000_000_000_000);

    fn values(texts: &[(&str, &str)]) -> Values {
        let owned = |text: &str| OwnedVariant::try_from(Variant::from(text)).expect("a text");
        texts.iter().map(|(name, text)| ((*name).to_owned(), owned(text))).collect()
    }

    /// A unit that has ended with an error and waits for its restart; what was told of it.
    fn waiting(follower: &mut Follower, unit: &SmolStr) -> Vec<UnifiedEvent> {
        let waits =
            values(&[("ActiveState", "activating"), ("SubState", "auto-restart"), ("Result", "exit-code")]);
        follower.changed(START, unit, UNIT_INTERFACE, &waits)
    }

    fn ended(follower: &mut Follower, unit: &SmolStr) -> Vec<UnifiedEvent> {
        let inactive = values(&[("ActiveState", "inactive"), ("SubState", "dead")]);
        follower.changed(START, unit, UNIT_INTERFACE, &inactive)
    }

    #[test]
    fn a_wait_that_is_ended_by_hand_is_told_also_when_the_unit_is_forgotten_at_once() {
        let (mut follower, unit) = (Follower::new("c", "n"), SmolStr::from("a.service"));
        assert_eq!(waiting(&mut follower, &unit).len(), 1);
        assert!(ended(&mut follower, &unit).is_empty(), "it may go on");
        follower.removed(&unit);
        let hold = follower.next_due(START).expect("it is held");
        let told = follower.due(START.plus(hold.as_nanos() as u64));
        let told: Vec<_> = told.iter().map(|e| (e.kind, e.severity)).collect();
        assert_eq!(told, [(EventKind::SystemdUnitStopped, EventSeverity::Info)]);
        assert!(follower.units.is_empty(), "and then it is forgotten here, too");
    }

    #[test]
    fn an_end_that_was_only_passed_through_is_not_told_also_when_the_manager_began_anew() {
        let (mut follower, unit) = (Follower::new("c", "n"), SmolStr::from("a.service"));
        waiting(&mut follower, &unit);
        ended(&mut follower, &unit);
        follower.removed(&unit);
        let active = values(&[("ActiveState", "active"), ("SubState", "running")]);
        let told = follower.changed(START, &unit, UNIT_INTERFACE, &active);
        let told: Vec<_> = told.iter().map(|e| e.kind).collect();
        assert_eq!(told, [EventKind::SystemdUnitStarted]);
        assert!(follower.due(START.plus(u64::MAX)).is_empty());
    }
}
