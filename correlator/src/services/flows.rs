//! Services whose rates go together: one asks the other a fixed number of times for each request of its own. When the
//! other's rate falls to nothing while the first goes on, the first has stopped to call it. Needs rates only, no traces.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tapio_schemas::{Entity, UnixNanos};

use super::SECOND_NS;
use super::cusum::{Batch, Cusum, HALF};

/// Minutes remembered.
const MINUTES_MAX: usize = 40;
/// Services compared with each other; further ones are left out and counted.
const SERVICES_MAX: usize = 256;
/// Pairs followed.
const PAIRS_MAX: usize = 4096;
/// Minutes in which both must have been seen.
const SHARED_MIN: usize = 5;
/// The ratio of the rates is the same within this …
const SAME: f64 = 0.15;
/// … in this share of the minutes.
const SAME_SHARE: f64 = 0.6;
/// The first one's rate varies by at least this: two constants go together by chance.
const VARIES: f64 = 0.1;
const MINUTE_NS: u64 = 60 * SECOND_NS;

/// A service that calls another one no more.
#[derive(Debug)]
pub struct Stopped {
    /// Its evidence.
    pub cusum: Cusum,
    /// Usual rate of the other one.
    pub usual: f64,
    /// Its rate now.
    pub now: f64,
}

/// Rates of all services, by minute.
#[derive(Debug, Default)]
pub struct Flows {
    minutes: BTreeMap<u64, BTreeMap<Entity, BTreeMap<SmolStr, f64>>>,
    compared: u64,
    /// (caller, callee).
    pub stopped: BTreeMap<(Entity, Entity), Stopped>,
    /// Rates left out because there were too many services.
    pub refused: u64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl Flows {
    /// Takes a rate of a service's pod.
    pub fn observe(&mut self, at: UnixNanos, service: &Entity, pod: &SmolStr, rate: f64) {
        let services = self.minutes.entry(at.0 / MINUTE_NS).or_default();
        if !services.contains_key(service) && services.len() >= SERVICES_MAX {
            self.refused += 1;
            return;
        }
        services.entry(service.clone()).or_default().insert(pod.clone(), rate);
    }

    /// Compares the last whole minute with those before it, once.
    pub fn compare(&mut self, now: UnixNanos) {
        let minute = self.due(now);
        if self.compared >= minute || !self.minutes.contains_key(&minute) {
            return;
        }
        self.compared = minute;
        while self.minutes.len() > MINUTES_MAX + 2 {
            self.minutes.pop_first();
        }
        let rates = |services: &BTreeMap<Entity, BTreeMap<SmolStr, f64>>| {
            services
                .iter()
                .map(|(s, pods)| (s.clone(), pods.values().sum()))
                .collect::<BTreeMap<Entity, f64>>()
        };
        let past: Vec<BTreeMap<Entity, f64>> = self.minutes.range(..minute).map(|(_, s)| rates(s)).collect();
        let current = self.minutes.get(&minute).map(rates).unwrap_or_default();
        for (callee, rate) in &current {
            let known: Vec<f64> = past.iter().map(|m| m.get(callee).copied().unwrap_or_default()).collect();
            let running: Vec<f64> = known.iter().copied().filter(|r| *r > 0.0).collect();
            if running.len() < SHARED_MIN || (running.len() as f64) < 0.8 * known.len() as f64 {
                continue;
            }
            let usual = median(running);
            for (caller, expected) in coupled(caller_rates(&current, callee), callee, &past) {
                let is_gone = *rate <= 0.1 * usual && expected > 0.5 * usual;
                self.take(now, (caller, callee.clone()), is_gone, usual, *rate);
            }
        }
    }

    /// The newest minute that is whole: over, or told by everyone who told the one before.
    fn due(&self, now: UnixNanos) -> u64 {
        let current = now.0.saturating_sub(1) / MINUTE_NS;
        let heard = |minute: u64| self.minutes.get(&minute);
        let is_whole = match (heard(current), heard(current.saturating_sub(1))) {
            (Some(now), Some(before)) => before.keys().all(|service| now.contains_key(service)),
            _ => false,
        };
        if is_whole { current } else { (now.0 / MINUTE_NS).saturating_sub(1) }
    }

    fn take(&mut self, now: UnixNanos, pair: (Entity, Entity), is_gone: bool, usual: f64, rate: f64) {
        if !self.stopped.contains_key(&pair) && (!is_gone || self.stopped.len() >= PAIRS_MAX) {
            return;
        }
        let stopped =
            self.stopped.entry(pair).or_insert(Stopped { cusum: Cusum::new(HALF), usual, now: rate });
        let mut batch = Batch::default();
        if is_gone {
            batch.bad(1, 0.0, HALF, 1.0, 1.0);
            (stopped.usual, stopped.now) = (usual, rate);
        } else {
            batch.good(1, 0.0, HALF, 1.0);
        }
        stopped.cusum.add(now, batch);
        let old = now.minus(600 * SECOND_NS);
        self.stopped.retain(|_, s| s.cusum.last() >= old);
    }
}

fn caller_rates<'a>(
    current: &'a BTreeMap<Entity, f64>,
    callee: &'a Entity,
) -> impl Iterator<Item = (&'a Entity, f64)> {
    current.iter().filter(move |(caller, _)| *caller != callee).map(|(caller, rate)| (caller, *rate))
}

