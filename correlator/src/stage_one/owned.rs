//! What a worker knows of a shard that it owns: how far it is in the stream and in event time, and what it has told.

use tapio_schemas::UnixNanos;
use tapio_schemas::status::OwnedShardStatus;

use crate::low_water::{LowWater, Marks};
use crate::shards::{TICK_NS, Watermark, grid_ceil};

/// Events that come this much too late, at most, are found by the next owner although the owner before died before it said
/// them. So much more is read again.
const LATE_NS: u64 = 5_000_000_000;

/// A shard's place in stream and time.
pub struct OwnedShard {
    /// Shard, 0..64.
    pub shard: u16,
    /// Epoch of its lease.
    pub epoch: u64,
    /// Event time up to which stage two has been told.
    pub said: UnixNanos,
    /// Wall time since which it is owned.
    pub since: UnixNanos,
    /// Wall time at which everything published had last been read.
    pub current_at: UnixNanos,
    watermark: Watermark,
    advanced: UnixNanos,
    newest: UnixNanos,
    read_up_to: u64,
    marks: Marks,
    /// What is kept with the lease.
    kept: Option<LowWater>,
    /// First message read.
    read_from: Option<u64>,
    /// How far the owner before had said.
    left_at: UnixNanos,
    /// Steps up to here were said by the owner before, and are read only to know what is behind the later ones.
    told_before: UnixNanos,
    replay_max_ns: u64,
}

impl OwnedShard {
    /// Nothing read yet; `kept`: what the owner before left with the lease.
    pub fn new(shard: u16, epoch: u64, kept: Option<LowWater>, lateness_ns: u64, replay_max_ns: u64) -> Self {
        Self {
            shard,
            epoch,
            said: UnixNanos(0),
            since: UnixNanos(0),
            current_at: UnixNanos(0),
            watermark: Watermark::new(lateness_ns),
            advanced: UnixNanos(0),
            newest: UnixNanos(0),
            read_up_to: 0,
            marks: Marks::default(),
            kept,
            read_from: None,
            left_at: kept.map_or(UnixNanos(0), |kept| kept.said),
            told_before: kept.map_or(UnixNanos(0), |kept| kept.said.minus(LATE_NS)),
            replay_max_ns,
        }
    }

    /// A message was taken, whose newest event is of `newest`.
    pub fn read(&mut self, sequence: u64, newest: UnixNanos) {
        self.read_up_to = sequence;
        self.read_from.get_or_insert(sequence);
        self.newest = self.newest.max(newest);
        self.watermark.observe(newest);
        self.marks.record(sequence, self.newest);
    }

    /// Everything that was published is read, and it is `now`.
    pub fn caught_up(&mut self, now: UnixNanos) {
        self.current_at = now;
        self.watermark.caught_up(now);
    }

    /// The watermark, when it has passed another step.
    pub fn due(&self) -> Option<UnixNanos> {
        let at = self.watermark.at();
        (at.since(self.advanced) >= TICK_NS).then_some(at)
    }

    /// Its steps are run up to this point of the grid. True once: when it is no longer behind what the owner before had said.
    pub fn advanced_to(&mut self, at: UnixNanos) -> bool {
        let was_behind = self.advanced < self.left_at;
        self.advanced = self.advanced.max(at);
        was_behind && self.advanced >= self.left_at
    }

    /// What is told of it.
    pub fn status(&self) -> OwnedShardStatus {
        OwnedShardStatus(self.shard, self.epoch, self.since, self.watermark.at(), self.current_at)
    }

    /// Event time, on the grid, up to which its steps are run.
    pub fn advanced(&self) -> UnixNanos {
        self.advanced
    }

    /// Whether the owner before has said all of this step.
    pub fn was_said(&self, step: UnixNanos) -> bool {
        step <= self.told_before
    }

    /// Where a new owner has to begin to read when events from `needed` on count; `None` when that is kept already.
    pub fn low_water(&mut self, needed: UnixNanos) -> Option<LowWater> {
        let from = needed.minus(LATE_NS).max(self.advanced.minus(self.replay_max_ns));
        let kept = self.kept.map_or(0, |kept| kept.sequence);
        let sequence = self.marks.sequence_for(from).filter(|sequence| *sequence > kept)?;
        self.kept = Some(LowWater { sequence, from, said: self.said_of_read() });
        self.kept
    }

    /// What is kept with the lease.
    pub fn kept(&self) -> Option<LowWater> {
        self.kept
    }

    /// For an owner that is not to read again what was read.
    pub fn after_all(&self) -> Option<LowWater> {
        let mark = LowWater { sequence: self.read_up_to + 1, from: self.advanced, said: self.said_of_read() };
        if self.read_up_to == 0 { self.kept } else { Some(mark) }
    }

    /// What is to be left to the next owner: the newest mark, once everything said is stored. Where something is open for long it
    /// has to begin as far back as this one, in the end where this one had begun; it need not say again what was said since.
    pub fn last_low_water(&mut self, needed: UnixNanos) -> Option<LowWater> {
        let begun = self.read_from.map(|sequence| LowWater { sequence, ..LowWater::default() });
        let mark = self.low_water(needed).or(self.kept).or(begun)?;
        Some(LowWater { said: self.said_of_read(), ..mark })
    }

    /// How far all is said. Not up to the clock, where nothing was read: what comes late and is stored while the shard changes
    /// hands is news to its next owner. And who still replays is behind what the owner before said.
    fn said_of_read(&self) -> UnixNanos {
        let before = self.kept.map_or(UnixNanos(0), |kept| kept.said);
        self.advanced.min(grid_ceil(self.newest)).max(before)
    }
}
