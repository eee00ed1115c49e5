//! What comes of a panic in the work on a shard: a mistake of ours over some event, which must not hold up all the others.
//!
//! The shard's state may be half changed, so it is given back and taken on anew: its events are read again, and everybody
//! else goes on. A panic may be of that moment. When it comes again over the same batch, the batch goes to the dead letters;
//! when it is over an event, so does every batch with that event in it. Where no batch is to blame, or there are too many to
//! remember them, the shard begins anew behind what was read: what waited there, and what was at hand, is counted and told as a
//! gap.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tapio_schemas::wire::SignalSection;
use tapio_schemas::{EventId, Gap, ProducerId, SmolStr, UnixNanos};

use super::deferred::Batch;
use super::owned::OwnedShard;
use super::worker::{Answer, Worker};
use crate::outbox::Outlet;
use crate::shards::{Counters, GivenUp, ShardSet, Waiting, unused};

/// Panics after which what they are over is not tried again.
const PANICS_MAX: u32 = 2;
/// What is remembered of a worker's panics.
const SUSPECTS_MAX: usize = 64;
/// For so long what panicked in a shard that is not owned any more is remembered when others need its room.
const GONE_MAX: Duration = Duration::from_secs(60);

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
}

struct Suspect {
    shard: u16,
    blame: Blame,
    panics: u32,
    /// Batches that it took with it are counted and told up to this sequence: they may be read again.
    counted: u64,
    /// When its shard was given back last.
    left: Duration,
}

impl Suspect {
    /// What is needed of the shard is behind it.
    fn is_passed(&self, owned: &OwnedShard) -> bool {
        let kept = owned.kept().unwrap_or_default();
        match self.blame {
            Blame::Batch(sequence) | Blame::Count(sequence) => sequence < kept.sequence,
            Blame::Event((at, _)) => at < kept.from && self.counted < kept.sequence,
            Blame::Step(at) => at <= owned.advanced(),
        }
    }
}

/// What the panics of a worker were over.
#[derive(Default)]
pub struct Suspects(Vec<Suspect>);

impl Suspects {
    /// How much is remembered.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Counts a panic; how many there were over the same. `None` when there is no room for it.
    fn add(&mut self, shard: u16, blame: Blame, left: Duration) -> Option<u32> {
        if let Some(known) = self.0.iter_mut().find(|s| s.shard == shard && blame.repeats(s.blame)) {
            known.panics += 1;
            return Some(known.panics);
        }
        // A step before is passed.
        self.0.retain(|s| s.shard != shard || !matches!((s.blame, blame), (Blame::Step(_), Blame::Step(_))));
        if self.0.len() >= SUSPECTS_MAX {
            return None;
        }
        self.0.push(Suspect { shard, blame, panics: 1, counted: 0, left });
        Some(1)
    }

    /// A shard is given back.
    pub fn leave(&mut self, shard: u16, now: Duration) {
        self.0.iter_mut().filter(|suspect| suspect.shard == shard).for_each(|suspect| suspect.left = now);
    }

    /// A shard begins anew, or is another's.
    pub fn forget(&mut self, shard: u16) {
        self.0.retain(|suspect| suspect.shard != shard);
    }

    /// What will not be read again of a shard is not needed.
    pub fn forget_passed(&mut self, owned: &OwnedShard) {
        self.0.retain(|suspect| suspect.shard != owned.shard || !suspect.is_passed(owned));
    }
}

