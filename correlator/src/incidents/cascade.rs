//! Which callers will suffer next from what is wrong now, and when.
//!
//! From what suffers already the calls are followed against their direction. A caller suffers with a probability that is, over
//! the best way, the product of what an edge of its type passes on (set by hand, its odds corrected by the outcomes of
//! earlier predictions) and of the share of the caller's requests that go over it.
//!
//! The time until it shows is taken for exponential with an unknown mean, of which the delays seen in this incident, between
//! a callee and the first signs of its caller, tell something: its predictive distribution is that of Lomax (1954; Gelman et al.,
//! Bayesian Data Analysis, §2.6). Without any, the mean is expected to be some windows of counting. A caller that has withstood for
//! a while is less likely to suffer, and if so, later.

use std::collections::{BTreeMap, HashMap};

use tapio_schemas::entity::kinds;
use tapio_schemas::finding::{SCENARIO_CASCADE_CALL, SCENARIO_CASCADE_CONNECTION};
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Entity, Score, Signal, SignalKind, SmolStr, UnixNanos};

use super::foreseen::{Foreseen, Promise, Stands};
use super::graph::{Graph, UPSTREAM_HOPS_MAX};
use super::impact::{Tallies, Windows};
use super::says;
use super::signals::is_failure;
use super::view::View;
use crate::model::clock_time;

/// Callers foretold at a time.
pub(super) const CALLERS_MAX: usize = 3;
/// What is passed on over calls and over connections, when all requests go there.
const PASSES_ON: (f64, f64) = (0.7, 0.4);
/// Share of requests that go over a connection of which no calls are counted.
const SHARE_UNKNOWN: f64 = 0.5;
/// Nothing less probable is told.
const PROBABILITY_MIN: f64 = 0.1;
/// Windows of counting that a delay is expected to last when none was seen.
const DELAY_WINDOWS: f64 = 3.0;
/// A window of counting lasts at least so long.
const WINDOW_MIN_NS: u64 = 1_000_000_000;
/// Shape of the prior of the mean delay.
const DELAY_SHAPE: f64 = 2.0;
/// Delays of an incident that are looked at.
const DELAYS_MAX: usize = 32;
/// A fainter sign is no symptom: what fails as often as ever is told, too.
const FELT_MIN: f64 = 0.3;
/// Calls before the first sign that count, ns: as many as a restart reads again.
const BEFORE_NS: u64 = 50_000_000_000;

/// True for what whoever calls it would feel.
fn is_felt(kind: SignalKind) -> bool {
    use SignalKind as K;
    is_failure(kind)
        || matches!(
            kind,
            K::SpanSlow | K::OwnTime | K::NetworkGap | K::NetReset | K::CallsStopped | K::TraceShape
        )
}

fn is_symptom(signal: &Signal) -> bool {
    is_felt(signal.kind) && signal.strength.get() >= FELT_MIN
}

/// Calls between homes, and requests of homes.
pub struct Shares<'a> {
    calls: HashMap<Entity, HashMap<Entity, Vec<&'a Windows>>>,
    window_ns: u64,
}

impl<'a> Shares<'a> {
    /// Of everything that was counted.
    pub fn new(tallies: &'a Tallies, graph: &Graph) -> Self {
        let mut calls: HashMap<Entity, HashMap<Entity, Vec<&Windows>>> = HashMap::new();
        for ((from, to), windows) in tallies.edges() {
            calls.entry(graph.home(from)).or_default().entry(graph.home(to)).or_default().push(windows);
        }
        Self { calls, window_ns: tallies.window_ns().max(WINDOW_MIN_NS) }
    }

    fn count(&self, from: &Entity, to: &Entity, since: UnixNanos) -> u64 {
        let windows = self.calls.get(from).and_then(|callees| callees.get(to)).into_iter().flatten();
        windows.flat_map(|windows| windows.range(since..)).map(|(_, (calls, _))| *calls).sum()
    }

    /// Share of the caller's requests that go to the callee, at most 1; `None` when no calls are counted.
    fn share(&self, caller: &Entity, callee: &Entity, since: UnixNanos) -> Option<f64> {
        let calls = self.count(caller, callee, since);
        if calls == 0 {
            return None;
        }
        let answered = self.count(caller, caller, since);
        // What nobody asks calls by itself: its calls are its requests.
        let requests = if answered > 0 {
            answered
        } else {
            let callees = self.calls.get(caller).into_iter().flat_map(HashMap::keys);
            callees.map(|to| self.count(caller, to, since)).sum()
        };
        Some((calls as f64 / requests.max(1) as f64).min(1.0))
    }
}

/// Further callers that may be foretold.
pub fn room(foreseen: &Foreseen) -> usize {
    let told = foreseen.pending().filter(|promise| is_cascade(promise)).count();
    if foreseen.is_full() { 0 } else { CALLERS_MAX.saturating_sub(told) }
}

