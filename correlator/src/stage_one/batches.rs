//! The work on one batch: taken in, put in order and judged in chunks. What takes longer than it may is put aside, and
//! worked off between the batches of other shards.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Headers, Outgoing};
use tapio_runtime::clock::Clock;
use tapio_schemas::names::{HEADER_ORIGIN, HEADER_REASON, deadletter_subject, events_subject, news_subject};
use tapio_schemas::wire::{SignalSection, encode_signals};
use tapio_schemas::{Signal, UnixNanos};

use super::deferred::Rest;
use super::worker::{Worker, WorkerStop};
use crate::config::nanos;
use crate::outbox::Outlet;
use crate::shards::{Budget, Cursor};

/// Longest work on what was put aside while nothing else waits.
const SLICE_MAX: Duration = Duration::from_millis(50);
/// Why a batch that was given up is in the dead-letter stream.
const BATCH_TIME: &str = "batch_time";

impl<O: Outlet> Worker<O> {
    /// A message of the event stream. Behind others of its shard that wait, it waits, too.
    pub(super) fn batch(&mut self, shard: u16, sequence: u64, payload: Bytes) -> Result<(), WorkerStop> {
        // Lost while it waited in the ring.
        if self.of(shard).is_none() {
            return Ok(());
        }
        self.parts.metrics.batches.inc();
        let came = UnixNanos(self.parts.clock.now_unix_nanos());
        let cursor = Cursor::new(came.plus(nanos(self.parts.config.future_max)));
        let rest = Rest::Batch { sequence, payload, came, cursor };
        if self.deferred.has(shard) {
            self.put_aside(shard, rest);
            return self.give_up_surplus();
        }
        self.begin(shard, rest)
    }

    /// Runs the shard's steps up to its watermark, and says what they say; unless something of it waits.
    pub(super) fn advance(&mut self, shard: u16) -> Result<(), WorkerStop> {
        if self.deferred.has(shard) { Ok(()) } else { self.begin(shard, Rest::Advance) }
    }

    fn begin(&mut self, shard: u16, work: Rest) -> Result<(), WorkerStop> {
        let rest = self.within(self.parts.config.batch_time_max.get(), shard, work)?;
        if let Some(rest) = rest {
            self.put_aside(shard, rest);
            self.give_up_surplus()?;
        }
        Ok(())
    }

    /// Goes on with what was put aside: a chunk when other work waits, longer when none does.
    pub(super) fn work_off(&mut self) -> Result<(), WorkerStop> {
        let Some((shard, rest)) = self.deferred.take() else { return Ok(()) };
        let time =
            if self.is_idle { SLICE_MAX.min(self.parts.config.batch_time_max.get()) } else { Duration::ZERO };
        match self.within(time, shard, rest)? {
            Some(rest) => self.deferred.put_back(shard, rest, self.parts.clock.monotonic()),
            None => self.deferred.settled(),
        }
        Ok(())
    }

