//! OTLP requests as events: pure functions, used by the receiver and by replay.
//!
//! Source of names: the OpenTelemetry semantic conventions; older spellings are understood where instrumentation
//! in use still writes them. Ids are functions of the content, so a retried request gives the same events.

mod attributes;
mod histogram;
mod log;
mod metric;
mod resource;
mod span;

use std::collections::BTreeMap;
use std::fmt;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use smol_str::SmolStr;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::Source;

use resource::Origin;

/// Attributes kept of one span, point or record.
pub const ATTRIBUTES_MAX: usize = 64;
/// Bytes kept of one attribute's text.
pub const ATTRIBUTE_BYTES_MAX: usize = 1024;
/// Bytes kept of a log body.
pub const BODY_BYTES_MAX: usize = 8192;
/// Links kept of a span.
pub const LINKS_MAX: usize = 16;
/// Buckets of a histogram; more are rejected.
pub const BUCKETS_MAX: usize = 512;

/// What a conversion needs to know besides the request.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Name of the cluster; every entity is in it, whatever a resource claims.
    pub cluster: SmolStr,
    /// When the request arrived.
    pub observed_at: UnixNanos,
    /// Items before this time are rejected; zero for no bound (replay).
    pub oldest: UnixNanos,
    /// Items after this time are rejected; [`UnixNanos::MAX`] for no bound (replay).
    pub newest: UnixNanos,
    /// Items of one request; the ones above are rejected.
    pub items_max: usize,
}

impl Scope {
    /// A scope without bounds, for replay: every item is taken, whatever its time.
    pub fn unbounded(cluster: &str, observed_at: UnixNanos) -> Self {
        Self {
            cluster: SmolStr::new(cluster),
            observed_at,
            oldest: UnixNanos(0),
            newest: UnixNanos::MAX,
            items_max: usize::MAX,
        }
    }
}

/// Why an item was not taken. Closed, so that it can be a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A trace id that is not 16 bytes or all zero.
    TraceId,
    /// A span id that is not 8 bytes or all zero.
    SpanId,
    /// No start or end time.
    NoTime,
    /// Older than the agent takes.
    TooOld,
    /// Ahead of the agent's clock by more than it takes.
    InFuture,
    /// A metric without a name, or of no type.
    NoMetric,
    /// A point without a finite value.
    NotFinite,
    /// A histogram whose counts and bounds do not fit, or with too many of them.
    Buckets,
    /// More items than one request may have.
    OverLimit,
}

impl Reason {
    /// As a label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TraceId => "trace_id",
            Self::SpanId => "span_id",
            Self::NoTime => "no_time",
            Self::TooOld => "too_old",
            Self::InFuture => "in_future",
            Self::NoMetric => "no_metric",
            Self::NotFinite => "not_finite",
            Self::Buckets => "buckets",
            Self::OverLimit => "over_limit",
        }
    }

    /// As a client reads it.
    fn says(self) -> &'static str {
        match self {
            Self::TraceId => "trace id is not 16 bytes or is zero",
            Self::SpanId => "span id is not 8 bytes or is zero",
            Self::NoTime => "start or end time is missing",
            Self::TooOld => "older than the agent takes",
            Self::InFuture => "too far in the future, check the clocks",
            Self::NoMetric => "metric has no name or no data",
            Self::NotFinite => "value is missing or not finite",
            Self::Buckets => "bucket counts and bounds do not fit, or are too many",
            Self::OverLimit => "more items than one request may have, send smaller batches",
        }
    }
}

/// What was not taken of a request, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejected {
    by_reason: BTreeMap<Reason, u64>,
    /// Attributes left out or cut, of items that were taken.
    pub trimmed: u64,
    /// Points that say "no value recorded" (staleness markers): neither taken nor rejected.
    pub valueless: u64,
}

impl Rejected {
    /// Number of items that were rejected.
    pub fn total(&self) -> u64 {
        self.by_reason.values().sum()
    }