/// What is looked at.
pub struct Scene<'a> {
    /// The signals of the tick.
    pub view: &'a View<'a>,
    /// Those of the incident.
    pub members: &'a [usize],
    /// First sign of the incident.
    pub first_bad: UnixNanos,
    /// Calls.
    pub shares: &'a Shares<'a>,
    /// Factor on the odds of a scenario's probabilities.
    pub factor: &'a dyn Fn(&str) -> f64,
}

/// A caller to which the fault may come.
#[derive(Debug, Clone, PartialEq)]
struct Next {
    probability: f64,
    hops: usize,
    /// What of its own it needs, and how much of its requests go there.
    callee: Entity,
    share: Option<f64>,
    scenario: &'static str,
    /// Since when what the fault comes from suffers.
    since: UnixNanos,
}

/// Gamma posterior of the rate of an exponential delay, seconds.
#[derive(Debug, Clone, Copy)]
struct Delay {
    shape: f64,
    scale: f64,
}

impl Delay {
    fn new(seen_s: &[f64], window_ns: u64) -> Self {
        let usual_s = DELAY_WINDOWS * window_ns as f64 / 1e9;
        Self {
            shape: DELAY_SHAPE + seen_s.len() as f64,
            // With nothing seen the mean of the delay is the usual one.
            scale: (DELAY_SHAPE - 1.0) * usual_s + seen_s.iter().sum::<f64>(),
        }
    }

    /// Probability that it lasts longer.
    fn survives(self, elapsed_s: f64) -> f64 {
        (self.scale / (self.scale + elapsed_s)).powf(self.shape)
    }

    /// What is left of it after so long, at a quantile.
    fn left(self, elapsed_s: f64, quantile: f64) -> f64 {
        (self.scale + elapsed_s) * ((1.0 - quantile).powf(-1.0 / self.shape) - 1.0)
    }
}

impl Scene<'_> {
    /// Homes that suffer now, and since when.
    fn sick(&self) -> BTreeMap<&Entity, UnixNanos> {
        let mut sick: BTreeMap<&Entity, UnixNanos> = BTreeMap::new();
        for at in self.members {
            let signal = self.view.signals[*at];
            if is_symptom(signal) && !signal.ended {
                let since = sick.entry(&self.view.homes[*at]).or_insert(signal.onset);
                *since = (*since).min(signal.onset);
            }
        }
        sick
    }

    /// Times between what suffers and the callers of it that followed, seconds.
    fn delays(&self, sick: &BTreeMap<&Entity, UnixNanos>) -> Vec<f64> {
        let followed = |(caller, since): (&&Entity, &UnixNanos)| {
            let callees = self.view.graph.callees(caller);
            let before = callees.iter().filter_map(|callee| sick.get(callee)).filter(|at| *at <= since);
            before.max().map(|at| since.since(*at) as f64 / 1e9)
        };
        sick.iter().filter_map(followed).take(DELAYS_MAX).collect()
    }

    fn passes_on(&self, scenario: &'static str) -> f64 {
        let prior = if scenario == SCENARIO_CASCADE_CALL { PASSES_ON.0 } else { PASSES_ON.1 };
        let odds = prior / (1.0 - prior) * (self.factor)(scenario);
        odds / (1.0 + odds)
    }

    /// Callers that do not suffer yet, over the most probable way to each.
    fn next(&self, sick: &BTreeMap<&Entity, UnixNanos>) -> BTreeMap<Entity, Next> {
        let since = self.first_bad.minus(BEFORE_NS);
        let mut found: BTreeMap<Entity, Next> = BTreeMap::new();
        let mut frontier: Vec<(Entity, f64, UnixNanos)> =
            sick.iter().map(|(home, since)| ((*home).clone(), 1.0, *since)).collect();
        for hops in 1..=UPSTREAM_HOPS_MAX {
            let mut reached: BTreeMap<Entity, Next> = BTreeMap::new();
            for (callee, probability, sick_since) in &frontier {
                for caller in self.view.graph.callers(callee).iter() {
                    if sick.contains_key(caller) || caller.kind == kinds::EXTERNAL {
                        continue;
                    }
                    let share = self.shares.share(caller, callee, since);
                    let scenario =
                        if share.is_some() { SCENARIO_CASCADE_CALL } else { SCENARIO_CASCADE_CONNECTION };
                    let probability = probability * self.passes_on(scenario) * share.unwrap_or(SHARE_UNKNOWN);
                    let better = |known: &Next| known.probability >= probability;
                    if found.get(caller).or(reached.get(caller)).is_some_and(better) {
                        continue;
                    }
                    let (callee, since) = (callee.clone(), *sick_since);
                    let next = Next { probability, hops, callee, share, scenario, since };
                    reached.insert(caller.clone(), next);
                }
            }
            frontier = reached.iter().map(|(home, n)| (home.clone(), n.probability, n.since)).collect();
            found.extend(reached);
        }
        found
    }

    /// True when something of it is felt already, however faintly.
    fn suffers(&self, home: &Entity) -> bool {
        let mut here = self.view.at_home(home).iter().map(|at| self.view.signals[*at]);
        here.any(|signal| is_felt(signal.kind) && !signal.ended)
    }

    /// Foretells the most probable callers.
    pub fn foretell(&self, foreseen: &mut Foreseen, refresh_ns: u64) {
        let room = room(foreseen);
        let sick = self.sick();
        if sick.is_empty() {
            return;
        }
        let delay = Delay::new(&self.delays(&sick), self.shares.window_ns);
        let is_known = |home: &Entity| {
            [SCENARIO_CASCADE_CALL, SCENARIO_CASCADE_CONNECTION].iter().any(|s| foreseen.knows(s, home))
        };
        let mut next: Vec<(Entity, Next)> = self.next(&sick).into_iter().collect();
        next.retain(|(home, _)| !is_known(home) && !self.suffers(home));
        next.iter_mut().for_each(|(_, next)| next.withstand(delay, self.view.now));
        next.retain(|(_, next)| next.probability >= PROBABILITY_MIN);
        next.sort_by(|(a, x), (b, y)| y.probability.total_cmp(&x.probability).then_with(|| a.cmp(b)));
        for (home, next) in next.into_iter().take(room) {
            let forecast = next.forecast(delay, self.view.now);
            foreseen.tell(&home, forecast, next.says(&home), self.view.now, refresh_ns);
        }
    }
}

