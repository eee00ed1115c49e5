//! Which causes could be behind the signals: every pattern on every seat from which one of its symptoms can be seen.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{Entity, Signal, UnixNanos};

use super::around::Around;
use super::incident::NamedCause;
use super::signals::{is_change, open_ns};
use super::view::{View, share};
use crate::model::{Facts, Model, Pattern, Relation, SignedDuration, SymptomSpec, sits_on};

/// Most seats on which one signal makes a pattern a candidate.
const SEATS_PER_SIGNAL_MAX: usize = 32;
/// Factor on the odds of a cause whose vital symptoms barely show; without any it is none.
const LIFELESS: f64 = 0.15;
/// One change may be told by who watches the object and by who hears what the API server audits, so long after each other.
const TOLD_TWICE_NS: u64 = 2_000_000_000;

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

impl Candidate<'_> {
    /// It as it is when the evidence singles it out.
    pub fn named(&self) -> NamedCause {
        NamedCause {
            cause: self.pattern.id.clone(),
            seat: self.seat.clone(),
            refuters: self.refuted.iter().map(|(refuter, _)| *refuter).collect(),
            missing: self.missing.iter().copied().collect(),
        }
    }

    /// True when nothing refutes it, and no symptom is missing, that did not when it was named. A symptom that was there and
    /// has faded is not missing; that its calls are as fast as ever again, which tempers it, is what fading means.
    pub fn only_fades(&self, named: &NamedCause) -> bool {
        let was_seen = |symptom: &usize| self.explains.values().any(|(_, seen)| seen == symptom);
        let is_same = self.pattern.id == named.cause && self.seat == named.seat;
        is_same
            && self.refuted.iter().all(|(refuter, _)| named.refuters.contains(refuter))
            && self.missing.iter().all(|symptom| named.missing.contains(symptom) || was_seen(symptom))
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
                (Relation::Hosted, _) => view.graph.machines(home).as_ref().clone(),
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
    let meant = Meant::by(pattern, around, matches);
    let matches: Vec<(usize, usize)> =
        matches.iter().copied().filter(|(s, at)| meant.holds(pattern.symptoms[*s].on, around, *at)).collect();
    let matches = matches.as_slice();
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
    let facts = around.facts(anchor.at);
    let missing: Vec<usize> = (0..seen.len())
        .filter(|at| !seen[*at] && is_missed(&pattern.symptoms[*at], around.seat, &facts))
        .collect();
    let refuted = refuters(pattern, around, anchor, &facts, &meant);
    let changes = changes(pattern, around, anchor);
    let odds = odds(pattern, around, &missing, &refuted, &changes) * vitality(pattern, living);
    Some(Candidate { pattern, seat: around.seat.clone(), explains, missing, refuted, changes, odds })
}

/// The callees that a cause is about: the other ends of its required signals. Without any it may be about each of them.
struct Meant<'v>(BTreeSet<&'v Entity>);

impl<'v> Meant<'v> {
    fn by(pattern: &Pattern, around: &Around<'v, '_>, matches: &[(usize, usize)]) -> Self {
        let required = matches.iter().filter(|(symptom, _)| {
            let spec = &pattern.symptoms[*symptom];
            spec.required && spec.on == Relation::Itself
        });
        Self(required.filter_map(|(_, at)| around.view.peers[*at].as_ref()).collect())
    }

    /// False for a signal of a callee that has nothing to do with the cause.
    fn holds(&self, relation: Relation, around: &Around<'_, '_>, at: usize) -> bool {
        relation != Relation::Callee || self.0.is_empty() || self.0.contains(&around.view.homes[at])
    }
}

/// (symptom, signal) pairs that fit by kind, place and predicate.
fn matches_of(pattern: &Pattern, around: &Around<'_, '_>) -> Vec<(usize, usize)> {
    let mut matches = Vec::new();
    for (number, symptom) in pattern.symptoms.iter().enumerate() {
        for at in around.seen(symptom.signal, symptom.on) {
            let signal = around.view.signals[at];
            let facts = Facts::default();
            if symptom.when.as_ref().is_none_or(|w| w.holds(Some(signal), around.seat, &facts)) {
                matches.push((number, at));
            }
        }
    }
    matches
}

/// When something began, and how much later that may have been by what its stamp leaves open, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Onset {
    at: UnixNanos,
    open_ns: u64,
}

impl Onset {
    fn of(signal: &Signal) -> Self {
        Self { at: signal.onset, open_ns: open_ns(signal) }
    }

    /// Whether it is so long after `from`, or may be.
    fn is_within(self, from: Self, lag: Option<(SignedDuration, SignedDuration)>) -> bool {
        let difference = i128::from(self.at.0) - i128::from(from.at.0);
        let least = difference - i128::from(from.open_ns);
        let most = difference + i128::from(self.open_ns);
        lag.is_none_or(|(low, high)| most >= i128::from(low.0) && least <= i128::from(high.0))
    }
}

