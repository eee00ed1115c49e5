//! What both protocols do with a request once it is read: convert, hand over as a whole, count.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use smol_str::SmolStr;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::OtlpConfig;
use super::convert::{self, Rejected, Scope};
use super::json::FromOtlpJson;
use crate::sink::EventSink;

/// How long a request waits for its turn before it is told to come back.
const TURN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Which times of items are taken.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Name of the cluster.
    pub cluster: SmolStr,
    /// Items older than this are rejected.
    pub age_max: Duration,
    /// Items further ahead of the clock are rejected.
    pub future_max: Duration,
}

/// The request cannot be taken now; nothing of it was. The client should retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too many requests at once.
    #[error("too many requests at once, retry later")]
    Busy,
    /// The node agent has a backlog, or is stopping.
    #[error("the agent has a backlog and takes no events now, retry later")]
    Backlog,
}

/// The protocol a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP with protobuf.
    HttpProtobuf,
    /// HTTP with JSON.
    HttpJson,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http_protobuf",
            Self::HttpJson => "http_json",
        }
    }
}

/// An export request of one of the three signals.
pub trait ExportRequest: FromOtlpJson + prost::Message + Default + Send + 'static {
    /// What answers it.
    type Response: prost::Message + Default;
    /// Name in JSON of the number of rejected items.
    const REJECTED_NAME: &'static str;
    /// The request as events.
    fn convert(self, scope: &Scope) -> (Vec<UnifiedEvent>, Rejected);
    /// The answer: empty when everything was taken.
    fn response(rejected: &Rejected) -> Self::Response;
}

macro_rules! export_request {
    ($request:ty, $response:ident, $partial:ident { $rejected:ident }, $name:literal, $convert:path) => {
        impl ExportRequest for $request {
            type Response = $response;
            const REJECTED_NAME: &'static str = $name;

            fn convert(self, scope: &Scope) -> (Vec<UnifiedEvent>, Rejected) {
                $convert(scope, self)
            }

            fn response(rejected: &Rejected) -> $response {
                let partial_success = (rejected.total() > 0).then(|| $partial {
                    $rejected: i64::try_from(rejected.total()).unwrap_or(i64::MAX),
                    error_message: rejected.to_string(),
                });
                $response { partial_success }
            }
        }
    };
}

export_request!(
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
    ExportTracePartialSuccess { rejected_spans },
    "rejectedSpans",
    convert::traces
);
export_request!(
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
    ExportMetricsPartialSuccess { rejected_data_points },
    "rejectedDataPoints",
    convert::metrics
);
export_request!(
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
    ExportLogsPartialSuccess { rejected_log_records },
    "rejectedLogRecords",
    convert::logs
);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    protocol: &'static str,
    signal: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ItemLabels {
    signal: &'static str,
    outcome: &'static str,
}

/// The right to be worked on, until it is dropped.
pub struct Turn {
    _permit: OwnedSemaphorePermit,
    under_way: Gauge,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.under_way.dec();
    }
}

/// Takes requests, from any number of connections.
pub struct Reception {
    bounds: Bounds,
    items_max: usize,
    sink: EventSink,
    clock: SharedClock,
    turns: Arc<Semaphore>,
    under_way: Gauge,
    requests: Family<RequestLabels, Counter>,
    items: Family<ItemLabels, Counter>,
}

impl Reception {
    /// A reception that hands over to `sink`.
    pub fn new(
        config: &OtlpConfig,
        bounds: Bounds,
        sink: EventSink,
        clock: SharedClock,
        metrics: &Metrics,
    ) -> Self {
        Self {
            bounds,
            items_max: config.items_max,
            sink,
            clock,
            turns: Arc::new(Semaphore::new(config.requests_max.max(1))),
            under_way: metrics.shared("otlp_requests_under_way", "OTLP requests that are being worked on"),
            requests: metrics.shared("otlp_requests", "OTLP requests by protocol, signal and outcome"),
            items: metrics.shared(
                "otlp_items",
                "Spans, points and records of OTLP requests by outcome: accepted, valueless or the reason of a rejection; trimmed counts attributes",
            ),
        }
    }

    /// Waits for a turn, to be kept until the request is answered: it bounds the memory of all requests.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] when there is none within two seconds.
    pub async fn turn(&self) -> Result<Turn, Unavailable> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        let permit = tokio::select! {
            biased;
            permit = turn => permit.map_err(|_| Unavailable::Busy)?,
            () = self.clock.sleep(TURN_WAIT_MAX) => return Err(Unavailable::Busy),
        };
        self.under_way.inc();
        Ok(Turn { _permit: permit, under_way: self.under_way.clone() })
    }

    /// Converts a request and hands all of its events over, or none.
    ///
    /// # Errors
    /// [`Unavailable::Backlog`] when there is no room.
    pub fn take<R: ExportRequest>(&self, protocol: Protocol, request: R) -> Result<R::Response, Unavailable> {
        self.take_counted(protocol, request).map(|rejected| R::response(&rejected))
    }

    /// As [`Reception::take`], with the counts instead of the answer.
    ///
    /// # Errors
    /// As [`Reception::take`].
    pub fn take_counted<R: ExportRequest>(
        &self,
        protocol: Protocol,
        request: R,
    ) -> Result<Rejected, Unavailable> {
        let (events, rejected) = request.convert(&self.scope());
        let accepted = events.len() as u64;
        if self.sink.try_send(events).is_err() {
            self.count_request(protocol, R::SIGNAL, "backlog");
            return Err(Unavailable::Backlog);
        }
        self.count_request(protocol, R::SIGNAL, if rejected.total() > 0 { "partial" } else { "accepted" });
        let reasons = rejected.reasons().map(|(reason, count)| (reason.as_str(), count));
        let rest = [("accepted", accepted), ("valueless", rejected.valueless), ("trimmed", rejected.trimmed)];
        for (outcome, count) in reasons.chain(rest).filter(|(_, count)| *count > 0) {
            self.items.get_or_create(&ItemLabels { signal: R::SIGNAL, outcome }).inc_by(count);
        }
        Ok(rejected)
    }

    /// Counts a request by how it ended.
    pub fn count_request(&self, protocol: Protocol, signal: &'static str, outcome: &'static str) {
        let labels = RequestLabels { protocol: protocol.as_str(), signal, outcome };
        self.requests.get_or_create(&labels).inc();
    }

    fn scope(&self) -> Scope {
        let now = UnixNanos(self.clock.now_unix_nanos());
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Scope {
            cluster: self.bounds.cluster.clone(),
            observed_at: now,
            oldest: now.minus(nanos(self.bounds.age_max)),
            newest: now.plus(nanos(self.bounds.future_max)),
            items_max: self.items_max,
        }
    }
}
