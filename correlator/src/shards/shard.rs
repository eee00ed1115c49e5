//! The state of one shard, and the steps in which it moves through event time.

use std::sync::Arc;

use tapio_runtime::memory::Pressure;
use tapio_schemas::payload::Payload;
use tapio_schemas::wire::{EventBatchView, ShardMark, SignalSection};
use tapio_schemas::{EntityRef, EventId, EventKind, Gap, UnixNanos};

use super::budget::{Budget, Cursor};
use super::bursts::{Bursts, needed};
use super::calls::Calls;
use super::context::{self, Bounds};
use super::counters::{Counters, Dropped};
use super::endings;
use super::entities::{Entities, Known, KnownEntities};
use super::episode::{Episodes, Observation};
use super::exits::Exits;
use super::first_words::FirstWords;
use super::groups::Groups;
use super::losses;
use super::meters::Meters;
use super::news;
use super::record::{EventRecord, Record, Triage, line_of, owner_identity, triage};
use super::reorder::{Reorder, Waiting};
use super::repeats::Repeats;
use super::requests::Requests;
use super::sequences::{AccountLine, Order, Sequences};
use super::series::{Finding, SeriesStore};
use super::texts::Texts;
use super::topology::Topology;
use super::watermark::{TICK_NS, grid_ceil, grid_floor};
use crate::config::{CorrelatorConfig, nanos};

/// Event time that is read again in any case: spans without their client, requests that are not closed, windows that are not
/// told, victims that have not exited, samples of which two in a row make news.
const WARM_NS: u64 = 10_000_000_000;

/// Reason of gaps: events that there was no memory for.
const MEMORY_PRESSURE: &str = "memory_pressure";

/// Why the rest of a batch is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// It took too long while too much was put aside already.
    BatchTime,
    /// The work on it panicked again and again.
    Panicked,
}

impl GivenUp {
    /// As metrics, gaps and dead letters name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BatchTime => "batch_time",
            Self::Panicked => "panicked",
        }
    }

    /// So many events, as they are counted.
    pub fn dropped(self, lost: u64) -> Dropped {
        match self {
            Self::BatchTime => Dropped { batch_time: lost, ..Dropped::default() },
            Self::Panicked => Dropped { panicked: lost, ..Dropped::default() },
        }
    }
}

/// How far a shard came.
#[derive(Debug, Clone, Copy)]
pub struct Advanced {
    /// The last step that is over.
    pub mark: ShardMark,
    /// All steps up to the watermark are over.
    pub is_done: bool,
}

/// One of the 64 shards.
pub struct Shard {
    id: u16,
    epoch: u64,
    age_max_ns: u64,
    rate_max: u32,
    /// Last step that was run: everything up to it has been said.
    step: UnixNanos,
    /// The step that was begun and is not over.
    amid: Option<UnixNanos>,
    /// What the order gave out last is being judged.
    judging: bool,
    entities: Entities,
    reorder: Reorder,
    repeats: Repeats,
    pub(super) sequences: Sequences,
    episodes: Episodes,
    series: SeriesStore,
    calls: Calls,
    texts: Texts,
    pub(super) requests: Requests,
    meters: Meters,
    exits: Exits,
    /// What was told before its time.
    pub first_words: FirstWords,
    bursts: Bursts,
    groups: Groups,
    topology: Topology,
    /// Counts since they were last taken.
    pub counters: Counters,
    found: Vec<Finding>,
    /// What the step under way says; what was released early waits here for the next one.
    saying: SignalSection,
    #[cfg(test)]
    trap: super::trap::Trap,
}

impl Shard {
    /// An empty shard of a cluster. `epoch`: of the lease under which it is owned.
    pub fn new(cluster: &str, id: u16, epoch: u64, config: &CorrelatorConfig) -> Self {
        Self {
            id,
            epoch,
            age_max_ns: nanos(config.age_max),
            rate_max: config.producer_events_per_s_max,
            step: UnixNanos(0),
            amid: None,
            judging: false,
            entities: Entities::default(),
            reorder: Reorder::new(config.reorder_events_max),
            repeats: Repeats::default(),
            sequences: Sequences::new(config.producers_max),
            episodes: Episodes::new(cluster, config.signals.clone()),
            series: SeriesStore::new(config.series.clone()),
            calls: Calls::new(&config.signals),
            texts: Texts::default(),
            requests: Requests::new(nanos(config.signals.tally_window)),
            meters: Meters::new(nanos(config.signals.tally_window)),
            exits: Exits::default(),
            first_words: FirstWords::default(),
            bursts: Bursts::default(),
            groups: Groups::new(config.groups.clone()),
            topology: Topology::new(&config.signals),
            counters: Counters::default(),
            found: Vec::new(),
            saying: SignalSection::default(),
            #[cfg(test)]
            trap: Default::default(),
        }
    }

