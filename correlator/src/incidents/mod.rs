//! Stage two: from signals to findings. One partition is one cluster.
//!
//! Pure and synchronous. Time comes only from the shards' watermarks: decisions are taken on a grid of event time once
//! every shard has said all it will say up to there, over the signals whose `last_seen` is not later, in the order of
//! (time, id). So findings, ids, revisions and `emitted_at` do not depend on the order in which sections arrive.

mod ahead;
mod around;
mod assign;
mod burning;
mod candidates;
mod cascade;
mod components;
mod config;
pub(crate) mod ending;
#[cfg(test)]
mod fading_tests;
mod finding;
mod foreseen;
mod graph;
mod impact;
mod incident;
mod inference;
#[cfg(test)]
mod inference_tests;
mod knowledge;
mod prediction;
#[cfg(test)]
mod properties;
mod said;
mod says;
mod signals;
mod story;
#[cfg(test)]
mod tests;
mod view;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tapio_schemas::entity::kinds;
use tapio_schemas::learning::PriorHistory;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Entity, Finding, FindingId, Gap, Signal, SignalKind, UnixNanos};

use ahead::Ahead;
use burning::{Burning, by_home};
use candidates::candidates;
use components::components;
pub use config::IncidentConfig;
use config::nanos;
use finding::{Material, RUN_UP_NS, in_words};
use graph::Graph;
use impact::Tallies;
use incident::Incident;
pub(crate) use signals::is_change;
use signals::{Known, Pending, Said, TICK_NS, Watermarks, tick_from};
use view::View;

use crate::calibration::Calibration;
use crate::model::Model;
use crate::services::ServiceState;
use crate::slo::{Budgets, SloConfig};

/// The graph and the tallies are swept this often.
const SWEEP_NS: u64 = 60_000_000_000;
/// Holes remembered.
const GAPS_MAX: usize = 256;
/// Why an incident without signals is dropped.
const SIGNALS_FORGOTTEN: &str = "its signals were forgotten because too many were known";
/// Why one of too many incidents is dropped.
const INCIDENTS_TOO_MANY: &str = "too many incidents were followed at the same time";
/// Machines remembered as sources of kernel events.
const KERNEL_NODES_MAX: usize = 4096;
/// Changes kept for a restart, newest first kept.
const CHANGES_KEPT_MAX: usize = 1024;
/// Closed incidents whose last revision is remembered, so that one that opens again counts on.
const CLOSED_MAX: usize = 4096;

/// What was refused or forgotten, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IncidentCounters {
    /// Signals forgotten because too many are known.
    pub signals_evicted: u64,
    /// Things said that were taken before their time because too many wait.
    pub pending_early: u64,
    /// Things said after their time.
    pub late: u64,
    /// Edges refused because the graph is full.
    pub edges_refused: u64,
    /// Tallies refused because too many edges are tallied.
    pub tallies_refused: u64,
    /// Tallies that no error budget knows of, because too many are followed.
    pub budgets_refused: u64,
    /// Services whose error budget had no room in a snapshot: after a restart it begins anew.
    pub budgets_unkept: u64,
    /// Times that a burning budget was not told of because too many are.
    pub burns_refused: u64,
    /// Incidents forgotten because too many are followed.
    pub incidents_evicted: u64,
    /// Findings made.
    pub findings: u64,
}

/// Stage two of one cluster.
#[derive(Debug)]
pub struct IncidentEngine {
    config: IncidentConfig,
    model: Arc<Model>,
    /// What outcomes say of the causes, from which event time on.
    priors: Arc<PriorHistory>,
    watermarks: Watermarks,
    pending: Pending,
    known: Known,
    graph: Graph,
    /// State of services, as last told.
    states: BTreeMap<Entity, ServiceState>,
    tallies: Tallies,
    gaps: VecDeque<Gap>,
    kernel_nodes: BTreeSet<Entity>,
    incidents: Vec<Incident>,
    closed: VecDeque<(FindingId, u32)>,
    /// Last tick taken.
    tick: UnixNanos,
    swept: UnixNanos,
    counters: IncidentCounters,
    /// Error budgets.
    budgets: Budgets,
    /// Findings about budgets alone.
    burning: Burning,
    /// Grows with each change and each machine learnt.
    remembered: u64,
}

impl IncidentEngine {
    /// Knows nothing yet.
    pub fn new(config: IncidentConfig, model: Arc<Model>) -> Self {
        Self {
            graph: Graph::new(config.edges_max),
            tallies: Tallies::new(config.tallies_max),
            config,
            model,
            priors: Arc::default(),
            watermarks: Watermarks::default(),
            pending: Pending::default(),
            known: Known::default(),
            states: BTreeMap::new(),
            gaps: VecDeque::new(),
            kernel_nodes: BTreeSet::new(),
            incidents: Vec::new(),
            closed: VecDeque::new(),
            tick: UnixNanos(0),
            swept: UnixNanos(0),
            counters: IncidentCounters::default(),
            budgets: Budgets::default(),
            burning: Burning::default(),
            remembered: 0,
        }
    }

