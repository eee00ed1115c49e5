//! Calls that are made again because they failed.
//!
//! A service calls another one a certain number of times per request of its own. When it calls far more often per
//! request, and about as many calls fail as there are more of them, it tries again what has failed. A load that rises
//! raises requests and calls alike and changes nothing; code that calls more often fails no more often for it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tapio_schemas::{Entity, EventId, UnixNanos};

use super::cusum::{Batch, Cusum, HALF};
use super::window::{Calls, Window};
use super::{SECOND_NS, make_room};

/// Edges whose calls per request are known; the longest silent are forgotten and counted.
const EDGES_MAX: usize = 8192;
/// Services whose requests per window are known, likewise.
const SERVICES_MAX: usize = 4096;
/// Names under which others are called, likewise.
const NAMES_MAX: usize = 8192;
/// Another answers under a name when the one who did was not heard of for so long: shards say again who it is after half
/// of it (`signals.topology_refresh`), when the name is called.
const ANSWERS_NS: u64 = 600 * SECOND_NS;
/// Minutes remembered.
const MINUTES_MAX: usize = 30;
/// Requests of the caller without which it is not known how often it calls.
const REQUESTS_MIN: f64 = 30.0;
/// Windows without which it is not known how many requests there are.
const WINDOWS_MIN: f64 = 6.0;
/// Windows of a service that count as now.
const RECENT: usize = 6;
/// What a service was asked before this is not now, however seldom it is heard of.
const RECENT_NS: u64 = 120 * SECOND_NS;
/// Calls are repeated when there are so many times the usual …
const MORE: f64 = 1.5;
/// … and so many deviations of a Poisson count, of so many calls at least: of fewer the next one is always many, and …
const BY_CHANCE: f64 = 3.0;
const EXPECTED_MIN: f64 = 1.0;
/// … at least this share of those beyond the usual have failed ones before them.
const FAILED: f64 = 0.5;

/// How much of one thing there is for each of another, by minutes.
#[derive(Debug, Default)]
struct Ratio(VecDeque<(u64, f64, f64)>);

impl Ratio {
    /// Learns that at `at` there were so many, for so many.
    fn learn(&mut self, at: UnixNanos, count: f64, of: f64) {
        let minute = at.0 / (60 * SECOND_NS);
        // What comes late is learnt with the newest minute.
        match self.0.back_mut().filter(|(newest, _, _)| *newest >= minute) {
            Some((_, counted, all)) => (*counted, *all) = (*counted + count, *all + of),
            None => self.0.push_back((minute, count, of)),
        }
        if self.0.len() > MINUTES_MAX {
            self.0.pop_front();
        }
    }

    /// The median of the minutes: some of them may have been bad. `None` while too little is known, and when there is none in
    /// most of them.
    fn usual(&self, of_min: f64) -> Option<f64> {
        let of: f64 = self.0.iter().map(|(_, _, of)| of).sum();
        let mut all: Vec<f64> = self.0.iter().filter(|m| m.2 > 0.0).map(|m| m.1 / m.2).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().filter(|usual| of >= of_min && *usual > 0.0)
    }
}

/// What was seen when calls were repeated.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Usual calls per request of the caller.
    pub usual: f64,
    /// Calls per request.
    pub now: f64,
    /// Share of the calls that failed.
    pub failed: f64,
    /// Requests of the caller, as a multiple of the usual.
    pub load: Option<f64>,
    /// What the callee is asked with the repeated calls, as a multiple of the usual.
    pub asked: Option<f64>,
    /// Requests that the callee answers without an error, as a multiple of the usual.
    pub answered: Option<f64>,
}

/// An edge.
#[derive(Debug)]
pub struct Edge {
    /// Evidence that calls are repeated.
    pub cusum: Cusum,
    /// What was seen.
    pub seen: Seen,
    /// Calls that show it: those whose callee was seen, too.
    pub events: Vec<EventId>,
    usual: Ratio,
    /// Windows of the reference, and those of them that looked like repeated calls.
    windows: (u64, u64),
    last: UnixNanos,
}

#[derive(Debug, Default)]
struct Requests {
    all: Ratio,
    good: Ratio,
    /// Requests of the last windows, and those of them that were answered well.
    recent: VecDeque<(UnixNanos, f64, f64)>,
    last: UnixNanos,
}