    /// Takes a checked batch, from the cursor on: events after its `newest_allowed` are refused. Nothing is said before
    /// [`Self::advance`] but the first words, when the cursor is live. False when the budget is over first; the cursor is where to go on, with this shard untouched
    /// meanwhile.
    pub fn take(
        &mut self,
        batch: &EventBatchView<'_>,
        known: &mut KnownEntities,
        cursor: &mut Cursor,
        budget: &mut Budget<'_>,
    ) -> bool {
        if cursor.next == 0 && !self.begin(batch, known) {
            return true;
        }
        if cursor.next > 0 {
            self.entities.load(batch, known);
        }
        let Some(producer) = self.sequences.of(batch.header()) else { return true };
        let entities = &mut self.entities.batch;
        let before = (self.counters.late, self.counters.dropped.clone());
        let bounds = Bounds { oldest: self.step.minus(self.age_max_ns), newest: cursor.newest_allowed };
        let first = cursor.next;
        let mut shed: Option<(UnixNanos, UnixNanos)> = None;
        let mut is_done = true;
        for (place, view) in batch.iter().enumerate().skip(first) {
            // At each event: the work on it may panic, and who gives it up then counts it.
            self.counters.events += (place - cursor.next) as u64;
            cursor.next = place;
            if place > first && budget.is_over() {
                is_done = false;
                break;
            }
            #[cfg(test)]
            super::trap::taken(EventId(view.event.id.0.to_native()));
            if !context::is_acceptable(&view, bounds, &mut self.counters.dropped) {
                continue;
            }
            let at = view.timestamp();
            if !producer.rate.admits(at, &view.event.severity, self.rate_max) {
                self.counters.dropped.rate_limited += 1;
                self.requests.doubt((at, at));
                continue;
            }
            if cursor.pressure > Pressure::Calm && losses::sheds(&view, cursor.pressure) {
                self.counters.dropped.memory_pressure += 1;
                shed = Some(shed.map_or((at, at), |(from, to)| (at.min(from), at.max(to))));
                continue;
            }
            self.counters.late += u64::from(at <= self.step);
            let Some(entity) = entities.get_mut(view.entity_index()) else { continue };
            let step = grid_ceil(at);
            if entity.sighted != step {
                entity.sighted = step;
                self.topology.sight(step, &entity.known, &mut self.counters);
            }
            self.meters.take(&view, &entity.known, self.step, &mut self.counters);
            match triage(&view, &entity.known, &mut self.texts, &mut self.counters) {
                Triage::Keep(record) => {
                    if let (Some(now), Record::Event(event)) = (cursor.live, &record) {
                        self.first_words.hear(event, now, self.step, &self.episodes, &mut self.counters);
                    }
                    self.reorder.admit(at, EventId(view.event.id.0.to_native()), record);
                }
                Triage::Connection(data) => {
                    let peer = view.text(&data.peer);
                    self.topology.connection(step, &entity.known, data, peer, &mut self.counters);
                }
                Triage::Sighting => {}
            }
        }
        if is_done {
            self.counters.events += (batch.len() - cursor.next) as u64;
            cursor.next = batch.len();
        }
        let dropped = self.counters.dropped.since(&before.1);
        let (events, open) = (cursor.next - first, batch.len() - cursor.next);
        let late = self.counters.late - before.0;
        producer.account(batch.header(), events as u64, late, &dropped, open as u64);
        if let Some(times) = shed {
            self.requests.doubt(times);
            let (id, node) = (batch.header().producer, producer.node().clone());
            let gap = losses::unused(id, node, dropped.memory_pressure, times, MEMORY_PRESSURE);
            losses::note(&mut self.saying.gaps, gap);
        }
        is_done
    }

    /// Notes a batch. False for one that was read before.
    fn begin(&mut self, batch: &EventBatchView<'_>, known: &mut KnownEntities) -> bool {
        self.entities.load(batch, known);
        let newest = batch.iter().map(|e| e.timestamp()).max().unwrap_or_default();
        let node = self.entities.batch.first().map_or("", |e| e.known.entity.node.as_str());
        let (order, producer) = self.sequences.observe(batch.header(), newest, node, &mut self.counters);
        let is_new = order == Order::New;
        if !is_new {
            self.counters.duplicate_batches += 1;
            producer.account.duplicate_batches += 1;
        }
        is_new
    }

