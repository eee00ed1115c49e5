//! Which causes could be behind the signals: every pattern on every seat from which one of its symptoms can be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tapio_schemas::entity::kinds;
use tapio_schemas::{Entity, Signal, SignalKind, UnixNanos};

use super::graph::Graph;
use super::signals::{is_change, is_of_object, is_state};
use crate::model::{Facts, Model, Pattern, Relation, Share, SignedDuration, SymptomSpec, sits_on};

use crate::services::ServiceState;

/// Most seats on which one signal makes a pattern a candidate.
const SEATS_PER_SIGNAL_MAX: usize = 32;
/// Time in which what says how something is fades to a third once it has ended, ns.
const FADES_NS: f64 = 30e9;
/// Share of its strength below which it has faded.
const FADED: f64 = 0.2;
/// Factor on the odds of a cause whose vital symptoms barely show; without any it is none.
const LIFELESS: f64 = 0.15;

/// The signals of one tick with their place in the graph.
pub struct View<'a> {
    /// By onset and id.
    pub signals: Vec<&'a Signal>,
    /// What answers for each.
    pub homes: Vec<Entity>,
    /// What answers for the other end of each.
    pub peers: Vec<Option<Entity>>,
    /// Where each kind is.
    by_kind: BTreeMap<SignalKind, Vec<usize>>,
    /// The graph.
    pub graph: &'a Graph,
    /// Event time of the tick.
    pub now: UnixNanos,
    /// Machines from which kernel events have come.
    pub kernel_nodes: &'a BTreeSet<Entity>,
    /// What is known of homes beside their signals.
    states: BTreeMap<Entity, Vec<&'a ServiceState>>,
}

impl<'a> View<'a> {
    /// Places the signals.
    pub fn new(
        signals: Vec<&'a Signal>,
        graph: &'a Graph,
        kernel_nodes: &'a BTreeSet<Entity>,
        now: UnixNanos,
    ) -> Self {
        let homes: Vec<Entity> = signals
            .iter()
            .map(|s| if is_of_object(s.kind) { s.entity.owner() } else { graph.home(&s.entity.owner()) })
            .collect();
        let peers = signals.iter().map(|s| s.peer.as_ref().map(|p| graph.home(&located(p, s)))).collect();
        let mut by_kind: BTreeMap<SignalKind, Vec<usize>> = BTreeMap::new();
        for (at, signal) in signals.iter().enumerate() {
            by_kind.entry(signal.kind).or_default().push(at);
        }
        Self { signals, homes, peers, by_kind, graph, now, kernel_nodes, states: BTreeMap::new() }
    }

    /// With the states of services.
    pub fn with_states(mut self, states: impl Iterator<Item = &'a ServiceState>) -> Self {
        for state in states {
            self.states.entry(self.graph.home(&state.service)).or_default().push(state);
        }
        self
    }

    /// Share of a home's edges with recent calls on which they take as long as usual; 0 when there are none.
    pub fn calls_normal(&self, home: &Entity) -> f64 {
        let states = self.states.get(home).into_iter().flatten();
        let (all, slow) = states.fold((0u32, 0u32), |sum, s| (sum.0 + s.edges, sum.1 + s.edges_slow));
        if all == 0 { 0.0 } else { f64::from(all - slow.min(all)) / f64::from(all) }
    }

    /// Seconds from `since` to the last time that the processor of a home was measured and found normal.
    fn cpu_normal_s(&self, home: &Entity, since: UnixNanos) -> f64 {
        let states = self.states.get(home).into_iter().flatten();
        let last = states.filter_map(|s| s.cpu_normal_at).max();
        last.map_or(0.0, |at| at.since(since) as f64 / 1e9)
    }

