//! Many batches at which the work on their shard panics, or a panic that does not come again: the shard goes on, whatever is read
//! again, and what it costs is counted.

use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::wire::{EventBatch, SignalBatchView};
use tapio_schemas::{EventId, Gap, ProducerId, UnixNanos};

use super::deferral_tests::{Rig, SECOND, START, event};
use super::worker::{Answer, Work};
use crate::config::CorrelatorConfig;
use crate::shards::trap;

const PATH: &str = "/poisoned";
/// What a look at the clock takes: marks and counts are told after a few.
const LOOK: Duration = Duration::from_millis(20);

/// A stream of one shard, and a worker that reads it.
struct Reading {
    rig: Rig,
    shard: u16,
    path: &'static str,
    writer: EventBatch,
    stored: Vec<Bytes>,
    /// Batches read of it.
    read: usize,
    epoch: u64,
    /// Where the worker asked to begin anew, each time.
    begun: Vec<u64>,
}

impl Reading {
    fn new() -> Self {
        let shard = event(PATH, START, 1).key().shard();
        let rig = Rig::new(CorrelatorConfig::default(), LOOK, &[shard]);
        let writer = EventBatch::new(ProducerId(9), 1, shard);
        Self { rig, shard, path: PATH, writer, stored: Vec::new(), read: 0, epoch: 1, begun: Vec::new() }
    }

    /// From now on another stream, of the shard in which this program is.
    fn turn_to(&mut self, path: &'static str) {
        let shard = event(path, START, 1).key().shard();
        assert_ne!(shard, self.shard);
        (self.path, self.shard, self.read) = (path, shard, 0);
        self.writer = EventBatch::new(ProducerId(9), 1, shard);
        self.stored.clear();
        self.rig.worker.work(Work::Own { shard, epoch: 1, from: None }).expect("owned");
    }

    /// A batch of events: milliseconds since the start, and id.
    fn store(&mut self, events: &[(u64, EventId)]) {
        for (at, id) in events {
            self.writer.push(event(self.path, START + at * SECOND / 1000, id.0));
        }
        self.stored.push(Bytes::from(self.writer.finish(UnixNanos(0)).expect("a batch")));
    }

    /// Reads what is stored, then as the clock says. What the worker gives back it gets again at once, from where it says.
    /// Panics until everything was read.
    fn read_all(&mut self, clock: u64) -> u32 {
        trap::sprung();
        for _ in 0..200 * self.stored.len() + 200 {
            if let Ok(Answer { low_water, released: true, .. }) = self.rig.answers.try_recv() {
                self.epoch += 1;
                self.begun.push(low_water.map_or(1, |mark| mark.sequence));
                self.read = low_water.map_or(0, |mark| mark.sequence as usize - 1);
                let own = Work::Own { shard: self.shard, epoch: self.epoch, from: low_water };
                self.rig.worker.work(own).expect("owned");
            } else if self.read < self.stored.len() {
                self.read += 1;
                let payload = self.stored[self.read - 1].clone();
                let work = Work::Batch { shard: self.shard, sequence: self.read as u64, payload };
                self.rig.worker.work(work).expect("a batch");
                self.rig.worker.turn().expect("a turn");
            } else if self.rig.told(self.shard) < UnixNanos(START + (clock - 1) * SECOND) {
                self.rig.quiet(&[self.shard], START + clock * SECOND);
            } else {
                return trap::sprung();
            }
        }
        panic!("it does not end: {} panics, begun last at {:?}", trap::sprung(), self.begun.last())
    }

    /// Different batches in the dead letters, and the reasons that they came with.
    fn letters(&self) -> (usize, Vec<String>) {
        let messages = self.rig.stored.messages.lock().expect("messages");
        let letters: Vec<_> = messages.iter().filter(|m| m.subject.contains("deadletter")).collect();
        let mut ids: Vec<_> = letters.iter().map(|letter| letter.msg_id.clone()).collect();
        ids.sort();
        ids.dedup();
        let mut reasons: Vec<String> = letters
            .iter()
            .filter_map(|letter| letter.headers.get(tapio_schemas::names::HEADER_REASON).map(str::to_owned))
            .collect();
        reasons.dedup();
        (ids.len(), reasons)
    }

    fn gaps(&self) -> Vec<Gap> {
        let messages = self.rig.stored.messages.lock().expect("messages");
        let gaps = messages.iter().flat_map(|message| {
            let mut aligned = crate::aligned::Aligned::default();
            let view = SignalBatchView::check(aligned.of(&message.payload)).ok();
            view.map(|view| view.to_section().gaps).unwrap_or_default()
        });
        gaps.collect()
    }

    /// What the worker remembers of panics.
    fn remembered(&self) -> usize {
        self.rig.worker.suspects.count()
    }

