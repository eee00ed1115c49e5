//! One incident over time: which signals it holds, what has been published of it, when it is over.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use tapio_schemas::finding::{Finding, Hypothesis, Status};
use tapio_schemas::{Entity, FindingId, Score, Severity, SignalId, SmolStr, UnixNanos};

use super::ending;
use super::foreseen::Foreseen;
use super::prediction::Foretold;

/// A confidence that moves by less is the same.
const CONFIDENCE_STEP: f64 = 0.05;
/// An explanation less probable than this is as good as none.
const PROBABLE_MIN: f64 = 0.05;
/// One that was probable when the finding was told last is as good as none only below this: else one that moves around
/// [`PROBABLE_MIN`] would be news at every tick.
const PROBABLE_STILL: f64 = 0.03;

/// An incident.
#[derive(Debug)]
pub struct Incident {
    /// Hash of the cluster and the first signal.
    pub id: FindingId,
    /// The signal that opened it.
    pub first: SignalId,
    /// Tick at which it was opened.
    pub opened_at: UnixNanos,
    /// What it holds.
    pub members: BTreeSet<SignalId>,
    /// Onset of the earliest member.
    pub onset: UnixNanos,
    /// What it has foretold where its cause is.
    pub foretold: Foretold,
    /// What it has foretold elsewhere.
    pub foreseen: Foreseen,
    /// The cause that the evidence singled out last.
    pub named: Option<NamedCause>,
    /// Tick at which it was over; `None` while it goes on.
    pub over_since: Option<UnixNanos>,
    /// What it held when it was told that it is over.
    told_over: Option<BTreeSet<SignalId>>,
    /// Last revision made, before this process or in it.
    revision: u32,
    published: Option<Published>,
}

/// A cause, and what spoke against it when the evidence last singled it out.
#[derive(Debug)]
pub struct NamedCause {
    /// Cause id.
    pub cause: SmolStr,
    /// Where it sits.
    pub seat: Entity,
    /// Refuters seen, by their number in the pattern.
    pub refuters: BTreeSet<usize>,
    /// Symptoms missing, likewise.
    pub missing: BTreeSet<usize>,
}

#[derive(Debug)]
struct Published {
    finding: Finding,
    at: UnixNanos,
    /// Cause and seat of the explanations that were probable in it.
    probable: BTreeSet<(SmolStr, Entity)>,
}

impl Published {
    /// The first explanation and those that are probable.
    fn told(&self) -> impl Iterator<Item = &Hypothesis> {
        let all = self.finding.hypotheses.iter().enumerate();
        all.filter(|(rank, h)| *rank == 0 || self.probable.contains(&key(h))).map(|(_, h)| h)
    }
}

/// What makes two explanations the same one.
fn key(of: &Hypothesis) -> (SmolStr, Entity) {
    (of.cause.clone(), of.entity.clone())
}

/// Id of the finding of an incident.
pub fn finding_id(cluster: &str, first: SignalId) -> FindingId {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&(cluster.len() as u32).to_le_bytes());
    hash.update(cluster.as_bytes());
    hash.update(&first.0.to_le_bytes());
    FindingId(hash.digest128())
}

impl Incident {
    /// Opens one. `revision` is the last one published under this id before, if any.
    pub fn open(cluster: &str, first: SignalId, at: UnixNanos, revision: u32) -> Self {
        Self {
            id: finding_id(cluster, first),
            first,
            opened_at: at,
            members: BTreeSet::new(),
            onset: at,
            foretold: Foretold::default(),
            foreseen: Foreseen::default(),
            named: None,
            over_since: None,
            told_over: None,
            revision,
            published: None,
        }
    }

    /// Last revision.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// True once a finding was made.
    pub fn is_published(&self) -> bool {
        self.published.is_some()
    }

    /// The last finding made.
    pub fn last(&self) -> Option<&Finding> {
        self.published.as_ref().map(|published| &published.finding)
    }

    /// Title of the last finding.
    pub fn title(&self) -> String {
        self.published.as_ref().map(|p| p.finding.title.clone()).unwrap_or_default()
    }

    /// When it opened, as told.
    pub fn told_opened_at(&self) -> UnixNanos {
        self.published.as_ref().map_or(self.opened_at, |p| p.finding.opened_at)
    }

    /// True when it was told that it is over, and nothing has come since.
    pub fn rests(&self) -> bool {
        self.over_since.is_some() && self.told_over.as_ref() == Some(&self.members)
    }

    /// True for an explanation that is worth a word: it is probable, or less so and was when the finding was told last.
    pub fn is_probable(&self, of: &Hypothesis) -> bool {
        let was_probable = || self.published.as_ref().is_some_and(|last| last.probable.contains(&key(of)));
        let probability = of.probability.get();
        probability >= PROBABLE_MIN || (probability >= PROBABLE_STILL && was_probable())
    }

