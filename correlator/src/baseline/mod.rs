//! Simple ways to name a cause, to measure what the inference is worth. They see the same signals and tallies.
//!
//! | method | answer |
//! |---|---|
//! | `earliest` | what the earliest of the strong signals is on |
//! | `loudest` | what most of the strong signals are on, by the sum of their strengths |
//! | `ranksum` | of whose measures the robust z-score after the first alarm is largest (BARO: Pham, Ha, Zhang, FSE 2024) |
//!
//! The category is that of the kind of signal, or of the measure, that decided. None of them tells a story, has a calibrated
//! confidence or says that it does not know.

mod category;
mod ranks;
mod series;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tapio_schemas::finding::{
    FINDING_SCHEMA, Finding, Freshness, Hypothesis, Impact, RootCause, SemanticGroup, Status,
};
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Entity, FindingId, Score, Severity, Signal, SignalId, SmolStr, UnixNanos};

use crate::incidents::is_change;
use series::Series;

/// Event time between two decisions.
const STEP_NS: u64 = 5_000_000_000;
/// A signal below this strength decides nothing.
const STRENGTH_MIN: f64 = 0.5;
/// A signal without a word for this long is over.
const STALE_NS: u64 = 600_000_000_000;
/// Signals known at a time; the longest silent are forgotten.
const SIGNALS_MAX: usize = 8192;
/// Hypotheses told.
const HYPOTHESES_MAX: usize = 8;

/// How the cause of an incident is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Causal inference over the entity graph: the product.
    #[default]
    Causal,
    /// The earliest strong signal, for comparison.
    Earliest,
    /// The most and strongest signals, for comparison.
    Loudest,
    /// Largest robust change of a measure since the first alarm, for comparison.
    RankSum,
}

/// What a method blames, with its weight.
#[derive(Debug, Clone, PartialEq)]
struct Blamed {
    entity: Entity,
    category: &'static str,
    weight: f64,
}

/// A simple method at the place of the inference: one incident at a time for the whole cluster.
#[derive(Debug)]
pub struct Baseline {
    method: Method,
    signals: BTreeMap<SignalId, Signal>,
    series: Series,
    open: Option<Finding>,
    alarm: UnixNanos,
    step: UnixNanos,
}

impl Baseline {
    /// The method; `None` for the inference, which is none of these.
    pub fn new(method: Method) -> Option<Self> {
        let series = Series::default();
        let (signals, open, alarm, step) = (BTreeMap::new(), None, UnixNanos(0), UnixNanos(0));
        (method != Method::Causal).then_some(Self { method, signals, series, open, alarm, step })
    }

    /// Takes what a shard tallied.
    pub fn observe(&mut self, section: &SignalSection) {
        if self.method == Method::RankSum {
            self.series.observe(section);
        }
    }

    /// Takes the signals of all shards, united.
    pub fn apply(&mut self, united: SignalSection) {
        for signal in united.signals.into_iter().filter(|signal| !is_change(signal.kind)) {
            let newer = |known: &Signal| known.revision < signal.revision;
            if self.signals.get(&signal.id).is_none_or(newer) {
                self.signals.insert(signal.id, signal);
            }
        }
    }

    /// Decides at every step that all shards have passed.
    pub fn advance(&mut self, watermark: UnixNanos) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.step.0 == 0 && watermark.0 > 0 {
            self.step = UnixNanos(watermark.0 / STEP_NS * STEP_NS).minus(STEP_NS);
        }
        while self.step.0 > 0 && self.step.plus(STEP_NS) <= watermark {
            // Steps at which nothing is known and nothing is open are all alike.
            let idle = self.signals.is_empty() && self.open.is_none();
            let last = UnixNanos(watermark.0 / STEP_NS * STEP_NS);
            self.step = if idle { last } else { self.step.plus(STEP_NS) };
            findings.extend(self.decide(self.step));
        }
        findings
    }

    fn decide(&mut self, now: UnixNanos) -> Option<Finding> {
        self.signals.retain(|_, s| !(s.last_seen <= now && (s.ended || now.since(s.last_seen) > STALE_NS)));
        while self.signals.len() > SIGNALS_MAX {
            let silent = self.signals.values().min_by_key(|s| (s.last_seen, s.id)).map(|s| s.id)?;
            self.signals.remove(&silent);
        }
        let strong = self.signals.values().filter(|s| s.last_seen <= now && s.strength.get() >= STRENGTH_MIN);
        let strong: Vec<&Signal> = strong.collect();
        let Some(onset) = strong.iter().map(|s| s.onset).min() else { return self.recovered(now) };
        if self.open.is_none() {
            self.alarm = onset;
        }
        let mut blamed = match self.method {
            Method::Causal => return None,
            Method::Earliest => ranks::earliest(&strong),
            Method::Loudest => ranks::loudest(&strong),
            Method::RankSum => self.series.ranked(self.alarm, now),
        };
        blamed.truncate(HYPOTHESES_MAX);
        let first = strong.iter().min_by_key(|s| (s.onset, s.id))?;
        let draft = self.draft(&blamed, first, now)?;
        let same = |known: &Finding| {
            known.status == draft.status
                && known.root_cause == draft.root_cause
                && known.hypotheses == draft.hypotheses
        };
        if self.open.as_ref().is_some_and(same) {
            return None;
        }
        self.open = Some(draft.clone());
        Some(draft)
    }

    fn recovered(&mut self, now: UnixNanos) -> Option<Finding> {
        let last = self.open.take()?;
        let revision = last.revision + 1;
        Some(Finding { status: Status::Recovered, revision, emitted_at: now, updated_at: now, ..last })
    }

    fn draft(&self, blamed: &[Blamed], first: &Signal, now: UnixNanos) -> Option<Finding> {
        let all: f64 = blamed.iter().map(|b| b.weight).sum();
        let share = |b: &Blamed| Score::clamped(if all > 0.0 { b.weight / all } else { 0.0 });
        let hypotheses: Vec<Hypothesis> = blamed
            .iter()
            .map(|b| Hypothesis {
                entity: b.entity.clone(),
                cause: cause(b),
                probability: share(b),
                explains: Vec::new(),
                missing: Vec::new(),
                refuted_by: Vec::new(),
            })
            .collect();
        let best = blamed.first()?;
        let known = self.open.as_ref();
        Some(Finding {
            schema: SmolStr::new_static(FINDING_SCHEMA),
            id: known.map_or_else(|| FindingId(first.id.0), |f| f.id),
            revision: known.map_or(0, |f| f.revision) + 1,
            status: Status::Active,
            superseded_by: None,
            cluster: first.entity.cluster.clone(),
            severity: Severity::Warning,
            title: format!("{} on {}", cause(best), best.entity.name),
            story: String::new(),
            opened_at: known.map_or(now, |f| f.opened_at),
            first_bad_at: first.onset,
            updated_at: now,
            emitted_at: now,
            confidence: share(best),
            root_cause: Some(RootCause {
                entity: best.entity.clone(),
                cause: cause(best),
                evidence: Vec::new(),
            }),
            hypotheses,
            chain: Vec::new(),
            said: Vec::new(),
            impact: Impact::default(),
            prediction: None,
            predictions: Vec::new(),
            actions: Vec::new(),
            semantic_group: SemanticGroup::default(),
            freshness: Freshness { watermark: now, gaps: Vec::new() },
        })
    }
}

fn cause(blamed: &Blamed) -> SmolStr {
    SmolStr::from(format!("{}.blamed", blamed.category))
}

#[cfg(test)]
mod tests;