impl Next {
    fn elapsed_s(&self, now: UnixNanos) -> f64 {
        now.since(self.since) as f64 / 1e9
    }

    /// Not to have suffered so far speaks against it.
    fn withstand(&mut self, delay: Delay, now: UnixNanos) {
        let survives = delay.survives(self.elapsed_s(now) / self.hops as f64);
        let so_far = self.probability * survives;
        self.probability = so_far / (so_far + 1.0 - self.probability);
    }

    fn forecast(&self, delay: Delay, now: UnixNanos) -> Forecast {
        let hops = self.hops as f64;
        let after =
            |quantile| now.plus((hops * delay.left(self.elapsed_s(now) / hops, quantile) * 1e9) as u64);
        Forecast {
            scenario: SmolStr::new_static(self.scenario),
            probability: Score::clamped((self.probability * 100.0).round() / 100.0),
            at: after(0.5),
            earliest: after(0.05),
            latest: after(0.95),
        }
    }

    fn says(&self, home: &Entity) -> String {
        let callee = says::name(&self.callee);
        match self.share {
            Some(share) => {
                format!("{}, {:.0} % of whose requests need {callee}", says::name(home), share * 100.0)
            }
            None => format!("{}, which is connected to {callee}", says::name(home)),
        }
    }
}

/// True for what is foretold here.
pub fn is_cascade(promise: &Promise) -> bool {
    let scenario = promise.forecast.scenario.as_str();
    scenario == SCENARIO_CASCADE_CALL || scenario == SCENARIO_CASCADE_CONNECTION
}

/// How it stands with a caller; `goes_on`: something of the incident still does.
pub fn stands(view: &View<'_>, promise: &Promise, goes_on: bool) -> Stands {
    let home = view.graph.home(&promise.entity);
    let here = || view.at_home(&home).iter().map(|at| view.signals[*at]).filter(|signal| is_symptom(signal));
    let since = here().map(|signal| signal.onset).filter(|onset| *onset >= promise.at).min();
    // What is known only now and began before was none of the future.
    let was_there = here().any(|signal| signal.onset < promise.at && !signal.ended);
    match since {
        _ if was_there => Stands::Gone,
        Some(at) => Stands::Came(at),
        None if goes_on => Stands::Open,
        None => Stands::Gone,
    }
}

/// The story's sentence on those that are still to come.
pub fn sentence(foreseen: &Foreseen) -> Option<String> {
    let told: Vec<String> = foreseen
        .pending()
        .filter(|promise| is_cascade(promise))
        .map(|promise| {
            let (from, to) = (clock_time(promise.forecast.earliest), clock_time(promise.forecast.latest));
            let probability = promise.forecast.probability.get();
            format!("{}, between {from} and {to} (probability {probability:.2})", promise.says)
        })
        .collect();
    (!told.is_empty()).then(|| format!("May suffer next: {}.", told.join("; ")))
}

#[cfg(test)]
#[path = "cascade_tests.rs"]
mod tests;
