//! The state of one shard, and the steps in which it moves through event time.

use std::sync::Arc;

use tapio_schemas::payload::Payload;
use tapio_schemas::wire::{EventBatchView, ShardMark, SignalSection};
use tapio_schemas::{EntityRef, EventId, EventKind, UnifiedEvent, UnixNanos};

use super::bursts::{Bursts, needed};
use super::calls::Calls;
use super::context::{self, Bounds};
use super::counters::Counters;
use super::endings;
use super::entities::Entities;
use super::episode::{Episodes, Observation};
use super::exits::Exits;
use super::groups::Groups;
use super::losses;
use super::news;
use super::record::{Record, Triage, owner_identity, triage};
use super::reorder::Reorder;
use super::sequences::{AccountLine, Order, Sequences};
use super::series::{Finding, SeriesStore};
use super::topology::Topology;
use super::watermark::{TICK_NS, grid_ceil, grid_floor};
use crate::config::{CorrelatorConfig, nanos};

/// Event time that is read again in any case: server spans whose client has not ended, victims that have not exited,
/// samples of which two in a row make news.
const WARM_NS: u64 = 10_000_000_000;

/// One of the 64 shards.
pub struct Shard {
    id: u16,
    epoch: u64,
    age_max_ns: u64,
    rate_max: u32,
    /// Last step that was run: everything up to it has been said.
    step: UnixNanos,
    entities: Entities,
    reorder: Reorder,
    sequences: Sequences,
    episodes: Episodes,
    series: SeriesStore,
    calls: Calls,
    exits: Exits,
    bursts: Bursts,
    groups: Groups,
    topology: Topology,
    /// Counts since they were last taken.
    pub counters: Counters,
    found: Vec<Finding>,
    /// What the step under way says; what was released early waits here for the next one.
    saying: SignalSection,
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
            entities: Entities::new(config.signals.entities_max),
            reorder: Reorder::new(config.reorder_events_max),
            sequences: Sequences::new(config.producers_max),
            episodes: Episodes::new(cluster, config.signals.clone()),
            series: SeriesStore::new(config.series.clone()),
            calls: Calls::new(&config.signals),
            exits: Exits::default(),
            bursts: Bursts::default(),
            groups: Groups::new(config.groups.clone()),
            topology: Topology::new(&config.signals),
            counters: Counters::default(),
            found: Vec::new(),
            saying: SignalSection::default(),
        }
    }

    /// Takes a checked batch. Events after `newest_allowed` are refused. Nothing is said before [`Self::advance`].
    pub fn take(&mut self, batch: &EventBatchView<'_>, newest_allowed: UnixNanos) {
        self.entities.load(batch);
        let entities = &mut self.entities.batch;
        let newest = batch.iter().map(|e| e.timestamp()).max().unwrap_or_default();
        let node = entities.first().map_or("", |e| e.known.entity.node.as_str());
        let (order, producer) = self.sequences.observe(batch.header(), newest, node, &mut self.counters);
        if order == Order::Duplicate {
            self.counters.duplicate_batches += 1;
            producer.account.duplicate_batches += 1;
            return;
        }
        let before = (self.counters.events, self.counters.late, self.counters.dropped.clone());
        let bounds = Bounds { oldest: self.step.minus(self.age_max_ns), newest: newest_allowed };
        for view in batch.iter() {
            self.counters.events += 1;
            if !context::is_acceptable(&view, bounds, &mut self.counters.dropped) {
                continue;
            }
            let at = view.timestamp();
            if !producer.rate.admits(at, &view.event.severity, self.rate_max) {
                self.counters.dropped.rate_limited += 1;
                continue;
            }
            self.counters.late += u64::from(at <= self.step);
            let Some(entity) = entities.get_mut(view.entity_index()) else { continue };
            let step = grid_ceil(at);
            if entity.sighted != step {
                entity.sighted = step;
                self.topology.sight(step, &entity.known);
            }
            match triage(&view, &entity.known) {
                Triage::Keep(record) => {
                    self.reorder.admit(at, EventId(view.event.id.0.to_native()), record);
                }
                Triage::Connection(data) => {
                    self.topology.connection(step, &entity.known, data, view.text(&data.peer));
                }
                Triage::Sighting => {}
            }
        }
        if producer.accounts_for(batch.header()) {
            let dropped = self.counters.dropped.since(&before.2);
            producer.account.processed += self.counters.events - before.0 - dropped.total();
            producer.account.late += self.counters.late - before.1;
            producer.account.dropped.add(&dropped);
        }
    }

    /// What became of each producer's events.
    pub fn accounts(&self) -> impl Iterator<Item = AccountLine> + '_ {
        self.sequences.accounts()
    }

    /// Runs the steps up to the watermark; appends a section for each step that has something to say. Returns how far
    /// the shard is, on the grid.
    pub fn advance(&mut self, watermark: UnixNanos, out: &mut Vec<SignalSection>) -> ShardMark {
        let target = grid_floor(watermark);
        while let Some(step) = self.next_step(target) {
            let mut said = std::mem::take(&mut self.saying);
            self.run(step, &mut said);
            if said.is_heartbeat() {
                self.saying = said;
            } else {
                said.marks.push(self.mark());
                out.push(said);
            }
        }
        if self.reorder.is_over() {
            let mut early = std::mem::take(&mut self.saying);
            self.release_early(&mut early);
            self.saying = early;
        }
        self.step = self.step.max(target);
        self.groups.expire(self.step);
        self.mark()
    }

    fn mark(&self) -> ShardMark {
        ShardMark { shard: self.id, epoch: self.epoch, at: self.step }
    }

    /// Oldest event time that is needed to come to the same conclusions again.
    pub fn low_water(&self) -> UnixNanos {
        let warm = Some(self.step.minus(WARM_NS));
        let waiting = self.reorder.oldest().map(|step| step.minus(TICK_NS));
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

    /// Open things, by kind: groups, episodes, series.
    pub fn open(&self) -> [(&'static str, usize); 3] {
        [
            ("groups", self.groups.count()),
            ("episodes", self.episodes.count()),
            ("series", self.series.count()),
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
            self.topology.due(),
            self.sequences.due(),
        ];
        let step = grid_ceil(due.into_iter().flatten().min()?).max(self.step.plus(TICK_NS));
        (step <= target).then_some(step)
    }

    fn run(&mut self, step: UnixNanos, out: &mut SignalSection) {
        while let Some(record) = self.reorder.pop_until(step) {
            self.judge(step, record, out);
        }
        self.counters.dropped.duplicate += std::mem::take(&mut self.reorder.duplicates);
        self.calls.tell(step, &mut out.tallies);
        self.topology.tell(step, &mut out.facts);
        self.sequences.tell(step, &mut out.gaps, &mut self.counters);
        self.episodes.say(step, &mut out.signals, &mut self.counters);
        self.step = step;
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
            Record::Span(span) => {
                let seen =
                    self.calls.take(step, &span, &mut self.topology, &mut out.facts, &mut self.counters);
                if let Some(seen) = seen {
                    self.observe(step, seen);
                }
            }
            Record::Event(event) => self.event(step, &event, out),
        }
    }

    fn event(&mut self, step: UnixNanos, event: &UnifiedEvent, out: &mut SignalSection) {
        match &event.payload {
            Payload::Kubernetes(data) => self.topology.object(step, event, data, &mut out.facts),
            Payload::Custom(data) => {
                if let Some(gap) = losses::told(event, data) {
                    self.counters.gap_events += gap.lost;
                    out.gaps.push(gap);
                }
            }
            _ => {}
        }
        if event.kind == EventKind::OomKill {
            self.series.kill_told(owner_of(&event.entity), event.timestamp);
        }
        endings::settle(step, event, &mut self.episodes);
        let Some(mut seen) = news::judge(event, &mut self.exits, &mut self.counters) else { return };
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
