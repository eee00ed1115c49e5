//! The correlator: events → signals (stage one) → findings (stage two).
//!
//! `pipeline.rs` wires the path in flow order over NATS; `engine.rs` is the same path in one process, for replay.
#![forbid(unsafe_code)]

mod aligned;
pub mod baseline;
pub mod calibration;
mod checkpoint;
pub mod config;
mod decider;
mod edges;
pub mod engine;
pub mod fence;
mod incident_worker;
pub mod incidents;
mod kept_key;
mod ledger;
mod low_water;
mod metrics;
pub mod model;
mod order;
mod outbox;
mod own_patterns;
mod partition;
pub mod pipeline;
mod questions;
#[cfg(test)]
mod restart_tests;
pub mod services;
pub mod shards;
#[cfg(test)]
mod simulation;
pub mod slo;
mod stage_one;
mod stage_two;
mod status;
pub mod trial;
pub mod unite;
mod untold;

pub use pipeline::{Correlator, CorrelatorError, CorrelatorHandle, CorrelatorParts, DrainError};
