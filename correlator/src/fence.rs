//! Who is heard for which shard, and how far: the door of stage two.
//!
//! A shard has one owner at a time, but an owner that was paused does not know that it is one no more, and a new owner
//! reads events again whose signals the one before has told. Content of a shard is a function of the step of event
//! time that it is about. So it is enough to let in, per shard, each step once (its mark is above the accepted one)
//! and only from the highest lease epoch heard so far. What came too late for its step is the exception: it is found in
//! steps that are told again (`untold.rs`).

use serde::{Deserialize, Serialize};
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{ShardMark, SignalSection};
use tapio_schemas::{ProducerId, UnixNanos};

use crate::untold::Told;

/// Items of one step that wait for the rest of their step, per shard. Above it they are let in early, and counted.
const PARTS_ITEMS_MAX: usize = 262_144;

/// What was not let in, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FenceCounters {
    /// Marks of an owner after whom another one was heard.
    pub fenced: u64,
    /// Sections whose step was told before.
    pub repeated: u64,
    /// Deviations in them that nobody had told: let in behind.
    pub behind: u64,
    /// Pieces of a step whose owner did not tell it to its end; the next owner tells the whole step.
    pub unfinished: u64,
    /// Sections of many items let in before the end of their step.
    pub early: u64,
}

/// How far a shard was heard, as kept for a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Highest epoch.
    pub epoch: u64,
    /// Last accepted mark.
    pub at: UnixNanos,
}

/// Pieces of a step that is not told to its end.
#[derive(Debug)]
struct Parts {
    of: (ProducerId, ShardMark),
    said: SignalSection,
}

/// The doors of all shards.
#[derive(Debug)]
pub struct Fences {
    heard: Vec<Heard>,
    told: Vec<Told>,
    parts: Vec<Option<Parts>>,
    counters: FenceCounters,
}

impl Default for Fences {
    fn default() -> Self {
        let shards = usize::from(SHARD_COUNT);
        Self {
            heard: vec![Heard::default(); shards],
            told: (0..shards).map(|_| Told::default()).collect(),
            parts: (0..shards).map(|_| None).collect(),
            counters: FenceCounters::default(),
        }
    }
}

impl Fences {
    /// Goes on where an earlier process was, shard by shard.
    pub fn restore(&mut self, heard: &[Heard]) {
        for ((own, told), kept) in self.heard.iter_mut().zip(&mut self.told).zip(heard) {
            *own = *kept;
            if kept.at.0 > 0 {
                told.begin(kept.at);
            }
        }
    }

    /// How far each shard was heard.
    pub fn heard(&self) -> &[Heard] {
        &self.heard
    }

    /// True when a step of some shard is told in part only: no place to begin to read from.
    pub fn is_amid_a_step(&self) -> bool {
        self.parts.iter().any(Option::is_some)
    }

    /// What was not let in so far.
    pub fn counters(&self) -> FenceCounters {
        self.counters
    }

    /// Lets in what is new: the marks that count, and the content of steps that are told to their end.
    pub fn admit(&mut self, producer: ProducerId, mut section: SignalSection) -> SignalSection {
        match *section.marks.as_slice() {
            [mark] if section.partial || !section.is_heartbeat() => self.step(producer, mark, section),
            _ => {
                section.marks.retain(|mark| self.is_of_the_owner(*mark));
                section.marks.iter().for_each(|mark| self.raise(*mark));
                section
            }
        }
    }

