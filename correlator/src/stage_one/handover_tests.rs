//! A shard that goes to another owner: what it is left with, and how soon it is judged again.

use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::UnixNanos;
use tapio_schemas::wire::SignalSection;

use super::deferral_tests::{Rig, SECOND, START, batches};
use super::worker::Work;
use crate::config::CorrelatorConfig;
use crate::low_water::LowWater;

/// Sequence of the first message.
const FIRST: u64 = 11;

/// An owner of a shard that has read these messages.
fn owner(shard: u16, epoch: u64, from: Option<LowWater>, messages: &[Bytes]) -> Rig {
    let mut rig = Rig::new(CorrelatorConfig::default(), Duration::ZERO, &[]);
    rig.worker.work(Work::Own { shard, epoch, from }).expect("owned");
    for (payload, sequence) in messages.iter().zip(FIRST..) {
        rig.worker.work(Work::Batch { shard, sequence, payload: payload.clone() }).expect("a batch");
        rig.worker.turn().expect("a turn");
    }
    rig.quiet(&[shard], START + 22 * SECOND);
    rig
}

/// Gives a shard back; what its next owner is left with.
fn released(rig: &mut Rig, shard: u16) -> Option<LowWater> {
    rig.worker.work(Work::Release(shard)).expect("released");
    (0..3).for_each(|_| rig.worker.turn().expect("a turn"));
    let answer = std::iter::from_fn(|| rig.answers.try_recv().ok()).find(|answer| answer.released);
    answer.expect("given back").low_water
}

fn texts(sections: &[SignalSection], after: UnixNanos) -> Vec<String> {
    let of_later = sections.iter().filter(|section| section.marks[0].at > after);
    of_later.map(|s| format!("{:?} {:?} {:?}", s.marks[0].at, s.signals, s.facts)).collect()
}

#[test]
fn who_reads_again_from_the_beginning_does_not_say_again_what_was_said() {
    let (shard, messages) = batches("/open", &[100, 100, 100, 100], START);
    let mut first = owner(shard, 1, None, &messages);
    let said = first.said().remove(&shard).expect("sections");
    assert!(said[0].marks[0].at < UnixNanos(START + 3 * SECOND), "{:?}", said[0].marks);
    // What is open since the beginning holds the mark: the second owner is left with as much as the first, and so is the third.
    let left = released(&mut first, shard).expect("a mark");
    assert_eq!((left.sequence, left.said), (FIRST, UnixNanos(START + 20 * SECOND)));
    let older = LowWater { said: UnixNanos(START + 9 * SECOND), ..left };
    let mut second = owner(shard, 2, Some(older), &messages);
    assert_eq!(released(&mut second, shard), Some(left));
    let third = owner(shard, 3, Some(left), &messages);
    assert_eq!(third.told(shard), UnixNanos(START + 21 * SECOND + SECOND / 2));
    let known = left.said.minus(5 * SECOND);
    let again = third.said().remove(&shard).unwrap_or_default();
    assert_eq!(
        texts(&again, UnixNanos(0)),
        texts(&said, known),
        "what may have come late, and nothing before"
    );
}

#[test]
fn what_is_stored_late_while_a_shard_changes_hands_is_news_to_its_next_owner() {
    let (shard, messages) = batches("/open", &[100, 100, 100, 100], START);
    let mut first = owner(shard, 1, None, &messages);
    first.quiet(&[shard], START + 60 * SECOND);
    let left = released(&mut first, shard).expect("a mark");
    assert_eq!(left.said, UnixNanos(START + 20 * SECOND), "up to the newest event, not up to the clock");
}

#[test]
fn who_has_read_nothing_leaves_what_it_was_left_with() {
    let mark = LowWater { sequence: 7, from: UnixNanos(START), said: UnixNanos(START + SECOND) };
    for kept in [None, Some(mark)] {
        let mut rig = Rig::new(CorrelatorConfig::default(), Duration::ZERO, &[]);
        rig.worker.work(Work::Own { shard: 5, epoch: 1, from: kept }).expect("owned");
        assert_eq!(released(&mut rig, 5), kept);
    }
}

#[test]
fn that_an_owner_is_as_far_as_the_one_before_is_told_at_once() {
    let at = |seconds: u64| UnixNanos(START + seconds * SECOND + SECOND / 2);
    let from = LowWater { sequence: FIRST, from: UnixNanos(START), said: at(10) };
    let mut rig = Rig::new(CorrelatorConfig::default(), Duration::ZERO, &[]);
    rig.worker.work(Work::Own { shard: 5, epoch: 2, from: Some(from) }).expect("owned");
    // The clock stands still: after the first time it is not yet time again.
    for (now, told) in [(5, 4), (8, 4), (10, 4), (11, 10), (14, 10)] {
        rig.quiet(&[5], START + now * SECOND);
        assert_eq!(rig.told(5), at(told), "at second {now}");
    }
}

#[test]
fn a_shard_that_is_given_back_waits_for_its_acknowledgement_and_no_longer() {
    let mut rig = Rig::new(CorrelatorConfig::default(), Duration::ZERO, &[5]);
    [5, 8].into_iter().for_each(|now| rig.quiet(&[5], START + now * SECOND));
    let usual = rig.worker.wait();
    rig.worker.work(Work::Release(5)).expect("released");
    rig.worker.turn().expect("a turn");
    assert!(rig.answers.try_recv().is_err(), "its last mark is not stored yet");
    assert!(rig.worker.wait() <= usual / 10, "{:?}", rig.worker.wait());
    rig.worker.turn().expect("a turn");
    assert!(rig.answers.try_recv().is_ok_and(|answer| answer.released));
    assert_eq!(rig.worker.wait(), usual);
}
