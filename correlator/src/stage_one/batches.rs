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

use super::deferred::{Batch, Rest};
use super::panics::Blame;
use super::worker::{Worker, WorkerStop};
use crate::config::nanos;
use crate::outbox::Outlet;
use crate::shards::{Budget, Cursor, GivenUp};

/// Longest work on what was put aside while nothing else waits.
const SLICE_MAX: Duration = Duration::from_millis(50);

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
        let rest = Rest::Batch(Batch { sequence, payload, came, cursor });
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
            Rest::Batch(batch) => match self.take_in(shard, batch, &mut budget)? {
                Some(rest) => return Ok(Some(Rest::Batch(rest))),
                None => Rest::Advance,
            },
            Rest::Advance => Rest::Advance,
        };
        let is_done = self.steps(shard, &mut budget)?;
        Ok((!is_done).then_some(work))
    }

    /// Takes a batch in; what is left of it when the budget is over first.
    fn take_in(
        &mut self,
        shard: u16,
        mut batch: Batch,
        budget: &mut Budget<'_>,
    ) -> Result<Option<Batch>, WorkerStop> {
        if let Some(buried) = self.is_buried(shard, &batch) {
            self.bury(shard, batch, buried);
            return Ok(None);
        }
        batch.cursor.pressure = self.parts.shared.pressure();
        batch.cursor.live = Some(UnixNanos(self.parts.clock.now_unix_nanos()));
        let Batch { payload, cursor, .. } = &mut batch;
        match self.guard(|shards| shards.take_within(payload, Some(shard), cursor, budget)) {
            None => self.panicked_over(shard, Blame::Batch(batch.sequence), batch),
            Some(Err(error)) => {
                tracing::warn!(shard, %error, "a batch of events is refused");
                self.refuse(shard, batch, error.reason(), error.to_string());
            }
            Some(Ok(taken)) => {
                self.tell_first_words(taken.first_words)?;
                if !taken.is_done {
                    return Ok(Some(batch));
                }
                if let Some(owned) = self.of(shard) {
                    owned.read(batch.sequence, taken.newest.min(batch.came));
                }
            }
        }
        Ok(None)
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
        let advanced = self.guard(|shards| shards.advance_one(shard, watermark, &mut sections, budget));
        let Some(advanced) = advanced else {
            let blame = self.shards.judged(shard).map(Blame::Event);
            self.panicked(shard, blame.unwrap_or_else(|| Blame::Step(self.shards.step(shard))), None);
            return Ok(true);
        };
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
        // Nobody judges the shard until this is told.
        if self.of(shard).is_some_and(|owned| owned.advanced_to(advanced.mark.at)) {
            self.marks_due = Duration::ZERO;
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
            let Rest::Batch(batch) = rest else { continue };
            let says = format!("no time for its events from number {} on", batch.cursor.next);
            self.give_up(shard, batch, GivenUp::BatchTime, false, &says);
        }
        Ok(())
    }

    /// What is left of a batch is counted as dropped, unless it `was_counted`, and the batch goes to the dead letters.
    pub(super) fn give_up(&mut self, shard: u16, batch: Batch, why: GivenUp, was_counted: bool, says: &str) {
        let Batch { payload, cursor, .. } = &batch;
        let (reason, says) = match self.guard(|shards| shards.give_up(payload, Some(shard), cursor, why)) {
            None => return self.panicked_over(shard, Blame::Count(batch.sequence), batch),
            Some(Ok((newest, gap))) => {
                if let Some(owned) = self.of(shard) {
                    owned.read(batch.sequence, newest.min(batch.came));
                }
                if let Some(gap) = gap.filter(|_| !was_counted) {
                    self.tell_dropped(shard, gap.lost, gap);
                }
                let reason = why.as_str();
                (reason, format!("{reason}: {says}"))
            }
            Some(Err(error)) => (error.reason(), error.to_string()),
        };
        tracing::warn!(shard, sequence = batch.sequence, %says, "a batch of events is given up");
        self.refuse(shard, batch, reason, says);
    }

    pub(super) fn refuse(&mut self, shard: u16, batch: Batch, reason: &str, says: String) {
        let Batch { sequence, payload, .. } = batch;
        self.parts.metrics.reject(reason);
        let origin = events_subject(&self.parts.config.cluster, shard);
        let headers = Headers::new().with(HEADER_REASON, says).with(HEADER_ORIGIN, origin);
        // The same batch may be refused again by another owner: one letter.
        let msg_id = Some(format!("dead-{shard}-{sequence}"));
        let subject = deadletter_subject("events");
        self.outbox.say(Outgoing { subject, msg_id, headers, payload });
    }
}