    /// Makes a revision of `draft` when it says something new, or when figures have drifted for `refresh_ns`.
    pub fn publish(&mut self, mut draft: Finding, now: UnixNanos, refresh_ns: u64) -> Option<Finding> {
        // A story does not get less bad by getting longer; a subscriber of one severity keeps seeing it.
        draft.severity = self.last().map_or(draft.severity, |last| draft.severity.max(last.severity));
        let probable = draft.hypotheses.iter().filter(|h| self.is_probable(h)).map(key).collect();
        let mut next = Published { finding: draft, at: now, probable };
        if let Some(last) = &self.published
            && !is_news(last, &next)
            && (now.since(last.at) < refresh_ns || !has_drifted(last, &next))
        {
            return None;
        }
        self.told_over = self.over_since.map(|_| self.members.clone());
        self.revision += 1;
        next.finding.revision = self.revision;
        next.finding.emitted_at = now;
        Some(self.published.insert(next).finding.clone())
    }

    /// Last revision of an incident that turned out to be part of another one.
    pub fn merged_into(&mut self, other: FindingId, title: &str, now: UnixNanos) -> Option<Finding> {
        let last = self.published.take()?.finding;
        let last = ending::superseded(last, other, title, now);
        self.revision = last.revision;
        Some(last)
    }

    /// Last revision of an incident that is dropped; `None` when nothing was told, or that it is over.
    pub fn dropped(&mut self, why: &str, now: UnixNanos) -> Option<Finding> {
        let last = self.published.take()?.finding;
        if ending::is_over(last.status) {
            return None;
        }
        let last = ending::lost(last, why, now);
        self.revision = last.revision;
        Some(last)
    }
}

/// When something is expected, and what came of it.
type Told<'a> = (UnixNanos, (UnixNanos, UnixNanos), Option<&'a SmolStr>);

/// What makes a revision worth telling at once.
#[derive(PartialEq)]
struct Gist<'a> {
    status: Status,
    severity: Severity,
    root: Option<(&'a Entity, &'a SmolStr)>,
    hypotheses: Vec<(&'a SmolStr, &'a Entity, bool)>,
    chain: Vec<(UnixNanos, &'a SmolStr, &'a Entity)>,
    foretold: Vec<Told<'a>>,
    customer_facing: bool,
    gaps: usize,
    said: Vec<(&'a SmolStr, &'a Vec<String>)>,
}

impl<'a> Gist<'a> {
    fn of(published: &'a Published) -> Self {
        let finding = &published.finding;
        Self {
            status: finding.status,
            severity: finding.severity,
            root: finding.root_cause.as_ref().map(|r| (&r.entity, &r.cause)),
            hypotheses: {
                let mut told: Vec<_> =
                    published.told().map(|h| (&h.cause, &h.entity, h.refuted_by.is_empty())).collect();
                told.sort_unstable();
                told
            },
            chain: finding.chain.iter().map(|l| (l.at, &l.signal, &l.entity)).collect(),
            foretold: finding.foretold().map(|p| (p.at, p.interval, p.outcome.as_ref())).collect(),
            customer_facing: finding.impact.customer_facing,
            gaps: finding.freshness.gaps.len(),
            // The same words of a later life, or of the next pod alike, are no news.
            said: finding.said.iter().map(|s| (&s.container, &s.lines)).collect(),
        }
    }
}

fn is_news(last: &Published, draft: &Published) -> bool {
    (last.finding.confidence.get() - draft.finding.confidence.get()).abs() > CONFIDENCE_STEP
        || Gist::of(last) != Gist::of(draft)
}

/// Differs in what a reader sees: words, figures, impact, or how probable the explanations are. One more event of the same
/// is none of it.
fn has_drifted(last: &Published, draft: &Published) -> bool {
    let plain = |finding: &Finding| {
        let mut finding = finding.clone();
        finding.revision = 0;
        finding.emitted_at = UnixNanos(0);
        finding.updated_at = UnixNanos(0);
        finding.freshness.watermark = UnixNanos(0);
        // A probability that moves in the third digit is the same.
        finding.confidence = Score::clamped((finding.confidence.get() * 100.0).round() / 100.0);
        finding.hypotheses = Vec::new();
        finding.chain.iter_mut().for_each(|link| link.evidence = Vec::new());
        finding.root_cause.iter_mut().for_each(|root| root.evidence = Vec::new());
        finding
    };
    plain(&last.finding) != plain(&draft.finding) || explain_otherwise(last, draft)
}

/// Another explanation comes first, or those that are told are others, or stand otherwise. Which of two that are as probable as
/// they were comes before the other, below the first, is no difference.
fn explain_otherwise(last: &Published, draft: &Published) -> bool {
    let first = |of: &Published| of.finding.hypotheses.first().map(key);
    let stands = |h: &Hypothesis| {
        let before = last.told().find(|before| (&before.cause, &before.entity) == (&h.cause, &h.entity));
        before.is_some_and(|before| {
            let moved = (before.probability.get() - h.probability.get()).abs() > CONFIDENCE_STEP;
            before.missing == h.missing && !moved
        })
    };
    first(last) != first(draft) || last.told().count() != draft.told().count() || !draft.told().all(stands)
}