    /// Follows the error budgets of this cluster by these objectives.
    #[must_use]
    pub fn with_budgets(mut self, cluster: &str, config: SloConfig) -> Self {
        (self.budgets, self.burning) = (Budgets::new(config), Burning::new(cluster));
        self
    }

    /// Takes what stage one says. Nothing is decided before [`Self::advance`].
    pub fn apply(&mut self, section: SignalSection) {
        for mark in section.marks.iter().filter(|_| !section.partial) {
            self.watermarks.raise(mark.shard, mark.at);
        }
        let late = section.signals.iter().filter(|s| s.last_seen <= self.tick && self.tick.0 > 0);
        self.counters.late += late.count() as u64;
        self.pending.extend(section);
        while self.pending.len() > self.config.pending_max {
            self.counters.pending_early += 1;
            if let Some(said) = self.pending.take_oldest() {
                self.take(said);
            }
        }
    }

    /// Takes what has changed about services. Nothing is decided before [`Self::advance`].
    pub fn learn(&mut self, states: Vec<ServiceState>) {
        self.pending.extend_states(states);
    }

    /// Takes every tick that all shards have passed; returns the revisions made, in order.
    pub fn advance(&mut self) -> Vec<Finding> {
        let complete = self.watermarks.complete();
        let mut findings = Vec::new();
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= complete) {
            self.tick = tick;
            while let Some(said) = self.pending.take_until(tick) {
                self.take(said);
            }
            self.counters.signals_evicted += self.known.shrink(self.config.signals_max);
            self.sweep();
            findings.extend(self.decide());
        }
        self.counters.findings += findings.len() as u64;
        findings
    }

    /// Oldest event time that is still needed: a restart must read again from there. What outlives it is in
    /// [`Self::memory`].
    pub fn low_water(&self) -> UnixNanos {
        let held = self.incidents.iter().map(|i| i.onset.minus(RUN_UP_NS));
        // With nothing held, all that was said is decided.
        held.chain(self.burning.needs_from())
            .chain(self.pending.oldest())
            .min()
            .unwrap_or(self.watermarks.complete())
    }

    /// What is needed for longer than the signals are read again after a restart: the changes that may be the
    /// reason of what comes, and the machines that tell kernel events.
    pub fn memory(&self) -> (Vec<Signal>, Vec<Entity>) {
        (self.known.changes(CHANGES_KEPT_MAX), self.kernel_nodes.iter().cloned().collect())
    }

    /// Grows when [`Self::memory`] has changed.
    pub fn memory_version(&self) -> u64 {
        self.remembered
    }

    /// Error budgets.
    pub fn budgets(&mut self) -> &mut Budgets {
        &mut self.budgets
    }

    /// Takes what an earlier process remembered, before anything else.
    pub fn remember(&mut self, changes: Vec<Signal>, machines: Vec<Entity>) {
        changes.into_iter().filter(|s| is_change(s.kind)).for_each(|change| self.take_signal(change));
        self.kernel_nodes.extend(machines.into_iter().take(KERNEL_NODES_MAX));
    }

    /// Decides with this model from the next tick on.
    pub fn set_model(&mut self, model: Arc<Model>) {
        self.model = model;
    }

    /// Takes what outcomes say of the causes. Each tick is decided with the version of its time, whenever it comes.
    pub fn set_priors(&mut self, priors: Arc<PriorHistory>) {
        self.priors = priors;
    }

    /// True while an incident with this finding is followed.
    pub fn stands_for(&self, id: FindingId) -> bool {
        self.incidents.iter().any(|i| i.id == id) || self.burning.stands_for(id)
    }

    /// The newest holes, in words.
    pub fn gaps_in_words(&self, count_max: usize) -> Vec<String> {
        self.gaps.iter().rev().take(count_max).map(in_words).collect()
    }

    /// No more input: decides everything up to `at`.
    pub fn finish(&mut self, at: UnixNanos) -> Vec<Finding> {
        self.watermarks.raise_all(at);
        self.advance()
    }

    /// What was refused or forgotten so far.
    pub fn counters(&self) -> IncidentCounters {
        IncidentCounters {
            edges_refused: self.graph.refused(),
            tallies_refused: self.tallies.refused(),
            budgets_refused: self.budgets.refused(),
            budgets_unkept: self.budgets.unkept(),
            burns_refused: self.burning.refused(),
            ..self.counters
        }
    }

    /// Event time up to which decisions have been taken.
    pub fn watermark(&self) -> UnixNanos {
        self.watermarks.complete()
    }

    /// Incidents that are followed at present.
    pub fn open_incidents(&self) -> usize {
        self.incidents.len()
    }

    /// Next tick at which something can change. What is no signal waits for a moment of looking: a new owner of a shard
    /// tells edges again, and that must not move the moments of decision.
    fn next_tick(&self) -> Option<UnixNanos> {
        let next = |at: UnixNanos| tick_from(at).max(self.tick.plus(TICK_NS));
        let look_from = |at: UnixNanos| look_from(at, nanos(self.config.look));
        let due = self.incidents.iter().map(|incident| {
            let settled = incident.opened_at.plus(nanos(self.config.settle));
            match incident.over_since {
                _ if self.tick < settled => settled,
                Some(over) => over.plus(nanos(self.config.reopen)),
                None => look_from(self.tick.plus(1)),
            }
        });
        let burning = (!self.burning.is_empty()).then(|| look_from(self.tick.plus(1)));
        let said = self.pending.oldest().map(look_from).into_iter().chain(self.pending.oldest_signal());
        due.chain(burning).chain(said).map(next).min()
    }

    fn take(&mut self, said: Said) {
        match said {
            Said::Signal(signal) => self.take_signal(*signal),
            Said::Fact(fact) => self.graph.apply(&fact),
            Said::State(state) => {
                self.states.insert(state.service.clone(), *state);
            }
            Said::Tally(tally) => {
                self.tallies.add(&tally);
                self.budgets.add(&tally);
            }
            Said::Gap(gap) => self.take_gap(*gap),
        }
    }

    /// A time in which nothing was seen is told again while it lasts: that is one hole, which grows. What was lost is told
    /// again by who reads its batch again: it was lost once.
    fn take_gap(&mut self, gap: Gap) {
        let lasts = |known: &&mut Gap| {
            **known == gap
                || (gap.lost, known.lost) == (0, 0)
                    && (&known.source, &known.node, &known.reason) == (&gap.source, &gap.node, &gap.reason)
                    && gap.from <= known.to
        };
        if let Some(known) = self.gaps.iter_mut().find(lasts) {
            (known.from, known.to) = (known.from.min(gap.from), known.to.max(gap.to));
            return;
        }
        self.gaps.push_back(gap);
        if self.gaps.len() > GAPS_MAX {
            self.gaps.pop_front();
        }
    }

    fn take_signal(&mut self, signal: Signal) {
        self.graph.learn(&signal.entity, signal.last_seen);
        let from_kernel = signal.pid != 0 && !signal.entity.node.is_empty() && is_kernel(signal.kind);
        if from_kernel && self.kernel_nodes.len() < KERNEL_NODES_MAX {
            let machine = Entity::new(kinds::NODE, "", &signal.entity.node, "");
            self.remembered += u64::from(self.kernel_nodes.insert(machine));
        }
        let is_change = is_change(signal.kind);
        let is_new = self.known.update(signal);
        self.remembered += u64::from(is_change && is_new);
    }

    fn sweep(&mut self) {
        if self.tick.since(self.swept) < SWEEP_NS {
            return;
        }
        self.swept = self.tick;
        let (tombstone, silent) = (nanos(self.config.tombstone), nanos(self.config.edge_memory));
        self.graph.prune(self.tick.minus(tombstone), self.tick.minus(silent));
        self.tallies.prune(self.tick.minus(silent));
        self.budgets.prune(self.tick);
        let (now, memory) = (self.tick, nanos(self.config.change_memory));
        let gone_by = now.minus(memory);
        self.gaps.retain(|gap| gap.to >= gone_by);
        self.states.retain(|_, state| state.at >= gone_by);
        // These belong to no incident with which they could be forgotten.
        let stays = |s: &Signal| is_change(s.kind) || said::is_said(s.kind);
        self.known.retain(|s| !stays(s) || s.last_seen >= gone_by);
    }

    /// The verdicts of one tick.
    fn decide(&mut self) -> Vec<Finding> {
        self.budgets.judge(self.tick);
        let mut findings = self.decide_incidents();
        findings.extend(self.decide_budgets());
        let surplus = self.closed.len().saturating_sub(CLOSED_MAX);
        self.closed.drain(..surplus);
        findings
    }

    /// Incidents and what is told of them.
    fn decide_incidents(&mut self) -> Vec<Finding> {
        let now = self.tick;
        let (said, deviations): (Vec<&Signal>, Vec<&Signal>) =
            self.known.in_time_order().into_iter().partition(|s| said::is_said(s.kind));
        let said = said::placed(&said, &self.graph);
        let view =
            View::new(deviations, &self.graph, &self.kernel_nodes, now).with_states(self.states.values());
        if view.signals.iter().all(|s| is_change(s.kind)) {
            let gone = std::mem::take(&mut self.incidents);
            return self.forget(gone, SIGNALS_FORGOTTEN, now);
        }
        let mut candidates = candidates(&view, &self.model);
        for candidate in &mut candidates {
            candidate.odds *= self.priors.factor(&candidate.pattern.id, now);
        }
        let parts = components(&view, &candidates, self.config.candidates_max);
        let material = Material {
            view: &view,
            candidates: &candidates,
            config: &self.config,
            tallies: &self.tallies,
            calls: OnceCell::new(),
            said: &said,
            gaps: &self.gaps,
            calibration: if self.config.calibrated {
                self.model.calibration()
            } else {
                Calibration::IDENTITY
            },
            ahead: Ahead {
                burns: by_home(&self.budgets, &self.graph),
                priors: &self.priors,
                shares: OnceCell::new(),
            },
        };
        let closed = &self.closed;
        let last_revision = |id: FindingId| last_revision(closed, id);
        let mut assigned = assign::assign(std::mem::take(&mut self.incidents), &parts, &view, &last_revision);
        let mut findings = Vec::new();
        for (incident, part) in assigned.kept.iter_mut().zip(&parts) {
            let over = material.is_over(part);
            incident.over_since = over.then(|| incident.over_since.unwrap_or(now));
            let settled = now.since(incident.opened_at) >= nanos(self.config.settle);
            if settled && !incident.rests() && (incident.is_published() || material.is_worth_telling(part)) {
                let draft = material.draft(part, incident);
                findings.extend(incident.publish(draft, now, nanos(self.config.refresh)));
            }
        }
        let merged = assigned.merged(now);
        self.closed.extend(merged.iter().map(|f| (f.id, f.revision)));
        findings.extend(merged);
        findings.extend(self.forget(assigned.gone, SIGNALS_FORGOTTEN, now));
        findings.extend(self.close(assigned.kept, now));
        findings
    }

    /// Drops incidents; returns the last revisions of those that were told as going on.
    fn forget(&mut self, incidents: Vec<Incident>, why: &str, now: UnixNanos) -> Vec<Finding> {
        let mut last = Vec::new();
        for mut incident in incidents {
            last.extend(incident.dropped(why, now));
            self.closed.push_back((incident.id, incident.revision()));
        }
        last
    }

    /// Lets go of what has been over for long enough, with its signals, and of what is too much.
    fn close(&mut self, incidents: Vec<Incident>, now: UnixNanos) -> Vec<Finding> {
        let mut findings = Vec::new();
        let reopen = nanos(self.config.reopen);
        let (done, mut open): (Vec<Incident>, Vec<Incident>) =
            incidents.into_iter().partition(|i| i.over_since.is_some_and(|over| now.since(over) >= reopen));
        if open.len() > self.config.incidents_max {
            open.sort_by_key(|i| (i.over_since.is_none(), i.opened_at, i.id));
            let surplus = open.len() - self.config.incidents_max;
            self.counters.incidents_evicted += surplus as u64;
            let evicted: Vec<Incident> = open.drain(..surplus).collect();
            self.forget_signals(&evicted);
            findings = self.forget(evicted, INCIDENTS_TOO_MANY, now);
        }
        self.forget_signals(&done);
        self.closed.extend(done.iter().map(|i| (i.id, i.revision())));
        open.sort_by_key(|i| (i.opened_at, i.id));
        self.incidents = open;
        findings
    }

    fn forget_signals(&mut self, of: &[Incident]) {
        if of.is_empty() {
            return;
        }
        let members: BTreeSet<_> = of.iter().flat_map(|i| &i.members).copied().collect();
        self.known.retain(|s| is_change(s.kind) || !members.contains(&s.id));
    }
}

/// Last revision of a finding that was closed; 0 when none is remembered.
fn last_revision(closed: &VecDeque<(FindingId, u32)>, id: FindingId) -> u32 {
    closed.iter().rev().find(|(known, _)| *known == id).map_or(0, |(_, revision)| *revision)
}

/// First moment of looking at or after `at`: the same ones whatever happened before.
fn look_from(at: UnixNanos, look_ns: u64) -> UnixNanos {
    let look_ns = look_ns.max(TICK_NS);
    UnixNanos(at.0.div_ceil(look_ns).saturating_mul(look_ns))
}

fn is_kernel(kind: SignalKind) -> bool {
    use SignalKind as K;
    matches!(
        kind,
        K::OomKill
            | K::CrashSignal
            | K::ExitNonzero
            | K::Killed
            | K::NetRefused
            | K::NetTimeout
            | K::NetReset
    )
}