    fn step(&mut self, producer: ProducerId, mark: ShardMark, section: SignalSection) -> SignalSection {
        if !self.is_of_the_owner(mark) {
            return SignalSection::default();
        }
        let shard = usize::from(mark.shard);
        if mark.at <= self.heard[shard].at {
            self.counters.repeated += 1;
            let signals = self.told[shard].untold(section.signals, self.heard[shard].at);
            self.counters.behind += signals.len() as u64;
            return SignalSection { signals, ..SignalSection::default() };
        }
        let begun = self.parts[shard].take();
        let begun = begun.filter(|parts| {
            let same = parts.of == (producer, mark);
            self.counters.unfinished += u64::from(!same);
            same
        });
        let is_partial = section.partial;
        let mut said = match begun {
            Some(parts) => joined(parts.said, section),
            None => section,
        };
        said.partial = false;
        if !is_partial {
            self.told[shard].note(&said.signals);
            self.raise(mark);
            said.marks = vec![mark];
            return said;
        }
        said.marks = Vec::new();
        if items(&said) > PARTS_ITEMS_MAX {
            self.counters.early += 1;
            self.told[shard].note(&said.signals);
            let of = (producer, mark);
            self.parts[shard] = Some(Parts { of, said: SignalSection::default() });
            return said;
        }
        self.parts[shard] = Some(Parts { of: (producer, mark), said });
        SignalSection::default()
    }

    /// False, and counted, for a mark of an owner that is one no more, or of no shard.
    fn is_of_the_owner(&mut self, mark: ShardMark) -> bool {
        let Some(heard) = self.heard.get_mut(usize::from(mark.shard)) else {
            self.counters.fenced += 1;
            return false;
        };
        if mark.epoch < heard.epoch {
            self.counters.fenced += 1;
            return false;
        }
        if mark.epoch > heard.epoch {
            heard.epoch = mark.epoch;
            let begun = self.parts[usize::from(mark.shard)].take();
            self.counters.unfinished += u64::from(begun.is_some());
        }
        true
    }

    fn raise(&mut self, mark: ShardMark) {
        let heard = &mut self.heard[usize::from(mark.shard)];
        heard.at = heard.at.max(mark.at);
        self.told[usize::from(mark.shard)].begin(mark.at);
    }
}

fn items(section: &SignalSection) -> usize {
    section.items()
}

