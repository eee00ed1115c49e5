//! The correlator: events → signals (stage one) → findings (stage two).
//!
//! `pipeline.rs` wires the path in flow order over NATS; `engine.rs` is the same path in one process, for replay.
#![forbid(unsafe_code)]

mod aligned;
pub mod config;
pub mod engine;
pub mod incidents;
pub mod model;
pub mod shards;
pub mod unite;
