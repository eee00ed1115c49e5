//! Which signals belong to one incident: those that one cause can explain, and those of one trace or semantic group.
//!
//! Happening at the same time joins nothing.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{Entity, GroupId, Signal, SignalKind, TraceId, UnixNanos};

use super::candidates::Candidate;
use super::inference::{Verdict, infer};
use super::signals::is_change;
use super::view::View;
use crate::model::SymptomSpec;

/// Signals that belong together, with the verdict on them.
#[derive(Debug)]
pub struct Component {
    /// Indices into the view.
    pub members: BTreeSet<usize>,
    /// What inference says.
    pub verdict: Verdict,
}

/// Below this a deviation is not certain.
const CERTAIN: f64 = 0.5;

/// True for what heals by itself as long as it is neither repeated nor lasts: one end, a failed probe, a moment of
/// unreadiness, a mount that is tried again, a line of a program.
pub fn passes(signal: &Signal) -> bool {
    use SignalKind as K;
    let heals = matches!(
        signal.kind,
        K::ContainerCrashed
            | K::ExitNonzero
            | K::Killed
            | K::PodNotReady
            | K::ProbeFailed
            | K::MountFailed
            | K::LogFault
            // A kubelet that starts tells of old ones.
            | K::OomKill
    );
    heals && signal.strength.get() < CERTAIN
}

/// True when nothing is there but what heals by itself. Whatever else it is, it is no incident yet.
pub fn is_passing(view: &View<'_>, component: &Component) -> bool {
    let signals = component.members.iter().map(|at| view.signals[*at]);
    signals.filter(|s| !is_change(s.kind)).all(passes)
}

struct Union(Vec<usize>);

impl Union {
    fn root(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn sets(&mut self, members: impl Iterator<Item = usize>) -> Vec<BTreeSet<usize>> {
        let mut sets: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for at in members {
            sets.entry(self.root(at)).or_default().insert(at);
        }
        sets.into_values().collect()
    }
}

/// Joins, infers, and takes apart what the best causes explain apart.
pub fn components(view: &View<'_>, candidates: &[Candidate<'_>], candidates_max: usize) -> Vec<Component> {
    let mut union = Union((0..view.signals.len()).collect());
    for candidate in candidates {
        join_all(
            &mut union,
            candidate.explains.keys().copied().filter(|at| !is_change(view.signals[*at].kind)),
        );
    }
    join_by_key(&mut union, view, 0..view.signals.len());
    let judge = Judge::new(view, candidates, candidates_max);
    let deviations = (0..view.signals.len()).filter(|at| !is_change(view.signals[*at].kind));
    let mut parts = Vec::new();
    for members in union.sets(deviations) {
        let verdict = judge.verdict(&members);
        if verdict.best_set.is_empty() || members.len() == 1 {
            parts.push(Component { members, verdict });
            continue;
        }
        let split = split(view, candidates, &members, &verdict.best_set);
        if split.len() == 1 {
            parts.push(Component { members, verdict });
            continue;
        }
        for members in split {
            let verdict = judge.verdict(&members);
            parts.push(Component { members, verdict });
        }
    }
    for part in &mut parts {
        add_changes(part, candidates, view);
    }
    parts
}

/// Candidates by the signals that they explain.
struct Judge<'a, 'm> {
    view: &'a View<'a>,
    all: &'a [Candidate<'m>],
    explainers: Vec<Vec<usize>>,
    candidates_max: usize,
}

impl<'a, 'm> Judge<'a, 'm> {
    fn new(view: &'a View<'a>, all: &'a [Candidate<'m>], candidates_max: usize) -> Self {
        let mut explainers = vec![Vec::new(); view.signals.len()];
        for (c, candidate) in all.iter().enumerate() {
            candidate.explains.keys().for_each(|at| explainers[*at].push(c));
        }
        Self { view, all, explainers, candidates_max }
    }

    fn verdict(&self, members: &BTreeSet<usize>) -> Verdict {
        let explaining: BTreeSet<usize> =
            members.iter().flat_map(|at| &self.explainers[*at]).copied().collect();
        let fitting: Vec<usize> =
            explaining.into_iter().filter(|c| self.fits(&self.all[*c], members)).collect();
        let mut weighed = members.clone();
        for c in &fitting {
            weighed.extend(self.all[*c].explains.keys().filter(|at| is_change(self.view.signals[**at].kind)));
        }
        infer(self.view, self.all, &fitting, &weighed, self.candidates_max)
    }

    /// True when what a cause requires is among the members.
    fn fits(&self, candidate: &Candidate<'_>, members: &BTreeSet<usize>) -> bool {
        let symptoms = &candidate.pattern.symptoms;
        // The same sign may be there as another, more telling symptom.
        let lacks = |wanted: &SymptomSpec| {
            !candidate.explains.iter().any(|(at, (_, s))| {
                let told = &symptoms[*s];
                (told.signal, told.on) == (wanted.signal, wanted.on) && is_in(self.view, members, *at)
            })
        };
        !symptoms.iter().filter(|s| s.required).any(lacks)
    }
}