/// First sign: of what is required, else of what shows on the seat, else of anything.
fn anchor_of(pattern: &Pattern, around: &Around<'_, '_>, matches: &[(usize, usize)]) -> Option<Onset> {
    let earliest = |fits: &dyn Fn(&SymptomSpec) -> bool| {
        let onsets = matches.iter().filter(|(s, _)| fits(&pattern.symptoms[*s]));
        onsets.map(|(_, at)| Onset::of(around.view.signals[*at])).min()
    };
    earliest(&|s| s.required)
        .or_else(|| earliest(&|s| s.on == Relation::Itself && !is_change(s.signal)))
        .or_else(|| earliest(&|_| true))
}

fn in_time(
    spec: &SymptomSpec,
    at: usize,
    anchor: Onset,
    around: &Around<'_, '_>,
    matches: &[(usize, usize)],
    pattern: &Pattern,
) -> bool {
    let onset = |at: usize| Onset::of(around.view.signals[at]);
    if spec.after.is_empty() {
        return onset(at).is_within(anchor, spec.lag);
    }
    matches
        .iter()
        .filter(|(s, first)| {
            let leading = &pattern.symptoms[*s];
            // What needs a leader itself leads nothing, and neither does what came at the wrong time.
            matches!(leading.on, Relation::Itself | Relation::Mounter)
                && spec.after.contains(&leading.signal)
                && leading.after.is_empty()
                && onset(*first).is_within(anchor, leading.lag)
        })
        .any(|(_, first)| onset(at).is_within(onset(*first), spec.lag))
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
    anchor: Onset,
    facts: &Facts,
    meant: &Meant<'_>,
) -> Vec<(usize, usize)> {
    let mut refuted = Vec::new();
    for (number, refuter) in pattern.refuted_by.iter().enumerate() {
        let first = around.seen(refuter.signal, refuter.on).into_iter().find(|at| {
            let signal = around.view.signals[*at];
            Onset::of(signal).is_within(anchor, refuter.lag)
                && meant.holds(refuter.on, around, *at)
                && refuter.when.as_ref().is_none_or(|w| w.holds(Some(signal), around.seat, facts))
        });
        refuted.extend(first.map(|at| (number, at)));
    }
    refuted
}

fn changes(pattern: &Pattern, around: &Around<'_, '_>, anchor: Onset) -> Vec<usize> {
    let mut changes = BTreeSet::new();
    for change in &pattern.changes {
        let window = i64::try_from(change.within.get().as_nanos()).unwrap_or(i64::MAX);
        let lag = Some((SignedDuration(-window), SignedDuration(0)));
        let seen = around.seen(change.signal, change.on);
        let onset = |at: &usize| around.view.signals[*at].onset;
        let is_before = |at: &&usize| Onset::of(around.view.signals[**at]).is_within(anchor, lag);
        let Some(last) = seen.iter().rfind(is_before).map(&onset) else { continue };
        let told = seen.into_iter().filter(|at| onset(at) <= last && last.since(onset(at)) <= TOLD_TWICE_NS);
        changes.extend(told);
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

/// A cause that shows on its seat in one of several ways is the less probable the fainter the clearest of them is.
fn vitality(pattern: &Pattern, strongest: f64) -> f64 {
    if pattern.symptoms.iter().any(|s| s.vital) { LIFELESS.powf(1.0 - strongest) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::{EntityRef, SignalKind};

    use super::*;

    #[test]
    fn a_stamp_of_kubernetes_of_a_whole_second_leaves_open_when_in_it() {
        const MILLISECOND: u64 = 1_000_000;
        let of = |kind: SignalKind, ms: u64| {
            let at = UnixNanos(1_700_000_000_000 * MILLISECOND + ms * MILLISECOND);
            Onset::of(&Signal::new(kind, Arc::new(EntityRef::default()), None, at))
        };
        let at = |ms: u64| of(SignalKind::ContainerCrashed, ms);
        let before = Some((SignedDuration(-60_000_000_000), SignedDuration(0)));
        // A change before a failure whose stamp has no part of a second, and before one whose has.
        assert!(at(999).is_within(at(0), before) && !at(1_000).is_within(at(0), before));
        assert!(at(300).is_within(at(700), before) && !at(701).is_within(at(700), before));
        let after = Some((SignedDuration(0), SignedDuration(60_000_000_000)));
        assert!(at(0).is_within(at(300), after) && !at(0).is_within(at(1_000), after));
        assert!(!at(100).is_within(at(300), after));
        // A window of five seconds begins with a whole one.
        let window = of(SignalKind::OwnTime, 0);
        assert!(!at(999).is_within(window, before) && !window.is_within(at(300), after));
    }
}
