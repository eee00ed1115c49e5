//! Tests against the real nats-server and real sockets.

mod bus;
mod cluster;
mod fence;
mod kv;
mod lease;
mod lease_chaos;
mod lease_process;
mod outage;
mod process;
mod publisher;
mod query;
mod secure;
mod telemetry;

use std::time::Duration;

use tapio_runtime::bus::Bus;
use tapio_runtime::harness::NatsServer;

/// Longer than anything here takes on a busy machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn server_and_bus() -> (NatsServer, Bus) {
    let server = NatsServer::start().unwrap_or_else(|error| panic!("{error}"));
    let bus = server.bus().await.unwrap();
    (server, bus)
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}
