//! One event that comes much later than the lateness bound, while the owner of its shard changes: the one before follows the
//! clock and has told its steps without it, the one after is led by the times of the events.

use std::collections::BTreeSet;

use super::scene::{LAST_FAULT, MS, SECOND, START};
use super::world::{Fault, Plan, World};
use super::{CALM, Outcome};

/// Longer than the lateness bound by more than two steps.
const DELAY: u64 = 1300 * MS;

fn ids(outcome: &Outcome) -> BTreeSet<&str> {
    outcome.findings.keys().map(|(id, _)| id.as_str()).collect()
}

/// Every finding comes, once, whenever this happens: from before the late event is stored until after it is told.
fn at_any_moment(fault: Fault, replicas: u64) {
    let calm: BTreeSet<&str> = CALM.keys().map(|(id, _)| id.as_str()).collect();
    let mut wrong = Vec::new();
    for at in (900..1800).step_by(150) {
        let plan = Plan {
            replicas,
            faults: [(START + LAST_FAULT + at * MS, fault)].into(),
            last_fault_delay: Some(DELAY),
            ..Plan::calm()
        };
        let outcome = World::new(plan).run();
        assert!(outcome.finished && outcome.doubled.is_empty() && outcome.dead_letters == 0);
        let found = ids(&outcome);
        if found != calm {
            let (lost, added) = (calm.difference(&found), found.difference(&calm));
            wrong.push((at, lost.count(), added.count()));
        }
    }
    assert!(wrong.is_empty(), "(ms after the fault, findings lost, findings added): {wrong:?}");
}

#[test]
fn a_late_fault_is_found_when_the_owner_is_killed_around_it() {
    at_any_moment(Fault::Crash { who: 0, again: true }, 1);
}

#[test]
fn a_late_fault_is_found_when_a_shard_is_handed_over_around_it() {
    at_any_moment(Fault::Leave { who: 0 }, 2);
}

#[test]
fn a_late_fault_is_found_when_its_owner_stands_still_and_is_followed() {
    at_any_moment(Fault::Pause { who: 0, length: 4 * SECOND }, 2);
}

/// With a server that stands still nothing comes, and nobody takes that for the end of what there is.
#[test]
fn no_event_is_late_because_the_server_stood_still() {
    for (at, length) in [(8500, 400), (20_000, 900), (35_100, 2500)] {
        let freeze = Fault::Freeze { length: length * MS };
        let plan = Plan { faults: [(START + at * MS, freeze)].into(), ..Plan::calm() };
        let judged = super::judge(&World::new(plan).run());
        assert_eq!(judged, Ok(()), "at {at} ms for {length} ms");
    }
}
