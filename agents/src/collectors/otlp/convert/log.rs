//! One log record as an event.

use std::collections::HashMap;

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use smol_str::SmolStr;
use tapio_schemas::attribute::Attribute;
use tapio_schemas::event::{TraceContext, UnifiedEvent};
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::{LogData, Payload};

use super::attributes::{self, identity, text, text_of};
use super::resource::Origin;
use super::span::{span_id, trace_id};
use super::{ATTRIBUTE_BYTES_MAX, BODY_BYTES_MAX, Reason, Scope, event_of};
use crate::convert::{Seed, cut};

/// How often each content occurred in a request: equal records are told apart by their number, so that all of
/// them count and a retry of the request still gives the same ids.
#[derive(Default)]
pub struct Repetitions(HashMap<u128, u64>);

impl Repetitions {
    fn next(&mut self, content: u128) -> u64 {
        let count = self.0.entry(content).or_default();
        *count += 1;
        *count - 1
    }
}

/// # Errors
/// The reason for which the record cannot be taken.
pub fn convert(
    scope: &Scope,
    origin: &Origin,
    logger: &SmolStr,
    record: LogRecord,
    repeated: &mut Repetitions,
    trimmed: &mut u64,
) -> Result<UnifiedEvent, Reason> {
    let at = time(scope, &record).ok_or(Reason::NoTime)?;
    let body = record.body.as_ref().map(text_of).unwrap_or_default();
    let content = Seed::new("log")
        .number(origin.identity)
        .text(logger)
        .number(at.0.into())
        .number(record.severity_number as u128)
        .text(&body)
        .number(identity(&record.attributes))
        .bytes(&record.trace_id)
        .bytes(&record.span_id);
    let index = repeated.next(content.hash());
    let trace = trace_id(&record.trace_id).map(|trace_id| TraceContext {
        trace_id,
        span_id: span_id(&record.span_id).unwrap_or_default(),
        flags: (record.flags & 0xff) as u8,
        ..TraceContext::default()
    });
    if body.len() > BODY_BYTES_MAX {
        *trimmed += 1;
    }
    let severity_number = severity_number(&record);
    let error_type = cut(text(&record.attributes, "exception.type"), ATTRIBUTE_BYTES_MAX);
    let mut kept = attributes::convert(record.attributes, trimmed);
    if !record.event_name.is_empty() {
        kept.push(Attribute::new("event.name", cut(&record.event_name, ATTRIBUTE_BYTES_MAX).as_str()));
    }
    kept.extend(origin.extra.iter().cloned());
    let data = LogData {
        severity_number,
        body: cut(&body, BODY_BYTES_MAX),
        logger: logger.clone(),
        error_type,
        attributes: kept,
    };
    Ok(UnifiedEvent {
        id: content.number(index.into()).event(at),
        kind: EventKind::Log,
        severity: severity(severity_number),
        payload: Payload::Log(Box::new(data)),
        trace: trace.map(Box::new),
        ..event_of(scope, origin, at)
    })
}

/// When it happened, else when it was first seen, else when it arrived here.
fn time(scope: &Scope, record: &LogRecord) -> Option<UnixNanos> {
    [record.time_unix_nano, record.observed_time_unix_nano, scope.observed_at.0]
        .into_iter()
        .find(|nanos| *nanos != 0)
        .map(UnixNanos)
}

/// The number, else what the text means, else zero.
fn severity_number(record: &LogRecord) -> u8 {
    if let Ok(number @ 1..=24) = u8::try_from(record.severity_number) {
        return number;
    }
    match record.severity_text.to_ascii_lowercase().as_str() {
        "trace" => 1,
        "debug" => 5,
        "info" | "information" | "notice" => 9,
        "warn" | "warning" => 13,
        "error" | "err" => 17,
        "fatal" | "critical" | "crit" | "panic" | "alert" | "emergency" => 21,
        _ => 0,
    }
}

fn severity(number: u8) -> EventSeverity {
    match number {
        1..=8 => EventSeverity::Debug,
        13..=16 => EventSeverity::Warning,
        17..=20 => EventSeverity::Error,
        21.. => EventSeverity::Critical,
        _ => EventSeverity::Info,
    }
}
