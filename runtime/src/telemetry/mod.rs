//! What the process says about itself: logs, metrics, health over HTTP, and on request its own
//! traces and metrics over OTLP.

mod http;
mod metrics;
mod otlp;
mod otlp_bridge;

use std::io::{self, IsTerminal};
use std::net::SocketAddr;

use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

use crate::config::HumanDuration;

pub use http::{HttpServer, serve};
pub use metrics::Metrics;

/// Environment variable whose filter beats [`TelemetryConfig::log`].
pub const ENV_LOG: &str = "TAPIO_LOG";

/// Form of log lines on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// How the process reports on itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Filter directives as in `info,tapio_runtime::bus=debug`. Default: info, the NATS client's
    /// own lines from warn. `TAPIO_LOG` beats it.
    pub log: String,
    /// `human` (default) or `json`.
    pub log_format: LogFormat,
    /// Address of `/metrics`, `/livez` and `/readyz`; port 0 takes a free one. Default
    /// 127.0.0.1:9464.
    pub listen: String,
    /// OTLP/gRPC endpoint for Tapio's own traces and metrics, such as `http://localhost:4317`.
    /// Default: none, nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// Time between two exports of metrics. Default 30s.
    pub otlp_interval: HumanDuration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: "info,async_nats=warn".to_owned(),
            log_format: LogFormat::Human,
            listen: "127.0.0.1:9464".to_owned(),
            otlp_endpoint: None,
            otlp_interval: HumanDuration::from_secs(30),
        }
    }
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter directives do not parse.
    #[error(
        "telemetry.log or {ENV_LOG} has the log filter `{filter}`, which is not valid: {message}; write for example info or tapio_runtime=debug"
    )]
    Filter {
        /// The text.
        filter: String,
        /// What is wrong.
        message: String,
    },
    /// A subscriber is already there: `init` was called twice.
    #[error("logging is already initialised in this process")]
    AlreadyInitialised,
    /// The exporter cannot be built.
    #[error("otlp exporter for {endpoint} cannot be built: {message}")]
    Otlp {
        /// `telemetry.otlp_endpoint`.
        endpoint: String,
        /// What is wrong.
        message: String,
    },
    /// The address is not `host:port`.
    #[error("telemetry.listen `{listen}` is not host:port")]
    ListenAddress {
        /// The text.
        listen: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for /metrics: {source}; choose another telemetry.listen, or port 0")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason of the operating system.
        source: io::Error,
    },
}

/// Keeps exporters alive. Call [`TelemetryGuard::shutdown`] last, so that the end is exported too.
#[derive(Debug)]
#[must_use = "dropping it stops the export"]
pub struct TelemetryGuard {
    otlp: Option<otlp::Exporters>,
}

impl TelemetryGuard {
    /// Exports what is pending and stops. Blocks for at most a few seconds; does nothing without an
    /// endpoint. Inside a multi-thread runtime call it through `spawn_blocking`.
    pub fn shutdown(self) {
        if let Some(exporters) = self.otlp {
            exporters.shutdown();
        }
    }
}

/// Starts logging, and the export when an endpoint is configured. Call once, inside tokio.
///
/// # Errors
/// [`TelemetryError`] for a bad filter or endpoint, and when called twice.
pub fn init(
    config: &TelemetryConfig,
    service: &'static str,
    metrics: &Metrics,
) -> Result<TelemetryGuard, TelemetryError> {
    let filter = env_filter(config, std::env::var(ENV_LOG).ok())?;
    let otlp = match &config.otlp_endpoint {
        Some(endpoint) => {
            Some(otlp::Exporters::start(endpoint, config.otlp_interval.get(), service, metrics)?)
        }
        None => None,
    };
    let tracer = otlp.as_ref().map(|exporters| own_spans(exporters.tracer_provider()));
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
        LogFormat::Human => Box::new(lines.with_filter(filter)),
        LogFormat::Json => Box::new(lines.json().with_filter(filter)),
    };
    tracing_subscriber::registry()
        .with(vec![Some(lines), tracer].into_iter().flatten().collect::<Vec<_>>())
        .try_init()
        .map_err(|_| TelemetryError::AlreadyInitialised)?;
    Ok(TelemetryGuard { otlp })
}

fn env_filter(config: &TelemetryConfig, env: Option<String>) -> Result<EnvFilter, TelemetryError> {
    let filter = env.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| config.log.clone());
    EnvFilter::try_new(&filter).map_err(|error| TelemetryError::Filter { filter, message: error.to_string() })
}

/// Only our own spans are exported: those of the exporter's transport would feed on themselves.
fn own_spans(provider: &SdkTracerProvider) -> Box<dyn Layer<Registry> + Send + Sync> {
    use opentelemetry::trace::TracerProvider;
    let ours = filter_fn(|metadata| metadata.target().starts_with("tapio"));
    let tracer = provider.tracer("tapio");
    Box::new(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_filters_are_told_and_the_environment_wins() {
        let config = TelemetryConfig { log: "tapio=loud".into(), ..Default::default() };
        let error = env_filter(&config, None).unwrap_err().to_string();
        assert!(error.contains("tapio=loud"), "{error}");
        let filter = env_filter(&config, Some("debug".into())).unwrap();
        assert_eq!(filter.to_string(), "debug");
        assert!(env_filter(&config, Some(" ".into())).is_err());
    }
}
