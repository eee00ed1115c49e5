//! From a component and its verdict to the finding that is published.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tapio_schemas::finding::{
    ChainLink, FINDING_SCHEMA, Finding, Freshness, Hypothesis, RootCause, SemanticGroup, Status,
};
use tapio_schemas::{Entity, Gap, Score, Signal, SignalKind, SmolStr, UnixNanos};

use super::ahead::{self, Ahead, Now};
use super::candidates::Candidate;
use super::components::{Component, is_passing, passes};
use super::config::{IncidentConfig, nanos};
use super::impact::{CallsTo, Tallies, impact, severity};
use super::incident::Incident;
use super::said;
use super::says;
use super::signals::{is_change, is_failure};
use super::story::{Teller, refutation, tempering, unproven_story, unproven_title};
use super::view::{View, share};
use crate::calibration::Calibration;
use crate::model::clock_time;

/// Hypotheses that are told.
const HYPOTHESES_MAX: usize = 6;
/// Reasons told against one hypothesis.
const REASONS_MAX: usize = 4;
/// A share below this is not told as a reason.
const TEMPERS_MIN: f64 = 0.25;
/// Holes told.
const GAPS_MAX: usize = 8;
/// Most confidence that is told of what goes away: nobody needs to act on it any more.
const FADING_MAX: f64 = 0.7;
/// So long before the first sign it may have begun unseen: holes of that time are told with an incident, last words of that time
/// as well, and a restart reads again from there.
pub const RUN_UP_NS: u64 = 60_000_000_000;

/// What a finding is made from.
pub struct Material<'a> {
    /// The signals of the tick.
    pub view: &'a View<'a>,
    /// All candidates.
    pub candidates: &'a [Candidate<'a>],
    /// Settings.
    pub config: &'a IncidentConfig,
    /// Calls, and to whom they go, once it is asked for.
    pub tallies: &'a Tallies,
    /// See `tallies`.
    pub calls: OnceCell<CallsTo<'a>>,
    /// What failing containers said last, with what answers for them.
    pub said: &'a [(Entity, &'a Signal)],
    /// Holes.
    pub gaps: &'a VecDeque<Gap>,
    /// From raw to stated confidence.
    pub calibration: Calibration,
    /// What the future is told from.
    pub ahead: Ahead<'a>,
}

/// The cause of a finding.
struct Named<'s, 'a> {
    /// It, if the evidence singles one out.
    root: Option<&'s Candidate<'a>>,
    /// Confidence as it is told.
    confidence: f64,
    /// Probability that it had when there was more to tell it by.
    kept: Option<Score>,
}

/// Signals of a component in time order. Of one moment, and clocks of machines may tell whole seconds, a change comes before
/// what fails, and what is on the seat of the cause before what is elsewhere.
fn in_order(component: &Component, view: &View<'_>, seat: Option<&Entity>) -> Vec<usize> {
    let mut members: Vec<usize> = component.members.iter().copied().collect();
    members.sort_by_key(|at| {
        let signal = view.signals[*at];
        let is_elsewhere = seat.is_some_and(|seat| view.homes[*at] != *seat);
        (signal.onset, !is_change(signal.kind), is_elsewhere, *at)
    });
    members
}

impl<'a> Material<'a> {
    /// The cause that is named, if the evidence singles one out.
    fn root(&self, component: &Component) -> Option<usize> {
        let (best, probability) = *component.verdict.ranked.first()?;
        (probability >= self.config.provable_min && !component.verdict.has_rival).then_some(best)
    }

    /// What is named. As what is wrong goes away, less is left to tell that anything is wrong, but nothing more about what it
    /// was: a cause that was named and still is the most probable one stays named, as it was, until something else explains
    /// what there is, something speaks against it that did not when it was named, or it is over.
    fn cause_told(&self, component: &Component, incident: &mut Incident) -> Named<'_, 'a> {
        let root = self.root(component).map(|at| &self.candidates[at]);
        if let Some(root) = root {
            incident.named = Some(root.named());
        }
        let kept = || {
            let last = incident.last();
            let last = last.filter(|last| last.status == Status::Active || self.is_over(component))?;
            let (cause, (best, _)) = (last.root_cause.as_ref()?, component.verdict.ranked.first()?);
            let best = &self.candidates[*best];
            let is_same = best.pattern.id == cause.cause && best.seat == cause.entity;
            let only_fades = incident.named.as_ref().is_some_and(|named| best.only_fades(named));
            (is_same && !component.verdict.has_rival && only_fades).then_some((best, last))
        };
        match root.is_none().then(kept).flatten() {
            Some((best, last)) => Named {
                root: Some(best),
                confidence: last.confidence.get().min(FADING_MAX),
                kept: last.hypotheses.first().map(|h| h.probability),
            },
            None => Named { root, confidence: self.stated(component, root), kept: None },
        }
    }

