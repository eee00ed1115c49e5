//! For tests: a real nats-server of one's own, or a cluster of them, gone when dropped.
//!
//! A missing binary fails by name and says what to do; nothing is skipped.

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bus::{Bus, BusConfig, BusError};
use crate::config::HumanDuration;
use crate::nats_server::{Child, ChildConfig, ClusterConfig, NatsServerError};
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

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
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

/// A cluster may need so long to find a leader on a busy machine.
const CLUSTER_READY_MAX: Duration = Duration::from_secs(40);
/// A port that was free a moment ago may be taken: so often all is tried again.
const CLUSTER_START_ATTEMPTS: usize = 3;

/// Several nats-servers that know each other, each with JetStream in a temporary directory.
#[derive(Debug)]
pub struct NatsCluster {
    children: Vec<Child>,
    _dir: TempDir,
}

impl NatsCluster {
    /// Starts `size` servers. Blocks the thread. The cluster finds its leaders after this: [`NatsCluster::bus`] waits.
    ///
    /// # Errors
    /// [`NatsServerError`].
    pub fn start(size: usize) -> Result<Self, NatsServerError> {
        let mut attempt = 1;
        loop {
            match Self::try_start(size) {
                Err(NatsServerError::PortInUse { .. }) if attempt < CLUSTER_START_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    fn try_start(size: usize) -> Result<Self, NatsServerError> {
        let files = |source: io::Error| NatsServerError::Files { path: std::env::temp_dir(), source };
        let dir = TempDir::with_prefix("tapio-nats-cluster-").map_err(files)?;
        // Held together, so that they differ.
        let listeners: io::Result<Vec<_>> = (0..size).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let ports: io::Result<Vec<u16>> =
            listeners.map_err(files)?.iter().map(|held| Ok(held.local_addr()?.port())).collect();
        let ports = ports.map_err(files)?;
        let mut children = Vec::with_capacity(size);
        for (index, port) in ports.iter().enumerate() {
            let cluster = ClusterConfig {
                name: "tapio-test".to_owned(),
                server_name: server_name(index),
                port: *port,
                peers: ports.iter().copied().filter(|peer| peer != port).collect(),
            };
            let path = dir.path().join(server_name(index));
            children.push(Child::start(ChildConfig { cluster: Some(cluster), ..ChildConfig::new(path) })?);
        }
        Ok(Self { children, _dir: dir })
    }

    /// URL of one server; stays the same over restarts.
    pub fn url(&self, index: usize) -> String {
        self.children[index].url()
    }

    /// Process id of one server.
    pub fn pid(&self, index: usize) -> u32 {
        self.children[index].pid()
    }

    /// Ends one as `kill -9` does.
    pub fn kill(&mut self, index: usize) {
        self.children[index].kill();
    }

    /// Starts one again on the same ports and store.
    ///
    /// # Errors
    /// As [`Child::restart`].
    pub fn restart(&mut self, index: usize) -> Result<(), NatsServerError> {
        self.children[index].restart()
    }

    /// Configuration of a bus to all of them, with a copy of every stream on each.
    pub fn bus_config(&self) -> BusConfig {
        let urls = (0..self.children.len()).map(|index| self.url(index)).collect();
        let mut config = BusConfig { urls, ..BusConfig::default() };
        config.streams.replicas = self.children.len();
        config.connect_timeout = HumanDuration::from_secs(CLUSTER_READY_MAX.as_secs());
        config
    }

    /// A connected bus with its streams made, which waits until the cluster has leaders.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn bus(&self) -> Result<Bus, BusError> {
        let bus = Bus::connect(&self.bus_config(), &Metrics::new()).await?;
        bus.ensure_streams().await?;
        Ok(bus)
    }

    /// Which server leads a stream; waits until one does.
    ///
    /// # Errors
    /// [`BusError`] when none does in time.
    pub async fn leader(&self, bus: &Bus, stream: &str) -> Result<usize, BusError> {
        let deadline = Instant::now() + CLUSTER_READY_MAX;
        loop {
            let placement = bus.stream_placement(stream).await;
            let leader = placement.as_ref().ok().and_then(|placement| placement.leader.clone());
            let index = leader.and_then(|name| (0..self.children.len()).find(|i| server_name(*i) == name));
            if let Some(index) = index {
                return Ok(index);
            }
            if Instant::now() >= deadline {
                let message = format!("no leader within {CLUSTER_READY_MAX:?}");
                return Err(placement
                    .err()
                    .unwrap_or(BusError::Stream { stream: stream.to_owned(), message }));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn server_name(index: usize) -> String {
    format!("nats-{index}")
}
