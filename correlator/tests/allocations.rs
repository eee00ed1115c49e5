//! In steady state a shard worker allocates nothing per event: what it needs per batch, per step and per window is shared by
//! all events of it.

#[path = "../benches/load.rs"]
mod load;

use load::{Load, STEADY_BATCHES};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::shards::ShardSet;
use tapio_schemas::UnixNanos;

/// Allocations per event that steps, windows and tables that still grow may cost together. One for each span would be 0.15
/// in the mix and 1 among spans.
const PER_EVENT_MAX: f64 = 0.02;

#[test]
fn events_in_steady_state_cost_no_allocation() {
    for load in [Load::Execs, Load::Connections, Load::Spans, Load::Samples, Load::Mix] {
        let batches = load.batches(2 * STEADY_BATCHES);
        let mut shards = ShardSet::new("c", [0], &CorrelatorConfig::default());
        let mut run = |batches: &[Vec<u8>]| {
            for bytes in batches {
                let taken = shards.take(bytes, None, UnixNanos::MAX).expect("taken");
                shards.advance(taken.newest.minus(500_000_000));
            }
        };
        let (warm_up, steady) = batches.split_at(STEADY_BATCHES);
        run(warm_up);
        let counted = allocation_counter::measure(|| run(steady));
        let events = (steady.len() * load::BATCH_EVENTS as usize) as f64;
        let per_event = counted.count_total as f64 / events;
        println!("{load:?}: {per_event:.4} allocations per event");
        assert!(per_event < PER_EVENT_MAX, "{load:?}: {per_event:.4} allocations per event");
    }
}
