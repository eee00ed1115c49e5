//! What the engine knows, for who asks.

use smol_str::SmolStr;
use tapio_schemas::Entity;

use super::IncidentEngine;

impl IncidentEngine {
    /// True when something is known of what `query` names: it is in the graph, or something has happened to it. What is in
    /// no namespace is in the one that is asked for.
    pub fn has_heard_of(&self, query: &Entity) -> bool {
        let anywhere = Entity { namespace: SmolStr::default(), ..query.clone() };
        let is_it = |one: &Entity| query.matches(one) || (one.namespace.is_empty() && anywhere.matches(one));
        self.graph.knows(is_it) || self.known.entities().any(|entity| is_it(&entity))
    }

    /// Edges of the entity graph at present.
    pub fn graph_edges(&self) -> usize {
        self.graph.len()
    }

    /// Signals known at present.
    pub fn known_signals(&self) -> usize {
        self.known.len()
    }
}