impl Requests {
    fn see(&mut self, at: UnixNanos, said: Calls) {
        self.recent.push_back((at, said.count as f64, said.well() as f64));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// Requests per window that are usual; `None` while too little is known.
    fn usual(&self) -> Option<f64> {
        self.all.usual(WINDOWS_MIN)
    }

    /// Present requests as a multiple of the usual, or those that are answered well; `None` when nothing is known of now.
    fn times(
        &self,
        now: UnixNanos,
        usual: Option<f64>,
        of: impl Fn(&(UnixNanos, f64, f64)) -> f64,
    ) -> Option<f64> {
        let recent: Vec<f64> =
            self.recent.iter().filter(|seen| now.since(seen.0) <= RECENT_NS).map(of).collect();
        let usual = usual.filter(|_| !recent.is_empty())?;
        Some(recent.iter().sum::<f64>() / recent.len() as f64 / usual)
    }
}

/// Calls of all edges.
#[derive(Debug, Default)]
pub struct Retries {
    /// By caller and callee.
    pub edges: BTreeMap<(Entity, Entity), Edge>,
    services: BTreeMap<Entity, Requests>,
    /// Who answers under a name, and when it was last said.
    names: BTreeMap<Entity, (Entity, UnixNanos)>,
    /// Edges, services and names forgotten because there were too many.
    pub evicted: u64,
}

/// What an edge did in a window, and what it usually does.
struct Compared {
    calls: Calls,
    requests: f64,
    expected: f64,
}

impl Compared {
    /// There are more than there may be, and the surplus follows failures.
    fn is_repeated(&self) -> bool {
        let (count, failed) = (self.calls.count as f64, self.calls.failed as f64);
        let expected = self.expected.max(EXPECTED_MIN);
        let limit = MORE * expected + BY_CHANCE * expected.sqrt();
        count > limit && failed >= FAILED * (count - self.expected)
    }
}

impl Edge {
    fn new() -> Self {
        Self {
            cusum: Cusum::new(HALF),
            seen: Seen::default(),
            events: Vec::new(),
            usual: Ratio::default(),
            windows: (0, 0),
            last: UnixNanos(0),
        }
    }

    fn compare(&self, calls: Calls, requests: f64) -> Option<Compared> {
        let usual = self.usual.usual(REQUESTS_MIN)?;
        Some(Compared { calls, requests, expected: usual * requests })
    }

    fn observe(
        &mut self,
        at: UnixNanos,
        compared: &Compared,
        event: impl FnOnce() -> Option<EventId>,
    ) -> bool {
        let rate = (self.windows.1 as f64 + 0.5) / (self.windows.0 as f64 + 1.0);
        let (mut batch, is_repeated) = (Batch::default(), compared.is_repeated());
        if is_repeated {
            // By how much adds nothing: when calls begin to wait, the requests that make them have not ended yet.
            batch.bad(1, rate, HALF, 1.0, 1.0);
        } else {
            batch.good(1, rate, HALF, 1.0);
        }
        self.cusum.add(at, batch);
        if is_repeated {
            if self.cusum.since() == at {
                self.events.clear();
            }
            if let Some(event) = event() {
                crate::shards::add_evidence(&mut self.events, event);
            }
        }
        is_repeated
    }
}

impl Retries {
    /// Gives the calls of a window to who answers under the names that were called.
    pub fn resolve(&mut self, window: &mut Window) {
        let at = window.start;
        for (name, is) in std::mem::take(&mut window.same) {
            let known = self.names.entry(name).or_insert_with(|| (is.clone(), at));
            // Of several behind one name the first stays, as long as it is one of them.
            if known.0 == is {
                known.1 = known.1.max(at);
            } else if at.since(known.1) > ANSWERS_NS {
                *known = (is, at);
            }
        }
        self.evicted += make_room(&mut self.names, NAMES_MAX, |(_, said)| *said);
        let mut resolved: BTreeMap<(Entity, Entity), Calls> = BTreeMap::new();
        for ((from, to), calls) in std::mem::take(&mut window.calls) {
            // What a service was asked is its own, whatever else it is called, and what it asks itself is apart from that.
            let is = self.names.get(&to).map(|(is, _)| is).filter(|is| from != to && from != **is);
            let to = is.cloned().unwrap_or(to);
            resolved.entry((from, to)).or_default().add(calls);
        }
        window.calls = resolved;
    }

