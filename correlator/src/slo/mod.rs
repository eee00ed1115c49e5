//! Error budgets: how much of what their objectives allow services have burnt, and when nothing will be left.
//!
//! Counted are the requests that servers answer (server and consumer spans), by windows of event time that all shards have
//! passed. What was burnt before Tapio listened is not known and counts as nothing. A restart goes on (`kept.rs`).

mod bounds;
mod burn;
mod config;
mod kept;
mod ring;

use std::collections::BTreeMap;

use tapio_schemas::{Entity, Tally, UnixNanos};

pub use burn::Burn;
pub use config::{SloConfig, SloOverride, Terms};
pub use kept::{KeptBudgets, Snapshot};

use burn::Budget;
use kept::Snapshots;
use ring::Counts;

/// Budgets are judged on this grid of event time.
const JUDGE_NS: u64 = 5_000_000_000;
/// How things stand is remembered so often, event time.
const SNAPSHOT_NS: u64 = 20_000_000_000;

/// Budgets of all services.
#[derive(Debug, Default)]
pub struct Budgets {
    config: SloConfig,
    budgets: BTreeMap<Entity, Followed>,
    /// Everything up to here is counted.
    judged: UnixNanos,
    /// Up to here it was counted before a restart.
    counted_before: UnixNanos,
    snapshots: Snapshots,
    /// Something was counted since the last snapshot.
    is_new: bool,
    refused: u64,
    unkept: u64,
}

#[derive(Debug)]
struct Followed {
    budget: Budget,
    /// Failures were counted since it was judged.
    is_touched: bool,
    burn: Option<Burn>,
}

impl Budgets {
    /// Nothing is counted yet.
    pub fn new(config: SloConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes what was counted of an edge. Requests of a service are those that it answers itself.
    pub fn add(&mut self, tally: &Tally) {
        let end = tally.window_start.plus(tally.window_ns);
        // What ended before is counted already, and comes again after a restart.
        if tally.from != tally.to || !self.config.enabled || end <= self.counted_before {
            return;
        }
        if !self.budgets.contains_key(&tally.to) {
            let Some(terms) = self.config.terms(&tally.to) else { return };
            if self.budgets.len() >= self.config.services_max {
                self.refused += 1;
                return;
            }
            let budget = Budget::new(terms, tally.window_start);
            self.follow(tally.to.clone(), budget, None);
        }
        if let Some(followed) = self.budgets.get_mut(&tally.to) {
            let counts = Counts { requests: tally.calls, failures: tally.errors.min(tally.calls) };
            followed.budget.ring.add(tally.window_start, end, counts);
            followed.is_touched |= tally.errors > 0;
            self.is_new = true;
        }
    }

    fn follow(&mut self, service: Entity, budget: Budget, burn: Option<Burn>) {
        self.budgets.insert(service, Followed { budget, is_touched: false, burn });
    }

    /// Everything up to `now` is counted.
    pub fn judge(&mut self, now: UnixNanos) {
        if now.0 / JUDGE_NS <= self.judged.0 / JUDGE_NS {
            return;
        }
        let before = std::mem::replace(&mut self.judged, now);
        for followed in self.budgets.values_mut() {
            if followed.is_touched || followed.budget.is_open() {
                followed.is_touched = false;
                followed.burn = followed.budget.judge(now);
            }
        }
        if self.is_new && now.0 / SNAPSHOT_NS > before.0 / SNAPSHOT_NS {
            self.is_new = false;
            self.snapshot();
        }
    }

    /// Those that burn, or are used up.
    pub fn burns(&self) -> impl Iterator<Item = (&Entity, &Burn)> {
        self.budgets.iter().filter_map(|(service, followed)| Some((service, followed.burn.as_ref()?)))
    }

    /// Services of which nothing was counted in their window are forgotten.
    pub fn prune(&mut self, now: UnixNanos) {
        let is_silent = |followed: &Followed| {
            let seen = followed.budget.ring.seen_from(now);
            followed.budget.ring.newest() <= seen && now > seen
        };
        self.budgets.retain(|_, followed| !is_silent(followed));
    }

    /// Services followed.
    pub fn followed(&self) -> usize {
        self.budgets.len()
    }

    /// Whether a budget that burns may be a finding of its own.
    pub fn own_findings(&self) -> bool {
        self.config.own_findings
    }

    /// Counts refused because too many services are followed.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Services that a snapshot had no room for: after a restart they begin anew.
    pub fn unkept(&self) -> u64 {
        self.unkept
    }

    /// True when nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.budgets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_767_225_600 * SECOND;

    pub(super) fn tally(from: &str, to: &str, second: u64, errors: u64) -> Tally {
        let service = |name: &str| Entity::namespaced("Service", "shop", name);
        Tally {
            window_start: UnixNanos(START + second * SECOND),
            window_ns: 5 * SECOND,
            from: service(from),
            to: service(to),
            calls: 20,
            errors,
            duration_ns_sum: 0,
            latency: Vec::new(),
        }
    }

    #[test]
    fn only_what_a_service_answers_itself_is_its_budget_and_services_are_bounded() {
        let mut budgets = Budgets::new(SloConfig { services_max: 1, ..SloConfig::default() });
        for second in (0..300).step_by(5) {
            budgets.add(&tally("web", "api", second, 20));
            budgets.add(&tally("api", "api", second, 20));
            budgets.add(&tally("web", "web", second, 20));
            budgets.judge(UnixNanos(START + (second + 5) * SECOND));
        }
        let burning: Vec<&str> = budgets.burns().map(|(service, _)| service.name.as_str()).collect();
        assert_eq!(burning, ["api"]);
        assert_eq!((budgets.followed(), budgets.refused()), (1, 60));
        budgets.prune(UnixNanos(START + 29 * 86_400 * SECOND));
        assert_eq!(budgets.followed(), 1);
        budgets.prune(UnixNanos(START + 31 * 86_400 * SECOND));
        assert_eq!(budgets.followed(), 0);
    }
}
