//! What is known of services beside their deviations: how much of what would be hurt is normal.

use std::collections::BTreeMap;

use tapio_schemas::{Entity, UnixNanos};

use super::SECOND_NS;
use super::book::ENDS;
use super::cusum::STANDS_NS;
use super::durations::Series;
use super::meters::CpuSeen;

/// A processor that was not measured for so long may be busy now.
const RECENT_NS: u64 = 90 * SECOND_NS;
/// Services of which the state is told.
const SERVICES_MAX: usize = 4096;

/// State of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceState {
    /// Event time.
    pub at: UnixNanos,
    /// Service.
    pub service: Entity,
    /// Edges to and from it of which the last calls still say something.
    pub edges: u32,
    /// Of them, those on which calls are longer under way than usual.
    pub edges_slow: u32,
    /// When its processor was last measured and not saturated.
    pub cpu_normal_at: Option<UnixNanos>,
}

/// States as they were last told.
#[derive(Debug, Default)]
pub struct States {
    told: BTreeMap<Entity, ServiceState>,
    changed: Vec<ServiceState>,
}

impl States {
    /// Notes what has changed. While nothing deviates nobody asks.
    pub fn look(
        &mut self,
        now: UnixNanos,
        is_quiet: bool,
        gaps: &BTreeMap<(Entity, Entity), Series>,
        cpu: &BTreeMap<Entity, CpuSeen>,
    ) {
        if is_quiet {
            return;
        }
        let mut all: BTreeMap<&Entity, ServiceState> = BTreeMap::new();
        let fresh = |service: &Entity| ServiceState {
            at: now,
            service: service.clone(),
            edges: 0,
            edges_slow: 0,
            cpu_normal_at: None,
        };
        for ((from, to), series) in gaps {
            // That one edge is slow and that another is not stand equally long.
            if now.since(series.cusum.last()) > STANDS_NS {
                continue;
            }
            for end in [from, to] {
                let state = all.entry(end).or_insert_with(|| fresh(end));
                state.edges += 1;
                state.edges_slow += u32::from(series.cusum.evidence(now) >= ENDS);
            }
        }
        for (service, seen) in cpu {
            let state = all.entry(service).or_insert_with(|| fresh(service));
            state.cpu_normal_at = (!seen.is_saturated && now.since(seen.at) <= RECENT_NS).then_some(seen.at);
        }
        for (service, state) in all {
            let same = |told: &ServiceState| ServiceState { at: now, ..told.clone() } == state;
            if self.told.get(service).is_some_and(same) {
                continue;
            }
            if self.told.contains_key(service) || self.told.len() < SERVICES_MAX {
                self.told.insert(service.clone(), state.clone());
                self.changed.push(state);
            }
        }
    }

    /// What has changed since it was last taken.
    pub fn take(&mut self) -> Vec<ServiceState> {
        std::mem::take(&mut self.changed)
    }
}