impl<O: Outlet> Worker<O> {
    /// Works on the shards; `None` when that panics. The caller then tells [`Self::panicked`], so that nothing that is half
    /// changed is used again.
    pub(super) fn guard<T>(&mut self, work: impl FnOnce(&mut ShardSet) -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(|| work(&mut self.shards))).ok()
    }

    /// The work on a shard has panicked: the shard is given back, to be read again by whoever takes it on. True when it begins
    /// behind what was read, the `batch` at hand included.
    pub(super) fn panicked(&mut self, shard: u16, blame: Blame, batch: Option<&Batch>) -> bool {
        self.parts.metrics.panicked(blame.as_str());
        self.shards.distrust();
        let waiting = self.guard(|shards| shards.waiting(shard)).flatten();
        self.make_room(shard, blame);
        let Some(mut owned) = self.disown(shard) else { return false };
        let panics = self.suspects.add(shard, blame, self.parts.clock.monotonic());
        tracing::error!(shard, ?blame, panics, "the work on a shard panicked; its events are read again");
        let is_hopeless = panics.is_none_or(|panics| matches!(blame, Blame::Step(_)) && panics >= PANICS_MAX);
        let low_water = if is_hopeless {
            tracing::error!(
                shard,
                ?blame,
                "what is open in the shard is forgotten: it begins behind what was read"
            );
            self.suspects.forget(shard);
            if let Some(sequence) = blame.sequence() {
                owned.read(sequence, UnixNanos(0));
            }
            self.tell_forgotten(shard, waiting, blame, batch);
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
        if self.panicked(shard, blame, Some(&batch)) {
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
        let now = self.parts.clock.monotonic();
        let mut suspects = std::mem::take(&mut self.suspects.0);
        suspects.retain(|suspect| match self.of(suspect.shard) {
            Some(owned) => !suspect.is_passed(owned),
            None => now.saturating_sub(suspect.left) <= GONE_MAX,
        });
        self.suspects.0 = suspects;
    }

    /// Events that are not read again: those that waited for their turn, and those that were at hand.
    fn tell_forgotten(&mut self, shard: u16, waiting: Option<Waiting>, blame: Blame, batch: Option<&Batch>) {
        let (judged, untaken) = match blame {
            Blame::Event((at, _)) => (Some(Waiting { count: 1, from: at, to: at }), None),
            Blame::Batch(_) => (None, batch.and_then(|batch| self.untaken(shard, batch))),
            // There is no event, or those that there are cannot be counted.
            Blame::Count(_) | Blame::Step(_) => (None, None),
        };
        let all = [waiting, judged, untaken].into_iter().flatten().reduce(Waiting::and);
        let Some(Waiting { count, from, to }) = all else { return };
        let reason = GivenUp::Panicked.as_str();
        let gap = unused(ProducerId(0), SmolStr::default(), count, (from, to), reason);
        self.tell_dropped(shard, untaken.map_or(0, |rest| rest.count), gap);
    }

    /// Events of a batch that were not taken in; `None` also when they cannot be counted.
    fn untaken(&mut self, shard: u16, batch: &Batch) -> Option<Waiting> {
        self.guard(|shards| shards.rest(&batch.payload, &batch.cursor)).unwrap_or_else(|| {
            self.shards.distrust();
            tracing::error!(shard, sequence = batch.sequence, "a batch of events cannot even be counted");
            None
        })
    }

    /// Counts the events of a gap as dropped, and tells it at once: steps are told again when the shard is read again, this
    /// is not. `unread`: events of it that are not counted as read yet.
    pub(super) fn tell_dropped(&mut self, shard: u16, unread: u64, gap: Gap) {
        let dropped = GivenUp::Panicked.dropped(gap.lost);
        self.parts.metrics.add(&Counters { events: unread, dropped, ..Counters::default() });
        if let Err(error) = self.say(SignalSection { gaps: vec![gap], ..SignalSection::default() }) {
            tracing::error!(shard, %error, "a gap of the shard is not told");
        }
    }

    /// Panics over a batch, and whether it was counted when it was read before, as it is from now on; `None` when it may be
    /// taken in (again).
    pub(super) fn is_buried(&mut self, shard: u16, batch: &Batch) -> Option<(u32, bool)> {
        let mut worst: Option<(u32, bool)> = None;
        for at in 0..self.suspects.0.len() {
            let Suspect { shard: of, blame, panics, counted, .. } = self.suspects.0[at];
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
            if is_it {
                let (most, was_counted) = worst.unwrap_or_default();
                worst = Some((most.max(panics), was_counted || batch.sequence <= counted));
                self.suspects.0[at].counted = counted.max(batch.sequence);
            }
        }
        worst
    }

    /// To the dead letters; its events are counted, unless counting them has panicked as well.
    pub(super) fn bury(&mut self, shard: u16, batch: Batch, (panics, was_counted): (u32, bool)) {
        let why = GivenUp::Panicked;
        let says = format!("the work on it panicked {panics} times");
        let count = Blame::Count(batch.sequence);
        if !self.suspects.0.iter().any(|suspect| suspect.shard == shard && suspect.blame == count) {
            return self.give_up(shard, batch, why, was_counted, &says);
        }
        tracing::error!(shard, sequence = batch.sequence, "a batch of events cannot even be counted");
        self.refuse(shard, batch, why.as_str(), format!("{}: {says}", why.as_str()));
    }
}
