//! The audit webhook of an API server as a source of who did what.
//!
//! The API server sends batches of `audit.k8s.io/v1 EventList` (`--audit-webhook-config-file`, mode `batch`). What somebody
//! changed becomes a change with its user; reads, refusals, and the system's own work are counted and left out. An audit policy at
//! level `Metadata` is enough; with `Request` the new image and the number of replicas are told too. Values of ConfigMaps and
//! Secrets are never kept.

mod config;
mod convert;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use smol_str::SmolStr;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::ids::UnixNanos;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};

use self::convert::EventList;
use super::otlp::body::{self, BodyError};
use super::otlp::connections::{Limited, TIMED_OUT, TimedOut};
use super::otlp::tls::Tls;
use crate::sink::EventSink;

pub use config::AuditConfig;

/// Where batches are sent to.
pub const PATH: &str = "/audit";
/// A sender waits for so long for its turn; then it is told to come back.
const TURN_MAX: Duration = Duration::from_secs(10);
/// How often the collector says that it lives.
const TICK: Duration = Duration::from_secs(1);

type Outcomes = Family<[(&'static str, &'static str); 1], Counter>;

/// A receiver that is bound and not yet served.
pub struct AuditReceiver {
    listener: Mutex<Option<TcpListener>>,
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    connections_max: usize,
    tls: Option<Tls>,
}

struct Shared {
    cluster: SmolStr,
    token_file: Option<PathBuf>,
    clock: SharedClock,
    sink: EventSink,
    turns: Semaphore,
    message_max: usize,
    events: Outcomes,
    requests: Outcomes,
    timed_out: TimedOut,
}

impl AuditReceiver {
    /// Takes the port.
    ///
    /// # Errors
    /// When it cannot be had, or certificate and key cannot be used.
    pub async fn bind(
        config: &AuditConfig,
        cluster: &str,
        clock: SharedClock,
        sink: EventSink,
        metrics: &Metrics,
    ) -> std::io::Result<Self> {
        let tls = match config.tls_files() {
            Ok(None) => None,
            Ok(Some((certificate, key))) => Some(Tls::of(certificate, key).await?),
            Err((key, message)) => return Err(std::io::Error::other(format!("audit.{key}: {message}"))),
        };
        if tls.is_none() && config.token_file.is_some() {
            tracing::warn!(
                "audit.token_file without audit.tls_certificate: an API server shows its token over TLS only"
            );
        }
        let listener = TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Shared {
            cluster: SmolStr::new(cluster),
            token_file: config.token_file.clone(),
            clock,
            sink,
            turns: Semaphore::new(config.requests_max.max(1)),
            message_max: usize::try_from(config.message_max.0).unwrap_or(usize::MAX),
            events: metrics.shared("audit_events", "Audit events, by what became of them"),
            requests: metrics.shared("audit_requests", "Batches of audit events, by outcome"),
            timed_out: metrics.shared("audit_connections_timed_out", TIMED_OUT),
        };
        let (listener, shared) = (Mutex::new(Some(listener)), Arc::new(shared));
        Ok(Self { listener, address, shared, connections_max: config.connections_max, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Receives until shutdown.
    ///
    /// # Errors
    /// When the port cannot be listened on again after a failure.
    pub async fn run(&self, context: WorkerContext) -> WorkerResult {
        let listener = match self.listener.lock().await.take() {
            Some(listener) => listener,
            None => TcpListener::bind(self.address).await?,
        };
        let listener = Limited::new(listener, self.connections_max, self.shared.timed_out.clone());
        let listener = listener.with_tls(self.tls.clone());
        let routes = Router::new().route(PATH, post(receive)).with_state(Arc::clone(&self.shared));
        let serving = listener.serve(routes, context.shutdown.clone());
        tokio::pin!(serving);
        loop {
            tokio::select! {
                () = &mut serving => return Ok(()),
                () = context.clock.sleep(TICK) => context.progress.tick(),
            }
        }
    }
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> (StatusCode, String) {
    let (outcome, status, message) = match shared.take(request).await {
        Ok(()) => ("taken", StatusCode::OK, String::new()),
        Err((outcome, status, message)) => (outcome, status, message),
    };
    shared.requests.get_or_create(&[("outcome", outcome)]).inc();
    (status, message)
}

type Refusal = (&'static str, StatusCode, String);

impl Shared {
    /// Nothing of a batch is read before its sender is known and has a turn: what is held at once is bounded.
    async fn take(&self, request: Request) -> Result<(), Refusal> {
        let (parts, body) = request.into_parts();
        self.check(&parts.headers).await?;
        let turn = tokio::select! {
            turn = self.turns.acquire() => turn.ok(),
            () = self.clock.sleep(TURN_MAX) => None,
        };
        let busy = ("busy", StatusCode::TOO_MANY_REQUESTS, "too many batches at once: come back".to_owned());
        let _turn = turn.ok_or(busy)?;
        let body = self.read(&parts.headers, body).await?;
        self.tell(&body).await
    }

    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Refusal> {
        let read = tokio::select! {
            read = body::read(headers, body, self.message_max) => read,
            () = self.clock.sleep(body::READ_TIMEOUT) => Err(BodyError::Slow),
        };
        read.map_err(|error| {
            let outcome = match error {
                BodyError::TooLarge { .. } => "too_large",
                BodyError::Slow => "slow",
                _ => "malformed",
            };
            (outcome, error.status(), error.to_string())
        })
    }

    async fn tell(&self, body: &[u8]) -> Result<(), Refusal> {
        let malformed = |reason: String| ("malformed", StatusCode::BAD_REQUEST, reason);
        let list: EventList = serde_json::from_slice(body)
            .map_err(|error| malformed(format!("not an audit.k8s.io/v1 EventList: {error}")))?;
        if list.kind != "EventList" {
            return Err(malformed(format!(
                "not an audit.k8s.io/v1 EventList: kind is `{}`",
                cut(&list.kind)
            )));
        }
        let now = UnixNanos(self.clock.now_unix_nanos());
        let mut events = Vec::new();
        for item in &list.items {
            let outcome = match convert::change(&self.cluster, item, now) {
                Ok(event) => {
                    events.push(event);
                    "told"
                }
                Err(left) => left.name(),
            };
            self.events.get_or_create(&[("outcome", outcome)]).inc();
        }
        // The answer waits until there is room: the sender keeps what it has, and sends again what is not answered.
        let gone = |_| ("gone", StatusCode::SERVICE_UNAVAILABLE, "the agent stops".to_owned());
        self.sink.send(events).await.map_err(gone)
    }

    /// The file is read each time: tokens are changed while it runs.
    async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(file) = &self.token_file else { return Ok(()) };
        let unreadable = |error: std::io::Error| {
            tracing::warn!(file = %file.display(), %error, "cannot read audit.token_file: no batch is taken");
            ("unauthorized", StatusCode::SERVICE_UNAVAILABLE, "the token cannot be checked".to_owned())
        };
        let token = tokio::fs::read_to_string(file).await.map_err(unreadable)?;
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let token = token.trim();
        if token.is_empty() || !is_same(shown.as_bytes(), token.as_bytes()) {
            return Err(("unauthorized", StatusCode::UNAUTHORIZED, "a wrong token".to_owned()));
        }
        Ok(())
    }
}

/// Takes as long for a wrong first letter as for a wrong last one.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn cut(text: &str) -> SmolStr {
    crate::convert::cut(text, 64)
}