    /// When something of these was last seen.
    pub fn latest<'i>(&self, signals: impl Iterator<Item = &'i usize>) -> UnixNanos {
        signals.map(|at| self.signals[*at].last_seen).max().unwrap_or_default()
    }

    /// Strength of a signal among others of which the newest word is `latest`: what says how it is now fades once it has
    /// ended, what says that something happened does not.
    pub fn strength(&self, at: usize, latest: UnixNanos) -> f64 {
        let signal = self.signals[at];
        let strength = signal.strength.get();
        if signal.ended && is_state(signal.kind) {
            return strength * (-(latest.since(signal.last_seen) as f64) / FADES_NS).exp();
        }
        strength
    }

    /// True for what said how something was and is as good as forgotten.
    fn has_faded(&self, at: usize, latest: UnixNanos) -> bool {
        self.strength(at, latest) < FADED * self.signals[at].strength.get()
    }

    fn of_kind(&self, kind: SignalKind) -> &[usize] {
        self.by_kind.get(&kind).map_or(&[], Vec::as_slice)
    }
}

/// A loopback address means another thing on each machine.
fn located(peer: &Entity, signal: &Signal) -> Entity {
    let loopback = peer.kind == kinds::EXTERNAL
        && (peer.name.starts_with("127.")
            || peer.name.starts_with("[::1]")
            || peer.name.starts_with("localhost"));
    let node = if loopback { &signal.entity.node } else { &peer.node };
    Entity { node: node.clone(), ..peer.clone() }
}

/// A cause on a seat, with what it would explain.
#[derive(Debug)]
pub struct Candidate<'m> {
    /// The cause.
    pub pattern: &'m Pattern,
    /// Where it sits.
    pub seat: Entity,
    /// Signal → (probability, symptom).
    pub explains: BTreeMap<usize, (f64, usize)>,
    /// Symptoms that should have shown and did not.
    pub missing: Vec<usize>,
    /// (refuter, signal).
    pub refuted: Vec<(usize, usize)>,
    /// Changes that speak for it.
    pub changes: Vec<usize>,
    /// Odds before the signals are weighed: prior, changes, refuters, absences.
    pub odds: f64,
}

/// Places as seen from one seat, computed once per candidate.
struct Around<'v, 'a> {
    view: &'v View<'a>,
    seat: &'v Entity,
    /// Of a thing that is mounted, or that limits others: those. Who calls that suffers from the seat.
    mounters: BTreeSet<Entity>,
    mounted: BTreeSet<Entity>,
    callers: Arc<BTreeSet<Entity>>,
    callees: Arc<BTreeSet<Entity>>,
    upstream: BTreeSet<Entity>,
    machines: BTreeSet<Entity>,
}

impl<'v, 'a> Around<'v, 'a> {
    fn new(view: &'v View<'a>, seat: &'v Entity) -> Self {
        let graph = view.graph;
        let mounters = graph.mounters(seat);
        let mut callers = graph.callers(seat);
        let mut upstream = graph.reach(seat, true);
        for mounter in &mounters {
            Arc::make_mut(&mut callers).extend(graph.callers(mounter).iter().cloned());
            upstream.extend(graph.reach(mounter, true));
        }
        Self {
            view,
            seat,
            mounters,
            mounted: graph.mounted(seat),
            callers,
            callees: graph.callees(seat),
            upstream,
            machines: graph.machines(seat),
        }
    }

    fn holds(&self, relation: Relation, at: usize) -> bool {
        let (home, peer) = (&self.view.homes[at], self.view.peers[at].as_ref());
        let is_seat = |entity: &Entity| entity == self.seat || self.mounters.contains(entity);
        match relation {
            Relation::Itself => home == self.seat,
            Relation::Caller => {
                !is_seat(home)
                    && match peer {
                        Some(peer) => is_seat(peer),
                        None => self.callers.contains(home),
                    }
            }
            Relation::Upstream => {
                !is_seat(home) && !peer.is_some_and(is_seat) && self.upstream.contains(home)
            }
            Relation::Callee => self.callees.contains(home),
            Relation::Node => self.machines.contains(home),
            Relation::Mounter => self.mounters.contains(home),
            Relation::Mounted => self.mounted.contains(home),
            Relation::Hosted => home != self.seat && self.view.graph.machines(home).contains(self.seat),
        }
    }