fn is_in(view: &View<'_>, members: &BTreeSet<usize>, at: usize) -> bool {
    members.contains(&at) || is_change(view.signals[at].kind)
}

fn join_all(union: &mut Union, mut members: impl Iterator<Item = usize>) {
    if let Some(first) = members.next() {
        members.for_each(|at| union.join(first, at));
    }
}

fn join_by_key(union: &mut Union, view: &View<'_>, members: impl Iterator<Item = usize>) {
    let mut traces: BTreeMap<TraceId, usize> = BTreeMap::new();
    let mut groups = Groups::default();
    for at in members {
        let signal = view.signals[at];
        if signal.trace_id != TraceId::default() {
            union.join(*traces.entry(signal.trace_id).or_insert(at), at);
        }
        if signal.group != GroupId::default() {
            let peer = view.peers[at].as_ref();
            // Connections are reset all the time: one belongs only to what happens with the same other end.
            if signal.kind != SignalKind::NetReset || peer.is_none() {
                union.join(groups.of((signal.group, None), at, signal), at);
            }
            if peer.is_some() {
                union.join(groups.of((signal.group, peer), at, signal), at);
            }
        }
    }
}

/// A semantic group, or what of it happens with one other end.
type GroupKey<'a> = (GroupId, Option<&'a Entity>);

/// Semantic groups as they are read in time order. What has healed belongs to nothing that began after it.
#[derive(Default)]
struct Groups<'a>(BTreeMap<GroupKey<'a>, (usize, Option<UnixNanos>)>);

impl<'a> Groups<'a> {
    /// The member that stands for the group at the onset of `signal`.
    fn of(&mut self, key: GroupKey<'a>, at: usize, signal: &Signal) -> usize {
        let healed = (signal.ended && passes(signal)).then_some(signal.last_seen);
        let (first, healed_at) = self.0.entry(key).or_insert((at, healed));
        if healed_at.is_some_and(|healed_at| healed_at < signal.onset) {
            (*first, *healed_at) = (at, healed);
        } else {
            *healed_at = healed_at.zip(healed).map(|(a, b)| a.max(b));
        }
        *first
    }
}

/// Gives each signal to the cause of the set that explains it best; what shares a trace or a group stays together.
fn split(
    view: &View<'_>,
    all: &[Candidate<'_>],
    members: &BTreeSet<usize>,
    set: &[usize],
) -> Vec<BTreeSet<usize>> {
    let mut union = Union((0..view.signals.len()).collect());
    let mut explained: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in members {
        let best = set.iter().filter_map(|c| all[*c].explains.get(at).map(|(p, _)| (*p, *c)));
        // The set is ordered by posterior: of equals the more probable cause takes it.
        let owner = best.fold(None, |best: Option<(f64, usize)>, (p, c)| match best {
            Some((q, _)) if q >= p => best,
            _ => Some((p, c)),
        });
        if let Some((_, cause)) = owner {
            explained.entry(cause).or_default().push(*at);
        }
    }
    for members in explained.values() {
        join_all(&mut union, members.iter().copied());
    }
    join_by_key(&mut union, view, members.iter().copied());
    union.sets(members.iter().copied())
}

/// A change belongs to the incident whose cause it speaks for.
fn add_changes(part: &mut Component, candidates: &[Candidate<'_>], view: &View<'_>) {
    if let Some((best, _)) = part.verdict.ranked.first() {
        let candidate = &candidates[*best];
        part.members.extend(candidate.changes.iter().copied());
        part.members.extend(candidate.explains.keys().filter(|at| is_change(view.signals[**at].kind)));
    }
}

#[cfg(test)]
mod tests;