fn joined(mut first: SignalSection, then: SignalSection) -> SignalSection {
    first.signals.extend(then.signals);
    first.facts.extend(then.facts);
    first.tallies.extend(then.tallies);
    first.gaps.extend(then.gaps);
    first.operations.extend(then.operations);
    first.call_gaps.extend(then.call_gaps);
    first.meters.extend(then.meters);
    first
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tapio_schemas::{EntityRef, Gap, Signal, SignalKind};

    const OLD: ProducerId = ProducerId(1);
    const NEW: ProducerId = ProducerId(2);

    fn mark(epoch: u64, at: u64) -> ShardMark {
        ShardMark { shard: 7, epoch, at: UnixNanos(at) }
    }

    fn gap(lost: u64) -> Gap {
        Gap {
            producer: OLD,
            source: "ebpf".into(),
            node: "n1".into(),
            lost,
            from: UnixNanos(lost),
            to: UnixNanos(lost),
            reason: "ring_full".into(),
        }
    }

    fn told(mark: ShardMark, lost: u64, partial: bool) -> SignalSection {
        SignalSection { marks: vec![mark], partial, gaps: vec![gap(lost)], ..SignalSection::default() }
    }

    fn lost(section: &SignalSection) -> Vec<u64> {
        section.gaps.iter().map(|g| g.lost).collect()
    }

    #[test]
    fn an_old_owner_is_not_heard_and_a_step_is_let_in_once() {
        let mut fences = Fences::default();
        assert_eq!(lost(&fences.admit(OLD, told(mark(1, 10), 10, false))), [10]);
        // The new owner tells the step again, and the next one.
        assert_eq!(fences.admit(NEW, told(mark(2, 10), 10, false)), SignalSection::default());
        assert_eq!(lost(&fences.admit(NEW, told(mark(2, 20), 20, false))), [20]);
        // The old one wakes up.
        assert_eq!(fences.admit(OLD, told(mark(1, 30), 30, false)), SignalSection::default());
        let many = SignalSection { marks: vec![mark(1, 90), mark(2, 25)], ..SignalSection::default() };
        assert_eq!(fences.admit(OLD, many).marks, [mark(2, 25)]);
        assert_eq!(fences.heard()[7], Heard { epoch: 2, at: UnixNanos(25) });
        let counted = FenceCounters { fenced: 2, repeated: 1, ..FenceCounters::default() };
        assert_eq!(fences.counters(), counted);
    }

    #[test]
    fn a_step_in_pieces_counts_when_it_is_whole_and_from_one_owner() {
        let mut fences = Fences::default();
        assert_eq!(fences.admit(OLD, told(mark(1, 10), 1, true)), SignalSection::default());
        assert!(fences.is_amid_a_step());
        // The owner dies; the next one tells the whole step.
        assert_eq!(fences.admit(NEW, told(mark(2, 10), 1, true)), SignalSection::default());
        let whole = fences.admit(NEW, told(mark(2, 10), 2, false));
        assert_eq!((lost(&whole), whole.marks, whole.partial), (vec![1, 2], vec![mark(2, 10)], false));
        assert!(!fences.is_amid_a_step());
        assert_eq!(fences.counters().unfinished, 1);
    }

    #[test]
    fn a_restart_of_the_same_owner_does_not_double_what_it_began_to_tell() {
        let mut fences = Fences::default();
        fences.admit(OLD, told(mark(0, 10), 1, true));
        fences.admit(NEW, told(mark(0, 10), 1, true));
        assert_eq!(lost(&fences.admit(NEW, told(mark(0, 10), 2, false))), [1, 2]);
    }

    #[test]
    fn a_restart_hears_on_where_it_was() {
        let mut before = Fences::default();
        before.admit(OLD, told(mark(3, 10), 1, false));
        let mut after = Fences::default();
        after.restore(before.heard());
        assert_eq!(after.admit(NEW, told(mark(3, 10), 1, false)), SignalSection::default());
        assert_eq!(after.admit(OLD, told(mark(2, 20), 1, false)), SignalSection::default());
        assert_eq!(lost(&after.admit(NEW, told(mark(3, 20), 2, false))), [2]);
    }

    const NOTHING: [u64; 0] = [];

    #[test]
    fn what_the_dead_owner_had_not_told_of_a_step_is_let_in_behind_it() {
        let entity = EntityRef { cluster: "c".into(), cgroup: "/a".into(), ..EntityRef::default() };
        let entity = Arc::new(entity.sealed());
        let failed = |onset| Signal::new(SignalKind::UnitFailed, entity.clone(), None, UnixNanos(onset));
        let says = |mark, onset| SignalSection { signals: vec![failed(onset)], ..told(mark, 1, false) };
        let times = |section: SignalSection| -> Vec<u64> {
            assert!(section.marks.is_empty() && section.gaps.is_empty(), "{section:?}");
            section.signals.iter().map(|s| s.last_seen.0).collect()
        };
        let mut fences = Fences::default();
        fences.admit(OLD, SignalSection { marks: vec![mark(1, 10)], ..SignalSection::default() });
        fences.admit(OLD, told(mark(1, 30), 1, false));
        assert_eq!(times(fences.admit(NEW, says(mark(2, 20), 15))), [31]);
        assert_eq!(times(fences.admit(NEW, says(mark(2, 20), 15))), NOTHING, "told by now");
        // What the owner before says late is fenced, and a restart of stage two knows no less.
        assert_eq!(times(fences.admit(OLD, says(mark(1, 40), 15))), NOTHING);
        let mut after = Fences::default();
        after.restore(fences.heard());
        assert_eq!(times(after.admit(NEW, says(mark(2, 20), 15))), NOTHING, "began before what it knows");
        assert_eq!((fences.counters().repeated, fences.counters().behind), (2, 1));
    }

    #[test]
    fn a_mark_of_no_shard_is_refused() {
        let mut fences = Fences::default();
        let nowhere = ShardMark { shard: SHARD_COUNT, epoch: 9, at: UnixNanos(1) };
        assert_eq!(fences.admit(OLD, told(nowhere, 1, false)), SignalSection::default());
        let many = SignalSection { marks: vec![nowhere, mark(1, 5)], ..SignalSection::default() };
        assert_eq!(fences.admit(OLD, many).marks, [mark(1, 5)]);
    }
}
