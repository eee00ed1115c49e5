//! Entities that batches name again and again: each is copied out of the archive once.

use std::collections::HashMap;
use std::sync::Arc;

use tapio_schemas::wire::EventBatchView;
use tapio_schemas::{EntityRef, UnixNanos};

use super::record::owner_identity;

/// The entities of the batch at hand, by their index in its table.
#[derive(Default)]
pub struct Entities {
    known: HashMap<u128, Known>,
    known_max: usize,
    /// Of the batch at hand: reference, identity as owner of series, and the step in which it was last sighted.
    pub batch: Vec<BatchEntity>,
}

/// An entity of the batch at hand.
pub struct BatchEntity {
    /// What the events share.
    pub entity: Arc<EntityRef>,
    /// Identity as owner of series.
    pub owner: u128,
    /// Step in which it was last sighted in this batch.
    pub sighted: UnixNanos,
}

struct Known {
    entity: Arc<EntityRef>,
    owner: u128,
}

impl Entities {
    /// Remembers at most so many.
    pub fn new(known_max: usize) -> Self {
        Self { known: HashMap::new(), known_max: known_max.max(1), batch: Vec::new() }
    }

    /// Fills [`Self::batch`] from the table of a batch.
    pub fn load(&mut self, batch: &EventBatchView<'_>) {
        self.batch.clear();
        if self.known.len() > self.known_max {
            // Those still in use come back with the next batches.
            self.known.clear();
        }
        for index in 0..batch.entities().len() {
            let known = self.known.entry(batch.entity_identity(index)).or_insert_with(|| {
                let entity = batch.own_entity(index);
                Known { owner: owner_identity(&entity), entity }
            });
            let (entity, owner) = (Arc::clone(&known.entity), known.owner);
            self.batch.push(BatchEntity { entity, owner, sighted: UnixNanos(0) });
        }
    }
}
