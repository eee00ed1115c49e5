//! What every Tapio process stands on: configuration, telemetry, health, supervision, an injected
//! clock, the JetStream bus, leases, the SPSC ring, and a nats-server child for `tapio up` and for tests.
//!
//! Nothing here knows what an event means. The path of an event uses [`ring`] between threads and
//! [`bus`] between processes; [`supervise`] owns the lifecycle of the parts.

#![deny(missing_docs)]

pub mod backoff;
pub mod bus;
pub mod clock;
pub mod config;
pub mod harness;
pub mod health;
pub mod lease;
pub mod memory;
pub mod nats_server;
pub mod ring;
pub mod shutdown;
pub mod status;
pub mod supervise;
pub mod telemetry;
pub mod threads;
