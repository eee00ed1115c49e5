//! Deviations that are told as signals: opened with enough evidence, told again when it changes, ended when it is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::{Attribute, Entity, EntityRef, EventId, Score, Signal, SignalId, SignalKind, UnixNanos};

use super::SECOND_NS;
use crate::model::is_workload;
use crate::shards::{add_evidence, stamped};

/// Evidence with which a signal is opened, nats.
const OPENS: f64 = 4.0;
/// Evidence below which it is over, nats.
pub const ENDS: f64 = 2.0;
/// A change of strength that is told.
const MATERIAL: f64 = 0.02;
/// What goes on is told again after this long.
const AGAIN_NS: u64 = 30 * SECOND_NS;
/// Signals open at a time; further ones are refused and counted.
const OPEN_MAX: usize = 4096;

/// What a deviation is about: kind, entity, other end, and what tells several of one kind apart.
pub type Key = (SignalKind, Entity, Option<Entity>, SmolStr);

/// A deviation as it stands.
#[derive(Debug, Default)]
pub struct Deviation {
    /// Evidence, nats.
    pub evidence: f64,
    /// Since when.
    pub since: UnixNanos,
    /// How often.
    pub count: u64,
    /// What is usual, in `unit`.
    pub baseline: f64,
    /// What is, in `unit`.
    pub observed: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// Facts for the story.
    pub attributes: Vec<Attribute>,
    /// Events that show it.
    pub events: Vec<EventId>,
}

/// A signal that is open.
#[derive(Debug)]
struct Open {
    signal: Signal,
    /// Its evidence in the step before, nats.
    evidence: f64,
    /// The evidence fell when it last moved.
    fades: bool,
}

/// Signals that are open.
#[derive(Debug, Default)]
pub struct Book {
    open: BTreeMap<Key, Open>,
    /// Signals refused because too many were open.
    pub refused: u64,
}

/// Strength of a signal with so much evidence: how far it is believed, times how much of the full evidence it is.
pub fn strength(evidence: f64) -> f64 {
    const DOUBTED: f64 = 4.5;
    const FULL: f64 = 10.0;
    let believed = 1.0 / (1.0 + (DOUBTED - evidence).exp());
    believed * evidence.min(FULL) / FULL
}

/// A reference whose owner is `entity`.
fn reference(cluster: &str, entity: &Entity) -> Arc<EntityRef> {
    let mut of =
        EntityRef { cluster: cluster.into(), namespace: entity.namespace.clone(), ..EntityRef::default() };
    match entity.kind.as_str() {
        kinds::SERVICE => of.service = entity.name.clone(),
        kinds::POD => of.pod = entity.name.clone(),
        kinds::NODE => of.node = entity.name.clone(),
        kinds::SYSTEMD_UNIT => (of.unit, of.node) = (entity.name.clone(), entity.node.clone()),
        kinds::CGROUP => (of.cgroup, of.node) = (entity.name.clone(), entity.node.clone()),
        kind if is_workload(kind) => {
            (of.workload_kind, of.workload) = (entity.kind.clone(), entity.name.clone());
        }
        _ => (of.object_kind, of.object) = (entity.kind.clone(), entity.name.clone()),
    }
    Arc::new(of.sealed())
}

impl Book {
    /// True while nothing is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Onset of the oldest open signal.
    pub fn oldest(&self) -> Option<UnixNanos> {
        self.open.values().map(|open| open.signal.onset).min()
    }

    /// Compares what is open with the deviations of this step, and tells what has changed.
    pub fn tell(
        &mut self,
        cluster: &str,
        now: UnixNanos,
        mut deviations: BTreeMap<Key, Deviation>,
        out: &mut Vec<Signal>,
    ) {
        let known: Vec<Key> = self.open.keys().cloned().collect();
        for key in known {
            let deviation = deviations.remove(&key).filter(|d| d.evidence >= ENDS);
            let Some(Open { signal, evidence, fades }) = self.open.get_mut(&key) else { continue };
            match deviation {
                Some(deviation) => {
                    let before = (signal.strength, signal.last_seen);
                    let mut next = signal.clone();
                    // The calm that is seen while the evidence goes, and between two samples of it, is no part of the
                    // deviation: it stays as it was told.
                    let before_it = std::mem::replace(evidence, deviation.evidence);
                    *fades = deviation.evidence < before_it || (*fades && deviation.evidence == before_it);
                    count(&mut next, &deviation);
                    if !*fades {
                        describe(&mut next, deviation);
                    }
                    let moved = (next.strength.get() - before.0.get()).abs() >= MATERIAL;
                    if moved || now.since(before.1) >= AGAIN_NS {
                        *signal = stamped(next, now);
                        out.push(signal.clone());
                    }
                }
                None => {
                    let ended = Signal { ended: true, strength: signal.strength, ..signal.clone() };
                    out.push(stamped(ended, now));
                    self.open.remove(&key);
                }
            }
        }
        for (key, deviation) in deviations.into_iter().filter(|(_, d)| d.evidence >= OPENS) {
            if self.open.len() >= OPEN_MAX {
                self.refused += 1;
                continue;
            }
            let entity = reference(cluster, &key.1);
            let evidence = deviation.evidence;
            let mut signal = Signal::new(key.0, entity, key.2.clone(), deviation.since);
            // Several deviations of one kind may begin together on one entity.
            if !key.3.is_empty() {
                signal.id = SignalId(signal.id.0 ^ xxhash_rust::xxh3::xxh3_128(key.3.as_bytes()));
            }
            count(&mut signal, &deviation);
            describe(&mut signal, deviation);
            let signal = stamped(signal, now);
            out.push(signal.clone());
            self.open.insert(key, Open { signal, evidence, fades: false });
        }
    }
}

/// How sure it is, and what shows it.
fn count(signal: &mut Signal, deviation: &Deviation) {
    signal.strength = Score::clamped(strength(deviation.evidence));
    signal.count = deviation.count.max(1);
    for event in &deviation.events {
        add_evidence(&mut signal.evidence, *event);
    }
}

/// How things are.
fn describe(signal: &mut Signal, deviation: Deviation) {
    (signal.baseline, signal.observed) = (deviation.baseline, deviation.observed);
    signal.unit = SmolStr::new_static(deviation.unit);
    signal.attributes = deviation.attributes;
}