    /// Seat of the best hypothesis, else what the first signal is on.
    fn seat(&self, component: &Component) -> Entity {
        let best = component.verdict.ranked.first().map(|(best, _)| self.candidates[*best].seat.clone());
        best.unwrap_or_else(|| {
            component.members.first().map(|at| self.view.homes[*at].clone()).unwrap_or_default()
        })
    }

    /// True when every deviation has ended, by its own word or by silence. What heals by itself and was seen only faintly,
    /// one failed probe beside the rest, holds nothing open.
    pub fn is_over(&self, component: &Component) -> bool {
        let stale = nanos(self.config.stale);
        component
            .members
            .iter()
            .map(|at| self.view.signals[*at])
            .all(|s| is_change(s.kind) || s.ended || passes(s) || self.view.now.since(s.last_seen) > stale)
    }

    /// True when it is worth a first finding.
    pub fn is_worth_telling(&self, component: &Component) -> bool {
        let failed = component.members.iter().map(|at| self.view.signals[*at]);
        let failed = failed.filter(|s| is_failure(s.kind)).any(|s| s.strength.get() >= 0.5);
        let proven = self.root(component).is_some() && !is_passing(self.view, component);
        failed || (proven && component.verdict.confidence >= self.config.publish_confidence_min)
    }

    /// The finding as it stands at this tick, without a revision.
    pub fn draft(&self, component: &Component, incident: &mut Incident) -> Finding {
        let view = self.view;
        let seat = self.seat(component);
        let Named { root, confidence, kept } = self.cause_told(component, incident);
        let members = in_order(component, view, root.map(|cause| &cause.seat));
        incident.foretold.look(view, &members, &seat, nanos(self.config.refresh));
        let prediction = root.and_then(|_| incident.foretold.prediction());
        let deviations = || members.iter().map(|at| view.signals[*at]).filter(|s| !is_change(s.kind));
        let first_bad = deviations().map(|s| s.onset).min().unwrap_or_default();
        let status = match (self.is_over(component), root) {
            (true, _) => Status::Recovered,
            (false, Some(_)) => Status::Active,
            (false, None) => Status::NotProvable,
        };
        let spec = root.map(|c| &c.pattern.impact);
        let calls = self.calls.get_or_init(|| self.tallies.by_home(view.graph));
        let mut suffered = impact(view, &members, &seat, spec, calls, first_bad);
        let severity = severity(spec, &suffered, deviations().any(|s| is_failure(s.kind)));
        let holes = self.holes(first_bad);
        let now = Now {
            view,
            members: &members,
            seat: &seat,
            first_bad,
            confidence: root.map(|_| confidence),
            goes_on: status != Status::Recovered,
            refresh_ns: nanos(self.config.refresh),
        };
        let touches = self.ahead.look(&now, self.tallies, view.graph, &mut incident.foreseen);
        // What is over has touched it as well.
        suffered.slo_impact = touches || incident.last().is_some_and(|last| last.impact.slo_impact);
        let lost = holes.iter().filter(|gap| gap.lost > 0).count();
        let hypotheses = self.hypotheses(component, root.is_some(), kept);
        let teller = root.map(|cause| Teller {
            view,
            cause,
            members: &members,
            prediction: prediction.as_ref(),
            first_told: incident.foretold.first_told(),
        });
        let ahead = ahead::sentences(&incident.foreseen);
        let (title, story, actions) = match &teller {
            Some(teller) => (teller.title(), teller.story(status, &ahead, lost), teller.actions(status)),
            None => {
                let likely = hypotheses.iter().take(3).filter(|h| incident.is_probable(h));
                self.unproven(component, &members, likely, status, &ahead)
            }
        };
        Finding {
            schema: SmolStr::new_static(FINDING_SCHEMA),
            id: incident.id,
            revision: 0,
            status,
            superseded_by: None,
            cluster: members.first().map(|at| view.signals[*at].entity.cluster.clone()).unwrap_or_default(),
            severity,
            title,
            story,
            opened_at: incident.told_opened_at(),
            first_bad_at: first_bad,
            updated_at: deviations().map(|s| s.last_seen).max().unwrap_or_default(),
            emitted_at: view.now,
            confidence: Score::clamped(confidence),
            root_cause: root.map(|cause| self.root_cause(cause, &members)),
            hypotheses,
            chain: self.chain(&members),
            said: said::of(view, &members, &seat, first_bad, self.said),
            impact: suffered,
            prediction,
            predictions: incident.foreseen.predictions(),
            actions,
            semantic_group: self.group(root, &members),
            freshness: Freshness { watermark: view.now, gaps: holes.into_iter().map(in_words).collect() },
        }
    }

