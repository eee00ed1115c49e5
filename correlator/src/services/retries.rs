//! Calls that are made again because they failed.
//!
//! A service calls another one a certain number of times per request of its own. When it calls far more often per
//! request, and about as many calls fail as there are more of them, it tries again what has failed. A load that rises
//! raises requests and calls alike and changes nothing; code that calls more often fails no more often for it.

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
/// Minutes remembered.
const MINUTES_MAX: usize = 30;
/// Requests of the caller without which it is not known how often it calls.
const REQUESTS_MIN: f64 = 30.0;
/// Windows without which it is not known how many requests there are.
const WINDOWS_MIN: f64 = 6.0;
/// Windows that count as now.
const RECENT: usize = 6;
/// Calls are repeated when there are so many times the usual …
const MORE: f64 = 1.5;
/// … and so many deviations of a Poisson count, and …
const BY_CHANCE: f64 = 3.0;
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

    /// The median of the minutes: some of them may have been bad. `None` while too little is known.
    fn usual(&self, of_min: f64) -> Option<f64> {
        let of: f64 = self.0.iter().map(|(_, _, of)| of).sum();
        let mut all: Vec<f64> = self.0.iter().filter(|m| m.2 > 0.0).map(|m| m.1 / m.2).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().filter(|_| of >= of_min)
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
    /// Requests that show it.
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
    recent: VecDeque<(f64, f64)>,
    last: UnixNanos,
}

impl Requests {
    fn see(&mut self, said: Calls) {
        self.recent.push_back((said.count as f64, said.well() as f64));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// Requests per window that are usual; `None` while too little is known.
    fn usual(&self) -> Option<f64> {
        self.all.usual(WINDOWS_MIN).filter(|usual| *usual > 0.0)
    }

    /// Present requests as a multiple of the usual, or those that are answered well.
    fn times(&self, usual: Option<f64>, of: impl Fn(&(f64, f64)) -> f64) -> Option<f64> {
        let usual = usual.filter(|usual| *usual > 0.0)?;
        Some(self.recent.iter().map(of).sum::<f64>() / self.recent.len().max(1) as f64 / usual)
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
        let limit = MORE * self.expected + BY_CHANCE * self.expected.sqrt();
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

    fn observe(&mut self, at: UnixNanos, compared: &Compared, event: Option<EventId>) -> bool {
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
            if let Some(event) = event {
                crate::shards::add_evidence(&mut self.events, event);
            }
        }
        is_repeated
    }
}

impl Retries {
    /// Gives the calls of a window to who answers under the names that were called.
    pub fn resolve(&mut self, window: &mut Window) {
        for (name, is) in std::mem::take(&mut window.same) {
            // Of several behind one name the first stays.
            let known = self.names.entry(name).or_insert((is, window.start));
            known.1 = known.1.max(window.start);
        }
        self.evicted += make_room(&mut self.names, NAMES_MAX, |(_, said)| *said);
        let mut resolved: BTreeMap<(Entity, Entity), Calls> = BTreeMap::new();
        for ((from, to), calls) in std::mem::take(&mut window.calls) {
            let to = self.names.get(&to).map_or(to, |(is, _)| is.clone());
            resolved.entry((from, to)).or_default().add(calls);
        }
        window.calls = resolved;
    }

    /// Compares a window with what is usual.
    pub fn observe(&mut self, window: &Window) {
        for (edge, _) in window.calls.iter().filter(|((from, to), _)| from != to) {
            self.edges.entry(edge.clone()).or_insert_with(Edge::new).last = window.start;
        }
        let requests = |of: &Entity| window.calls.get(&(of.clone(), of.clone())).copied();
        for (service, known) in &mut self.services {
            known.see(requests(service).unwrap_or_default());
        }
        for ((from, to), edge) in &mut self.edges {
            let Some(asked) = requests(from).filter(|asked| asked.count > 0) else { continue };
            let calls = window.calls.get(&(from.clone(), to.clone())).copied().unwrap_or_default();
            let (caller, callee) = (self.services.get(from), self.services.get(to));
            let usual = caller.and_then(Requests::usual);
            // Of requests that hang fewer end: they are there all the same.
            let hanging = usual.unwrap_or_default().max(asked.count as f64);
            let Some(compared) = edge.compare(calls, hanging) else { continue };
            if !edge.observe(window.start, &compared, window.slowest_of(from)) {
                continue;
            }
            let surplus = calls.count as f64 - compared.expected;
            edge.seen = Seen {
                usual: compared.expected / compared.requests,
                now: calls.count as f64 / compared.requests,
                failed: calls.failed as f64 / calls.count.max(1) as f64,
                load: caller
                    .and_then(|known| known.times(usual, |window| window.0))
                    .map(|load| load.max(compared.requests / usual.unwrap_or(f64::INFINITY))),
                asked: callee.and_then(|known| Some(1.0 + surplus / known.usual()?)),
                answered: callee
                    .and_then(|known| known.times(known.good.usual(WINDOWS_MIN), |window| window.1)),
            };
        }
    }

