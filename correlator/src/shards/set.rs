//! The shards of one worker: checks a batch, routes it, and collects what the shards say into one section.

use tapio_schemas::wire::{EventBatchView, EventView, SignalSection, Unpacker, WireError};
use tapio_schemas::{EventId, Gap, Signal, UnixNanos};

use super::budget::{Budget, Cursor};
use super::counters::Counters;
use super::entities::KnownEntities;
use super::grace::Grace;
use super::reorder::Waiting;
use super::sequences::AccountLine;
use super::shard::{Advanced, GivenUp, Shard};
use crate::config::CorrelatorConfig;

/// Why a batch was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// The bytes are not a batch.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The header names another shard than the subject.
    #[error("batch of shard {header} came on the subject of shard {subject}")]
    Shard {
        /// In the header.
        header: u16,
        /// In the subject.
        subject: u16,
    },
    /// Not a shard of this worker.
    #[error("shard {0} is not one of this worker's")]
    NotOurs(u16),
}

impl BatchError {
    /// A short word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Wire(WireError::Truncated { .. }) => "truncated",
            Self::Wire(WireError::TooLarge(_)) => "too_large",
            Self::Wire(WireError::Magic) => "magic",
            Self::Wire(WireError::Version(_)) => "version",
            Self::Wire(WireError::Kind(_)) => "kind",
            Self::Wire(WireError::Header(_)) => "header",
            Self::Wire(WireError::Strings(_)) => "strings",
            Self::Wire(WireError::Archive(_)) => "archive",
            Self::Wire(WireError::TooMany(_)) => "too_many",
            Self::Wire(WireError::Packed(_)) => "packed",
            Self::Shard { .. } => "shard",
            Self::NotOurs(_) => "not_ours",
        }
    }
}

/// Shards that one thread owns.
pub struct ShardSet {
    shards: Vec<Shard>,
    known: KnownEntities,
    unpacker: Unpacker,
}

/// What a batch held.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Time of its newest event; zero for none.
    pub newest: UnixNanos,
    /// All of it was taken.
    pub is_done: bool,
    /// First words of its news, when the cursor was live.
    pub first_words: Vec<Signal>,
}

impl ShardSet {
    /// The given shards of a cluster.
    pub fn new(cluster: &str, ids: impl IntoIterator<Item = u16>, config: &CorrelatorConfig) -> Self {
        let shards = ids.into_iter().map(|id| Shard::new(cluster, id, 0, config)).collect();
        Self { shards, known: KnownEntities::default(), unpacker: Unpacker::default() }
    }

    /// Checks a message and gives it to its shard. `subject_shard`: the shard that the subject names, when there is one.
    pub fn take(
        &mut self,
        bytes: &[u8],
        subject_shard: Option<u16>,
        newest_allowed: UnixNanos,
    ) -> Result<Taken, BatchError> {
        let mut cursor = Cursor::new(newest_allowed);
        self.take_within(bytes, subject_shard, &mut cursor, &mut Budget::unlimited())
    }

    /// As [`Self::take`], from the cursor on and until the budget is over; then `Taken::is_done` is false and the cursor is
    /// where to go on, with this shard untouched meanwhile.
    pub fn take_within(
        &mut self,
        bytes: &[u8],
        subject_shard: Option<u16>,
        cursor: &mut Cursor,
        budget: &mut Budget<'_>,
    ) -> Result<Taken, BatchError> {
        let (shard, batch) = open(&mut self.unpacker, &mut self.shards, bytes, subject_shard)?;
        let is_done = shard.take(&batch, &mut self.known, cursor, budget);
        let first_words = shard.first_words.take();
        Ok(Taken { newest: newest(&batch, cursor), is_done, first_words })
    }

    /// The rest of a batch is not taken. The time of its newest event, and, after panics, the gap to be counted and told.
    pub fn give_up(
        &mut self,
        bytes: &[u8],
        subject_shard: Option<u16>,
        cursor: &Cursor,
        why: GivenUp,
    ) -> Result<(UnixNanos, Option<Gap>), BatchError> {
        let (shard, batch) = open(&mut self.unpacker, &mut self.shards, bytes, subject_shard)?;
        let gap = shard.give_up(&batch, &mut self.known, cursor, why);
        Ok((newest(&batch, cursor), gap))
    }

    /// Events of a batch that are not taken in yet; `None` for none, or when it is no batch.
    pub fn rest(&mut self, bytes: &[u8], cursor: &Cursor) -> Option<Waiting> {
        cursor.rest(&EventBatchView::check(self.unpacker.unpack(bytes).ok()?).ok()?)
    }

    /// True when the message is a batch with this event in it.
    pub fn holds(&mut self, bytes: &[u8], subject_shard: Option<u16>, event: (UnixNanos, EventId)) -> bool {
        let opened = open(&mut self.unpacker, &mut self.shards, bytes, subject_shard);
        let is_it = |e: &EventView<'_>| (e.timestamp(), EventId(e.event.id.0.to_native())) == event;
        opened.is_ok_and(|(_, batch)| batch.iter().any(|e| is_it(&e)))
    }