    /// The rest of a batch is not taken: a drop that is counted, and a gap, which is told with the next step. After panics
    /// the gap is given to the caller, to be counted and told by it: it may have been before this shard was read again.
    pub fn give_up(
        &mut self,
        batch: &EventBatchView<'_>,
        known: &mut KnownEntities,
        cursor: &Cursor,
        why: GivenUp,
    ) -> Option<Gap> {
        if cursor.next == 0 && !self.begin(batch, known) {
            return None;
        }
        let Waiting { count, from, to } = cursor.rest(batch)?;
        let producer = self.sequences.of(batch.header())?;
        let dropped = why.dropped(count);
        producer.account(batch.header(), count, 0, &dropped, 0);
        let (id, node) = (batch.header().producer, producer.node().clone());
        let gap = losses::unused(id, node, count, (from, to), why.as_str());
        self.requests.doubt((from, to));
        if why == GivenUp::Panicked {
            return Some(gap);
        }
        self.counters.events += count;
        self.counters.dropped.add(&dropped);
        losses::note(&mut self.saying.gaps, gap);
        None
    }

    /// What became of each producer's events.
    pub fn accounts(&self) -> impl Iterator<Item = AccountLine> + '_ {
        self.sequences.accounts()
    }

    /// Runs the steps up to the watermark; appends a section for each step that has something to say. Returns how far
    /// the shard is, on the grid.
    pub fn advance(&mut self, watermark: UnixNanos, out: &mut Vec<SignalSection>) -> ShardMark {
        self.advance_within(watermark, out, &mut Budget::unlimited()).mark
    }

    /// As [`Self::advance`], until the budget is over: the next call goes on amid the step, with this shard untouched
    /// meanwhile.
    pub fn advance_within(
        &mut self,
        watermark: UnixNanos,
        out: &mut Vec<SignalSection>,
        budget: &mut Budget<'_>,
    ) -> Advanced {
        let target = grid_floor(watermark);
        while let Some(step) = self.amid.or_else(|| self.next_step(target)) {
            let mut said = std::mem::take(&mut self.saying);
            let is_run = self.run(step, &mut said, budget);
            if !is_run || said.is_heartbeat() {
                self.saying = said;
            } else {
                said.marks.push(self.mark());
                out.push(said);
            }
            if !is_run || budget.is_over_after_step() {
                return Advanced { mark: self.mark(), is_done: false };
            }
        }
        if self.reorder.is_over() {
            let mut early = std::mem::take(&mut self.saying);
            self.release_early(&mut early);
            self.saying = early;
        }
        self.step = self.step.max(target);
        self.groups.expire(self.step);
        Advanced { mark: self.mark(), is_done: true }
    }

    fn mark(&self) -> ShardMark {
        ShardMark { shard: self.id, epoch: self.epoch, at: self.step }
    }

    /// Oldest event time that is needed to come to the same conclusions again.
    pub fn low_water(&self) -> UnixNanos {
        let warm = Some(self.step.minus(WARM_NS + self.requests.grace.late_ns()));
        let waiting =
            self.amid.into_iter().chain(self.reorder.oldest()).min().map(|step| step.minus(TICK_NS));
        [waiting, self.episodes.earliest_onset(), self.series.needs_from(), warm]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_default()
    }

    /// Its number.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The event that is being judged: after a panic, the one it was over.
    pub fn judged(&self) -> Option<(UnixNanos, EventId)> {
        self.reorder.last().filter(|_| self.judging)
    }

    /// The step that is being run, or the last that was.
    pub fn step(&self) -> UnixNanos {
        self.amid.unwrap_or(self.step)
    }

    /// Events that wait for their step.
    pub fn waiting(&self) -> Option<Waiting> {
        self.reorder.waiting()
    }

    /// Open things, by kind.
    pub fn open(&self) -> [(&'static str, usize); 5] {
        [
            ("groups", self.groups.count()),
            ("episodes", self.episodes.count()),
            ("series", self.series.count()),
            ("spans", self.requests.count()),
            ("texts", self.texts.count()),
        ]
    }

    /// Next step with anything in it; steps without are passed over, so that an idle hour costs nothing.
    fn next_step(&self, target: UnixNanos) -> Option<UnixNanos> {
        let early = (!self.saying.is_heartbeat()).then_some(self.step);
        let due = [
            early,
            self.reorder.oldest(),
            self.episodes.due(),
            self.calls.due(),
            self.requests.due(),
            self.meters.due(),
            self.topology.due(),
            self.sequences.due(),
        ];
        let step = grid_ceil(due.into_iter().flatten().min()?).max(self.step.plus(TICK_NS));
        (step <= target).then_some(step)
    }

    /// False when the budget is over first: the step goes on later.
    fn run(&mut self, step: UnixNanos, out: &mut SignalSection, budget: &mut Budget<'_>) -> bool {
        self.amid = Some(step);
        while let Some(record) = self.reorder.pop_until(step) {
            self.judge(step, record, out);
            if budget.is_over() {
                return false;
            }
        }
        #[cfg(test)]
        self.trap.told();
        self.counters.dropped.duplicate += std::mem::take(&mut self.reorder.duplicates);
        self.calls.tell(step, &mut out.tallies);
        self.requests.run(step, &mut self.counters);
        let gaps = out.gaps.len();
        self.sequences.tell(step, &mut out.gaps, &mut self.counters);
        for gap in &out.gaps[gaps..] {
            self.requests.doubt((gap.from, gap.to));
        }
        self.requests.tell(step, &self.texts, out, &mut self.counters);
        self.meters.tell(step, &mut out.meters);
        self.topology.tell(step, &mut out.facts);
        self.episodes.say(step, &mut out.signals, &mut self.counters);
        self.amid = None;
        self.step = step;
        true
    }

    /// The buffer is full: the oldest are judged before their time, and counted. Their order among themselves stays.
    fn release_early(&mut self, out: &mut SignalSection) {
        while self.reorder.is_over() {
            let Some(record) = self.reorder.pop_until(UnixNanos::MAX) else { return };
            self.counters.evicted.reorder += 1;
            self.judge(self.step.plus(TICK_NS), record, out);
        }
    }

    fn judge(&mut self, step: UnixNanos, record: Record, out: &mut SignalSection) {
        self.judging = true;
        match record {
            Record::Sample(sample) => {
                self.series.take(&sample, &mut self.found, &mut self.counters);
                for found in std::mem::take(&mut self.found) {
                    match found {
                        Finding::Seen(seen) => self.observe(step, *seen),
                        Finding::Over(key) => self.episodes.end(step, key),
                    }
                }
            }
            Record::Span(span) if self.repeats.is_again(span.at, span.id, &mut self.counters) => {
                self.counters.dropped.duplicate += 1;
            }
            Record::Span(span) => {
                self.requests.span(&span, &mut self.counters);
                let seen =
                    self.calls.take(step, &span, &mut self.topology, &mut out.facts, &mut self.counters);
                if let Some(seen) = seen {
                    self.observe(step, seen);
                }
            }
            Record::Line(line) => self.requests.line(&line, &mut self.counters),
            Record::Event(record) => self.event(step, &record, out),
        }
        self.judging = false;
    }

    fn event(&mut self, step: UnixNanos, record: &EventRecord, out: &mut SignalSection) {
        let event = &record.event;
        #[cfg(test)]
        self.trap.judged(event.id);
        match &event.payload {
            Payload::Kubernetes(data) => self.topology.object(step, event, data, &mut out.facts),
            Payload::Custom(data) => {
                if let Some(gap) = losses::told(event, data) {
                    self.counters.gap_events = self.counters.gap_events.saturating_add(gap.lost);
                    out.gaps.push(gap);
                }
            }
            _ => {}
        }
        if event.kind == EventKind::Log {
            let of = Known::new(Arc::clone(&event.entity));
            if let Some(line) = line_of(event, &of, &mut self.texts, &mut self.counters) {
                self.requests.line(&line, &mut self.counters);
            }
        }
        if event.kind == EventKind::OomKill {
            self.series.kill_told(owner_of(&event.entity), event.timestamp, &mut self.counters);
        }
        endings::settle(step, event, &mut self.episodes, &mut self.counters);
        let Some(mut seen) = news::judge(record, &mut self.exits, &mut self.counters) else { return };
        // A line without news is a step of its span however often it comes, and takes no place of one that is counted.
        if event.kind == EventKind::Log
            && self.repeats.is_again(event.timestamp, event.id, &mut self.counters)
        {
            self.counters.dropped.duplicate += 1;
            return;
        }
        let (key, needed) = (seen.episode(), needed(seen.kind));
        seen.count = self.bursts.admit(key, event.timestamp, needed, self.episodes.is_open(key));
        if seen.count > 0 {
            self.observe(step, seen);
        }
    }

    fn observe(&mut self, step: UnixNanos, seen: Observation) {
        self.episodes.observe(step, seen, &mut self.groups, &mut self.counters);
    }
}

fn owner_of(entity: &Arc<EntityRef>) -> u128 {
    owner_identity(entity)
}
