//! One span as an event.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, span::Event, span::Link, span::SpanKind as K};
use smol_str::SmolStr;
use tapio_schemas::event::{SemanticContext, TraceContext, UnifiedEvent};
use tapio_schemas::ids::{SpanId, TraceId, UnixNanos};
use tapio_schemas::kind::{Category, EventKind, EventSeverity};
use tapio_schemas::payload::{Payload, SpanData, SpanKind, SpanLink, SpanStatus};

use super::attributes::{self, first_int, first_text, has, text};
use super::resource::Origin;
use super::{ATTRIBUTE_BYTES_MAX, LINKS_MAX, Reason, Scope, event_of};
use crate::convert::{Seed, cut};

/// Whom a span calls, best name first. Then come databases and queues, see [`peer`].
const PEER_KEYS: [&str; 4] = ["peer.service", "server.address", "net.peer.name", "http.host"];

/// # Errors
/// The reason for which the span cannot be taken.
pub fn convert(
    scope: &Scope,
    origin: &Origin,
    span: Span,
    trimmed: &mut u64,
) -> Result<UnifiedEvent, Reason> {
    let trace_id = trace_id(&span.trace_id).ok_or(Reason::TraceId)?;
    let span_id = span_id(&span.span_id).ok_or(Reason::SpanId)?;
    let (start, end) = (UnixNanos(span.start_time_unix_nano), UnixNanos(span.end_time_unix_nano));
    if start.0 == 0 || end.0 == 0 {
        return Err(Reason::NoTime);
    }
    let kind = kind(span.kind());
    let (error_type, error_message) = error(&span);
    let status = span.status.as_ref();
    let data = SpanData {
        name: cut(&span.name, ATTRIBUTE_BYTES_MAX),
        kind,
        status: match status.map(|s| s.code()) {
            Some(StatusCode::Ok) => SpanStatus::Ok,
            Some(StatusCode::Error) => SpanStatus::Error,
            _ => SpanStatus::Unset,
        },
        status_message: cut(status.map_or("", |s| &s.message), ATTRIBUTE_BYTES_MAX),
        start,
        // A clock that was set back gives ends before starts; the duration is then unknown, not negative.
        duration_ns: end.since(start),
        http_status: http_status(&span.attributes),
        peer: peer(kind, &span.attributes),
        error_type,
        error_message,
        links: links(&span.links, trimmed),
        ..SpanData::default()
    };
    let severity = if failed(&data) { EventSeverity::Error } else { EventSeverity::Info };
    let semantic = semantic(kind, &span.attributes, severity);
    let trace = TraceContext {
        trace_id,
        span_id,
        parent_span_id: self::span_id(&span.parent_span_id).unwrap_or_default(),
        // Only the lower eight bits are W3C flags.
        flags: (span.flags & 0xff) as u8,
    };
    let mut kept = attributes::convert(span.attributes, trimmed);
    kept.extend(origin.extra.iter().cloned());
    Ok(UnifiedEvent {
        id: Seed::new("span").number(trace_id.0).number(span_id.0.into()).event(end),
        kind: EventKind::Span,
        severity,
        payload: Payload::Span(Box::new(SpanData { attributes: kept, ..data })),
        trace: Some(Box::new(trace)),
        semantic: semantic.map(Box::new),
        ..event_of(scope, origin, end)
    })
}

/// A trace id, unless it is of the wrong length or zero.
pub fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    let id = u128::from_be_bytes(bytes.try_into().ok()?);
    (id != 0).then_some(TraceId(id))
}

/// A span id, unless it is of the wrong length or zero.
pub fn span_id(bytes: &[u8]) -> Option<SpanId> {
    let id = u64::from_be_bytes(bytes.try_into().ok()?);
    (id != 0).then_some(SpanId(id))
}

fn kind(kind: K) -> SpanKind {
    match kind {
        K::Unspecified => SpanKind::Unspecified,
        K::Internal => SpanKind::Internal,
        K::Server => SpanKind::Server,
        K::Client => SpanKind::Client,
        K::Producer => SpanKind::Producer,
        K::Consumer => SpanKind::Consumer,
    }
}

/// `error.type`, else the type of the first exception; and the exception's message.
fn error(span: &Span) -> (SmolStr, SmolStr) {
    let exception: Option<&Event> = span.events.iter().find(|event| event.name == "exception");
    let of_exception = |key| exception.map_or("", |event| text(&event.attributes, key));
    let declared = text(&span.attributes, "error.type");
    let error_type = if declared.is_empty() { of_exception("exception.type") } else { declared };
    (cut(error_type, ATTRIBUTE_BYTES_MAX), cut(of_exception("exception.message"), ATTRIBUTE_BYTES_MAX))
}

fn http_status(attributes: &[KeyValue]) -> u16 {
    first_int(attributes, &["http.response.status_code", "http.status_code"])
        .and_then(|code| u16::try_from(code).ok())
        .unwrap_or(0)
}

/// The other end of a call, as its caller names it; empty for spans that call nobody.
fn peer(kind: SpanKind, attributes: &[KeyValue]) -> SmolStr {
    if matches!(kind, SpanKind::Server) {
        return SmolStr::default();
    }
    if matches!(kind, SpanKind::Consumer | SpanKind::Producer) {
        let queue = ["messaging.destination.name", "messaging.destination"];
        return cut(first_text(attributes, &queue), ATTRIBUTE_BYTES_MAX);
    }
    let named = first_text(attributes, &PEER_KEYS);
    if !named.is_empty() {
        return cut(named, ATTRIBUTE_BYTES_MAX);
    }
    let system = first_text(attributes, &["db.system.name", "db.system"]);
    let database = first_text(attributes, &["db.namespace", "db.name"]);
    match (system, database) {
        ("", _) => cut(first_text(attributes, &["messaging.destination.name"]), ATTRIBUTE_BYTES_MAX),
        (system, "") => cut(system, ATTRIBUTE_BYTES_MAX),
        (system, database) => cut(&format!("{system}/{database}"), ATTRIBUTE_BYTES_MAX),
    }
}

fn links(links: &[Link], trimmed: &mut u64) -> Vec<SpanLink> {
    *trimmed += links.len().saturating_sub(LINKS_MAX) as u64;
    links
        .iter()
        .take(LINKS_MAX)
        .filter_map(|link| {
            Some(SpanLink { trace_id: trace_id(&link.trace_id)?, span_id: span_id(&link.span_id)? })
        })
        .collect()
}

/// An error by its status, or by an HTTP status whose instrumentation set none.
fn failed(span: &SpanData) -> bool {
    span.status == SpanStatus::Error || (span.status == SpanStatus::Unset && span.http_status >= 500)
}

fn semantic(kind: SpanKind, attributes: &[KeyValue], severity: EventSeverity) -> Option<SemanticContext> {
    let any = |keys: &[&str]| keys.iter().any(|key| has(attributes, key));
    let intent = if any(&["db.system.name", "db.system"]) {
        "database-call"
    } else if any(&["messaging.system"]) {
        if kind == SpanKind::Consumer { "message-consume" } else { "message-publish" }
    } else if any(&["rpc.system", "rpc.system.name"]) {
        "rpc-call"
    } else if any(&["http.request.method", "http.method"]) {
        "http-request"
    } else {
        return None;
    };
    let failed = severity >= EventSeverity::Error;
    let category = if failed { Category::Reliability } else { Category::Performance };
    Some(SemanticContext { intent: SmolStr::new_static(intent), category, tags: Vec::new() })
}
