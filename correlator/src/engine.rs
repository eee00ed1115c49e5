//! Both stages in one process without NATS, for replay and tests. The very same code as live, and what stage one
//! says to stage two passes through its wire encoding.

use std::sync::Arc;

use tapio_schemas::learning::PriorHistory;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{ShardMark, SignalBatchView, SignalSection, WireError, encode_signals};
use tapio_schemas::{Entity, Finding, ProducerId, Signal, UnixNanos};

use crate::baseline::Baseline;
use crate::config::{CorrelatorConfig, nanos};
use crate::fence::{FenceCounters, Fences, Heard};
use crate::incidents::{IncidentCounters, IncidentEngine};
use crate::model::Model;
use crate::order::{Order, OrderCounters, Told};
use crate::services::STEP_NS;
use crate::shards::{BatchError, Counters, ShardSet, TICK_NS, Watermark};
use crate::slo::Budgets;
use crate::unite::Uniter;

/// Event time that passes after the end of the input, so that open deviations and incidents close.
const HORIZON_NS: u64 = 15 * 60 * 1_000_000_000;

/// Stage two without its transport: unites the parts, then decides.
pub struct StageTwo {
    order: Order,
    fences: Fences,
    uniter: Uniter,
    incidents: IncidentEngine,
    /// What decides in the place of the incidents, when a comparison is asked for.
    baseline: Option<Baseline>,
}

/// How far everyone was heard, as kept for a restart.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Each shard.
    pub heard: Vec<Heard>,
    /// Each worker.
    pub told: Vec<Told>,
}

