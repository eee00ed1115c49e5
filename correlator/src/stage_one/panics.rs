//! What comes of a panic in the work on a shard: a mistake of ours over some event, which must not hold up all the others.
//!
//! The shard's state may be half changed, so it is given back and taken on anew: its events are read again, and everybody
//! else goes on. A panic may be of that moment. When it comes again over the same batch, the batch goes to the dead letters.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tapio_schemas::{EventId, UnixNanos};

use super::deferred::Batch;
use super::worker::{Answer, Worker};
use crate::outbox::Outlet;
use crate::shards::{GivenUp, ShardSet};

/// Panics after which what they are over is not tried again.
const PANICS_MAX: u32 = 2;
/// What is remembered of a worker's panics; above it the oldest is forgotten, and would be tried again.
const SUSPECTS_MAX: usize = 64;

/// What a panic is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The batch of this sequence, while it was taken in.
    Batch(u64),
    /// An event of an earlier batch, while it was judged.
    Event((UnixNanos, EventId)),
    /// No event: what a step made of those before it.
    Step,
}

impl Blame {
    /// As metrics name it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Batch(_) => "batch",
            Self::Event(_) => "event",
            Self::Step => "step",
        }
    }
}

struct Suspect {
    shard: u16,
    blame: Blame,
    /// The batch, once it is known.
    sequence: Option<u64>,
    panics: u32,
    /// Step up to which stage two had been told of the shard.
    said: UnixNanos,
}

/// What the panics of a worker were over.
#[derive(Default)]
pub struct Suspects(VecDeque<Suspect>);

impl Suspects {
    /// Counts a panic; how many there were over the same.
    fn count(&mut self, shard: u16, blame: Blame, said: UnixNanos) -> u32 {
        if let Some(known) = self.0.iter_mut().find(|s| s.shard == shard && s.blame == blame) {
            known.panics += 1;
            known.said = known.said.max(said);
            return known.panics;
        }
        if self.0.len() >= SUSPECTS_MAX {
            self.0.pop_front();
        }
        let sequence = if let Blame::Batch(sequence) = blame { Some(sequence) } else { None };
        self.0.push_back(Suspect { shard, blame, sequence, panics: 1, said });
        1
    }

    /// Panics over a batch, and up to where stage two had been told then.
    fn over(&self, shard: u16, sequence: u64) -> (u32, UnixNanos) {
        let of_it = self.0.iter().filter(|s| s.shard == shard && s.sequence == Some(sequence));
        of_it.map(|suspect| (suspect.panics, suspect.said)).max().unwrap_or_default()
    }
}

impl<O: Outlet> Worker<O> {
    /// Works on the shards; `None` when that panics. The caller then tells [`Self::panicked`], so that nothing that is half
    /// changed is used again.
    pub(super) fn guard<T>(&mut self, work: impl FnOnce(&mut ShardSet) -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(|| work(&mut self.shards))).ok()
    }

    /// The work on a shard has panicked: the shard is given back, to be read again by whoever takes it on.
    pub(super) fn panicked(&mut self, shard: u16, blame: Blame) {
        self.parts.metrics.panicked(blame.as_str());
        self.shards.distrust();
        let Some(owned) = self.disown(shard) else { return };
        let panics = self.suspects.count(shard, blame, owned.said);
        tracing::error!(shard, ?blame, panics, "the work on a shard panicked; its events are read again");
        let low_water = if blame == Blame::Step && panics >= PANICS_MAX {
            tracing::error!(shard, "what is open in the shard is forgotten, because telling it panics");
            self.suspects.0.retain(|suspect| (suspect.shard, suspect.blame) != (shard, blame));
            owned.after_all()
        } else {
            owned.kept()
        };
        let answer = Answer { shard, epoch: owned.epoch, low_water, released: true };
        self.answer_later(answer);
    }

    /// True when there were so many panics over a batch that it is not taken in again.
    pub(super) fn is_buried(&mut self, shard: u16, batch: &Batch) -> bool {
        // Of a panic over an event it comes out here which batch it is of.
        for at in 0..self.suspects.0.len() {
            let Suspect { blame: Blame::Event(event), sequence: None, .. } = self.suspects.0[at] else {
                continue;
            };
            let holds = |shards: &mut ShardSet| shards.holds(&batch.payload, Some(shard), event);
            if self.suspects.0[at].shard == shard && self.guard(holds).unwrap_or_default() {
                self.suspects.0[at].sequence = Some(batch.sequence);
            }
        }
        self.suspects.over(shard, batch.sequence).0 >= PANICS_MAX
    }

    /// To the dead letters; its events are counted, unless counting them panics as well.
    pub(super) fn bury(&mut self, shard: u16, batch: Batch) {
        let (panics, said) = self.suspects.over(shard, batch.sequence);
        let why = GivenUp::Panicked;
        let says = format!("the work on it panicked {panics} times");
        if panics == PANICS_MAX {
            return self.give_up(shard, batch, (why, said), &says);
        }
        tracing::error!(shard, sequence = batch.sequence, panics, "a batch of events cannot even be counted");
        self.refuse(shard, batch, why.as_str(), format!("{}: {says}", why.as_str()));
    }
}