    /// The event that a shard is judging: after a panic, the one it was over.
    pub fn judged(&self, id: u16) -> Option<(UnixNanos, EventId)> {
        self.shards.iter().find(|s| s.id() == id)?.judged()
    }

    /// The step that a shard is in, or the last that it was in.
    pub fn step(&self, id: u16) -> UnixNanos {
        self.shards.iter().find(|s| s.id() == id).map_or(UnixNanos(0), Shard::step)
    }

    /// Events of a shard that wait for their step; `None` for none.
    pub fn waiting(&self, id: u16) -> Option<Waiting> {
        self.shards.iter().find(|s| s.id() == id)?.waiting()
    }

    /// Makes anew what the shards share: after a panic it may be half done.
    pub fn distrust(&mut self) {
        (self.known, self.unpacker) = (KnownEntities::default(), Unpacker::default());
    }

    /// Moves all shards to the watermark. A section per shard and step with something to say, then one with all marks.
    pub fn advance(&mut self, watermark: UnixNanos) -> Vec<SignalSection> {
        let mut sections = Vec::new();
        let marks = self.shards.iter_mut().map(|shard| shard.advance(watermark, &mut sections)).collect();
        sections.push(SignalSection { marks, ..SignalSection::default() });
        self.tell_lateness();
        sections
    }

    /// Whose spans are late in one shard will be late in the others.
    fn tell_lateness(&mut self) {
        let late_ns = Grace::of_all(self.shards.iter().map(|shard| &shard.requests.grace));
        self.shards.iter_mut().for_each(|shard| shard.requests.grace.hear(late_ns));
    }

    /// Takes a shard on, under the epoch of its lease; a shard of this number that was there is forgotten.
    pub fn own(&mut self, id: u16, epoch: u64, config: &CorrelatorConfig) {
        self.disown(id);
        self.shards.push(Shard::new(&config.cluster, id, epoch, config));
    }

    /// Of this shard everything is read that is of `from` or later.
    pub fn read_from(&mut self, id: u16, from: UnixNanos) {
        let shard = self.shards.iter_mut().find(|shard| shard.id() == id);
        shard.into_iter().for_each(|shard| shard.sequences.read_from(from));
    }

    /// Gives a shard up; its last counts.
    pub fn disown(&mut self, id: u16) -> Option<Counters> {
        let at = self.shards.iter().position(|s| s.id() == id)?;
        Some(self.shards.swap_remove(at).counters)
    }

    /// Moves one shard to the watermark, as far as the budget lasts; appends a section for each step with something to say.
    pub fn advance_one(
        &mut self,
        id: u16,
        watermark: UnixNanos,
        out: &mut Vec<SignalSection>,
        budget: &mut Budget<'_>,
    ) -> Option<Advanced> {
        let shard = self.shards.iter_mut().find(|s| s.id() == id)?;
        let advanced = shard.advance_within(watermark, out, budget);
        self.tell_lateness();
        Some(advanced)
    }

    /// Oldest event time that a shard still needs.
    pub fn low_water_of(&self, id: u16) -> Option<UnixNanos> {
        self.shards.iter().find(|s| s.id() == id).map(Shard::low_water)
    }

    /// Oldest event time that any shard still needs.
    pub fn low_water(&self) -> UnixNanos {
        self.shards.iter().map(Shard::low_water).min().unwrap_or_default()
    }

    /// Counts since they were last taken, of each shard.
    pub fn take_counters(&mut self) -> impl Iterator<Item = Counters> + '_ {
        self.shards.iter_mut().map(|shard| std::mem::take(&mut shard.counters))
    }

    /// What became of each producer's events, by shard.
    pub fn accounts(&self) -> impl Iterator<Item = (u16, AccountLine)> + '_ {
        self.shards.iter().flat_map(|shard| shard.accounts().map(|line| (shard.id(), line)))
    }

    /// Open things of all shards, by kind.
    pub fn open(&self) -> Vec<(&'static str, usize)> {
        let mut sums: Vec<(&'static str, usize)> = Vec::new();
        for (kind, count) in self.shards.iter().flat_map(Shard::open) {
            match sums.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, sum)) => *sum += count,
                None => sums.push((kind, count)),
            }
        }
        sums
    }
}

/// A checked batch, and the shard that it is of.
fn open<'s, 'b>(
    unpacker: &'b mut Unpacker,
    shards: &'s mut [Shard],
    bytes: &'b [u8],
    subject_shard: Option<u16>,
) -> Result<(&'s mut Shard, EventBatchView<'b>), BatchError> {
    let batch = EventBatchView::check(unpacker.unpack(bytes)?)?;
    let header = batch.header().shard;
    if let Some(subject) = subject_shard
        && subject != header
    {
        return Err(BatchError::Shard { header, subject });
    }
    let shard = shards.iter_mut().find(|s| s.id() == header).ok_or(BatchError::NotOurs(header))?;
    Ok((shard, batch))
}

fn newest(batch: &EventBatchView<'_>, cursor: &Cursor) -> UnixNanos {
    let allowed = batch.iter().map(|e| e.timestamp()).filter(|at| *at <= cursor.newest_allowed);
    allowed.max().unwrap_or_default()
}
