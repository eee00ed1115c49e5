//! The signals of one tick, with their place in the graph and what is known beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tapio_schemas::entity::kinds;
use tapio_schemas::{Entity, Signal, SignalKind, UnixNanos};

use super::graph::Graph;
use super::signals::{is_of_object, is_state};
use crate::model::Share;
use crate::services::ServiceState;

/// Time in which what says how something is fades to a third once it has ended, ns.
const FADES_NS: f64 = 30e9;
/// Share of its strength below which it has faded.
const FADED: f64 = 0.2;

/// The signals of one tick with their place in the graph.
pub struct View<'a> {
    /// By onset and id.
    pub signals: Vec<&'a Signal>,
    /// What answers for each.
    pub homes: Vec<Entity>,
    /// What answers for the other end of each.
    pub peers: Vec<Option<Entity>>,
    /// Where each kind is.
    by_kind: BTreeMap<SignalKind, Vec<usize>>,
    /// What each home has.
    by_home: HashMap<Entity, Vec<usize>>,
    /// The graph.
    pub graph: &'a Graph,
    /// Event time of the tick.
    pub now: UnixNanos,
    /// Machines from which kernel events have come.
    pub kernel_nodes: &'a BTreeSet<Entity>,
    /// What is known of homes beside their signals.
    states: BTreeMap<Entity, Vec<&'a ServiceState>>,
}

impl<'a> View<'a> {
    /// Places the signals.
    pub fn new(
        signals: Vec<&'a Signal>,
        graph: &'a Graph,
        kernel_nodes: &'a BTreeSet<Entity>,
        now: UnixNanos,
    ) -> Self {
        let homes: Vec<Entity> = signals
            .iter()
            .map(|s| if is_of_object(s.kind) { s.entity.owner() } else { graph.home(&s.entity.owner()) })
            .collect();
        let peers = signals.iter().map(|s| s.peer.as_ref().map(|p| graph.home(&located(p, s)))).collect();
        let mut by_kind: BTreeMap<SignalKind, Vec<usize>> = BTreeMap::new();
        for (at, signal) in signals.iter().enumerate() {
            by_kind.entry(signal.kind).or_default().push(at);
        }
        let mut by_home: HashMap<Entity, Vec<usize>> = HashMap::with_capacity(homes.len());
        for (at, home) in homes.iter().enumerate() {
            match by_home.get_mut(home) {
                Some(here) => here.push(at),
                None => drop(by_home.insert(home.clone(), vec![at])),
            }
        }
        Self { signals, homes, peers, by_kind, by_home, graph, now, kernel_nodes, states: BTreeMap::new() }
    }

    /// With the states of services.
    pub fn with_states(mut self, states: impl Iterator<Item = &'a ServiceState>) -> Self {
        for state in states {
            self.states.entry(self.graph.home(&state.service)).or_default().push(state);
        }
        self
    }

    /// Share of a home's edges with recent calls on which they take as long as usual; 0 when there are none.
    pub fn calls_normal(&self, home: &Entity) -> f64 {
        let states = self.states.get(home).into_iter().flatten();
        let (all, slow) = states.fold((0u32, 0u32), |sum, s| (sum.0 + s.edges, sum.1 + s.edges_slow));
        if all == 0 { 0.0 } else { f64::from(all - slow.min(all)) / f64::from(all) }
    }

    /// Seconds from `since` to the last time that the processor of a home was measured and found normal.
    pub fn cpu_normal_s(&self, home: &Entity, since: UnixNanos) -> f64 {
        let states = self.states.get(home).into_iter().flatten();
        let last = states.filter_map(|s| s.cpu_normal_at).max();
        last.map_or(0.0, |at| at.since(since) as f64 / 1e9)
    }

    /// When something of these was last seen.
    pub fn latest<'i>(&self, signals: impl Iterator<Item = &'i usize>) -> UnixNanos {
        signals.map(|at| self.signals[*at].last_seen).max().unwrap_or_default()
    }

    /// Strength of a signal among others of which the newest word is `latest`: what says how it is now fades once it has
    /// ended, what says that something happened does not.
    pub fn strength(&self, at: usize, latest: UnixNanos) -> f64 {
        let signal = self.signals[at];
        let strength = signal.strength.get();
        if signal.ended && is_state(signal.kind) {
            return strength * (-(latest.since(signal.last_seen) as f64) / FADES_NS).exp();
        }
        strength
    }

    /// True for what said how something was and is as good as forgotten.
    pub fn has_faded(&self, at: usize, latest: UnixNanos) -> bool {
        self.strength(at, latest) < FADED * self.signals[at].strength.get()
    }

    /// Signals of a kind, by onset and id.
    pub fn of_kind(&self, kind: SignalKind) -> &[usize] {
        self.by_kind.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// Signals of a home, by onset and id.
    pub fn at_home(&self, home: &Entity) -> &[usize] {
        self.by_home.get(home).map_or(&[], Vec::as_slice)
    }
}

/// A loopback address means another thing on each machine.
fn located(peer: &Entity, signal: &Signal) -> Entity {
    let loopback = peer.kind == kinds::EXTERNAL
        && (peer.name.starts_with("127.")
            || peer.name.starts_with("[::1]")
            || peer.name.starts_with("localhost"));
    let node = if loopback { &signal.entity.node } else { &peer.node };
    Entity { node: node.clone(), ..peer.clone() }
}

/// Value of a share on a seat, 0..=1.
pub fn share(of: Share, view: &View<'_>, seat: &Entity) -> f64 {
    match of {
        Share::CallsNormal => view.calls_normal(seat),
    }
}
