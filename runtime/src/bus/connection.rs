//! Connecting, coming back, and knowing which it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::watch;

use super::circuit::Circuit;
use super::metrics::BusMetrics;
use super::{BusConfig, BusError, address};
use crate::backoff::Backoff;

/// First delay of a reconnect; the very first attempt is made at once.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
/// Messages of one subscription that wait in memory for us. Pull consumers are bounded by their
/// batch, so this bounds core subscriptions; what is beyond it is dropped and counted.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// How often the state is compared with the client's own.
const RECONCILE_PERIOD: Duration = Duration::from_secs(1);

/// Whether NATS is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Yes.
    Connected,
    /// No; trying to come back.
    Reconnecting,
    /// No, and never again: drained, or refused by the server's authorization.
    Closed,
}

/// State of the connection and how often it was made.
#[derive(Debug, Clone)]
pub(super) struct Link {
    state: watch::Receiver<ConnectionState>,
    /// Number of connections made so far: a change means that what was in flight is in doubt.
    epoch: watch::Receiver<u64>,
}

impl Link {
    pub(super) fn state(&self) -> ConnectionState {
        *self.state.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    pub(super) fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    pub(super) fn epoch_receiver(&self) -> watch::Receiver<u64> {
        self.epoch.clone()
    }

    /// Waits for a connection later than `epoch`; for ever once the bus is closed.
    pub(super) async fn wait_epoch_after(&self, epoch: u64) {
        let mut receiver = self.epoch.clone();
        if receiver.wait_for(|current| *current > epoch).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Corrects the state from time to time, because the client drops events that it has no room
    /// for, and a lost "connected" would keep every publisher waiting for ever.
    pub(super) async fn reconcile(self, writer: Arc<LinkWriter>, client: impl Fn() -> Option<Client>) {
        let mut in_doubt = false;
        while self.state() != ConnectionState::Closed {
            tokio::time::sleep(RECONCILE_PERIOD).await;
            let Some(client) = client() else { return };
            let connected = client.connection_state() == async_nats::connection::State::Connected;
            let disagrees = connected && self.state() == ConnectionState::Reconnecting;
            // Twice in a row: once may be an event on its way.
            if disagrees && in_doubt {
                writer.on_event(&Event::Connected);
            }
            in_doubt = disagrees;
        }
    }

    /// Waits until NATS is there.
    pub(super) async fn wait_connected(&self) -> Result<(), BusError> {
        let mut receiver = self.state.clone();
        let state = receiver.wait_for(|state| *state != ConnectionState::Reconnecting).await;
        match state.map(|state| *state) {
            Ok(ConnectionState::Connected) => Ok(()),
            _ => Err(BusError::Closed),
        }
    }
}

/// The writing side of [`Link`], fed by the client's events.
#[derive(Debug)]
pub(super) struct LinkWriter {
    state: watch::Sender<ConnectionState>,
    epoch: watch::Sender<u64>,
    metrics: BusMetrics,
    circuit: Arc<Circuit>,
}

impl LinkWriter {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.state.send_replace(ConnectionState::Connected);
                self.epoch.send_modify(|epoch| *epoch += 1);
                self.metrics.connected(true);
                self.circuit.connected(true);
                tracing::info!("connected to nats");
            }
            Event::Disconnected => {
                self.state.send_replace(ConnectionState::Reconnecting);
                self.metrics.connected(false);
                self.circuit.connected(false);
                tracing::warn!("nats is away; reconnecting");
            }
            Event::Closed => {
                self.state.send_replace(ConnectionState::Closed);
                self.metrics.connected(false);
                self.circuit.connected(false);
                tracing::info!("the connection to nats is closed");
            }
            Event::SlowConsumer(_) => self.metrics.slow_consumer(),
            Event::LameDuckMode | Event::Draining => tracing::info!(%event, "nats"),
            Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(%event, "nats"),
        }
    }
}

pub(super) async fn connect(
    config: &BusConfig,
    metrics: &BusMetrics,
    circuit: &Arc<Circuit>,
) -> Result<(Client, Link, Arc<LinkWriter>), BusError> {
    let servers = address::parse(&config.urls)?;
    let (state, state_seen) = watch::channel(ConnectionState::Reconnecting);
    let (epoch, epoch_seen) = watch::channel(0);
    let writer =
        Arc::new(LinkWriter { state, epoch, metrics: metrics.clone(), circuit: Arc::clone(circuit) });
    let link = Link { state: state_seen, epoch: epoch_seen };
    let deadline = Instant::now() + config.connect_timeout.get();
    let backoff = Backoff::new(RECONNECT_DELAY_MIN, Duration::from_millis(500));
    let mut message = "no answer".to_owned();
    for attempt in 0.. {
        let options = address::log_in(options(config, Arc::clone(&writer)).await?, &servers);
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, options.connect(servers.as_slice())).await {
            Ok(Ok(client)) => {
                // The event may still be on its way; the callers need the state now.
                link.wait_connected().await?;
                return Ok((client, link, writer));
            }
            Ok(Err(error)) if is_refusal(&error) => {
                let (urls, message) = (address::shown(&config.urls), super::message::chain(&error));
                return Err(BusError::Refused { urls, message });
            }
            Ok(Err(error)) => message = super::message::chain(&error),
            // The deadline cut the last attempt: the reason of the one before says more.
            Err(_) => {}
        }
        let delay = backoff.delay(attempt);
        if Instant::now() + delay >= deadline {
            let (urls, timeout) = (address::shown(&config.urls), config.connect_timeout.get());
            return Err(BusError::Connect { urls, timeout, message });
        }
        tokio::time::sleep(delay).await;
    }
    unreachable!("the attempts end at the deadline")
}

/// The server answered and does not want us: trying again does not help.
fn is_refusal(error: &ConnectError) -> bool {
    matches!(error.kind(), ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation)
}

async fn options(config: &BusConfig, writer: Arc<LinkWriter>) -> Result<ConnectOptions, BusError> {
    let reconnect = Backoff::new(RECONNECT_DELAY_MIN, config.reconnect_delay_max.get());
    let mut options = ConnectOptions::new()
        .name(&config.client_name)
        .require_tls(config.tls_required)
        .request_timeout(Some(config.request_timeout.get()))
        .max_reconnects(None)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .reconnect_delay_callback(move |attempt| reconnect_delay(&reconnect, attempt))
        .event_callback(move |event| {
            writer.on_event(&event);
            std::future::ready(())
        });
    if let Some(path) = &config.credentials_file {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| BusError::Credentials { path: path.clone(), source })?;
    }
    if let Some(path) = &config.tls_ca_file {
        options = options.add_root_certificates(path.clone());
    }
    match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(cert), Some(key)) => {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        (None, None) => {}
        _ => return Err(BusError::HalfCertificate),
    }
    Ok(options)
}

/// The client counts attempts from one.
fn reconnect_delay(backoff: &Backoff, attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        later => backoff.delay(u32::try_from(later - 2).unwrap_or(u32::MAX)),
    }
}