    /// Confidence as it is told. What nobody feels is not told with confidence, however clearly it shows.
    fn stated(&self, component: &Component, root: Option<&Candidate<'_>>) -> f64 {
        let stated = self.calibration.stated(component.verdict.confidence);
        let Some(cause) = root else { return stated };
        let symptoms = &cause.pattern.symptoms;
        let mut explained = cause.explains.iter().filter(|(at, _)| component.members.contains(at));
        let is_felt = explained.any(|(_, (_, symptom))| symptoms[*symptom].felt);
        cause.pattern.unfelt_max.filter(|_| !is_felt).map_or(stated, |most| stated.min(most))
    }

    fn unproven<'h>(
        &self,
        component: &Component,
        members: &[usize],
        likely: impl Iterator<Item = &'h Hypothesis>,
        status: Status,
        ahead: &[String],
    ) -> (String, String, Vec<tapio_schemas::finding::Action>) {
        let considered: Vec<String> =
            likely.map(|h| format!("{} on {}", h.cause, says::name(&h.entity))).collect();
        let failed = members.iter().copied().find(|at| is_failure(self.view.signals[*at].kind));
        let first = failed.or(component.members.first().copied()).unwrap_or_default();
        let title = unproven_title(&self.view.homes[first], self.view.signals[first]);
        let story = [&[unproven_story(self.view, members, &considered, status)], ahead].concat().join(" ");
        (title, story, Vec::new())
    }

    fn root_cause(&self, cause: &Candidate<'_>, members: &[usize]) -> RootCause {
        let mut evidence = Vec::new();
        for at in members.iter().filter(|at| cause.explains.contains_key(at) || cause.changes.contains(at)) {
            let signal = self.view.signals[*at];
            evidence.push(signal.id.to_string());
            evidence.extend(signal.evidence.iter().map(ToString::to_string));
        }
        RootCause { entity: cause.seat.clone(), cause: cause.pattern.id.clone(), evidence }
    }

    fn chain(&self, members: &[usize]) -> Vec<ChainLink> {
        let half = self.config.chain_max / 2;
        let cut = members.len() > self.config.chain_max;
        let kept = members
            .iter()
            .enumerate()
            .filter(|(number, _)| !cut || *number < half || *number + half >= members.len())
            .map(|(_, at)| *at);
        kept.map(|at| {
            let signal = self.view.signals[at];
            ChainLink {
                at: signal.onset,
                entity: signal.entity.subject(),
                signal: SmolStr::new_static(signal.kind.as_str()),
                says: says::sentence(signal),
                evidence: signal.evidence.iter().map(ToString::to_string).collect(),
            }
        })
        .collect()
    }

    fn hypotheses(&self, component: &Component, proven: bool, kept: Option<Score>) -> Vec<Hypothesis> {
        let ranked = &component.verdict.ranked;
        let winner = ranked.first().filter(|_| proven).map(|(best, _)| &self.candidates[*best]);
        ranked
            .iter()
            .take(HYPOTHESES_MAX)
            .enumerate()
            .map(|(rank, (at, probability))| {
                let candidate = &self.candidates[*at];
                let beaten_by = winner.filter(|_| rank > 0);
                Hypothesis {
                    entity: candidate.seat.clone(),
                    cause: candidate.pattern.id.clone(),
                    probability: kept.filter(|_| rank == 0).unwrap_or(Score::clamped(*probability)),
                    explains: self.explained(candidate, component),
                    missing: self.missing(candidate),
                    refuted_by: self.refuted(candidate, beaten_by, component),
                }
            })
            .collect()
    }

    fn explained(&self, candidate: &Candidate<'_>, component: &Component) -> Vec<String> {
        candidate
            .explains
            .keys()
            .filter(|at| component.members.contains(at))
            .map(|at| self.named(*at))
            .collect()
    }

    fn named(&self, at: usize) -> String {
        let signal = self.view.signals[at];
        format!("{} on {}", signal.kind, says::name(&signal.entity.subject()))
    }

    /// Signals of one kind.
    fn all_named(&self, all: &[usize]) -> String {
        let subjects: BTreeSet<Entity> =
            all.iter().map(|at| self.view.signals[*at].entity.subject().clone()).collect();
        match subjects.len() {
            1 => self.named(all[0]),
            many => format!("{} on {many} {}", self.view.signals[all[0]].kind, says::places(&subjects)),
        }
    }

    fn missing(&self, candidate: &Candidate<'_>) -> Vec<String> {
        let symptoms = candidate.missing.iter().map(|s| &candidate.pattern.symptoms[*s]);
        symptoms.map(|s| format!("{} was expected and not seen", s.signal)).collect()
    }

    fn refuted(
        &self,
        candidate: &Candidate<'_>,
        winner: Option<&Candidate<'_>>,
        component: &Component,
    ) -> Vec<String> {
        let mut reasons: Vec<String> = candidate
            .refuted
            .iter()
            .filter_map(|(refuter, at)| {
                let says = &candidate.pattern.refuted_by[*refuter].says;
                refutation(says, &candidate.seat, self.view.signals[*at])
            })
            .collect();
        reasons.extend(candidate.pattern.tempered_by.iter().filter_map(|spec| {
            let share = share(spec.share, self.view, &candidate.seat);
            (share >= TEMPERS_MIN).then(|| tempering(&spec.says, &candidate.seat, share))?
        }));
        if let Some(winner) = winner {
            let left = winner
                .explains
                .keys()
                .filter(|at| component.members.contains(at) && !candidate.explains.contains_key(at))
                .filter(|at| !is_change(self.view.signals[**at].kind));
            let mut of_kind: BTreeMap<SignalKind, Vec<usize>> = BTreeMap::new();
            left.for_each(|at| of_kind.entry(self.view.signals[*at].kind).or_default().push(*at));
            reasons.extend(of_kind.values().map(|all| format!("does not explain {}", self.all_named(all))));
            if reasons.is_empty() {
                let by = format!("{} on {} explains the same", winner.pattern.id, says::name(&winner.seat));
                reasons.push(format!("{by} and is more probable"));
            }
        }
        reasons.truncate(REASONS_MAX);
        reasons
    }

    fn group(&self, root: Option<&Candidate<'_>>, members: &[usize]) -> SemanticGroup {
        let mut explained = members.iter().filter(|at| root.is_none_or(|r| r.explains.contains_key(at)));
        let first = explained.find(|at| !is_change(self.view.signals[**at].kind));
        let Some(signal) = first.map(|at| self.view.signals[*at]) else { return SemanticGroup::default() };
        let text = |key: &str| signal.attribute(key).and_then(|v| v.as_text()).map(SmolStr::new);
        SemanticGroup {
            id: signal.group,
            group_type: text("group_type").unwrap_or_default(),
            intent: text("intent").unwrap_or_default(),
        }
    }

    fn holes(&self, first_bad: UnixNanos) -> Vec<&Gap> {
        let near = self.gaps.iter().filter(|g| g.to >= first_bad.minus(RUN_UP_NS) && g.from <= self.view.now);
        near.take(GAPS_MAX).collect()
    }
}

/// A hole in words.
pub fn in_words(gap: &Gap) -> String {
    let place = if gap.node.is_empty() { String::new() } else { format!(" on {}", gap.node) };
    let reason = if gap.reason.is_empty() { String::new() } else { format!(" ({})", gap.reason) };
    let (from, to) = (clock_time(gap.from), clock_time(gap.to));
    if gap.lost == 0 {
        return format!("{}{place} does not see everything {from}–{to}{reason}", gap.source);
    }
    format!("{}{place} lost {} events {from}–{to}{reason}", gap.source, gap.lost)
}
