//! Who suffers: from the graph, the tallies of calls and the failing signals.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tapio_schemas::finding::Impact;
use tapio_schemas::{Entity, Score, Severity, SignalKind, Tally, UnixNanos};

use super::graph::Graph;
use super::says;
use super::signals::is_failure;
use super::view::View;
use crate::model::ImpactSpec;

/// Most callers that are named.
const CALLERS_MAX: usize = 16;
/// Windows kept per edge: ten minutes of five seconds.
const WINDOWS_MAX: usize = 120;

/// Calls and errors by the start of their window.
pub type Windows = BTreeMap<UnixNanos, (u64, u64)>;

/// Calls and errors per edge and window, of all shards together.
#[derive(Debug, Default)]
pub struct Tallies {
    edges: BTreeMap<(Entity, Entity), Windows>,
    edges_max: usize,
    refused: u64,
    window_ns: u64,
}

impl Tallies {
    /// Empty, with a limit on its edges.
    pub fn new(edges_max: usize) -> Self {
        Self { edges_max, ..Self::default() }
    }

    /// Adds a shard's share of a window.
    pub fn add(&mut self, tally: &Tally) {
        let key = (tally.from.clone(), tally.to.clone());
        self.window_ns = self.window_ns.max(tally.window_ns);
        if !self.edges.contains_key(&key) && self.edges.len() >= self.edges_max {
            self.refused += 1;
            return;
        }
        let windows = self.edges.entry(key).or_default();
        let window = windows.entry(tally.window_start).or_default();
        window.0 += tally.calls;
        window.1 += tally.errors;
        while windows.len() > WINDOWS_MAX {
            windows.pop_first();
        }
    }

    /// Every edge with its windows.
    pub fn edges(&self) -> impl Iterator<Item = (&(Entity, Entity), &Windows)> {
        self.edges.iter()
    }

    /// Length of the windows; 0 while nothing is counted.
    pub fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// Tallies refused because too many edges are known.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Forgets edges without a call since then.
    pub fn prune(&mut self, silent_before: UnixNanos) {
        self.edges.retain(|_, windows| windows.last_key_value().is_some_and(|(at, _)| *at >= silent_before));
    }

    /// The calls to each home, found once for all incidents of a tick.
    pub fn by_home(&self, graph: &Graph) -> CallsTo<'_> {
        let mut homes: HashMap<Entity, Vec<&Windows>> = HashMap::new();
        for ((_, to), windows) in &self.edges {
            homes.entry(graph.home(to)).or_default().push(windows);
        }
        CallsTo(homes)
    }
}

/// Calls by the home that they go to.
pub struct CallsTo<'a>(HashMap<Entity, Vec<&'a Windows>>);

impl CallsTo<'_> {
    /// Share of the calls to `home` that failed since `from`, if there were any.
    fn failed_share(&self, home: &Entity, from: UnixNanos) -> Option<f64> {
        let windows = self.0.get(home)?.iter().flat_map(|windows| windows.range(from.minus(5_000_000_000)..));
        let (calls, errors) = windows.fold((0, 0), |sum: (u64, u64), (_, w)| (sum.0 + w.0, sum.1 + w.1));
        (calls > 0).then(|| errors as f64 / calls as f64)
    }
}

/// Impact of an incident with the root cause at `seat`.
pub fn impact(
    view: &View<'_>,
    members: &[usize],
    seat: &Entity,
    spec: Option<&ImpactSpec>,
    calls: &CallsTo<'_>,
    first_bad: UnixNanos,
) -> Impact {
    let callers = view.graph.callers(seat);
    let suffering: BTreeSet<&Entity> = members
        .iter()
        .filter(|at| is_failure(view.signals[**at].kind))
        .map(|at| &view.homes[*at])
        .chain([seat])
        .collect();
    let share =
        suffering.iter().filter_map(|home| calls.failed_share(home, first_bad)).fold(0.0f64, f64::max);
    let served = |at: &usize| {
        view.signals[*at].kind == SignalKind::HttpServerErrors
            && view.graph.callers(&view.homes[*at]).is_empty()
    };
    let customer_facing = members.iter().any(served);
    let spread = suffering.iter().any(|home| callers.contains(*home));
    let base = spec.map_or(0.3, |s| s.business_impact);
    let cascade = spec.map_or(0.2, |s| s.cascade_risk);
    let business = base.max(share).max(if customer_facing { 0.7 } else { 0.0 });
    let cascade = match (callers.is_empty(), spread) {
        (_, true) => 1.0,
        (false, false) => cascade,
        // Nobody is known to call it: there is nobody to fall with it.
        (true, false) => cascade * 0.3,
    };
    Impact {
        business_impact: Score::clamped(business),
        customer_facing,
        slo_impact: false,
        cascade_risk: Score::clamped(cascade),
        requests_affected: Score::clamped(share),
        callers: callers.iter().take(CALLERS_MAX).map(says::name).collect(),
    }
}

/// The pattern's severity once something has failed, one step below before that, one above when customers notice.
pub fn severity(spec: Option<&ImpactSpec>, impact: &Impact, failed: bool) -> Severity {
    let base = spec.map_or(Severity::Warning, |s| s.severity);
    match (base, failed, impact.customer_facing) {
        (_, true, true) => Severity::Critical,
        (base, true, false) => base,
        (Severity::Critical, false, _) => Severity::Error,
        (Severity::Error, false, _) => Severity::Warning,
        (base, false, _) => base,
    }
}