/// What stage two refused or forgot so far, by where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTwoCounters {
    /// On the way to the door.
    pub order: OrderCounters,
    /// At the door.
    pub fences: FenceCounters,
    /// Deviations closed because too many were united.
    pub united_evicted: u64,
    /// Counts of edges for which there was no room before they were added up.
    pub tallies_refused: u64,
    /// In the service model.
    pub services: [(&'static str, u64); 7],
    /// In the incidents.
    pub incidents: IncidentCounters,
}

impl StageTwoCounters {
    /// Every count with its name.
    pub fn by_reason(&self) -> [(&'static str, u64); 25] {
        let (order, fences, incidents) = (&self.order, &self.fences, &self.incidents);
        let [refused, unlearnt, evicted, flows, doubtful, unfollowed, unseasoned] = self.services;
        [
            refused,
            unlearnt,
            evicted,
            flows,
            doubtful,
            unfollowed,
            unseasoned,
            ("overtook", order.overtook),
            ("abandoned", order.abandoned),
            ("repeated_message", order.repeated),
            ("fenced", fences.fenced),
            ("repeated", fences.repeated),
            ("behind", fences.behind),
            ("unfinished_step", fences.unfinished),
            ("early_step", fences.early),
            ("united_evicted", self.united_evicted),
            ("signals_evicted", incidents.signals_evicted),
            ("pending_early", incidents.pending_early),
            ("late", incidents.late),
            ("edges_refused", incidents.edges_refused),
            ("tallies_refused", incidents.tallies_refused + self.tallies_refused),
            ("incidents_evicted", incidents.incidents_evicted),
            ("budgets_refused", incidents.budgets_refused),
            ("budgets_unkept", incidents.budgets_unkept),
            ("burns_refused", incidents.burns_refused),
        ]
    }
}

impl StageTwo {
    /// An empty stage two.
    pub fn new(config: &CorrelatorConfig, model: Arc<Model>) -> Self {
        Self {
            order: Order::default(),
            fences: Fences::default(),
            uniter: Uniter::new(&config.cluster),
            incidents: IncidentEngine::new(config.incidents.clone(), model)
                .with_budgets(&config.cluster, config.slo.clone()),
            baseline: Baseline::new(config.method),
        }
    }

    /// Takes a numbered section of a worker of stage one; returns the findings that follow.
    pub fn apply(&mut self, producer: ProducerId, number: u64, section: SignalSection) -> Vec<Finding> {
        let mut findings = Vec::new();
        for section in self.order.take(producer, number, section) {
            let section = self.fences.admit(producer, section);
            if section.marks.is_empty() && section.is_heartbeat() {
                continue;
            }
            findings.extend(self.decide(section));
        }
        if self.order.is_amid_a_hole() {
            let heard = self.fences.heard();
            let epoch = |shard: u16| heard.get(usize::from(shard)).map_or(0, |heard| heard.epoch);
            self.order.abandon(|mark| mark.epoch >= epoch(mark.shard));
        }
        findings
    }

    fn decide(&mut self, section: SignalSection) -> Vec<Finding> {
        let Some(baseline) = &mut self.baseline else {
            let united = self.uniter.apply(section);
            self.incidents.learn(self.uniter.take_states());
            self.incidents.apply(united);
            return self.incidents.advance();
        };
        baseline.observe(&section);
        baseline.apply(self.uniter.apply(section));
        // Which values are normal for a service is of no use to a method that compares on its own.
        drop(self.uniter.take_states());
        baseline.advance(self.uniter.watermark())
    }

    /// Takes an encoded section, checked.
    pub fn apply_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Finding>, WireError> {
        let mut aligned = crate::aligned::Aligned::default();
        let batch = SignalBatchView::check(aligned.of(bytes))?;
        let header = batch.header();
        let (producer, number) = (header.producer, header.first_sequence);
        Ok(self.apply(producer, number, batch.to_section()))
    }

    /// Goes on where an earlier process was, before the first section that comes now.
    pub fn resume(&mut self, place: &Place) {
        self.order.restore(&place.told);
        self.fences.restore(&place.heard);
        let marks = place.heard.iter().zip(0..);
        let marks = marks.map(|(heard, shard)| ShardMark { shard, epoch: heard.epoch, at: heard.at });
        let section = SignalSection { marks: marks.collect(), ..SignalSection::default() };
        self.incidents.apply(self.uniter.apply(section));
    }

    /// True amid a step or a hole, where no restart can begin.
    pub fn is_amid(&self) -> bool {
        self.fences.is_amid_a_step() || self.order.is_amid_a_hole()
    }

    /// How far everyone was heard.
    pub fn place(&self) -> Place {
        Place { heard: self.fences.heard().to_vec(), told: self.order.told() }
    }

    /// What a restart needs beside the signals it reads again.
    pub fn incidents(&self) -> &IncidentEngine {
        &self.incidents
    }

    /// Error budgets: what a restart goes on with.
    pub fn budgets(&mut self) -> &mut Budgets {
        self.incidents.budgets()
    }

    /// Takes what an earlier process remembered, before anything else.
    pub fn remember(&mut self, changes: Vec<Signal>, machines: Vec<Entity>) {
        self.incidents.remember(changes, machines);
    }

    /// Takes what outcomes say of the causes.
    pub fn set_priors(&mut self, priors: Arc<PriorHistory>) {
        self.incidents.set_priors(priors);
    }

    /// Decides with this model from the next tick on.
    pub fn set_model(&mut self, model: Arc<Model>) {
        self.incidents.set_model(model);
    }

    /// What was refused or forgotten so far.
    pub fn counters(&self) -> StageTwoCounters {
        StageTwoCounters {
            order: self.order.counters(),
            fences: self.fences.counters(),
            united_evicted: self.uniter.evicted,
            tallies_refused: self.uniter.tallies_refused(),
            services: self.uniter.losses(),
            incidents: self.incidents.counters(),
        }
    }

    /// The input has ended: decides what is open, as of `at`.
    pub fn finish(&mut self, at: UnixNanos) -> Vec<Finding> {
        self.incidents.finish(at)
    }

    /// Oldest event time that is still needed.
    pub fn low_water(&self) -> UnixNanos {
        self.incidents.low_water().min(self.uniter.low_water())
    }

    /// Newest event time that any section was about.
    pub fn newest(&self) -> UnixNanos {
        self.uniter.newest()
    }

    /// Event time that all shards have passed.
    pub fn watermark(&self) -> UnixNanos {
        self.uniter.watermark()
    }
}

/// The whole correlator of one cluster, driven by its input alone.
pub struct Engine {
    shards: ShardSet,
    stage_two: StageTwo,
    watermark: Watermark,
    newest: UnixNanos,
    advanced: UnixNanos,
    sequence: u64,
    findings: Vec<Finding>,
    settle_ns: u64,
}

impl Engine {
    /// An empty correlator for `cluster`.
    pub fn new(cluster: &str, config: CorrelatorConfig, model: Arc<Model>) -> Self {
        let config = CorrelatorConfig { cluster: cluster.to_owned(), ..config };
        Self {
            shards: ShardSet::new(cluster, 0..SHARD_COUNT, &config),
            stage_two: StageTwo::new(&config, model),
            watermark: Watermark::new(nanos(config.lateness)),
            newest: UnixNanos(0),
            advanced: UnixNanos(0),
            sequence: 0,
            findings: Vec::new(),
            // The last window of the service model is judged, too.
            settle_ns: nanos(config.lateness) + nanos(config.incidents.settle) + 2 * TICK_NS + STEP_NS,
        }
    }

    /// Decides with what outcomes say of the causes; without it as the model has them.
    pub fn set_priors(&mut self, priors: Arc<PriorHistory>) {
        self.stage_two.set_priors(priors);
    }

    /// Takes one encoded batch of events; its newest event moves the watermark.
    pub fn push_batch(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        let taken = self.shards.take(bytes, None, UnixNanos::MAX)?;
        self.newest = self.newest.max(taken.newest);
        self.watermark.observe(taken.newest);
        self.step();
        Ok(())
    }

    /// It is `at` in event time, whether or not there were events: moves the watermark and returns new findings.
    pub fn advance_to(&mut self, at: UnixNanos) -> Vec<Finding> {
        self.newest = self.newest.max(at);
        self.watermark.observe(at);
        self.step();
        self.drain()
    }

    /// The input has ended: everything open is closed, and the last findings are returned.
    pub fn finish(&mut self) -> Vec<Finding> {
        let end = self.newest.plus(HORIZON_NS);
        if self.newest.0 > 0 {
            self.watermark.observe(end);
            self.step();
            self.findings.extend(self.stage_two.finish(self.watermark.at()));
        }
        self.drain()
    }

    /// The recording has ended: what it shows is decided as it stood then. Nothing recovers because a recording ends.
    pub fn settle(&mut self) -> Vec<Finding> {
        if self.newest.0 > 0 {
            self.watermark.observe(self.newest.plus(self.settle_ns));
            self.step();
        }
        self.drain()
    }

    /// Findings since they were last taken.
    pub fn drain(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Counts of stage one since they were last taken.
    pub fn take_counters(&mut self) -> Vec<Counters> {
        self.shards.take_counters().collect()
    }

    fn step(&mut self) {
        if self.watermark.at().since(self.advanced) < TICK_NS {
            return;
        }
        self.advanced = crate::shards::grid_floor(self.watermark.at());
        for section in self.shards.advance(self.watermark.at()) {
            self.sequence += 1;
            let heard = encode_signals(ProducerId(1), 0, self.sequence, &section)
                .and_then(|bytes| self.stage_two.apply_bytes(&bytes));
            match heard {
                Ok(findings) => self.findings.extend(findings),
                // Too large for one message: in process nothing is lost by going without the encoding.
                Err(error) => {
                    tracing::warn!(%error, "a section of signals does not fit one message");
                    self.findings.extend(self.stage_two.apply(ProducerId(1), self.sequence, section));
                }
            }
        }
    }
}
