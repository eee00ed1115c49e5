//! What can go wrong in a load test.

use std::path::PathBuf;

use tapio_runtime::bus::BusError;
use tapio_runtime::nats_server::NatsServerError;
use tapio_schemas::wire::WireError;

/// A load test that could not be carried out. What it found wrong is in its report instead.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// NATS.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The nats-server.
    #[error(transparent)]
    Server(#[from] NatsServerError),
    /// A batch did not encode.
    #[error("a batch of the load cannot be encoded: {0}")]
    Wire(#[from] WireError),
    /// The measurement of NATS alone.
    #[error("nats alone cannot be measured: {0}")]
    Ceiling(String),
    /// A file or directory.
    #[error("cannot use {}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A service cannot be started or asked.
    #[error("{service}: {reason}; its log is {}", .log.display())]
    Service {
        /// Which.
        service: String,
        /// Why.
        reason: String,
        /// Where it says more.
        log: PathBuf,
    },
    /// Something that has to come did not.
    #[error("{what} did not come within {seconds} s")]
    Timeout {
        /// What.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A task of the load generator ended badly.
    #[error("the load generator failed: {0}")]
    Generator(String),
}