    /// Learns a window of a while ago, unless it was part of what is wrong.
    pub fn learn(&mut self, window: &Window, now: UnixNanos) {
        let mut storms: BTreeSet<&Entity> = BTreeSet::new();
        for ((from, to), edge) in &mut self.edges {
            let asked = window.calls.get(&(from.clone(), from.clone())).filter(|asked| asked.count > 0);
            let Some(asked) = asked else { continue };
            if edge.cusum.forbids_learning(window.start, now) {
                storms.insert(to);
                continue;
            }
            let calls = window.calls.get(&(from.clone(), to.clone())).copied().unwrap_or_default();
            let compared = edge.compare(calls, asked.count as f64);
            let is_over = compared.is_some_and(|compared| compared.is_repeated());
            edge.windows = (edge.windows.0 + 1, edge.windows.1 + u64::from(is_over));
            edge.usual.learn(window.start, calls.count as f64, asked.count as f64);
        }
        let requests = window.calls.iter().filter(|((from, to), _)| from == to && !storms.contains(to));
        for ((service, _), said) in requests {
            let known = self.services.entry(service.clone()).or_default();
            known.last = known.last.max(window.start);
            known.all.learn(window.start, said.count as f64, 1.0);
            known.good.learn(window.start, said.well() as f64, 1.0);
        }
        self.evicted += make_room(&mut self.edges, EDGES_MAX, |edge| edge.last);
        self.evicted += make_room(&mut self.services, SERVICES_MAX, |service| service.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Entity {
        Entity::namespaced("Service", "shop", name)
    }

    fn window(s: u64) -> Window {
        Window::new(UnixNanos((1_700_000_040 + s) * SECOND_NS))
    }

    fn add(window: &mut Window, from: &str, to: &str, count: u64, failed: u64) {
        assert!(window.add_calls(&service(from), &service(to), Calls { count, failed }));
    }

    /// Two minutes in which each of ten requests calls once, then half a minute of `then`.
    fn seen(then: impl Fn(&mut Window)) -> Retries {
        let mut retries = Retries::default();
        for s in (0..150).step_by(5) {
            let mut window = window(s);
            if s < 120 {
                for (from, to) in [("api", "api"), ("api", "db"), ("db", "db")] {
                    add(&mut window, from, to, 10, 0);
                }
            } else {
                then(&mut window);
            }
            retries.resolve(&mut window);
            retries.observe(&window);
            retries.learn(&window, window.start);
        }
        retries
    }

    fn evidence(retries: &Retries) -> f64 {
        let edge = &retries.edges[&(service("api"), service("db"))];
        edge.cusum.evidence(edge.cusum.last())
    }

    #[test]
    fn calls_are_repeated_when_there_are_more_per_request_and_they_fail() {
        let storm = seen(|window| {
            add(window, "api", "api", 10, 10);
            add(window, "api", "db", 40, 40);
            add(window, "db", "db", 15, 0);
        });
        assert!(evidence(&storm) > 8.0, "{}", evidence(&storm));
        let said = storm.edges[&(service("api"), service("db"))].seen;
        assert_eq!((said.usual, said.now, said.failed), (1.0, 4.0, 1.0));
        assert_eq!((said.load, said.asked, said.answered), (Some(1.0), Some(4.0), Some(1.5)));
        let more_load = seen(|window| {
            add(window, "api", "api", 40, 30);
            add(window, "api", "db", 40, 30);
        });
        assert_eq!(evidence(&more_load), 0.0, "four times the load, and three of four fail");
        let other_code = seen(|window| {
            add(window, "api", "api", 10, 0);
            add(window, "api", "db", 40, 1);
        });
        assert_eq!(evidence(&other_code), 0.0, "it calls more often, and not because it failed");
    }

    #[test]
    fn whoever_is_called_by_a_name_is_who_answers_under_it() {
        // A call that times out ends before the callee says whose it was: only its name is known.
        let named = |window: &mut Window| {
            assert!(window.add_same(&service("db.internal"), &service("db")));
            add(window, "api", "api", 10, 10);
            add(window, "api", "db.internal", 40, 40);
        };
        assert!(evidence(&seen(named)) > 8.0);
    }

    #[test]
    fn what_is_known_has_a_bound() {
        let mut retries = Retries::default();
        for s in 0..3 {
            let mut window = window(5 * s);
            for number in 0..EDGES_MAX {
                add(&mut window, "api", &format!("s{s}-{number}"), 1, 0);
            }
            retries.observe(&window);
            retries.learn(&window, window.start);
        }
        assert!(retries.edges.len() <= EDGES_MAX && retries.evicted >= 2 * EDGES_MAX as u64);
    }
}
