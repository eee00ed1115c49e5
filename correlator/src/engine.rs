//! Both stages in one process without NATS, for replay and tests. The very same code as live, and what stage one
//! says to stage two passes through its wire encoding.

use std::sync::Arc;

use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{SignalBatchView, SignalSection, WireError, encode_signals};
use tapio_schemas::{Finding, ProducerId, UnixNanos};

use crate::config::{CorrelatorConfig, nanos};
use crate::incidents::IncidentEngine;
use crate::model::Model;
use crate::shards::{BatchError, Counters, ShardSet, TICK_NS, Watermark};
use crate::unite::Uniter;

/// Event time that passes after the end of the input, so that open deviations and incidents close.
const HORIZON_NS: u64 = 15 * 60 * 1_000_000_000;

/// Stage two without its transport: unites the parts, then decides.
pub struct StageTwo {
    uniter: Uniter,
    incidents: IncidentEngine,
    /// The run of stage one that is heard.
    producer: Option<ProducerId>,
    /// Counts up to here were told by an earlier run; a later one reads the same events again.
    counted: UnixNanos,
}

impl StageTwo {
    /// An empty stage two.
    pub fn new(config: &CorrelatorConfig, model: Arc<Model>) -> Self {
        Self {
            uniter: Uniter::default(),
            incidents: IncidentEngine::new(config.incidents.clone(), model),
            producer: None,
            counted: UnixNanos(0),
        }
    }

    /// Takes a section; returns the findings that follow.
    pub fn apply(&mut self, section: SignalSection) -> Vec<Finding> {
        self.incidents.apply(self.uniter.apply(section));
        self.incidents.advance()
    }

    /// Takes an encoded section, checked.
    pub fn apply_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Finding>, WireError> {
        let mut aligned = crate::aligned::Aligned::default();
        let batch = SignalBatchView::check(aligned.of(bytes))?;
        let mut section = batch.to_section();
        self.leave_out_repeated(batch.header().producer, &mut section);
        Ok(self.apply(section))
    }

    /// Signals and facts may be heard twice; counts may not. A new run of stage one begins with events whose counts the
    /// run before has told.
    fn leave_out_repeated(&mut self, producer: ProducerId, section: &mut SignalSection) {
        if self.producer != Some(producer) {
            if self.producer.is_some() {
                self.counted = self.uniter.watermark();
            }
            self.producer = Some(producer);
        }
        let counted = self.counted;
        section.tallies.retain(|tally| tally.window_start.plus(tally.window_ns) > counted);
        section.gaps.retain(|gap| gap.to > counted);
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
        Self {
            shards: ShardSet::new(cluster, 0..SHARD_COUNT, &config),
            stage_two: StageTwo::new(&config, model),
            watermark: Watermark::new(nanos(config.lateness)),
            newest: UnixNanos(0),
            advanced: UnixNanos(0),
            sequence: 0,
            findings: Vec::new(),
            settle_ns: nanos(config.lateness) + nanos(config.incidents.settle) + 2 * TICK_NS,
        }
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
                    self.findings.extend(self.stage_two.apply(section));
                }
            }
        }
    }
}