/// Services in step with the callee, and what rate of it theirs makes one expect.
fn coupled<'a>(
    callers: impl Iterator<Item = (&'a Entity, f64)>,
    callee: &Entity,
    past: &[BTreeMap<Entity, f64>],
) -> Vec<(Entity, f64)> {
    let mut found = Vec::new();
    for (caller, rate) in callers {
        let both: Vec<(f64, f64)> = past
            .iter()
            .filter_map(|m| Some((*m.get(callee)?, *m.get(caller)?)))
            .filter(|(to, from)| *to > 0.0 && *from > 0.0)
            .collect();
        if both.len() < SHARED_MIN {
            continue;
        }
        let count = both.len() as f64;
        let ratio = median(both.iter().map(|(to, from)| to / from).collect());
        let same = both.iter().filter(|(to, from)| (to / from - ratio).abs() <= SAME * ratio).count() as f64;
        let mean = both.iter().map(|(_, from)| from).sum::<f64>() / count;
        let variance = both.iter().map(|(_, from)| (from - mean).powi(2)).sum::<f64>() / count;
        if same >= SAME_SHARE * count && variance.sqrt() >= VARIES * mean {
            found.push((caller.clone(), rate * ratio));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Entity {
        Entity::new("Service", "", name, "")
    }

    #[test]
    fn a_minute_is_compared_when_everyone_has_told_it_or_it_is_over() {
        let mut flows = Flows::default();
        let (pod, second) = (SmolStr::new("p"), |s: u64| UnixNanos((27_000_000 * 60 + s) * SECOND_NS));
        for name in ["web", "pay"] {
            flows.observe(second(20), &service(name), &pod, 1.0);
        }
        assert_eq!(flows.due(second(30)), 26_999_999, "who else tells it is not known yet");
        flows.observe(second(80), &service("web"), &pod, 1.0);
        assert_eq!(flows.due(second(85)), 27_000_000);
        flows.observe(second(82), &service("pay"), &pod, 0.0);
        assert_eq!(flows.due(second(85)), 27_000_001);
        assert_eq!(flows.due(second(120)), 27_000_001);
    }

    #[test]
    fn a_callee_that_falls_silent_while_its_caller_goes_on_is_seen() {
        let mut flows = Flows::default();
        let pod = SmolStr::new("p");
        let load = [10.0, 14.0, 8.0, 12.0, 16.0, 9.0, 13.0, 11.0, 12.0];
        for (minute, load) in load.iter().enumerate() {
            let at = UnixNanos((27_000_000 + minute as u64) * MINUTE_NS);
            let rate = if minute < 6 { 2.0 * load } else { 0.0 };
            flows.observe(at, &service("web"), &pod, *load);
            flows.observe(at, &service("pay"), &pod, rate);
            flows.observe(at, &service("other"), &pod, 5.0);
            flows.compare(at.plus(MINUTE_NS));
            if minute == 5 {
                assert!(flows.stopped.is_empty());
            }
        }
        let now = UnixNanos(27_000_009 * MINUTE_NS);
        let pair = (service("web"), service("pay"));
        assert!(flows.stopped[&pair].cusum.evidence(now) > 6.0);
        assert_eq!(flows.stopped.len(), 1, "a constant goes together with nothing");
    }
}
