//! Ways of requests against the rules of their operations. Of the services on a request's way the deepest odd one is
//! the reason: where a callee is odd in the same request, or a call has failed, the oddness of its callers is explained.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;
use tapio_schemas::service::{Shape, Step, StepKind};
use tapio_schemas::{Entity, EventId, UnixNanos};

use super::cusum::{Batch, Cusum, HALF, SOME};
use super::loss::{Loss, Regularity};
use super::odd::{Odd, What};
use super::shapes::{Broken, Reference, StepId, Way};
use super::window::Window;
use super::{HOLD_NS, SECOND_NS, make_room};

/// Operations whose ways are known; the longest silent are forgotten and counted.
const OPERATIONS_MAX: usize = 4096;
/// Rules of one operation that are followed at a time.
const RULES_MAX: usize = 128;
/// Odd ways remembered, for the requests around them that end later.
const ODD_MAX: usize = 65_536;
/// How long they are remembered.
const ODD_NS: u64 = 60 * SECOND_NS;
/// Most calls within each other that are followed.
const DEPTH_MAX: usize = 64;
/// A fault of some requests is looked for in operations of which at least so many are known.
const SOME_OF_MIN: u64 = 40;

/// Odd requests that are excused at a time because the reason of others was seen.
const EXCUSED_MAX: f64 = 64.0;
/// Where records are lost, exceptions tell something up to this share of those that a fault makes.
const TELLING_MAX: f64 = 0.8;
/// Where records are lost, a missing step is the reason of what is odd above it from this sum on, nats.
const RAISED: f64 = 3.0;

/// Requests of so long after the first one heard of may have been under way before anyone listened: parts of them are missing.
const HALF_HEARD_NS: u64 = 10 * SECOND_NS;
/// Half a minute after the first requests of an operation are learnt it is known what is usual, however many they were: requests
/// of one kind come together, and those that take long, or are made every few seconds, are heard of later.
const SHOWN_NS: u64 = 30 * SECOND_NS;

/// Service, operation, and whether the service logs by then.
type OperationKey = (Entity, SmolStr, bool);
/// A rule: given this step (or any request), that one.
type RuleKey = (Option<StepId>, StepId);

#[derive(Debug)]
struct Series {
    cusum: Cusum,
    what: Option<What>,
    events: Vec<EventId>,
    /// So many odd requests more are expected whose reason was below them and got lost.
    excused: f64,
}

impl Series {
    fn new(under_fault: f64) -> Self {
        Self { cusum: Cusum::new(under_fault), what: None, events: Vec::new(), excused: 0.0 }
    }

    /// Odd requests with a reason below them: where records are lost, the reason of others is not seen.
    fn excuse<'w>(&mut self, loss: Loss, ways: impl Iterator<Item = &'w (u64, Judged)>) {
        if !loss.is_some() {
            self.excused = 0.0;
            return;
        }
        let count: f64 = ways.map(|(_, judged)| f64::from(judged.count)).sum();
        self.excused = (self.excused + count * loss.unseen_reasons()).min(EXCUSED_MAX);
    }

    /// Of so many odd requests without a reason, those that nothing excuses.
    fn unexcused(&mut self, count: u32) -> u32 {
        let excused = count.min(self.excused as u32);
        self.excused -= f64::from(excused);
        count - excused
    }

    fn add(&mut self, at: UnixNanos, batch: Batch, event: Option<EventId>) {
        self.cusum.add(at, batch);
        if let Some(event) = event {
            if self.cusum.since() == at {
                self.events.clear();
            }
            crate::shards::add_evidence(&mut self.events, event);
        }
    }
}

#[derive(Debug)]
struct Operation {
    reference: Reference,
    /// Start of the first window that was learnt.
    learnt_since: Option<UnixNanos>,
    rules: BTreeMap<RuleKey, (Series, Option<Series>)>,
    news: Series,
    empty: Series,
    regularity: Regularity,
    seen: UnixNanos,
}

impl Default for Operation {
    fn default() -> Self {
        Self {
            reference: Reference::default(),
            learnt_since: None,
            rules: BTreeMap::new(),
            news: Series::new(HALF),
            empty: Series::new(HALF),
            regularity: Regularity::default(),
            seen: UnixNanos(0),
        }
    }
}

