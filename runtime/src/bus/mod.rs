//! The JetStream bus: the only place that names async-nats.
//!
//! Delivery is at least once with an effect of once: every publish waits for the stream's
//! acknowledgement and is repeated until it comes, under one `Nats-Msg-Id`, so that a repetition
//! within the stream's duplicate window is not stored twice. The connection comes back by itself;
//! its state is visible. While NATS is away publishers wait, bounded, and nothing is dropped here.

mod address;
mod circuit;
mod config;
mod connection;
mod consumer;
mod core;
mod echo;
mod error;
mod feed;
mod fence;
mod headers;
mod kv;
mod message;
mod metrics;
mod publish;
mod publisher;
mod service;
mod streams;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::sync::watch::Receiver;

use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::health::Health;
use crate::telemetry::Metrics;

pub use self::circuit::CircuitState;
pub use self::core::{CoreMessage, Subscription, Untold};
pub use config::{BusConfig, EventsStreamsConfig, StreamLimits, StreamsConfig};
pub use connection::ConnectionState;
pub use consumer::{DurableConfig, DurableConsumer, OrderedConfig, OrderedConsumer, StartAt};
pub use echo::Echo;
pub use error::BusError;
pub use feed::News;
pub use fence::Fence;
pub use headers::Headers;
pub use kv::{Kv, KvEntry};
pub use message::Message;
pub use publish::PublishAck;
pub use publisher::{Outgoing, PublishReport, PublishReports, Publisher, TrySubmitError};
pub use service::{Query, QueryError, QueryService};
pub use streams::{EventsStream, StreamPeer, StreamPlacement, StreamState};
pub use watch::{KvEvent, KvWatch};

use circuit::Circuit;
use connection::Link;
use metrics::BusMetrics;

/// Delays between repeated publishes and re-opened consumers.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// Name of the connection in the health report.
const HEALTH_COMPONENT: &str = "nats";
/// NATS may be away for so long before the process is not ready.
const AWAY_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at the connection.
const HEALTH_PERIOD: Duration = Duration::from_secs(1);

/// A connection to NATS. Clones share it.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    jetstream: Context,
    link: Link,
    circuit: Arc<Circuit>,
    config: BusConfig,
    metrics: BusMetrics,
    ids: publish::MessageIds,
    /// Turns of fenced messages in a cluster, by the fence's subject.
    lanes: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Bus {
    /// Connects. Tries for `connect_timeout`; once connected, comes back for ever by itself.
    ///
    /// # Errors
    /// [`BusError::Connect`] with the URLs and the last reason, [`BusError::Credentials`].
    pub async fn connect(config: &BusConfig, metrics: &Metrics) -> Result<Self, BusError> {
        let metrics = BusMetrics::register(metrics);
        let circuit = Arc::new(Circuit::new(metrics.clone()));
        let (client, link, writer) = connection::connect(config, &metrics, &circuit).await?;
        let jetstream = async_nats::jetstream::context::ContextBuilder::new()
            .timeout(config.request_timeout.get())
            .ack_timeout(config.ack_timeout.get())
            .max_ack_inflight(publish::ACKS_IN_FLIGHT_MAX)
            .build(client.clone());
        let ids = publish::MessageIds::new();
        let (config, lanes) = (config.clone(), Mutex::default());
        let inner = Arc::new(Inner { client, jetstream, link, circuit, config, metrics, ids, lanes });
        let weak = Arc::downgrade(&inner);
        let client = move || weak.upgrade().map(|inner| inner.client.clone());
        tokio::spawn(inner.link.clone().reconcile(writer, client));
        Ok(Self { inner })
    }

    /// Makes the connection a component `nats` of `health`: it makes progress while NATS is there and takes messages,
    /// and is stale, so that the process is not ready, when it has not for five seconds. Its note tells the state of
    /// the circuit.
    pub fn register_health(&self, health: &Health, clock: SharedClock) {
        let progress = health.register(HEALTH_COMPONENT, Some(AWAY_MAX));
        let weak = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                let circuit = inner.circuit.state();
                progress.note(format!("circuit {}", circuit.as_str()));
                match inner.link.state() {
                    ConnectionState::Connected if circuit != CircuitState::Open => progress.tick(),
                    ConnectionState::Connected | ConnectionState::Reconnecting => {}
                    ConnectionState::Closed => return,
                }
                drop(inner);
                clock.sleep(HEALTH_PERIOD).await;
            }
        });
    }

    /// Whether NATS is there now.
    pub fn state(&self) -> ConnectionState {
        self.inner.link.state()
    }

    /// Whether what is published is acknowledged.
    pub fn circuit(&self) -> CircuitState {
        self.inner.circuit.state()
    }

    /// Follows [`Bus::state`].
    pub fn watch_state(&self) -> Receiver<ConnectionState> {
        self.inner.link.watch()
    }

    /// Largest message the server takes, payload and headers together, in bytes.
    pub fn max_payload(&self) -> usize {
        self.inner.client.max_payload()
    }

    /// Waits until everything written so far has reached the server.
    ///
    /// # Errors
    /// [`BusError::Closed`].
    pub async fn flush(&self) -> Result<(), BusError> {
        self.inner.client.flush().await.map_err(|_| BusError::Closed)
    }

    /// Lets subscriptions and services finish what they have, then closes the connection.
    ///
    /// # Errors
    /// [`BusError::Closed`] when it is closed already.
    pub async fn drain(&self) -> Result<(), BusError> {
        self.inner.client.drain().await.map_err(|_| BusError::Closed)
    }

    /// Stores a message that could not be used on the dead-letter stream of `stage`, with the
    /// reason and where it came from. A payload beyond the server's limit is cut.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn dead_letter(
        &self,
        stage: &str,
        reason: &str,
        original_subject: &str,
        payload: Bytes,
    ) -> Result<PublishAck, BusError> {
        /// Left for headers below the server's limit.
        const HEADERS_BYTES: usize = 4096;
        let headers = Headers::new()
            .with(tapio_schemas::names::HEADER_REASON, reason)
            .with(tapio_schemas::names::HEADER_ORIGIN, original_subject);
        let limit = self.max_payload().saturating_sub(HEADERS_BYTES);
        let payload = payload.slice(..payload.len().min(limit));
        let subject = tapio_schemas::names::deadletter_subject(stage);
        self.inner.metrics.dead_letter(stage);
        self.publish(&subject, None, headers, payload).await
    }
}