    /// Events of gaps because of panics.
    fn told(&self) -> u64 {
        self.gaps().iter().filter(|gap| gap.reason == "panicked").map(|gap| gap.lost).sum()
    }

    /// Events that were used since the shard was taken on last.
    fn processed(&self) -> u64 {
        self.rig.worker.shards.accounts().map(|(_, line)| line.account.processed).sum()
    }

    /// Events counted as dropped because of panics.
    fn dropped(&self) -> u64 {
        self.counted("tapio_correlator_events_dropped_total{reason=\"panicked\"} ")
    }

    /// Events counted as read, each time that they were.
    fn events(&self) -> u64 {
        self.counted("tapio_correlator_events_total ")
    }

    fn counted(&self, line: &str) -> u64 {
        let text = self.rig.registry.encode();
        text.lines().find_map(|l| l.strip_prefix(line)?.parse().ok()).unwrap_or_default()
    }
}

fn id(number: u64) -> EventId {
    EventId(1000 + u128::from(number))
}

#[test]
fn an_event_that_cannot_be_judged_and_lies_in_two_batches_takes_both_with_it() {
    let mut reading = Reading::new();
    reading.store(&[(0, id(0)), (10, trap::JUDGED)]);
    reading.store(&[(10, trap::JUDGED), (20, id(1))]);
    reading.store(&[(30, id(2))]);
    assert_eq!(reading.read_all(50), 2, "begun at {:?}", reading.begun);
    let (letters, reasons) = reading.letters();
    assert_eq!((letters, reasons), (2, vec!["panicked: the work on it panicked 2 times".to_owned()]));
    assert_eq!(reading.dropped(), 4);
}

#[test]
fn a_batch_that_cannot_even_be_counted_is_refused_uncounted() {
    let mut reading = Reading::new();
    reading.store(&[(0, id(0)), (10, trap::COUNTED)]);
    reading.store(&[(30, id(2))]);
    assert_eq!(reading.read_all(50), 3, "begun at {:?}", reading.begun);
    let (letters, reasons) = reading.letters();
    assert_eq!(letters, 1);
    assert!(reasons[0].starts_with("panicked: "), "{reasons:?}");
    assert_eq!(reading.dropped(), 0);
}

#[test]
fn more_batches_that_panic_than_are_remembered_do_not_hold_up_the_shard() {
    const MANY: u64 = 100;
    let mut reading = Reading::new();
    for number in 0..MANY {
        let (before, behind) = ((10 * number, id(2 * number)), (10 * number + 5, id(2 * number + 1)));
        reading.store(&[before, (10 * number + 2, trap::TAKEN), behind]);
    }
    reading.store(&[(20_000, id(2 * MANY))]);
    let panics = reading.read_all(50);
    assert!(u64::from(panics) <= 2 * MANY, "{panics} panics");
    assert_eq!(reading.letters().0 as u64, MANY);
    let behind = reading.begun.iter().filter(|first| **first > 1).min();
    assert!(behind.is_some_and(|first| *first > 60), "it begins behind what was read at last: {behind:?}");
    // Each once, however often it was read: those of the batch in which it begins anew, too.
    let produced = 3 * MANY + 1;
    assert_eq!((reading.dropped(), reading.told(), reading.processed()), (produced - 1, produced - 1, 1));
}

/// A shard over which nothing more is remembered.
fn full() -> Reading {
    let mut reading = Reading::new();
    (0..64).for_each(|number| reading.store(&[(number, trap::TAKEN)]));
    assert_eq!(reading.read_all(2), 128, "begun at {:?}", reading.begun);
    assert_eq!((reading.remembered(), reading.dropped(), reading.told()), (64, 64, 64));
    assert_eq!(reading.events(), 64, "what it panicked over is counted when it is given up");
    reading
}

#[test]
fn an_event_that_cannot_be_taken_in_counts_once_when_no_more_panics_are_remembered() {
    let mut reading = full();
    let before = reading.events();
    reading.store(&[(3_000, id(0)), (3_010, trap::TAKEN), (3_020, id(1))]);
    reading.store(&[(10_000, id(2))]);
    assert_eq!(reading.read_all(50), 1, "begun at {:?}", reading.begun);
    // Of the first batch none is read again; the one before it waited, and is forgotten with it.
    assert_eq!((reading.begun.last(), reading.dropped(), reading.told()), (Some(&66), 64 + 3, 64 + 3));
    assert_eq!(reading.events() - before, 4);
}