    /// Items by reason.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        self.by_reason.iter().map(|(reason, count)| (*reason, *count))
    }

    fn add(&mut self, reason: Reason) {
        *self.by_reason.entry(reason).or_default() += 1;
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (reason, count)) in self.reasons().enumerate() {
            let comma = if at > 0 { "; " } else { "" };
            write!(f, "{comma}{count} rejected: {}", reason.says())?;
        }
        Ok(())
    }
}

/// Spans of a request as `otel.span` events, in the order of the request.
pub fn traces(scope: &Scope, request: ExportTraceServiceRequest) -> (Vec<UnifiedEvent>, Rejected) {
    let mut out = Output::new(scope);
    for resource_spans in request.resource_spans {
        let origin = Origin::new(scope, resource_spans.resource.as_ref());
        for scope_spans in resource_spans.scope_spans {
            for span in scope_spans.spans {
                out.add(|trimmed| span::convert(scope, &origin, span, trimmed).map(Some));
            }
        }
    }
    out.finish()
}

/// Points of a request as `otel.metric` events, in the order of the request.
pub fn metrics(scope: &Scope, request: ExportMetricsServiceRequest) -> (Vec<UnifiedEvent>, Rejected) {
    let mut out = Output::new(scope);
    for resource_metrics in request.resource_metrics {
        let origin = Origin::new(scope, resource_metrics.resource.as_ref());
        for scope_metrics in resource_metrics.scope_metrics {
            let library = scope_metrics.scope.map(|s| s.name).unwrap_or_default();
            for metric in scope_metrics.metrics {
                metric::convert(scope, &origin, &library, metric, &mut out);
            }
        }
    }
    out.finish()
}

/// Records of a request as `otel.log` events, in the order of the request.
pub fn logs(scope: &Scope, request: ExportLogsServiceRequest) -> (Vec<UnifiedEvent>, Rejected) {
    let mut out = Output::new(scope);
    let mut repeated = log::Repetitions::default();
    for resource_logs in request.resource_logs {
        let origin = Origin::new(scope, resource_logs.resource.as_ref());
        for scope_logs in resource_logs.scope_logs {
            let logger = SmolStr::new(scope_logs.scope.map(|s| s.name).unwrap_or_default());
            for record in scope_logs.log_records {
                out.add(|trimmed| {
                    log::convert(scope, &origin, &logger, record, &mut repeated, trimmed).map(Some)
                });
            }
        }
    }
    out.finish()
}

/// Collects the events of one request, within its bounds.
struct Output<'a> {
    scope: &'a Scope,
    events: Vec<UnifiedEvent>,
    seen: usize,
    rejected: Rejected,
}

impl<'a> Output<'a> {
    fn new(scope: &'a Scope) -> Self {
        Self { scope, events: Vec::new(), seen: 0, rejected: Rejected::default() }
    }

    /// Adds what `convert` makes: an event, a reason, or nothing (a point without a value).
    fn add(&mut self, convert: impl FnOnce(&mut u64) -> Result<Option<UnifiedEvent>, Reason>) {
        self.seen += 1;
        if self.seen > self.scope.items_max {
            return self.rejected.add(Reason::OverLimit);
        }
        match convert(&mut self.rejected.trimmed) {
            Ok(Some(event)) if event.timestamp < self.scope.oldest => self.rejected.add(Reason::TooOld),
            Ok(Some(event)) if event.timestamp > self.scope.newest => self.rejected.add(Reason::InFuture),
            Ok(Some(event)) => self.events.push(event),
            Ok(None) => self.rejected.valueless += 1,
            Err(reason) => self.rejected.add(reason),
        }
    }

    fn finish(self) -> (Vec<UnifiedEvent>, Rejected) {
        (self.events, self.rejected)
    }
}

/// An event from that resource, at that time.
fn event_of(scope: &Scope, origin: &Origin, at: UnixNanos) -> UnifiedEvent {
    UnifiedEvent {
        timestamp: at,
        observed_at: scope.observed_at,
        source: Source::Otlp,
        pid: origin.pid,
        entity: origin.entity.clone(),
        ..UnifiedEvent::default()
    }
}

#[cfg(test)]
mod tests;