    fn facts(&self, anchor: UnixNanos) -> Facts {
        let machines = &self.machines;
        let kernel = self.view.kernel_nodes;
        let forecast_passed = self.view.of_kind(SignalKind::MemoryGrowth).iter().any(|at| {
            let latest = self.view.signals[*at].forecast.as_ref().map(|f| f.latest);
            self.view.homes[*at] == *self.seat && latest.is_some_and(|latest| latest < self.view.now)
        });
        Facts {
            elapsed_s: self.view.now.since(anchor) as f64 / 1e9,
            has_callers: !self.callers.is_empty(),
            cpu_normal_s: self.view.cpu_normal_s(self.seat, anchor),
            kernel_seen: machines.iter().any(|m| kernel.contains(m)),
            forecast_passed,
        }
    }
}

/// All candidates for the signals of a tick.
pub fn candidates<'m>(view: &View<'_>, model: &'m Model) -> Vec<Candidate<'m>> {
    let mut found = Vec::new();
    let mut seats: BTreeMap<Entity, Vec<&'m Pattern>> = BTreeMap::new();
    for pattern in model.patterns() {
        for seat in seats_of(pattern, view) {
            seats.entry(seat).or_default().push(pattern);
        }
    }
    for (seat, patterns) in &seats {
        let around = Around::new(view, seat);
        for pattern in patterns {
            let episodes = episodes(pattern, &around, matches_of(pattern, &around));
            found.extend(episodes.iter().filter_map(|matches| candidate(pattern, &around, matches)));
        }
    }
    found
}

fn seats_of(pattern: &Pattern, view: &View<'_>) -> BTreeSet<Entity> {
    let mut seats = BTreeSet::new();
    for symptom in &pattern.symptoms {
        for &at in view.of_kind(symptom.signal) {
            let home = &view.homes[at];
            let around: BTreeSet<Entity> = match (symptom.on, &view.peers[at]) {
                (Relation::Itself, _) => BTreeSet::from([home.clone()]),
                (Relation::Caller, Some(peer)) => BTreeSet::from([peer.clone()]),
                (Relation::Caller, None) => view.graph.callees(home).as_ref().clone(),
                (Relation::Hosted, _) => view.graph.machines(home),
                // What only shows further away does not make a cause a candidate: something nearer must.
                (
                    Relation::Upstream
                    | Relation::Callee
                    | Relation::Node
                    | Relation::Mounter
                    | Relation::Mounted,
                    _,
                ) => continue,
            };
            seats.extend(
                around.into_iter().filter(|s| sits_on(&pattern.sits_on, s)).take(SEATS_PER_SIGNAL_MAX),
            );
        }
    }
    seats
}

/// What has healed belongs to nothing that began after it: the matches of a cause with vital symptoms, apart by episode.
fn episodes(
    pattern: &Pattern,
    around: &Around<'_, '_>,
    mut matches: Vec<(usize, usize)>,
) -> Vec<Vec<(usize, usize)>> {
    if !pattern.symptoms.iter().any(|s| s.vital) {
        return vec![matches];
    }
    let signals = &around.view.signals;
    let (changes, rest): (Vec<_>, Vec<_>) =
        matches.drain(..).partition(|(_, at)| is_change(signals[*at].kind));
    let mut rest = rest;
    rest.sort_by_key(|(symptom, at)| (signals[*at].onset, *at, *symptom));
    let mut episodes: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut healed_at = Some(UnixNanos(0));
    for (symptom, at) in rest {
        let signal = signals[at];
        if episodes.is_empty() || healed_at.is_some_and(|healed| healed < signal.onset) {
            episodes.push(changes.clone());
            healed_at = Some(UnixNanos(0));
        }
        if let Some(episode) = episodes.last_mut() {
            episode.push((symptom, at));
        }
        healed_at = healed_at.filter(|_| signal.ended).map(|healed| healed.max(signal.last_seen));
    }
    episodes
}

