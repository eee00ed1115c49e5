//! What belongs together in a request of one operation: which calls, which log lines.
//!
//! Requests take many branches, and how often each is taken changes with who asks for what. What does not change is what
//! follows from what: where the line `a` was logged, `b` was logged as well. The reference counts in how many requests
//! each step was, and each pair of steps; a rule `a ⇒ b` that held in nearly all of them is broken when `a` comes
//! without `b` (association rules: Agrawal, Imieliński, Swami 1993; as invariants of traces: Lou et al. 2010). Steps
//! that were never seen are estimated by Good and Turing (Good 1953): the share of requests that brought something new.

use std::collections::BTreeMap;

use tapio_schemas::service::{Step, StepKind};

use super::cusum::RATE_MIN;
use super::loss::Loss;

/// Steps remembered of an operation.
pub const STEPS_MAX: usize = 64;
/// Requests without which there is no reference.
const REQUESTS_MIN: u64 = 3;
/// Requests with an error of which the reference consists when there are no others.
const FAILED_MIN: u64 = 5;
/// A rule held in at least this share of the requests.
const RULE_SHARE: f64 = 0.95;
/// From so many requests on the estimate of what is new is believed in full.
const NEWS_SOUND: u64 = 20;
/// Steps that would have met so often by chance and never did are of different branches (Poisson: less than one in 20).
const MEETINGS_MIN: u64 = 3;
/// Counts are halved above this, so that what is usual can change.
const COUNT_MAX: u64 = 1 << 20;

/// Identity of a step.
pub type StepId = u64;

/// Identity of a step, the same everywhere.
pub fn step_id(step: &Step) -> StepId {
    let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(step.kind as u64);
    for text in [&step.service, &step.name] {
        hash.update(&(text.len() as u32).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest()
}

/// The steps of one way, known by their ids.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Sorted by id.
    pub steps: Vec<(StepId, Step)>,
}

impl Way {
    /// Of a shape's steps.
    pub fn new(steps: &[Step]) -> Self {
        let mut steps: Vec<(StepId, Step)> = steps.iter().map(|s| (step_id(s), s.clone())).collect();
        steps.sort_unstable_by_key(|(id, _)| *id);
        steps.dedup_by_key(|(id, _)| *id);
        Self { steps }
    }

    /// True when the step is in it.
    pub fn has(&self, id: StepId) -> bool {
        self.steps.binary_search_by_key(&id, |(known, _)| *known).is_ok()
    }

    fn any(&self, kinds: &[StepKind]) -> bool {
        self.steps.iter().any(|(_, s)| kinds.contains(&s.kind))
    }

    /// True when it logged an error.
    pub fn failed(&self) -> bool {
        self.any(&[StepKind::ErrorLog])
    }

    /// True when it logged.
    pub fn logged(&self) -> bool {
        self.any(&[StepKind::Log, StepKind::ErrorLog])
    }

    /// True when a call of it failed.
    pub fn failed_to_call(&self) -> bool {
        self.any(&[StepKind::FailedCall])
    }

    /// True when it called nothing.
    pub fn is_empty(&self) -> bool {
        !self.any(&[StepKind::Call])
    }
}

/// `b` was missing although `a` (or, without one, the request) was there.
#[derive(Debug, Clone, PartialEq)]
pub struct Broken {
    /// What should have brought it; none = any request.
    pub given: Option<StepId>,
    /// What was missing.
    pub missing: StepId,
    /// Share of the reference's requests that broke the rule.
    pub rate: f64,
    /// Requests of the reference in which the rule could be seen.
    pub of: u64,
}

/// Counts of one reference.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Requests that brought a step nobody had seen.
    news: u64,
    /// Requests that called nothing.
    empty: u64,
    index: BTreeMap<StepId, usize>,
    /// Step and how often, in the order in which they were learnt.
    steps: Vec<(StepId, Step, u64)>,
    /// Row `i` holds the pairs with the steps before it.
    pairs: Vec<Vec<u32>>,
}

impl Counts {
    fn learn(&mut self, way: &Way, count: u64) {
        let known: Vec<usize> = way.steps.iter().filter_map(|(id, step)| self.place(*id, step)).collect();
        self.requests += count;
        self.empty += if way.is_empty() { count } else { 0 };
        for (number, at) in known.iter().enumerate() {
            self.steps[*at].2 += count;
            for other in &known[..number] {
                let (row, column) = (*at.max(other), *at.min(other));
                let pair = &mut self.pairs[row][column];
                *pair = pair.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            }
        }
        if self.requests > COUNT_MAX {
            self.halve();
        }
    }

    /// Where the step is counted; a new one finds a place while there is room.
    fn place(&mut self, id: StepId, step: &Step) -> Option<usize> {
        if let Some(at) = self.index.get(&id) {
            return Some(*at);
        }
        if self.steps.len() >= STEPS_MAX {
            return None;
        }
        let at = self.steps.len();
        self.index.insert(id, at);
        self.steps.push((id, step.clone(), 0));
        self.pairs.push(vec![0; at]);
        Some(at)
    }

