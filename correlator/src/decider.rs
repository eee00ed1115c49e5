//! Stage two without threads and bus: from encoded sections to the findings to publish, and where a restart goes on.

use std::sync::Arc;

use tapio_schemas::learning::PriorHistory;
use tapio_schemas::wire::WireError;
use tapio_schemas::{Entity, Finding, UnixNanos};

use crate::checkpoint::{Fresh, Kept, Memory, Standing};
use crate::config::{CorrelatorConfig, nanos};
use crate::engine::{Place, StageTwo, StageTwoCounters};
use crate::ledger::{Ledger, LedgerCounters};
use crate::low_water::{LowWater, Marks};
use crate::model::Model;
use crate::own_patterns::Patterns;
use crate::shards::grid_floor;
use crate::slo::Snapshot;

/// Holes that are told with the freshness.
const GAPS_TOLD_MAX: usize = 16;

/// What the metrics are told of.
#[derive(Debug, Default, Clone, Copy)]
pub struct DeciderCounters {
    /// Dropped on the way.
    pub stage_two: StageTwoCounters,
    /// Revisions.
    pub ledger: LedgerCounters,
}

/// The whole state of one cluster.
pub struct Decider {
    stage_two: StageTwo,
    ledger: Ledger,
    marks: Marks<Place>,
    topology_ns: u64,
    /// What is to be said of the user's own patterns.
    about_patterns: Vec<String>,
}

impl Decider {
    /// Goes on from what was published (the ledger) and what was kept. `goes_on`: the sections that come begin at the
    /// kept mark; otherwise all of them are heard.
    pub fn new(
        config: &CorrelatorConfig,
        model: Arc<Model>,
        ledger: Ledger,
        kept: Kept,
        goes_on: bool,
    ) -> Self {
        let mut stage_two = StageTwo::new(config, model);
        if let Some(budgets) = kept.budgets.filter(|_| goes_on) {
            stage_two.budgets().restore(budgets);
        }
        if let Some(standing) = kept.standing.filter(|_| goes_on) {
            stage_two.resume(&Place { heard: standing.heard, told: standing.told });
        }
        stage_two.remember(kept.changes, kept.machines);
        let topology_ns = nanos(config.signals.topology_refresh);
        Self { stage_two, ledger, marks: Marks::default(), topology_ns, about_patterns: Vec::new() }
    }

    /// Takes the section with a stream sequence; returns what is to be published.
    ///
    /// # Errors
    /// When the bytes are no section.
    pub fn apply(&mut self, sequence: u64, bytes: &[u8]) -> Result<Vec<Finding>, WireError> {
        let applied = self.stage_two.apply_bytes(bytes);
        let mut out: Vec<Finding> = Vec::new();
        let applied = applied.map(|made| out.extend(made.into_iter().filter_map(|f| self.ledger.take(f))));
        if applied.is_ok() {
            let incidents = self.stage_two.incidents();
            let now = grid_floor(self.stage_two.watermark());
            out.extend(self.ledger.settle(now, |id| incidents.stands_for(id)));
        }
        if !self.stage_two.is_amid() {
            self.marks.record_with(sequence, self.stage_two.newest(), || self.stage_two.place());
        }
        applied.map(|()| out)
    }

    /// Where a restart goes on, once everything that was returned so far is published, and how the error budgets stood
    /// there; `None` when no place is known that is late enough.
    pub fn standing(&mut self) -> Option<(Standing, Option<Snapshot>)> {
        let watermark = self.stage_two.watermark();
        // Who owns what is told again once in a while; a restart must hear one telling of it.
        let topology = watermark.minus(self.topology_ns + self.topology_ns / 10);
        let mut from = self.stage_two.low_water().min(topology);
        let mut budgets = None;
        if !self.stage_two.budgets().is_empty() {
            let snapshot = self.stage_two.budgets().stood(from)?.clone();
            from = snapshot.counted;
            budgets = Some(snapshot);
        }
        let (sequence, place) = self.marks.place_for(from)?;
        let (mark, Place { heard, told }) =
            (LowWater { sequence, from, ..LowWater::default() }, place.clone());
        let budgets_at = budgets.as_ref().map_or(UnixNanos(0), |snapshot| snapshot.counted);
        Some((Standing { mark, decided: grid_floor(watermark), budgets: budgets_at, heard, told }, budgets))
    }

    /// What outlives the reading again.
    pub fn memory(&self) -> Memory {
        let (changes, machines) = self.stage_two.incidents().memory();
        Memory { changes, machines }
    }

    /// Grows when [`Self::memory`] has changed.
    pub fn memory_version(&self) -> u64 {
        self.stage_two.incidents().memory_version()
    }

    /// Takes what outcomes say of the causes.
    pub fn set_priors(&mut self, priors: Arc<PriorHistory>) {
        self.stage_two.set_priors(priors);
    }

    /// Decides with these patterns from the next tick on.
    pub fn set_patterns(&mut self, patterns: &Patterns) {
        self.stage_two.set_model(Arc::clone(&patterns.model));
        self.about_patterns = patterns.gaps().collect();
    }

    /// How fresh the verdicts are.
    pub fn fresh(&self) -> Fresh {
        let mut gaps = self.about_patterns.clone();
        gaps.extend(self.stage_two.incidents().gaps_in_words(GAPS_TOLD_MAX));
        Fresh { watermark: self.watermark(), gaps }
    }

    /// Whether anything was heard of what `query` names.
    pub fn has_heard_of(&self, query: &Entity) -> bool {
        self.stage_two.incidents().has_heard_of(query)
    }

    /// Event time that all shards have passed.
    pub fn watermark(&self) -> UnixNanos {
        self.stage_two.watermark()
    }

    /// What was dropped and settled so far.
    pub fn counters(&self) -> DeciderCounters {
        DeciderCounters { stage_two: self.stage_two.counters(), ledger: self.ledger.counters() }
    }
}