    /// Compares a window with what is usual.
    pub fn observe(&mut self, window: &Window) {
        for (edge, _) in window.calls.iter().filter(|((from, to), _)| from != to) {
            self.edges.entry(edge.clone()).or_insert_with(Edge::new).last = window.start;
        }
        let asked = asked_in(window);
        for (service, asked) in &asked {
            if let Some(known) = self.services.get_mut(*service) {
                known.see(window.start, *asked);
            }
        }
        for (edge, known) in &mut self.edges {
            let (from, to) = edge;
            let Some(asked) = asked.get(from).filter(|asked| asked.count > 0) else { continue };
            let calls = window.calls.get(edge).copied().unwrap_or_default();
            let (caller, callee) = (self.services.get(from), self.services.get(to));
            let usual = caller.and_then(Requests::usual);
            // Of requests that hang fewer end: they are there all the same.
            let hanging = usual.unwrap_or_default().max(asked.count as f64);
            let Some(compared) = known.compare(calls, hanging) else { continue };
            if !known.observe(window.start, &compared, || window.slowest_gap(edge)) {
                continue;
            }
            let surplus = calls.count as f64 - compared.expected;
            known.seen = Seen {
                usual: compared.expected / compared.requests,
                now: calls.count as f64 / compared.requests,
                failed: calls.failed as f64 / calls.count.max(1) as f64,
                load: caller
                    .and_then(|known| known.times(window.start, usual, |seen| seen.1))
                    .map(|load| load.max(compared.requests / usual.unwrap_or(f64::INFINITY))),
                asked: callee.and_then(|known| Some(1.0 + surplus / known.usual()?)),
                answered: callee.and_then(|known| {
                    known.times(window.start, known.good.usual(WINDOWS_MIN), |seen| seen.2)
                }),
            };
        }
    }

    /// Learns a window of a while ago, unless it was part of what is wrong.
    pub fn learn(&mut self, window: &Window, now: UnixNanos) {
        let asked_in = asked_in(window);
        let mut storms: BTreeSet<&Entity> = BTreeSet::new();
        for (edge, known) in &mut self.edges {
            let (from, to) = edge;
            let Some(asked) = asked_in.get(from).filter(|asked| asked.count > 0) else { continue };
            if known.cusum.forbids_learning(window.start, now) {
                storms.insert(to);
                continue;
            }
            let calls = window.calls.get(edge).copied().unwrap_or_default();
            let compared = known.compare(calls, asked.count as f64);
            let is_over = compared.is_some_and(|compared| compared.is_repeated());
            known.windows = (known.windows.0 + 1, known.windows.1 + u64::from(is_over));
            known.usual.learn(window.start, calls.count as f64, asked.count as f64);
        }
        for (service, asked) in asked_in.into_iter().filter(|(service, _)| !storms.contains(service)) {
            // Who was never seen to answer tells nothing of its requests.
            if asked.count == 0 && !self.services.contains_key(service) {
                continue;
            }
            let known = self.services.entry(service.clone()).or_default();
            known.last = known.last.max(window.start);
            known.all.learn(window.start, asked.count as f64, 1.0);
            known.good.learn(window.start, asked.well() as f64, 1.0);
        }
        self.evicted += make_room(&mut self.edges, EDGES_MAX, |edge| edge.last);
        self.evicted += make_room(&mut self.services, SERVICES_MAX, |service| service.last);
    }
}

/// What each service answered that calls or is called in a window: also when it answered nothing. A window in which it does
/// neither, or whose calls are not known because events were lost, says nothing of it.
fn asked_in(window: &Window) -> BTreeMap<&Entity, Calls> {
    let mut asked: BTreeMap<&Entity, Calls> = BTreeMap::new();
    for ((from, to), calls) in &window.calls {
        asked.entry(from).or_default();
        asked.entry(to).or_default().add(if from == to { *calls } else { Calls::default() });
    }
    asked
}
