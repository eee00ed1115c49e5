//! The agents: collectors, and the node agent that brings their events into the stream.
//!
//! The path of an event is wired in one place, [`node`]: collectors hand batches to their
//! [`sink::EventSink`], one SPSC ring each; the node thread validates, completes, keys and batches; the
//! outbox publishes to JetStream, and keeps what cannot go out in memory, then on disk.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod attribution;
mod batcher;
pub mod collectors;
pub mod config;
pub mod convert;
pub mod gap;
mod identity;
pub mod ledger;
pub mod memory;
pub mod node;
mod outbox;
mod publish;
pub mod sink;
mod spool;
mod status;
mod trouble;
mod urgent;
mod validate;
