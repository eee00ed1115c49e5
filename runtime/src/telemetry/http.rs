//! `/metrics`, `/livez` and `/readyz`.

use std::future::IntoFuture;
use std::net::{SocketAddr, ToSocketAddrs};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::task::JoinHandle;

use super::{Metrics, TelemetryError};
use crate::health::Health;
use crate::shutdown::Shutdown;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Served {
    metrics: Metrics,
    health: Health,
}

/// A running server; it ends with the shutdown it was given.
#[derive(Debug)]
pub struct HttpServer {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// The bound address, with the real port when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until the server has ended.
    pub async fn join(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the metrics server ended badly");
        }
    }
}

/// Serves metrics and health on `listen` (`host:port`, port 0 for a free one).
///
/// `/livez` answers 503 when a component failed for good; `/readyz` answers 503 unless every
/// component makes progress. Both list the components as JSON.
///
/// # Errors
/// [`TelemetryError::ListenAddress`] and [`TelemetryError::Listen`].
pub async fn serve(
    listen: &str,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
) -> Result<HttpServer, TelemetryError> {
    let address = listen
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| TelemetryError::ListenAddress { listen: listen.to_owned() })?;
    let failed = |source| TelemetryError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Served { metrics, health });
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.wait().await })
        .into_future();
    let task = tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the metrics server stopped");
        }
    });
    Ok(HttpServer { addr, task })
}

async fn show_metrics(State(served): State<Served>) -> Response {
    ([(header::CONTENT_TYPE, OPENMETRICS)], served.metrics.encode()).into_response()
}

async fn livez(State(served): State<Served>) -> Response {
    describe(&served.health, served.health.is_live())
}

async fn readyz(State(served): State<Served>) -> Response {
    describe(&served.health, served.health.is_ready())
}

fn describe(health: &Health, good: bool) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let components: Vec<_> = health
        .report()
        .into_iter()
        .map(|component| {
            serde_json::json!({
                "name": component.name,
                "state": component.state,
                "progress_age_ms": u64::try_from(component.progress_age.as_millis()).unwrap_or(u64::MAX),
                "detail": component.detail,
                "note": component.note,
            })
        })
        .collect();
    let body = serde_json::json!({ "ok": good, "components": components });
    (status, axum::Json(body)).into_response()
}
