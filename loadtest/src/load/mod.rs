//! The load: a cluster of a known shape, its ordinary events at any rate, and faults whose truth is known.

mod fault_events;
pub mod faults;
pub mod generator;
mod kubernetes;
pub mod random;
mod shapes;
mod template;
pub mod traces;
pub mod world;

/// First of the producers' ids; the others follow.
pub const PRODUCER: u64 = 0x10ad_0000;
/// More producers than any load has, of either kind.
const PRODUCERS_MAX: u64 = 1 << 16;

/// True for producers of the load; other events are what Tapio tells of itself.
pub fn is_producer(id: u64) -> bool {
    [PRODUCER, faults::PRODUCER_BASE].iter().any(|first| (*first..first + PRODUCERS_MAX).contains(&id))
}
