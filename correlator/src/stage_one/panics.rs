//! What comes of a panic in the work on a shard: a mistake of ours over some event, which must not hold up all the others.
//!
//! The shard's state may be half changed, so it is given back and taken on anew: its events are read again, and everybody
//! else goes on. A panic may be of that moment. When it comes again over the same batch, the batch goes to the dead letters;
//! when it is over an event, so does every batch with that event in it. Where no batch is to blame, or there are too many to
//! remember them, the shard begins anew behind what was read: what waited there is counted and told as a gap.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tapio_schemas::wire::SignalSection;
use tapio_schemas::{EventId, ProducerId, SmolStr, UnixNanos};

use super::deferred::Batch;
use super::owned::OwnedShard;
use super::worker::{Answer, Worker};
use crate::outbox::Outlet;
use crate::shards::{Counters, Dropped, GivenUp, ShardSet, Waiting, note_gap};

/// Panics after which what they are over is not tried again.
const PANICS_MAX: u32 = 2;
/// What is remembered of a worker's panics.
const SUSPECTS_MAX: usize = 64;

/// What a panic is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The batch of this sequence, while it was taken in.
    Batch(u64),
    /// The batch of this sequence, while it was counted as given up.
    Count(u64),
    /// An event of an earlier batch, while it was judged.
    Event((UnixNanos, EventId)),
    /// No event: what this step made of those before it.
    Step(UnixNanos),
}

impl Blame {
    /// As metrics name it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Batch(_) => "batch",
            Self::Count(_) => "count",
            Self::Event(_) => "event",
            Self::Step(_) => "step",
        }
    }

    /// Whether it is the same as one before, as far as can be told. A shard that has passed a step has survived it; an
    /// event that came too late for its step is not late when it is read again.
    fn repeats(self, before: Self) -> bool {
        match (self, before) {
            (Self::Step(now), Self::Step(before)) => now <= before,
            _ => self == before,
        }
    }

    fn sequence(self) -> Option<u64> {
        match self {
            Self::Batch(sequence) | Self::Count(sequence) => Some(sequence),
            Self::Event(_) | Self::Step(_) => None,
        }
    }

    /// What is needed of the shard is behind it.
    fn is_passed(self, owned: &OwnedShard) -> bool {
        let kept = owned.kept().unwrap_or_default();
        match self {
            Self::Batch(sequence) | Self::Count(sequence) => sequence < kept.sequence,
            Self::Event((at, _)) => at < kept.from,
            Self::Step(at) => at <= owned.advanced(),
        }
    }
}

struct Suspect {
    shard: u16,
    blame: Blame,
    panics: u32,
    /// Step up to which stage two had been told of the shard.
    said: UnixNanos,
}

/// What the panics of a worker were over.
#[derive(Default)]
pub struct Suspects(Vec<Suspect>);

impl Suspects {
    /// Counts a panic; how many there were over the same. `None` when there is no room for it.
    fn count(&mut self, shard: u16, blame: Blame, said: UnixNanos) -> Option<u32> {
        if let Some(known) = self.0.iter_mut().find(|s| s.shard == shard && blame.repeats(s.blame)) {
            known.said = known.said.max(said);
            known.panics += 1;
            return Some(known.panics);
        }
        // A step before is passed.
        self.0.retain(|s| s.shard != shard || !matches!((s.blame, blame), (Blame::Step(_), Blame::Step(_))));
        if self.0.len() >= SUSPECTS_MAX {
            return None;
        }
        self.0.push(Suspect { shard, blame, panics: 1, said });
        Some(1)
    }
}