/// One way of a window, judged.
struct Judged {
    way: Way,
    count: u32,
    broken: Vec<Broken>,
    unknown: Vec<Step>,
    /// The reference has only failed requests, and this one is better.
    is_better: bool,
    event: EventId,
}

impl Judged {
    /// Odd enough to be the reason of what is odd above it.
    fn is_reason(&self, raised: &impl Fn(&Broken) -> bool) -> bool {
        !self.unknown.is_empty() || self.broken.iter().any(raised)
    }
}

impl Judged {
    /// How it breaks the rule, if it does.
    fn breaks(&self, (given, missing): &RuleKey) -> Option<&Broken> {
        self.broken.iter().find(|b| b.given == *given && b.missing == *missing)
    }

    /// True when it shows that the rule holds.
    fn keeps(&self, (given, missing): &RuleKey) -> bool {
        self.way.has(*missing) && given.is_none_or(|a| self.way.has(a))
    }
}

/// Ways of all operations.
#[derive(Debug, Default)]
pub struct Ways {
    operations: BTreeMap<OperationKey, Operation>,
    logs_since: BTreeMap<Entity, UnixNanos>,
    odd: BTreeMap<u64, UnixNanos>,
    /// Share of the records that get lost on the way.
    loss: Loss,
    /// Start of the first window in which there were requests.
    heard_since: Option<UnixNanos>,
    /// Operations forgotten because there were too many.
    pub evicted: u64,
    /// Windows of operations whose requests took more ways than there is room for.
    pub unfollowed: u64,
}

impl Ways {
    fn key(&self, start: UnixNanos, service: &Entity, operation: &SmolStr) -> OperationKey {
        let logs = self.logs_since.get(service).is_some_and(|since| start >= *since);
        (service.clone(), operation.clone(), logs)
    }

    /// Compares the ways of a window with the rules.
    pub fn observe(&mut self, window: &Window) {
        if !window.requests.is_empty() {
            self.heard_since = self.heard_since.or(Some(window.start));
        }
        self.notice_logs(window);
        let loss = self.loss;
        let mut judged: BTreeMap<OperationKey, Vec<(u64, Judged)>> = BTreeMap::new();
        for ((service, operation), requests) in &window.requests {
            let key = self.key(window.start, service, operation);
            let known = self.operations.get(&key).filter(|o| o.is_known(window.start));
            if !requests.are_known() {
                self.unfollowed += 1;
                continue;
            }
            let all = requests.ways.iter().map(|(id, shape)| (*id, judge(known, shape, loss)));
            judged.insert(key, all.collect());
        }
        let mut own: BTreeMap<u64, bool> = BTreeMap::new();
        for (key, ways) in &judged {
            let operation = self.operations.get(key).filter(|_| loss.is_some());
            let raised = operation.map(|operation| operation.raised(window.start, ways, loss));
            let counts = |b: &Broken| raised.as_ref().is_none_or(|r| r.contains(&(b.given, b.missing)));
            own.extend(ways.iter().map(|(id, judged)| (*id, judged.is_reason(&counts))));
        }
        let shapes: BTreeMap<u64, &Shape> =
            window.requests.values().flat_map(|r| &r.ways).map(|(id, shape)| (*id, shape)).collect();
        let mut within = BTreeMap::new();
        for id in shapes.keys() {
            self.is_odd_within(*id, &own, &shapes, &mut within, 0);
        }
        let is_half_heard = self.is_half_heard(window);
        for (key, ways) in judged {
            let Some(operation) = self.operations.get_mut(&key) else { continue };
            operation.seen = window.start;
            operation.count(window.start, &ways, &within, loss);
            // What it always does, and now does not always show.
            for (_, judged) in ways.iter().filter(|_| !is_half_heard) {
                operation.regularity.count(&judged.way, u64::from(judged.count));
            }
        }
        if !is_half_heard {
            self.loss = Loss::of(self.operations.values().filter_map(|o| o.regularity.lacking()));
        }
        let odd = own.iter().filter(|(id, odd)| **odd || within.get(id) == Some(&true));
        self.odd.extend(odd.map(|(id, _)| (*id, window.start)));
        let old = window.start.minus(ODD_NS);
        self.odd.retain(|_, at| *at >= old);
        while self.odd.len() > ODD_MAX {
            self.odd.pop_first();
        }
    }