    fn halve(&mut self) {
        self.requests /= 2;
        self.news /= 2;
        self.empty /= 2;
        self.steps.iter_mut().for_each(|(_, _, count)| *count /= 2);
        self.pairs.iter_mut().flatten().for_each(|count| *count /= 2);
    }

    fn pair(&self, a: usize, b: usize) -> u64 {
        if a == b { self.steps[a].2 } else { u64::from(self.pairs[a.max(b)][a.min(b)]) }
    }

    /// True for steps of different branches: they never came in one request, and by chance would have several times.
    fn never_meet(&self, a: usize, b: usize) -> bool {
        self.pair(a, b) == 0 && self.steps[a].2 * self.steps[b].2 >= MEETINGS_MIN * self.requests
    }

    fn logs(&self) -> bool {
        self.steps.iter().any(|(_, s, _)| s.kind == StepKind::Log)
    }

    /// What is missing in a way, each with the rule that says so most clearly.
    pub fn broken(&self, way: &Way, loss: Loss) -> Vec<Broken> {
        let logged = way.logged();
        let share_min = loss.lowered(RULE_SHARE);
        let present: Vec<usize> =
            way.steps.iter().filter_map(|(id, _)| self.index.get(id).copied()).collect();
        let mut all = Vec::new();
        for (b, (id, step, count)) in self.steps.iter().enumerate() {
            // Without any line of its own the telemetry is missing, not the step. That no error came is no fault.
            let silent = step.kind == StepKind::Log && !logged;
            if silent || step.kind == StepKind::ErrorLog || way.has(*id) {
                continue;
            }
            // With loss a branch that most requests take looks like a rule that records are missing of.
            if loss.is_some() && present.iter().any(|a| self.never_meet(*a, b)) {
                continue;
            }
            let mut best: Option<Broken> = None;
            let mut take = |given: Option<StepId>, both: u64, of: u64| {
                let holds = of >= REQUESTS_MIN && both as f64 >= share_min * of as f64;
                let rate = loss.rate(of - both.min(of), of).max(RATE_MIN);
                let clearer = |known: &Broken| rate < known.rate || (rate == known.rate && of < known.of);
                if holds && best.as_ref().is_none_or(clearer) {
                    best = Some(Broken { given, missing: *id, rate, of });
                }
            };
            take(None, *count, self.requests);
            for a in &present {
                take(Some(self.steps[*a].0), self.pair(*a, b), self.steps[*a].2);
            }
            all.extend(best);
        }
        all
    }

    /// Share of the requests that broke a rule.
    pub fn rate(&self, given: Option<StepId>, missing: StepId, loss: Loss) -> f64 {
        let of = match given {
            None => Some(self.requests),
            Some(a) => self.index.get(&a).map(|a| self.steps[*a].2),
        };
        let both = self.index.get(&missing).map_or(0, |b| match given {
            None => self.steps[*b].2,
            Some(a) => self.index.get(&a).map_or(0, |a| self.pair(*a, *b)),
        });
        match of.filter(|of| *of > 0) {
            Some(of) => loss.rate(of.saturating_sub(both), of).max(RATE_MIN),
            None => 1.0,
        }
    }

    /// Steps of a way that were never seen.
    pub fn unknown<'w>(&self, way: &'w Way) -> Vec<&'w (StepId, Step)> {
        if self.steps.len() >= STEPS_MAX {
            return Vec::new();
        }
        let logs = self.logs();
        let counts = |step: &Step| step.kind != StepKind::Log || logs;
        way.steps.iter().filter(|(id, s)| !self.index.contains_key(id) && counts(s)).collect()
    }

    /// Share of requests that bring something new.
    pub fn news_rate(&self) -> f64 {
        let (news, all) = (self.news as f64, self.requests as f64 + 1.0);
        if self.requests < NEWS_SOUND { (news + 0.5) / all } else { ((0.5 * news + 0.5) / all).max(RATE_MIN) }
    }

    /// (requests that called nothing, requests), when nearly all of many call something.
    pub fn rarely_empty(&self) -> Option<f64> {
        let sound = self.requests >= NEWS_SOUND && self.empty as f64 <= 0.15 * self.requests as f64;
        sound.then(|| (self.empty as f64 + 0.5) / (self.requests as f64 + 1.0))
    }

    /// The step with this id.
    pub fn step(&self, id: StepId) -> Option<&Step> {
        self.index.get(&id).map(|at| &self.steps[*at].1)
    }
}

/// Reference of an operation: of requests without an error when there are such. An operation that always fails is like
/// that, and that it stops failing is no fault. Requests without any log line, where others log, are a kind of their own.
#[derive(Debug, Default)]
pub struct Reference {
    good: Counts,
    failed: Counts,
    silent: Counts,
}

impl Reference {
    /// What to compare with; `None` while too little is known.
    pub fn counts(&self) -> Option<&Counts> {
        if self.good.requests >= REQUESTS_MIN || self.failed.requests < FAILED_MIN {
            (self.good.requests >= REQUESTS_MIN).then_some(&self.good)
        } else {
            Some(&self.failed)
        }
    }