#[test]
fn an_event_that_cannot_be_judged_counts_when_no_more_panics_are_remembered() {
    let mut reading = full();
    reading.store(&[(3_000, id(0)), (3_010, trap::JUDGED), (3_020, id(1))]);
    reading.store(&[(10_000, id(2))]);
    assert_eq!(reading.read_all(50), 1, "begun at {:?}", reading.begun);
    assert_eq!((reading.letters().0, reading.begun.last()), (64, Some(&67)));
    // The first of them was judged; with the one it is over goes what waits: the next one, and what came then.
    assert_eq!((reading.dropped(), reading.told()), (64 + 3, 64 + 3));
}

#[test]
fn a_batch_that_can_neither_be_taken_in_nor_counted_goes_uncounted_when_no_more_panics_are_remembered() {
    let mut reading = full();
    reading.store(&[(3_000, id(0)), (3_010, trap::COUNTED), (3_020, id(1))]);
    reading.store(&[(10_000, id(2))]);
    assert_eq!(reading.read_all(50), 2, "once more when it is counted; begun at {:?}", reading.begun);
    let (letters, reasons) = reading.letters();
    assert_eq!((letters, reasons.len()), (65, 2), "{reasons:?}");
    // What was taken in of it waited.
    assert_eq!((reading.dropped(), reading.told(), reading.processed()), (64 + 1, 64 + 1, 1));
}

#[test]
fn what_panics_were_over_is_forgotten_when_it_is_not_read_again() {
    let mut reading = Reading::new();
    reading.store(&[(0, id(0)), (10, trap::JUDGED)]);
    assert_eq!((reading.read_all(3), reading.remembered()), (2, 1));
    reading.store(&[(20_000, id(1))]);
    reading.store(&[(30_000, id(2))]);
    assert_eq!(reading.read_all(50), 0);
    // Long enough for another look at what the shard needs.
    reading.rig.pass(Duration::from_secs(10));
    reading.rig.worker.turn().expect("a turn");
    assert_eq!(reading.remembered(), 0);
    assert_eq!((reading.dropped(), reading.told(), reading.processed()), (2, 2, 2));
}

#[test]
fn what_panics_were_over_is_forgotten_with_a_shard_that_is_handed_over_and_not_with_one_that_is_lost() {
    for (work, remembered) in [(Work::Release as fn(u16) -> Work, 0), (Work::Lost, 1)] {
        let mut reading = Reading::new();
        reading.store(&[(0, id(0)), (10, trap::JUDGED)]);
        assert_eq!((reading.read_all(3), reading.remembered()), (2, 1));
        reading.rig.worker.work(work(reading.shard)).expect("given up");
        assert_eq!(reading.remembered(), remembered);
    }
}

#[test]
fn what_panicked_in_shards_that_are_long_gone_makes_room() {
    let mut reading = full();
    reading.rig.worker.work(Work::Lost(reading.shard)).expect("lost");
    reading.turn_to("/elsewhere");
    reading.store(&[(0, trap::TAKEN)]);
    assert_eq!((reading.read_all(10), reading.remembered()), (1, 64), "not tried again");
    reading.rig.pass(Duration::from_secs(70));
    reading.store(&[(20_000, trap::TAKEN)]);
    assert_eq!((reading.read_all(30), reading.remembered()), (2, 1), "tried again");
    assert_eq!((reading.letters().0, reading.dropped(), reading.told()), (66, 66, 66));
}

#[test]
fn a_step_that_panics_once_costs_nothing_and_long_after_another_is_tried_again_too() {
    let mut reading = Reading::new();
    reading.store(&[(10, trap::TOLD)]);
    let work = Work::Batch { shard: reading.shard, sequence: 1, payload: reading.stored[0].clone() };
    reading.rig.worker.work(work).expect("a batch");
    reading.rig.quiet(&[reading.shard], START + 5 * SECOND);
    assert_eq!(trap::sprung(), 1);
    // It does not come again.
    reading.stored.clear();
    reading.writer = EventBatch::new(ProducerId(9), 2, reading.shard);
    reading.store(&[(10, id(0))]);
    reading.store(&[(8_000, id(1))]);
    assert_eq!(reading.read_all(20), 0);
    reading.store(&[(30_000, trap::TOLD)]);
    reading.store(&[(30_100, id(2)), (34_000, id(3)), (34_100, id(4))]);
    reading.store(&[(40_000, id(5))]);
    reading.read_all(50);
    // Read again twice, with the batch that it is over; then behind what was read, and what waited there is counted and told.
    assert!(reading.begun[..2].iter().all(|first| *first <= 3), "{:?}", reading.begun);
    assert_eq!(reading.begun[2..], [5], "{:?}", reading.begun);
    let gaps: Vec<_> = reading.gaps().into_iter().map(|gap| (gap.lost, gap.reason)).collect();
    assert_eq!((gaps, reading.dropped()), (vec![(3, "panicked".into())], 3));
}