fn candidate<'m>(
    pattern: &'m Pattern,
    around: &Around<'_, '_>,
    matches: &[(usize, usize)],
) -> Option<Candidate<'m>> {
    let now = around.view.latest(matches.iter().map(|(_, at)| at));
    let current: Vec<(usize, usize)> =
        matches.iter().copied().filter(|(_, at)| !around.view.has_faded(*at, now)).collect();
    let anchor = anchor_of(pattern, around, &current)?;
    let mut explains: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    let mut seen = vec![false; pattern.symptoms.len()];
    for &(symptom, at) in matches {
        let spec = &pattern.symptoms[symptom];
        if !in_time(spec, at, anchor, around, matches, pattern) {
            continue;
        }
        seen[symptom] |= !around.view.has_faded(at, now);
        let best = explains.entry(at).or_insert((0.0, symptom));
        if spec.probability > best.0 {
            *best = (spec.probability, symptom);
        }
    }
    let lacks_required = pattern.symptoms.iter().zip(&seen).any(|(s, seen)| s.required && !seen);
    let explains_nothing = !explains.keys().any(|at| !is_change(around.view.signals[*at].kind));
    let living = explains.iter().filter(|(_, (_, s))| pattern.symptoms[*s].vital);
    let latest = around.view.latest(explains.keys());
    let living = living.map(|(at, _)| around.view.strength(*at, latest)).fold(0.0f64, f64::max);
    let is_lifeless = living <= 0.0 && pattern.symptoms.iter().any(|s| s.vital);
    if lacks_required || explains_nothing || is_lifeless {
        return None;
    }
    let facts = around.facts(anchor);
    let missing: Vec<usize> = (0..seen.len())
        .filter(|at| !seen[*at] && is_missed(&pattern.symptoms[*at], around.seat, &facts))
        .collect();
    let refuted = refuters(pattern, around, anchor, &facts);
    let changes = changes(pattern, around, anchor);
    let odds = odds(pattern, around, &missing, &refuted, &changes) * vitality(pattern, living);
    Some(Candidate { pattern, seat: around.seat.clone(), explains, missing, refuted, changes, odds })
}

/// (symptom, signal) pairs that fit by kind, place and predicate.
fn matches_of(pattern: &Pattern, around: &Around<'_, '_>) -> Vec<(usize, usize)> {
    let mut matches = Vec::new();
    for (number, symptom) in pattern.symptoms.iter().enumerate() {
        for &at in around.view.of_kind(symptom.signal) {
            let signal = around.view.signals[at];
            let facts = Facts::default();
            let fits = || symptom.when.as_ref().is_none_or(|w| w.holds(Some(signal), around.seat, &facts));
            if around.holds(symptom.on, at) && fits() {
                matches.push((number, at));
            }
        }
    }
    matches
}

/// First sign: of what is required, else of what shows on the seat, else of anything.
fn anchor_of(pattern: &Pattern, around: &Around<'_, '_>, matches: &[(usize, usize)]) -> Option<UnixNanos> {
    let earliest = |fits: &dyn Fn(&SymptomSpec) -> bool| {
        let onsets = matches.iter().filter(|(s, _)| fits(&pattern.symptoms[*s]));
        onsets.map(|(_, at)| around.view.signals[*at].onset).min()
    };
    earliest(&|s| s.required)
        .or_else(|| earliest(&|s| s.on == Relation::Itself && !is_change(s.signal)))
        .or_else(|| earliest(&|_| true))
}

fn within(onset: UnixNanos, from: UnixNanos, lag: Option<(SignedDuration, SignedDuration)>) -> bool {
    let difference = i128::from(onset.0) - i128::from(from.0);
    lag.is_none_or(|(low, high)| difference >= i128::from(low.0) && difference <= i128::from(high.0))
}

