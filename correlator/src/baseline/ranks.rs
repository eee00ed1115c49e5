//! Ranks by signals alone.

use std::collections::BTreeMap;

use tapio_schemas::{Entity, Signal, UnixNanos};

use super::{Blamed, category};

/// Weight of a rank, against the one before it.
const NEXT_RANK: f64 = 0.5;

/// Entities by the onset of their earliest signal; equal onsets share a rank.
pub fn earliest(strong: &[&Signal]) -> Vec<Blamed> {
    let mut first: BTreeMap<Entity, &Signal> = BTreeMap::new();
    for signal in strong {
        let known = first.entry(signal.entity.owner()).or_insert(signal);
        if (signal.onset, signal.id) < (known.onset, known.id) {
            *known = signal;
        }
    }
    let mut order: Vec<(Entity, &Signal)> = first.into_iter().collect();
    order.sort_by_key(|(_, signal)| signal.onset);
    let mut weight = 1.0;
    let mut last: Option<UnixNanos> = None;
    let blamed = order.into_iter().map(|(entity, signal)| {
        if last.replace(signal.onset).is_some_and(|before| before < signal.onset) {
            weight *= NEXT_RANK;
        }
        Blamed { entity, category: category::of_signal(signal.kind), weight }
    });
    blamed.collect()
}

/// Entities by the sum of their signals' strengths; the category has the largest part of it.
pub fn loudest(strong: &[&Signal]) -> Vec<Blamed> {
    let mut sums: BTreeMap<Entity, BTreeMap<&'static str, f64>> = BTreeMap::new();
    for signal in strong {
        let of_entity = sums.entry(signal.entity.owner()).or_default();
        *of_entity.entry(category::of_signal(signal.kind)).or_default() += signal.strength.get();
    }
    let blamed = sums.into_iter().filter_map(|(entity, parts)| {
        let weight = parts.values().sum();
        let (category, _) = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(a.0)))?;
        Some(Blamed { entity, category, weight })
    });
    let mut blamed: Vec<Blamed> = blamed.collect();
    blamed.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    blamed
}
