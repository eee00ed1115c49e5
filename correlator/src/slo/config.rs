//! Settings of service level objectives.

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;
use tapio_schemas::Entity;

use crate::config::nanos;

/// Shortest window of an objective: below it the windows in which a burn is looked for are shorter than those in which
/// requests are counted.
const WINDOW_MIN_NS: u64 = 86_400 * 1_000_000_000;
/// An objective of everything leaves no budget, one of nothing has no end.
const OBJECTIVE: (f64, f64) = (0.5, 0.999_999);

/// Objectives of services: the share of their requests that must not fail, within a sliding window.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloConfig {
    /// Follow error budgets. Default true.
    pub enabled: bool,
    /// Share of the requests that must not fail. Default 0.999; taken for at least 0.5 and at most 0.999999.
    pub objective: f64,
    /// Sliding window in which it is to hold. Default 30 days; taken for at least one.
    pub window: HumanDuration,
    /// A budget that burns though no finding is about the service becomes a finding of its own. Default false: it names no cause.
    pub own_findings: bool,
    /// Services whose requests are counted, about 15 KiB each. Default 2048; requests of further ones are counted as refused.
    pub services_max: usize,
    /// Objectives of single services; of several that match the last one counts. Default none.
    pub overrides: Vec<SloOverride>,
}

/// Another objective for some services. What is not given is as for all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloOverride {
    /// Which: `name`, `kind/name` or `namespace/kind/name`; a name `*` is every one.
    pub service: String,
    /// Follow its budget.
    pub enabled: Option<bool>,
    /// Share of the requests that must not fail.
    pub objective: Option<f64>,
    /// Sliding window in which it is to hold.
    pub window: Option<HumanDuration>,
}

impl Default for SloConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            objective: 0.999,
            window: HumanDuration::from_secs(30 * 86_400),
            own_findings: false,
            services_max: 2048,
            overrides: Vec::new(),
        }
    }
}

/// The objective of one service.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Share of the requests that must not fail.
    pub objective: f64,
    /// Window, ns.
    pub window_ns: u64,
}

impl SloOverride {
    fn is_for(&self, service: &Entity) -> bool {
        let mut query = Entity::parse_query(&self.service);
        if query.name == "*" {
            query.name = service.name.clone();
        }
        query.matches(service)
    }
}

impl SloConfig {
    /// What holds for a service; `None` when its budget is not followed.
    pub fn terms(&self, service: &Entity) -> Option<Terms> {
        let mut terms = (self.enabled, self.objective, self.window);
        for other in self.overrides.iter().filter(|other| other.is_for(service)) {
            terms.0 = other.enabled.unwrap_or(terms.0);
            terms.1 = other.objective.unwrap_or(terms.1);
            terms.2 = other.window.unwrap_or(terms.2);
        }
        let objective =
            if terms.1.is_finite() { terms.1.clamp(OBJECTIVE.0, OBJECTIVE.1) } else { OBJECTIVE.1 };
        terms.0.then_some(Terms { objective, window_ns: nanos(terms.2).max(WINDOW_MIN_NS) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(service: &str) -> SloOverride {
        SloOverride { service: service.into(), ..SloOverride::default() }
    }

    #[test]
    fn the_last_objective_that_matches_counts() {
        let config = SloConfig {
            overrides: vec![
                SloOverride { objective: Some(0.99), ..other("web") },
                SloOverride { window: Some(HumanDuration::from_secs(7 * 86_400)), ..other("shop/service/*") },
                SloOverride { enabled: Some(false), ..other("shop/service/batch") },
            ],
            ..SloConfig::default()
        };
        let of = |namespace: &str, name: &str| config.terms(&Entity::namespaced("Service", namespace, name));
        let day = 86_400_000_000_000;
        assert_eq!(of("else", "api"), Some(Terms { objective: 0.999, window_ns: 30 * day }));
        assert_eq!(of("else", "web"), Some(Terms { objective: 0.99, window_ns: 30 * day }));
        assert_eq!(of("shop", "web"), Some(Terms { objective: 0.99, window_ns: 7 * day }));
        assert_eq!(of("shop", "batch"), None);
        assert_eq!(SloConfig { enabled: false, ..config }.terms(&Entity::new("Service", "", "x", "")), None);
    }

    #[test]
    fn an_objective_that_leaves_no_budget_is_taken_for_one_that_does() {
        for (objective, taken) in [(1.0, OBJECTIVE.1), (0.0, OBJECTIVE.0), (f64::NAN, OBJECTIVE.1)] {
            let config = SloConfig { objective, window: HumanDuration::from_secs(1), ..SloConfig::default() };
            let terms = config.terms(&Entity::default()).expect("followed");
            assert_eq!((terms.objective, terms.window_ns), (taken, WINDOW_MIN_NS), "{objective}");
        }
    }
}
