//! The load: a cluster of a known shape, its ordinary events at any rate, and faults whose truth is known.

mod fault_events;
pub mod faults;
pub mod generator;
mod kubernetes;
pub mod random;
mod shapes;
mod template;
mod traces;
pub mod world;
