//! First words: what is news by itself is also told when it is read, before event time has passed it.
//!
//! A first word is no verdict and nothing is decided by it. It changes nothing of what the shard says later: only
//! judgements without memory are asked, and of what is known only whether the deviation is open already.

use std::collections::VecDeque;

use tapio_schemas::{Signal, UnixNanos};

use super::counters::Counters;
use super::episode::{EpisodeKey, Episodes};
use super::news;
use super::record::EventRecord;
use super::watermark::{TICK_NS, grid_ceil};

/// What happened longer ago than this is read again, or late: its signal tells it soon enough.
const OLD_NS: u64 = 5_000_000_000;
/// First words of a shard in a second of the clock: with 64 shards two thousand a second.
pub const WORDS_PER_S_MAX: u32 = 32;
/// Events of a shard that are looked at in a second of the clock. A look costs about as much as the judgement that follows
/// when event time has passed.
pub const LOOKS_PER_S_MAX: u32 = 256;
/// Deviations told and not yet open that are remembered: the words of two seconds, longer than event time lags behind.
const TOLD_MAX: usize = 2 * WORDS_PER_S_MAX as usize;

/// What a shard has told before its time.
#[derive(Default)]
pub struct FirstWords {
    /// Second of the clock that the counts are of.
    second: u64,
    looks: u32,
    words: u32,
    /// Deviation, and the step after which it is open.
    told: VecDeque<(UnixNanos, EpisodeKey)>,
    /// What is to be told now.
    said: Vec<Signal>,
}

impl FirstWords {
    /// What is to be told now; it is told once.
    pub fn take(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.said)
    }

    /// Hears an event, read at `now` in a shard that is at `step`.
    pub fn hear(
        &mut self,
        record: &EventRecord,
        now: UnixNanos,
        step: UnixNanos,
        episodes: &Episodes,
        counters: &mut Counters,
    ) {
        let word = self.of(record, now, step, episodes, counters);
        self.said.extend(word);
    }

    fn of(
        &mut self,
        record: &EventRecord,
        now: UnixNanos,
        step: UnixNanos,
        episodes: &Episodes,
        counters: &mut Counters,
    ) -> Option<Signal> {
        if now.since(record.event.timestamp) > OLD_NS {
            counters.unsaid.old += 1;
            return None;
        }
        self.begin_second(now);
        if self.looks >= LOOKS_PER_S_MAX {
            counters.unsaid.looks += 1;
            return None;
        }
        self.looks += 1;
        let seen = news::at_once(record)?;
        let key = seen.episode();
        self.told.retain(|(opens, _)| *opens > step);
        if episodes.is_open(key) || self.told.iter().any(|(_, told)| *told == key) {
            return None;
        }
        if self.words >= WORDS_PER_S_MAX {
            counters.unsaid.words += 1;
            return None;
        }
        self.words += 1;
        if self.told.len() >= TOLD_MAX {
            self.told.pop_front();
        }
        // What comes late is judged in the next step.
        self.told.push_back((grid_ceil(record.event.timestamp).max(step.plus(TICK_NS)), key));
        counters.first_words += 1;
        Some(seen.first_word())
    }

    fn begin_second(&mut self, now: UnixNanos) {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            (self.second, self.looks, self.words) = (second, 0, 0);
        }
    }
}