impl<O: Outlet> Worker<O> {
    /// Works on the shards; `None` when that panics. The caller then tells [`Self::panicked`], so that nothing that is half
    /// changed is used again.
    pub(super) fn guard<T>(&mut self, work: impl FnOnce(&mut ShardSet) -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(|| work(&mut self.shards))).ok()
    }

    /// The work on a shard has panicked: the shard is given back, to be read again by whoever takes it on. True when it begins
    /// behind what was read, the batch at hand included.
    pub(super) fn panicked(&mut self, shard: u16, blame: Blame) -> bool {
        self.parts.metrics.panicked(blame.as_str());
        self.shards.distrust();
        let waiting = self.guard(|shards| shards.waiting(shard)).flatten();
        self.make_room(shard, blame);
        let Some(mut owned) = self.disown(shard) else { return false };
        let panics = self.suspects.count(shard, blame, owned.said);
        tracing::error!(shard, ?blame, panics, "the work on a shard panicked; its events are read again");
        let is_hopeless = panics.is_none_or(|panics| matches!(blame, Blame::Step(_)) && panics >= PANICS_MAX);
        let low_water = if is_hopeless {
            tracing::error!(
                shard,
                ?blame,
                "what is open in the shard is forgotten: it begins behind what was read"
            );
            self.suspects.0.retain(|suspect| suspect.shard != shard);
            if let Some(sequence) = blame.sequence() {
                owned.read(sequence, UnixNanos(0));
            }
            self.tell_forgotten(shard, waiting);
            owned.after_all()
        } else {
            owned.kept()
        };
        let answer = Answer { shard, epoch: owned.epoch, low_water, released: true };
        self.answer_later(answer);
        is_hopeless
    }

    /// As [`Self::panicked`], over a batch: it goes to the dead letters when it is not read again.
    pub(super) fn panicked_over(&mut self, shard: u16, blame: Blame, batch: Batch) {
        if self.panicked(shard, blame) {
            let reason = GivenUp::Panicked.as_str();
            self.refuse(
                shard,
                batch,
                reason,
                format!("{reason}: the work on it panicked, as on too many others"),
            );
        }
    }

    /// When a panic is new and there is no room for it, those make room that nobody will come to again.
    fn make_room(&mut self, shard: u16, blame: Blame) {
        let is_known = self.suspects.0.iter().any(|s| s.shard == shard && blame.repeats(s.blame));
        if is_known || self.suspects.0.len() < SUSPECTS_MAX {
            return;
        }
        let mut suspects = std::mem::take(&mut self.suspects.0);
        suspects
            .retain(|suspect| !self.of(suspect.shard).is_some_and(|owned| suspect.blame.is_passed(owned)));
        self.suspects.0 = suspects;
    }

    /// Events that waited for their turn are not read again.
    fn tell_forgotten(&mut self, shard: u16, waiting: Option<Waiting>) {
        let Some(Waiting { count, from, to }) = waiting else { return };
        let dropped = Dropped { panicked: count, ..Dropped::default() };
        self.parts.metrics.add(&Counters { dropped, ..Counters::default() });
        let mut section = SignalSection::default();
        let reason = GivenUp::Panicked.as_str();
        note_gap(&mut section.gaps, ProducerId(0), SmolStr::default(), count, (from, to), reason);
        if let Err(error) = self.say(section) {
            tracing::error!(shard, %error, "a gap of the shard is not told");
        }
    }

    /// Panics over a batch, and up to where stage two had been told then; `None` when it may be taken in (again).
    pub(super) fn is_buried(&mut self, shard: u16, batch: &Batch) -> Option<(u32, UnixNanos)> {
        let mut worst = None;
        for at in 0..self.suspects.0.len() {
            let Suspect { shard: of, blame, panics, said } = self.suspects.0[at];
            if of != shard || panics < PANICS_MAX {
                continue;
            }
            let is_it = match blame {
                // It may lie in several: who exports at least once sends events again.
                Blame::Event(event) => {
                    self.guard(|shards| shards.holds(&batch.payload, Some(shard), event)).unwrap_or_default()
                }
                _ => blame.sequence() == Some(batch.sequence),
            };
            worst = worst.max(is_it.then_some((panics, said)));
        }
        worst
    }

    /// To the dead letters; its events are counted, unless counting them has panicked as well.
    pub(super) fn bury(&mut self, shard: u16, batch: Batch, (panics, said): (u32, UnixNanos)) {
        let why = GivenUp::Panicked;
        let says = format!("the work on it panicked {panics} times");
        let count = Blame::Count(batch.sequence);
        if !self.suspects.0.iter().any(|suspect| suspect.shard == shard && suspect.blame == count) {
            return self.give_up(shard, batch, (why, said), &says);
        }
        tracing::error!(shard, sequence = batch.sequence, "a batch of events cannot even be counted");
        self.refuse(shard, batch, why.as_str(), format!("{}: {says}", why.as_str()));
    }
}