    fn is_half_heard(&self, window: &Window) -> bool {
        let since = self.heard_since.filter(|_| !window.requests.is_empty());
        since.is_some_and(|since| window.start < since.plus(HALF_HEARD_NS))
    }

    fn notice_logs(&mut self, window: &Window) {
        for ((service, _), requests) in &window.requests {
            let logs = |shape: &Shape| shape.steps.iter().any(|s| s.kind != StepKind::Call);
            if !self.logs_since.contains_key(service) && requests.ways.values().any(logs) {
                self.logs_since.insert(service.clone(), window.start);
            }
        }
    }

    /// True when a request to another service within this way was odd itself, or failed.
    fn is_odd_within(
        &self,
        id: u64,
        own: &BTreeMap<u64, bool>,
        shapes: &BTreeMap<u64, &Shape>,
        found: &mut BTreeMap<u64, bool>,
        depth: usize,
    ) -> bool {
        if let Some(known) = found.get(&id) {
            return *known;
        }
        let Some(shape) = shapes.get(&id).filter(|_| depth < DEPTH_MAX) else { return false };
        // Of a circle of ways, which no honest source tells, the first one is even.
        found.insert(id, false);
        // Who could not be asked may be silent itself.
        let failed = shape.steps.iter().any(|step| step.kind == StepKind::FailedCall);
        let odd = failed
            || shape.inner.iter().any(|inner| {
                let here = own.get(inner).copied().unwrap_or_else(|| self.odd.contains_key(inner));
                here || self.is_odd_within(*inner, own, shapes, found, depth + 1)
            });
        found.insert(id, odd);
        odd
    }

    /// Learns the ways of a window of a while ago.
    pub fn learn(&mut self, window: &Window, now: UnixNanos) {
        if self.is_half_heard(window) {
            return;
        }
        for ((service, name), requests) in &window.requests {
            let key = self.key(window.start, service, name);
            let operation = self.operations.entry(key).or_default();
            operation.seen = operation.seen.max(window.start);
            if !requests.are_known() || operation.forbids_learning(window.start, now) {
                continue;
            }
            let ways = requests.ways.values().map(|shape| (Way::new(&shape.steps), shape.count));
            operation.learnt_since = operation.learnt_since.or(Some(window.start));
            // What was logged first: that others log makes those without a line a kind of their own, whoever comes first.
            let (logged, silent): (Vec<_>, Vec<_>) =
                ways.filter(|(way, _)| !way.failed_to_call()).partition(|(way, _)| way.logged());
            for (way, count) in logged.into_iter().chain(silent) {
                operation.reference.learn(&way, u64::from(count));
            }
        }
        self.evicted += make_room(&mut self.operations, OPERATIONS_MAX, |o| o.seen);
        self.evicted += make_room(&mut self.logs_since, OPERATIONS_MAX, |since| *since);
    }

    /// All that is odd with at least so much evidence, per service.
    pub fn odd(&self, now: UnixNanos, evidence_min: f64) -> BTreeMap<&Entity, Vec<Odd>> {
        let mut all: BTreeMap<&Entity, Vec<Odd>> = BTreeMap::new();
        for ((service, name, _), operation) in &self.operations {
            let rules = operation.rules.values().flat_map(|(half, some)| [Some(half), some.as_ref()]);
            let series = rules.flatten().chain([&operation.news, &operation.empty]);
            for one in series {
                let evidence = one.cusum.evidence(now);
                let Some(what) = one.what.clone().filter(|_| evidence >= evidence_min) else { continue };
                all.entry(service).or_default().push(Odd {
                    evidence,
                    since: one.cusum.since(),
                    counts: one.cusum.counts(),
                    what,
                    operation: name.clone(),
                    events: one.events.clone(),
                });
            }
        }
        all
    }
}