    /// What to compare this way with.
    pub fn counts_for(&self, way: &Way) -> Option<&Counts> {
        self.counts().map(|counts| if self.knows_silence(way) { &self.silent } else { counts })
    }

    /// True for a way without log lines where others log, when it is known how such ways go.
    pub fn knows_silence(&self, way: &Way) -> bool {
        !way.logged() && self.silent.requests >= REQUESTS_MIN && self.counts().is_some_and(Counts::logs)
    }

    /// The step with this id.
    pub fn step(&self, id: StepId) -> Option<&Step> {
        [&self.good, &self.failed, &self.silent].into_iter().find_map(|counts| counts.step(id))
    }

    /// True when it knows no request without an error, and this is one.
    pub fn is_better(&self, way: &Way) -> bool {
        self.good.requests < REQUESTS_MIN && !way.failed()
    }

    /// Learns requests that went this way.
    pub fn learn(&mut self, way: &Way, count: u64) {
        let current = self.counts().unwrap_or(&self.good);
        if current.logs() && !way.logged() {
            learn(&mut self.silent, way, count);
        } else if way.failed() {
            if self.good.requests < REQUESTS_MIN {
                learn(&mut self.failed, way, count);
            }
        } else {
            learn(&mut self.good, way, count);
        }
    }
}

fn learn(counts: &mut Counts, way: &Way, count: u64) {
    let brings_news = way.steps.iter().any(|(id, _)| !counts.index.contains_key(id));
    counts.news += u64::from(brings_news);
    counts.learn(way, count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: StepKind, name: &str) -> Step {
        Step { kind, service: "s".into(), name: name.into() }
    }

    fn way(names: &[&str]) -> Way {
        let kind = |name: &str| match name.as_bytes()[0] {
            b'!' => StepKind::ErrorLog,
            b'>' => StepKind::Call,
            _ => StepKind::Log,
        };
        Way::new(&names.iter().map(|n| step(kind(n), n)).collect::<Vec<_>>())
    }

    fn named(reference: &Reference, broken: &Broken) -> (Option<String>, String) {
        let counts = reference.counts().unwrap();
        let name = |id| counts.step(id).unwrap().name.to_string();
        (broken.given.map(name), name(broken.missing))
    }

    #[test]
    fn what_always_followed_is_missed_and_branches_are_not() {
        let mut reference = Reference::default();
        reference.learn(&way(&["begin", "search", "found", ">db"]), 30);
        reference.learn(&way(&["begin", "order", ">pay"]), 70);
        let counts = reference.counts().unwrap();
        assert!(counts.broken(&way(&["begin", "order", ">pay"]), Loss::default()).is_empty());
        let broken = counts.broken(&way(&["begin", "search", ">db"]), Loss::default());
        assert_eq!(broken.len(), 1);
        assert_eq!(named(&reference, &broken[0]).1, "found");
        assert!(broken[0].rate <= 0.02 && broken[0].of == 30);
        // A request that logged nothing at all lacks telemetry, not behaviour.
        assert!(counts.broken(&way(&[">pay"]), Loss::default()).is_empty());
    }

    #[test]
    fn with_loss_another_branch_is_no_missing_step_and_a_missing_step_is() {
        let lossy = Loss::of([(36, 100), (36, 100), (36, 100)].into_iter());
        let mut reference = Reference::default();
        reference.learn(&way(&["begin", ">ads", "by kind"]), 70);
        reference.learn(&way(&["begin", ">ads", "random"]), 20);
        reference.learn(&way(&["begin", ">ads"]), 10);
        let counts = reference.counts().unwrap();
        assert!(lossy.is_some() && counts.broken(&way(&["begin", ">ads", "random"]), lossy).is_empty());
        let broken = counts.broken(&way(&["begin", ">ads"]), lossy);
        assert_eq!(broken.iter().map(|b| named(&reference, b).1).collect::<Vec<_>>(), ["by kind"]);
    }

    #[test]
    fn new_steps_are_news_and_old_failures_are_not() {
        let mut reference = Reference::default();
        reference.learn(&way(&["begin", "!no"]), 10);
        assert!(reference.is_better(&way(&["begin"])));
        assert!(reference.counts().unwrap().unknown(&way(&["begin", "!no"])).is_empty());
        assert_eq!(reference.counts().unwrap().unknown(&way(&["begin", "!boom"])).len(), 1);
        reference.learn(&way(&["begin"]), 3);
        assert!(!reference.is_better(&way(&["begin"])));
        assert_eq!(reference.counts().unwrap().unknown(&way(&["begin", "!no"])).len(), 1);
    }

    #[test]
    fn an_unknown_operation_says_nothing() {
        let mut reference = Reference::default();
        assert!(reference.counts().is_none());
        reference.learn(&way(&["a"]), 2);
        assert!(reference.counts().is_none());
    }
}