fn in_time(
    spec: &SymptomSpec,
    at: usize,
    anchor: UnixNanos,
    around: &Around<'_, '_>,
    matches: &[(usize, usize)],
    pattern: &Pattern,
) -> bool {
    let onset = around.view.signals[at].onset;
    if spec.after.is_empty() {
        return within(onset, anchor, spec.lag);
    }
    matches
        .iter()
        .filter(|(s, first)| {
            let leading = &pattern.symptoms[*s];
            // What needs a leader itself leads nothing, and neither does what came at the wrong time.
            matches!(leading.on, Relation::Itself | Relation::Mounter)
                && spec.after.contains(&leading.signal)
                && leading.after.is_empty()
                && within(around.view.signals[*first].onset, anchor, leading.lag)
        })
        .any(|(_, first)| within(onset, around.view.signals[*first].onset, spec.lag))
}

fn is_missed(symptom: &SymptomSpec, seat: &Entity, facts: &Facts) -> bool {
    symptom.absence.as_ref().is_some_and(|absence| {
        facts.elapsed_s >= absence.after.get().as_secs_f64()
            && absence.when.as_ref().is_none_or(|when| when.holds(None, seat, facts))
    })
}

fn refuters(
    pattern: &Pattern,
    around: &Around<'_, '_>,
    anchor: UnixNanos,
    facts: &Facts,
) -> Vec<(usize, usize)> {
    let mut refuted = Vec::new();
    for (number, refuter) in pattern.refuted_by.iter().enumerate() {
        let first = around.view.of_kind(refuter.signal).iter().find(|at| {
            let signal = around.view.signals[**at];
            around.holds(refuter.on, **at)
                && within(signal.onset, anchor, refuter.lag)
                && refuter.when.as_ref().is_none_or(|w| w.holds(Some(signal), around.seat, facts))
        });
        refuted.extend(first.map(|at| (number, *at)));
    }
    refuted
}

fn changes(pattern: &Pattern, around: &Around<'_, '_>, anchor: UnixNanos) -> Vec<usize> {
    let mut changes = BTreeSet::new();
    for change in &pattern.changes {
        let window = i64::try_from(change.within.get().as_nanos()).unwrap_or(i64::MAX);
        let lag = Some((SignedDuration(-window), SignedDuration(0)));
        let last =
            around.view.of_kind(change.signal).iter().rev().find(|at| {
                around.holds(change.on, **at) && within(around.view.signals[**at].onset, anchor, lag)
            });
        changes.extend(last);
    }
    changes.into_iter().collect()
}

fn odds(
    pattern: &Pattern,
    around: &Around<'_, '_>,
    missing: &[usize],
    refuted: &[(usize, usize)],
    changes: &[usize],
) -> f64 {
    let mut odds = pattern.prior / (1.0 - pattern.prior);
    for change in &pattern.changes {
        if changes.iter().any(|at| around.view.signals[*at].kind == change.signal) {
            odds *= change.factor;
        }
    }
    for (refuter, _) in refuted {
        odds *= pattern.refuted_by[*refuter].factor;
    }
    for symptom in missing {
        odds *= 1.0 - pattern.symptoms[*symptom].probability;
    }
    for tempered in &pattern.tempered_by {
        odds *= tempered.factor.powf(share(tempered.share, around.view, around.seat));
    }
    odds
}

/// Value of a share on a seat, 0..=1.
pub fn share(of: Share, view: &View<'_>, seat: &Entity) -> f64 {
    match of {
        Share::CallsNormal => view.calls_normal(seat),
    }
}

/// A cause that shows on its seat in one of several ways is the less probable the fainter the clearest of them is.
fn vitality(pattern: &Pattern, strongest: f64) -> f64 {
    if pattern.symptoms.iter().any(|s| s.vital) { LIFELESS.powf(1.0 - strongest) } else { 1.0 }
}