fn judge(operation: Option<&Operation>, shape: &Shape, loss: Loss) -> Judged {
    let way = Way::new(&shape.steps);
    let counts = operation.and_then(|o| o.reference.counts_for(&way));
    let is_better = operation.is_some_and(|o| o.reference.is_better(&way));
    let counts = counts.filter(|_| !is_better);
    let broken = counts.map(|c| c.broken(&way, loss)).unwrap_or_default();
    let unknown = counts.map(|c| c.unknown(&way).into_iter().map(|(_, s)| s.clone()).collect());
    let unknown = unknown.unwrap_or_default();
    Judged { way, count: shape.count, broken, unknown, is_better, event: shape.evidence }
}

impl Operation {
    /// True when its requests had time enough to show all their branches by the last window that may be learnt at `at`.
    fn is_known(&self, at: UnixNanos) -> bool {
        self.learnt_since.is_some_and(|since| at.since(since) >= HOLD_NS + SHOWN_NS)
    }

    fn forbids_learning(&self, at: UnixNanos, now: UnixNanos) -> bool {
        let rules = self.rules.values().flat_map(|(half, some)| [Some(half), some.as_ref()]);
        let all = rules.flatten().chain([&self.news, &self.empty]);
        all.into_iter().any(|series| series.cusum.forbids_learning(at, now))
    }

    /// Rules that are broken by more requests than the loss explains, these ones included.
    fn raised(&self, at: UnixNanos, ways: &[(u64, Judged)], loss: Loss) -> BTreeSet<RuleKey> {
        let Some(counts) = self.reference.counts() else { return BTreeSet::new() };
        let all: BTreeSet<RuleKey> =
            ways.iter().flat_map(|(_, w)| &w.broken).map(|b| (b.given, b.missing)).collect();
        let is_raised = |key: &RuleKey| {
            let mut batch = Batch::default();
            for (_, judged) in ways {
                if let Some(broken) = judged.breaks(key) {
                    batch.bad(judged.count, broken.rate, HALF, 1.0, 1.0);
                } else if judged.keeps(key) {
                    batch.good(judged.count, counts.rate(key.0, key.1, loss), HALF, 1.0);
                }
            }
            let known = self.rules.get(key).map(|(half, _)| half.cusum);
            let mut cusum = known.unwrap_or_else(|| Cusum::new(HALF));
            cusum.add(at, batch);
            cusum.sum(at) >= RAISED
        };
        all.into_iter().filter(is_raised).collect()
    }

    fn count(&mut self, at: UnixNanos, ways: &[(u64, Judged)], within: &BTreeMap<u64, bool>, loss: Loss) {
        if !self.is_known(at) || self.reference.counts().is_none() {
            return;
        }
        let explained = |id: &u64| within.get(id).copied().unwrap_or(false);
        let weighed = || ways.iter().filter(|(_, w)| !w.is_better);
        for (_, judged) in weighed().filter(|(id, _)| !explained(id)) {
            for broken in &judged.broken {
                self.follow(broken);
            }
        }
        self.count_rules(at, weighed, &explained, loss);
        self.count_news(at, weighed, &explained, loss);
        self.count_empty(at, weighed, &explained, loss);
    }

    /// A rule is followed from its first violation on.
    fn follow(&mut self, broken: &Broken) {
        let key = (broken.given, broken.missing);
        if self.rules.contains_key(&key) || self.rules.len() >= RULES_MAX {
            return;
        }
        let Some(missing) = self.reference.step(broken.missing).cloned() else { return };
        let given = broken.given.and_then(|id| self.reference.step(id)).cloned();
        let what = Some(What::Missing { given, missing, of: broken.of });
        let some = (broken.of >= SOME_OF_MIN).then(|| Series { what: what.clone(), ..Series::new(SOME) });
        self.rules.insert(key, (Series { what, ..Series::new(HALF) }, some));
    }

