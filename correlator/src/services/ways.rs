//! Ways of requests against the rules of their operations. Of the services on a request's way the deepest odd one is
//! the reason: where a callee is odd in the same request, or a call has failed, the oddness of its callers is explained.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tapio_schemas::service::{Shape, Step, StepKind};
use tapio_schemas::{Entity, EventId, UnixNanos};

use super::cusum::{Batch, Cusum, HALF, SOME};
use super::shapes::{Broken, Reference, StepId, Way};
use super::window::Window;
use super::{SECOND_NS, make_room};

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

/// Requests of so long after the first one heard of may have been under way before anyone listened: parts of them are missing.
const HALF_HEARD_NS: u64 = 10 * SECOND_NS;

/// Service, operation, and whether the service logs by then.
type OperationKey = (Entity, SmolStr, bool);
/// A rule: given this step (or any request), that one.
type RuleKey = (Option<StepId>, StepId);

/// What is odd about a service's requests.
#[derive(Debug, Clone)]
pub struct Odd {
    /// Evidence, nats.
    pub evidence: f64,
    /// Since when.
    pub since: UnixNanos,
    /// (odd, all) since then.
    pub counts: (u64, u64),
    /// What it is.
    pub what: What,
    /// Operation that shows it.
    pub operation: SmolStr,
    /// Events that show it.
    pub events: Vec<EventId>,
}

/// How a way can be odd.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A step did not come.
    Missing {
        /// After which it always came; none = any request.
        given: Option<Step>,
        /// It.
        missing: Step,
        /// Requests of the reference in which it came.
        of: u64,
    },
    /// A step was never seen before.
    New(Step),
    /// Nothing was called any more.
    Empty,
}

#[derive(Debug)]
struct Series {
    cusum: Cusum,
    what: Option<What>,
    events: Vec<EventId>,
}

