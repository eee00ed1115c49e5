//! What the engine knows, for who asks.

use tapio_schemas::Entity;

use super::IncidentEngine;

impl IncidentEngine {
    /// True when something was heard of what `query` names: it is in the graph, or something has happened to it.
    pub fn has_heard_of(&self, query: &Entity) -> bool {
        self.graph.knows(query) || self.known.entities().any(|entity| query.matches(&entity))
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