    fn count_rules<'w, I: Iterator<Item = &'w (u64, Judged)>>(
        &mut self,
        at: UnixNanos,
        ways: impl Fn() -> I,
        explained: &dyn Fn(&u64) -> bool,
        loss: Loss,
    ) {
        let Some(counts) = self.reference.counts() else { return };
        for (key, (half, some)) in &mut self.rules {
            let rate = counts.rate(key.0, key.1, loss);
            for series in [Some(half), some.as_mut()].into_iter().flatten() {
                let under_fault = series.cusum.under_fault();
                // Exceptions are as frequent without a fault as with it: nothing can be told from them.
                if loss.is_some() && rate > TELLING_MAX * under_fault {
                    continue;
                }
                let mut batch = Batch::default();
                let mut event = None;
                series.excuse(loss, ways().filter(|(id, w)| w.breaks(key).is_some() && explained(id)));
                for (id, judged) in ways() {
                    match judged.breaks(key) {
                        Some(_) if explained(id) => {}
                        Some(broken) => {
                            let count = series.unexcused(judged.count);
                            batch.bad(count, broken.rate, under_fault, 1.0, 1.0);
                            event = event.or((count > 0).then_some(judged.event));
                        }
                        None if judged.keeps(key) => batch.good(judged.count, rate, under_fault, 1.0),
                        None => {}
                    }
                }
                series.add(at, batch, event);
            }
        }
        // A rule that holds again needs not be followed.
        let old = at.minus(600 * SECOND_NS);
        self.rules.retain(|_, (half, _)| half.cusum.last() >= old);
    }

    fn count_news<'w, I: Iterator<Item = &'w (u64, Judged)>>(
        &mut self,
        at: UnixNanos,
        ways: impl Fn() -> I,
        explained: &dyn Fn(&u64) -> bool,
        loss: Loss,
    ) {
        let Some(counts) = self.reference.counts() else { return };
        let rate = counts.news_rate();
        let mut batch = Batch::default();
        let mut first: Option<(&Step, EventId)> = None;
        self.news.excuse(loss, ways().filter(|(id, w)| !w.unknown.is_empty() && explained(id)));
        for (id, judged) in ways() {
            match judged.unknown.iter().max_by_key(|s| (s.kind == StepKind::ErrorLog, *s)) {
                Some(_) if explained(id) => {}
                Some(step) => {
                    let count = self.news.unexcused(judged.count);
                    batch.bad(count, rate, HALF, 1.0, 1.0);
                    first = first.or((count > 0).then_some((step, judged.event)));
                }
                None => batch.good(judged.count, rate, HALF, 1.0),
            }
        }
        if let Some((step, _)) = first {
            self.news.what = Some(What::New(step.clone()));
        }
        self.news.add(at, batch, first.map(|(_, event)| event));
    }

    fn count_empty<'w, I: Iterator<Item = &'w (u64, Judged)>>(
        &mut self,
        at: UnixNanos,
        ways: impl Fn() -> I,
        explained: &dyn Fn(&u64) -> bool,
        loss: Loss,
    ) {
        let Some(rate) = self.reference.counts().and_then(|c| c.rarely_empty()) else { return };
        let mut batch = Batch::default();
        let mut event = None;
        let usual = |judged: &Judged| self.reference.knows_silence(&judged.way);
        self.empty.excuse(loss, ways().filter(|(id, w)| w.way.is_empty() && !usual(w) && explained(id)));
        for (id, judged) in ways().filter(|(_, judged)| !usual(judged)) {
            if !judged.way.is_empty() {
                batch.good(judged.count, rate, HALF, 1.0);
            } else if !explained(id) {
                let count = self.empty.unexcused(judged.count);
                batch.bad(count, rate, HALF, 1.0, 1.0);
                event = event.or((count > 0).then_some(judged.event));
            }
        }
        self.empty.what = Some(What::Empty);
        self.empty.add(at, batch, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_excused_while_records_got_lost_is_not_when_none_are() {
        let lossy = Loss::of([(36, 100), (36, 100), (36, 100)].into_iter());
        let shape = Shape { count: 20, ..Shape::default() };
        let explained = [(1, judge(None, &shape, lossy))];
        let mut series = Series::new(HALF);
        series.excuse(lossy, explained.iter());
        assert_eq!(series.unexcused(5), 0);
        series.excuse(Loss::default(), [].iter());
        assert_eq!(series.unexcused(5), 5);
    }
}
