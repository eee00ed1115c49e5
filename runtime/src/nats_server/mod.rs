//! A nats-server child process: for `tapio up`, and through [`harness`](crate::harness) for tests.
//!
//! The child listens on loopback, keeps JetStream under the data directory, logs into files there,
//! is in its own process group (Ctrl-C reaches only us, so that we can drain first) and dies with
//! us on Linux.

mod child;
mod find;
mod keeper;
mod ready;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ByteSize;

pub use child::Child;
pub use find::{Binary, Version, find};

/// Oldest server that has what the bus uses.
pub const VERSION_MIN: Version = Version { major: 2, minor: 12, patch: 0 };

/// Environment variable that names the binary, before anything else is searched.
pub const ENV_NATS_SERVER: &str = "TAPIO_NATS_SERVER";

/// How to start the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildConfig {
    /// Directory for the store, the configuration and the logs; made when it is missing. One
    /// server at a time: the directory is locked.
    pub data_dir: PathBuf,
    /// Address to listen on. Default 127.0.0.1: the server has no passwords.
    pub host: String,
    /// Port for clients; 0 takes a free one. Default 0.
    pub port: u16,
    /// Largest message. Default 8 MiB, the most the server recommends.
    pub max_payload: ByteSize,
    /// Most bytes of all streams on disk; 0 leaves it to the server (three quarters of what is
    /// free). Default 0.
    pub max_store: ByteSize,
    /// Time to become ready. Default 20 s: a large store is checked at start.
    pub ready_timeout: Duration,
    /// Time to stop after SIGTERM, then SIGKILL. Default 10 s.
    pub stop_timeout: Duration,
    /// The cluster it belongs to. Default: none.
    pub cluster: Option<ClusterConfig>,
}

/// A server's place in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Name of the cluster, the same for all its servers.
    pub name: String,
    /// Name of this server, unique in the cluster and the same after a restart.
    pub server_name: String,
    /// Port for the other servers.
    pub port: u16,
    /// Ports of the other servers, on the same host.
    pub peers: Vec<u16>,
}

impl ChildConfig {
    /// Defaults over this directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            host: "127.0.0.1".to_owned(),
            port: 0,
            max_payload: ByteSize::mib(8),
            max_store: ByteSize(0),
            ready_timeout: Duration::from_secs(20),
            stop_timeout: Duration::from_secs(10),
            cluster: None,
        }
    }
}

/// Why there is no running server.
#[derive(Debug, thiserror::Error)]
pub enum NatsServerError {
    /// No binary anywhere.
    #[error(
        "nats-server is missing (searched {searched}); run `make setup`, put it on PATH, or set TAPIO_NATS_SERVER"
    )]
    Missing {
        /// The places, in order.
        searched: String,
    },
    /// `TAPIO_NATS_SERVER` names something that does not run.
    #[error("TAPIO_NATS_SERVER={path} cannot be used: {message}")]
    Unusable {
        /// The path.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Only servers that are too old.
    #[error(
        "nats-server {found} at {path} is older than {VERSION_MIN}; run `make setup` or set TAPIO_NATS_SERVER"
    )]
    TooOld {
        /// The best there is.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
    /// Another process has the data directory.
    #[error("{path} is in use by another running instance; stop it or choose another data directory")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file of the child cannot be written.
    #[error("cannot prepare {path} for nats-server: {source}")]
    Files {
        /// The file or directory.
        path: PathBuf,
        /// The reason of the operating system.
        source: io::Error,
    },
    /// The process cannot be started.
    #[error("cannot start {path}: {source}")]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// The reason of the operating system.
        source: io::Error,
    },
    /// The port belongs to someone else.
    #[error("port {port} on {host} is in use; choose another one, or 0 for a free one")]
    PortInUse {
        /// Address to listen on.
        host: String,
        /// The port.
        port: u16,
    },
    /// It ended before it was ready.
    #[error("nats-server ended at start ({status}); its last words: {log}")]
    EndedEarly {
        /// Exit status.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// It runs and does not answer.
    #[error("nats-server was not ready after {timeout:?}{at}; its last words: {log}")]
    NotReady {
        /// `ready_timeout`.
        timeout: Duration,
        /// Its address when known.
        at: String,
        /// The end of its log.
        log: String,
    },
    /// It did not end, not even when killed.
    #[error("nats-server (pid {pid}) did not end")]
    DidNotEnd {
        /// Its process id.
        pid: u32,
    },
}

/// Address of a running child as a URL for clients.
fn url_of(addr: SocketAddr) -> String {
    format!("nats://{addr}")
}

#[cfg(test)]
mod tests;