impl Series {
    fn new(under_fault: f64) -> Self {
        Self { cusum: Cusum::new(under_fault), what: None, events: Vec::new() }
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
    rules: BTreeMap<RuleKey, (Series, Option<Series>)>,
    news: Series,
    empty: Series,
    seen: UnixNanos,
}

impl Default for Operation {
    fn default() -> Self {
        Self {
            reference: Reference::default(),
            rules: BTreeMap::new(),
            news: Series::new(HALF),
            empty: Series::new(HALF),
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
    fn is_odd(&self) -> bool {
        !self.broken.is_empty() || !self.unknown.is_empty()
    }
}

/// Ways of all operations.
#[derive(Debug, Default)]
pub struct Ways {
    operations: BTreeMap<OperationKey, Operation>,
    logs_since: BTreeMap<Entity, UnixNanos>,
    odd: BTreeMap<u64, UnixNanos>,
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
        let mut judged: BTreeMap<OperationKey, Vec<(u64, Judged)>> = BTreeMap::new();
        for ((service, operation), requests) in &window.requests {
            let key = self.key(window.start, service, operation);
            let known = self.operations.get(&key);
            if !requests.are_known() {
                self.unfollowed += 1;
                continue;
            }
            let all = requests.ways.iter().map(|(id, shape)| (*id, judge(known, shape)));
            judged.insert(key, all.collect());
        }
        let own: BTreeMap<u64, bool> =
            judged.values().flatten().map(|(id, judged)| (*id, judged.is_odd())).collect();
        let shapes: BTreeMap<u64, &Shape> =
            window.requests.values().flat_map(|r| &r.ways).map(|(id, shape)| (*id, shape)).collect();
        let mut within = BTreeMap::new();
        for id in shapes.keys() {
            self.is_odd_within(*id, &own, &shapes, &mut within, 0);
        }
        for (key, ways) in judged {
            let Some(operation) = self.operations.get_mut(&key) else { continue };
            operation.seen = window.start;
            operation.count(window.start, &ways, &within);
        }
        let odd = own.iter().filter(|(id, odd)| **odd || within.get(id) == Some(&true));
        self.odd.extend(odd.map(|(id, _)| (*id, window.start)));
        let old = window.start.minus(ODD_NS);
        self.odd.retain(|_, at| *at >= old);
        while self.odd.len() > ODD_MAX {
            self.odd.pop_first();
        }
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
        let since = self.heard_since.filter(|_| !window.requests.is_empty());
        if since.is_some_and(|since| window.start < since.plus(HALF_HEARD_NS)) {
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

fn judge(operation: Option<&Operation>, shape: &Shape) -> Judged {
    let way = Way::new(&shape.steps);
    let counts = operation.and_then(|o| o.reference.counts_for(&way));
    let is_better = operation.is_some_and(|o| o.reference.is_better(&way));
    let counts = counts.filter(|_| !is_better);
    let broken = counts.map(|c| c.broken(&way)).unwrap_or_default();
    let unknown = counts.map(|c| c.unknown(&way).into_iter().map(|(_, s)| s.clone()).collect());
    let unknown = unknown.unwrap_or_default();
    Judged { way, count: shape.count, broken, unknown, is_better, event: shape.evidence }
}

impl Operation {
    fn forbids_learning(&self, at: UnixNanos, now: UnixNanos) -> bool {
        let rules = self.rules.values().flat_map(|(half, some)| [Some(half), some.as_ref()]);
        let all = rules.flatten().chain([&self.news, &self.empty]);
        all.into_iter().any(|series| series.cusum.forbids_learning(at, now))
    }

    fn count(&mut self, at: UnixNanos, ways: &[(u64, Judged)], within: &BTreeMap<u64, bool>) {
        if self.reference.counts().is_none() {
            return;
        }
        let explained = |id: &u64| within.get(id).copied().unwrap_or(false);
        let weighed = || ways.iter().filter(|(_, w)| !w.is_better);
        for (_, judged) in weighed().filter(|(id, _)| !explained(id)) {
            for broken in &judged.broken {
                self.follow(broken);
            }
        }
        self.count_rules(at, weighed, &explained);
        self.count_news(at, weighed, &explained);
        self.count_empty(at, weighed, &explained);
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
    ) {
        let Some(counts) = self.reference.counts() else { return };
        for ((given, missing), (half, some)) in &mut self.rules {
            let rate = counts.rate(*given, *missing);
            for series in [Some(half), some.as_mut()].into_iter().flatten() {
                let under_fault = series.cusum.under_fault();
                let mut batch = Batch::default();
                let mut event = None;
                for (id, judged) in ways() {
                    let breaks = |b: &Broken| b.given == *given && b.missing == *missing;
                    if let Some(broken) = judged.broken.iter().find(|b| breaks(b)) {
                        if !explained(id) {
                            batch.bad(judged.count, broken.rate, under_fault, 1.0, 1.0);
                            event = event.or(Some(judged.event));
                        }
                    } else if judged.way.has(*missing) && given.is_none_or(|a| judged.way.has(a)) {
                        batch.good(judged.count, rate, under_fault, 1.0);
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
    ) {
        let Some(counts) = self.reference.counts() else { return };
        let rate = counts.news_rate();
        let mut batch = Batch::default();
        let mut first: Option<(&Step, EventId)> = None;
        for (id, judged) in ways() {
            match judged.unknown.iter().max_by_key(|s| (s.kind == StepKind::ErrorLog, *s)) {
                Some(_) if explained(id) => {}
                Some(step) => {
                    batch.bad(judged.count, rate, HALF, 1.0, 1.0);
                    first = first.or(Some((step, judged.event)));
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
    ) {
        let Some(rate) = self.reference.counts().and_then(|c| c.rarely_empty()) else { return };
        let mut batch = Batch::default();
        let mut event = None;
        let usual = |judged: &Judged| self.reference.knows_silence(&judged.way);
        for (id, judged) in ways().filter(|(_, judged)| !usual(judged)) {
            if !judged.way.is_empty() {
                batch.good(judged.count, rate, HALF, 1.0);
            } else if !explained(id) {
                batch.bad(judged.count, rate, HALF, 1.0, 1.0);
                event = event.or(Some(judged.event));
            }
        }
        self.empty.what = Some(What::Empty);
        self.empty.add(at, batch, event);
    }
}
