//! For tests: a real nats-server of one's own, gone when dropped.
//!
//! A missing binary fails by name and says what to do; nothing is skipped.

use tempfile::TempDir;

use crate::bus::{Bus, BusConfig, BusError};
use crate::nats_server::{Child, ChildConfig, NatsServerError};
use crate::telemetry::Metrics;

/// A nats-server on a free port with JetStream in a temporary directory.
#[derive(Debug)]
pub struct NatsServer {
    child: Child,
    // After the child, so that the directory goes after the process.
    _dir: TempDir,
}

impl NatsServer {
    /// Starts one and waits until it is ready. Blocks the thread.
    ///
    /// # Errors
    /// [`NatsServerError`].
    pub fn start() -> Result<Self, NatsServerError> {
        let dir = TempDir::with_prefix("tapio-nats-")
            .map_err(|source| NatsServerError::Files { path: std::env::temp_dir(), source })?;
        let child = Child::start(ChildConfig::new(dir.path()))?;
        Ok(Self { child, _dir: dir })
    }

    /// URL for clients; stays the same over [`NatsServer::restart`].
    pub fn url(&self) -> String {
        self.child.url()
    }

    /// Stops it well.
    ///
    /// # Errors
    /// As [`Child::stop`].
    pub fn stop(&mut self) -> Result<(), NatsServerError> {
        self.child.stop()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Starts it again on the same port and store.
    ///
    /// # Errors
    /// As [`Child::restart`].
    pub fn restart(&mut self) -> Result<(), NatsServerError> {
        self.child.restart()
    }

    /// Configuration of a bus to it.
    pub fn bus_config(&self) -> BusConfig {
        BusConfig::with_url(self.url())
    }

    /// A connected bus with its streams made.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn bus(&self) -> Result<Bus, BusError> {
        let bus = Bus::connect(&self.bus_config(), &Metrics::new()).await?;
        bus.ensure_streams().await?;
        Ok(bus)
    }
}
