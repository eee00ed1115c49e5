//! Entities that batches name again and again: each is copied out of the archive, and hashed, once.

use std::sync::Arc;

use foldhash::HashMap;
use tapio_schemas::entity::Entity;
use tapio_schemas::wire::EventBatchView;
use tapio_schemas::{EntityRef, UnixNanos};

use super::record::{entity_identity, owner_identity};
use super::topology::place_identity;

/// Entities remembered per worker.
const KNOWN_MAX: usize = 65_536;

/// Entities that the shards of one worker know: all of them hear of most services.
#[derive(Default)]
pub struct KnownEntities(HashMap<u128, Arc<Known>>);

/// The entities of the batch at hand, by their index in its table.
#[derive(Default)]
pub struct Entities {
    /// Of the batch at hand.
    pub batch: Vec<BatchEntity>,
}

/// An entity of the batch at hand.
pub struct BatchEntity {
    /// What the events share.
    pub known: Arc<Known>,
    /// Step in which it was last sighted in this batch.
    pub sighted: UnixNanos,
}

/// An entity, and what is derived from it.
#[derive(Debug)]
pub struct Known {
    /// The entity.
    pub entity: Arc<EntityRef>,
    /// Identity as owner of series.
    pub owner: u128,
    /// Identity of its place in the topology: owner, workload, node, service and pod.
    pub place: u128,
    /// Node of the entity graph that answers for it: workload, unit, cgroup or service.
    pub tenant: Entity,
    /// Identity of that node.
    pub tenant_id: u128,
}

impl Known {
    /// Derives everything once.
    pub fn new(entity: Arc<EntityRef>) -> Self {
        let owner = owner_identity(&entity);
        let tenant = entity.owner();
        Self {
            owner,
            place: place_identity(owner, &entity),
            tenant_id: entity_identity(&tenant),
            tenant,
            entity,
        }
    }
}

impl Entities {
    /// Fills [`Self::batch`] from the table of a batch.
    pub fn load(&mut self, batch: &EventBatchView<'_>, all: &mut KnownEntities) {
        self.batch.clear();
        if all.0.len() > KNOWN_MAX {
            // Those still in use come back with the next batches.
            all.0.clear();
        }
        for index in 0..batch.entities().len() {
            let known = all.0.entry(batch.entity_identity(index));
            let known = Arc::clone(known.or_insert_with(|| Arc::new(Known::new(batch.own_entity(index)))));
            self.batch.push(BatchEntity { known, sighted: UnixNanos(0) });
        }
    }
}