    /// Works so long; what is left after that.
    fn within(&mut self, time: Duration, shard: u16, work: Rest) -> Result<Option<Rest>, WorkerStop> {
        let clock = self.parts.clock.clone();
        let clock: &dyn Clock = &*clock;
        let mut budget = Budget::until(clock, clock.monotonic() + time, self.chunk);
        let work = match work {
            Rest::Batch { sequence, payload, came, mut cursor } => {
                cursor.pressure = self.parts.shared.pressure();
                cursor.live = Some(UnixNanos(clock.now_unix_nanos()));
                match self.shards.take_within(&payload, Some(shard), &mut cursor, &mut budget) {
                    Ok(taken) => {
                        self.tell_first_words(taken.first_words)?;
                        if !taken.is_done {
                            return Ok(Some(Rest::Batch { sequence, payload, came, cursor }));
                        }
                        if let Some(owned) = self.of(shard) {
                            owned.read(sequence, taken.newest.min(came));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(shard, %error, "a batch of events is refused");
                        self.refuse(shard, sequence, payload, error.reason(), error.to_string());
                    }
                }
                Rest::Advance
            }
            Rest::Advance => Rest::Advance,
        };
        let is_done = self.steps(shard, &mut budget)?;
        Ok((!is_done).then_some(work))
    }

    /// Tells news when it is read. It is told again, bindingly, when event time has passed it: so this is not numbered,
    /// not repeated, and no one waits for it.
    fn tell_first_words(&mut self, signals: Vec<Signal>) -> Result<(), WorkerStop> {
        if signals.is_empty() {
            return Ok(());
        }
        let section = SignalSection { signals, ..SignalSection::default() };
        let bytes = encode_signals(self.parts.producer, 0, 0, &section)?;
        let subject = news_subject(&self.parts.config.cluster);
        if let Err(why) = self.outbox.tell(&subject, Bytes::from(bytes)) {
            self.parts.metrics.untold(why);
        }
        Ok(())
    }

    /// False when the budget is over first.
    fn steps(&mut self, shard: u16, budget: &mut Budget<'_>) -> Result<bool, WorkerStop> {
        let Some(watermark) = self.of(shard).and_then(|owned| owned.due()) else { return Ok(true) };
        let mut sections = std::mem::take(&mut self.sections);
        let advanced = self.shards.advance_one(shard, watermark, &mut sections, budget);
        for section in sections.drain(..) {
            let Some(mark) = section.marks.first().copied() else { continue };
            // What is seen at the beginning of the reading lacks what was before it.
            if self.of(shard).is_some_and(|owned| owned.was_said(mark.at)) {
                continue;
            }
            if !section.signals.is_empty() {
                self.parts.shared.news.fetch_max(mark.at.0, Ordering::AcqRel);
            }
            self.say(section)?;
            if let Some(owned) = self.of(shard) {
                owned.said = mark.at;
            }
        }
        self.sections = sections;
        let Some(advanced) = advanced else { return Ok(true) };
        if let Some(owned) = self.of(shard) {
            owned.advanced_to(advanced.mark.at);
        }
        Ok(advanced.is_done)
    }

    fn put_aside(&mut self, shard: u16, rest: Rest) {
        self.parts.metrics.deferred.inc();
        self.deferred.put_last(shard, rest, self.parts.clock.monotonic());
    }

    /// When more waits than may, the oldest goes to the dead letters: it is what took too long, or waited longest.
    fn give_up_surplus(&mut self) -> Result<(), WorkerStop> {
        while let Some((shard, rest)) = self.deferred.take_surplus() {
            let Rest::Batch { sequence, payload, came, cursor } = rest else { continue };
            let (reason, says) = match self.shards.give_up(&payload, Some(shard), &cursor) {
                Ok(taken) => {
                    if let Some(owned) = self.of(shard) {
                        owned.read(sequence, taken.newest.min(came));
                    }
                    (
                        BATCH_TIME,
                        format!("{BATCH_TIME}: no time for its events from number {} on", cursor.next),
                    )
                }
                Err(error) => (error.reason(), error.to_string()),
            };
            tracing::warn!(shard, sequence, %says, "a batch of events is given up");
            self.refuse(shard, sequence, payload, reason, says);
        }
        Ok(())
    }

    fn refuse(&mut self, shard: u16, sequence: u64, payload: Bytes, reason: &str, says: String) {
        self.parts.metrics.reject(reason);
        let origin = events_subject(&self.parts.config.cluster, shard);
        let headers = Headers::new().with(HEADER_REASON, says).with(HEADER_ORIGIN, origin);
        // The same batch may be refused again by another owner: one letter.
        let msg_id = Some(format!("dead-{shard}-{sequence}"));
        let subject = deadletter_subject("events");
        self.outbox.say(Outgoing { subject, msg_id, headers, payload });
    }
}
