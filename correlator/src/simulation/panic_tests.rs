//! An event at which the work on a shard panics, amid a leak in the same shard: whatever else goes wrong, everything is found
//! that is found without it, and the panics end.

use std::collections::BTreeSet;

use tapio_schemas::EventId;

use super::CALM;
use super::world::{Plan, World};
use crate::shards::trap;

/// Seeds with each trap, beside the calm run.
const SEEDS: u64 = 6;

fn is_survived(trapped: EventId, letters: bool) {
    let calm: BTreeSet<&str> = CALM.keys().map(|(id, _)| id.as_str()).collect();
    let plans = std::iter::once(Plan::calm()).chain((0..SEEDS).map(Plan::of));
    for (number, plan) in plans.enumerate() {
        let outcome = World::new(Plan { trap: Some(trapped), ..plan }).run();
        let panics = trap::sprung();
        assert!(panics == 2 || number > 0 && panics > 2, "{panics} panics in run {number}");
        assert!(outcome.finished && outcome.doubled.is_empty(), "run {number}: {:?}", outcome.doubled);
        assert_eq!(outcome.dead_letters > 0, letters, "run {number}");
        let found: BTreeSet<&str> = outcome.findings.keys().map(|(id, _)| id.as_str()).collect();
        let (lost, added) = (calm.difference(&found).count(), found.difference(&calm).count());
        assert_eq!((lost, added), (0, 0), "findings lost and added in run {number}");
    }
}

#[test]
fn a_batch_that_cannot_be_taken_in_costs_itself_alone() {
    is_survived(trap::TAKEN, true);
}

#[test]
fn an_event_that_cannot_be_judged_costs_its_batch_alone() {
    is_survived(trap::JUDGED, true);
}

#[test]
fn a_step_that_cannot_be_told_costs_what_was_open_in_its_shard_and_no_more() {
    is_survived(trap::TOLD, false);
}
