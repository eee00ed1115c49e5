use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use serde_json::{Value, json};
use tapio_schemas::attribute;
use tapio_schemas::entity::kinds;
use tapio_schemas::ids::{SpanId, TraceId};
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::{MetricKind, Payload, SpanData, SpanKind, SpanStatus};

use super::*;
use crate::collectors::otlp::json;

const TRACE: &str = "5b8efff798038103d269b633813fc60c";

fn scope() -> Scope {
    Scope {
        oldest: UnixNanos(1_000),
        newest: UnixNanos(2_000_000_000_000),
        ..Scope::unbounded("c", UnixNanos(1_000_000_000_000))
    }
}

fn attributes(pairs: &[(&str, Value)]) -> Value {
    let one = |(key, value): &(&str, Value)| {
        let value = match value {
            Value::Number(_) => json!({"intValue": value}),
            Value::Bool(_) => json!({"boolValue": value}),
            text => json!({"stringValue": text}),
        };
        json!({"key": key, "value": value})
    };
    pairs.iter().map(one).collect()
}

fn spans(resource: &[(&str, Value)], spans: Value) -> (Vec<UnifiedEvent>, Rejected) {
    let request = json!({"resourceSpans": [{"resource": {"attributes": attributes(resource)},
        "scopeSpans": [{"spans": spans}]}]});
    traces(&scope(), json::from_value::<ExportTraceServiceRequest>(request).unwrap())
}

fn span(extra: Value) -> Value {
    let mut span = json!({"traceId": TRACE, "spanId": "eee19b7ec3c1b174", "parentSpanId": "eee19b7ec3c1b173",
        "name": "op", "kind": 3, "startTimeUnixNano": "5000000000", "endTimeUnixNano": "7000000000"});
    span.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    span
}

fn payload(event: &UnifiedEvent) -> &SpanData {
    let Payload::Span(span) = &event.payload else { panic!("not a span: {event:?}") };
    span
}

fn one_metric(metric: Value) -> (Vec<UnifiedEvent>, Rejected) {
    let request = json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]});
    metrics(&scope(), json::from_value(request).unwrap())
}

fn data(event: &UnifiedEvent) -> &tapio_schemas::payload::MetricData {
    let Payload::Metric(metric) = &event.payload else { panic!("not a metric: {event:?}") };
    metric
}

fn records(records: Value) -> Vec<UnifiedEvent> {
    let request =
        json!({"resourceLogs": [{"scopeLogs": [{"scope": {"name": "app"}, "logRecords": records}]}]});
    let (events, rejected) = logs(&scope(), json::from_value(request).unwrap());
    assert_eq!(rejected.total(), 0);
    events
}

#[test]
fn a_failed_database_call_keeps_trace_entity_peer_and_reason() {
    let resource = [
        ("service.name", json!("checkout")),
        ("k8s.namespace.name", json!("shop")),
        ("k8s.deployment.name", json!("checkout")),
        ("k8s.pod.name", json!("checkout-1")),
        ("k8s.cluster.name", json!("other")),
        ("service.version", json!("1.2")),
        ("process.pid", json!(42)),
    ];
    let call = span(json!({
        "attributes": attributes(&[("db.system.name", json!("postgresql")), ("db.namespace", json!("orders"))]),
        "status": {"code": 2, "message": "boom"},
        "events": [{"name": "exception", "timeUnixNano": "6", "attributes":
            attributes(&[("exception.type", json!("TimeoutError")), ("exception.message", json!("took too long"))])}],
        "flags": 257,
    }));
    let (events, rejected) = spans(&resource, json!([call]));
    assert_eq!(rejected, Rejected::default());
    let event = &events[0];
    let trace = event.trace.as_ref().unwrap();
    assert_eq!(trace.trace_id, TRACE.parse::<TraceId>().unwrap());
    assert_eq!(trace.span_id, "eee19b7ec3c1b174".parse::<SpanId>().unwrap());
    assert_eq!(trace.parent_span_id, "eee19b7ec3c1b173".parse::<SpanId>().unwrap());
    assert_eq!(trace.flags, 1);
    assert_eq!((event.timestamp, event.pid), (UnixNanos(7_000_000_000), 42));
    assert_eq!((event.kind, event.severity), (EventKind::Span, EventSeverity::Error));
    let entity = &event.entity;
    assert_eq!((entity.workload_kind.as_str(), entity.workload.as_str()), (kinds::DEPLOYMENT, "checkout"));
    assert_eq!(entity.cluster, "c", "the agent's cluster, not the resource's");
    assert_ne!(entity.lineage, 0);
    let data = payload(event);
    assert_eq!((data.peer.as_str(), data.error_type.as_str()), ("postgresql/orders", "TimeoutError"));
    assert_eq!((data.status, data.kind), (SpanStatus::Error, SpanKind::Client));
    assert_eq!((data.duration_ns, data.error_message.as_str()), (2_000_000_000, "took too long"));
    assert_eq!(attribute::find(&data.attributes, "service.version").unwrap().as_text(), Some("1.2"));
    assert_eq!(event.semantic.as_ref().unwrap().intent, "database-call");
}

#[test]
fn peers_and_http_statuses_in_old_and_new_spelling() {
    let cases = [
        (json!([("peer.service", "cart"), ("server.address", "10.0.0.1")]), "cart"),
        (json!([("server.address", "cart.shop.svc")]), "cart.shop.svc"),
        (json!([("net.peer.name", "old")]), "old"),
        (json!([("db.system", "redis")]), "redis"),
        (json!([("db.system", "mysql"), ("db.name", "users")]), "mysql/users"),
        (json!([]), ""),
    ];
    for (pairs, peer) in cases {
        let pairs: Vec<(String, Value)> = serde_json::from_value(pairs).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        let (events, _) = spans(&[], json!([span(json!({"attributes": attributes(&pairs)}))]));
        assert_eq!(payload(&events[0]).peer, peer);
    }
    for key in ["http.response.status_code", "http.status_code"] {
        let server = span(
            json!({"kind": 2, "attributes": attributes(&[(key, json!(503)), ("server.address", json!("me"))])}),
        );
        let (events, _) = spans(&[], json!([server]));
        let data = payload(&events[0]);
        assert_eq!((data.http_status, data.peer.as_str(), data.status), (503, "", SpanStatus::Unset));
        assert_eq!(events[0].severity, EventSeverity::Error);
    }
}

#[test]
fn spans_without_identity_or_time_or_out_of_time_are_rejected_and_the_rest_is_taken() {
    let (events, rejected) = spans(
        &[],
        json!([
            span(json!({"traceId": "00000000000000000000000000000000"})),
            span(json!({"traceId": "abcd"})),
            span(json!({"spanId": ""})),
            span(json!({"startTimeUnixNano": "0"})),
            span(json!({"startTimeUnixNano": "5", "endTimeUnixNano": "999"})),
            span(json!({"endTimeUnixNano": "2000000000001"})),
            span(json!({})),
        ]),
    );
    assert_eq!(events.len(), 1);
    let reasons: Vec<_> = rejected.reasons().collect();
    let expected = [
        (Reason::TraceId, 2),
        (Reason::SpanId, 1),
        (Reason::NoTime, 1),
        (Reason::TooOld, 1),
        (Reason::InFuture, 1),
    ];
    assert_eq!(reasons, expected);
    assert!(
        rejected
            .to_string()
            .starts_with("2 rejected: trace id is not 16 bytes or is zero; 1 rejected: span id")
    );
}

#[test]
fn a_request_has_a_limit_and_ids_do_not_depend_on_the_rest_of_it() {
    let many: Value = (1..=5).map(|n| span(json!({"spanId": format!("{n:016x}")}))).collect();
    let request = json!({"resourceSpans": [{"scopeSpans": [{"spans": many}]}]});
    let scope = Scope { items_max: 3, ..scope() };
    let (events, rejected) = traces(&scope, json::from_value(request).unwrap());
    assert_eq!((events.len(), rejected.reasons().collect::<Vec<_>>()), (3, vec![(Reason::OverLimit, 2)]));
    let (alone, _) = spans(&[], json!([span(json!({"spanId": format!("{:016x}", 2)}))]));
    assert_eq!(alone[0].id, events[1].id);
}

#[test]
fn attributes_are_bounded_and_cuts_are_counted() {
    let many: Vec<(String, Value)> = (0..ATTRIBUTES_MAX + 6)
        .map(|n| (format!("k{n}"), json!("v".repeat(if n == 0 { 5000 } else { 1 }))))
        .collect();
    let many: Vec<_> = many.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let (events, rejected) = spans(&[], json!([span(json!({"attributes": attributes(&many)}))]));
    let kept = &payload(&events[0]).attributes;
    assert_eq!((kept.len(), rejected.trimmed), (ATTRIBUTES_MAX, 7));
    assert_eq!(kept[0].value.as_text().unwrap().len(), ATTRIBUTE_BYTES_MAX);
}

#[test]
fn sums_gauges_and_shares_become_metrics() {
    let points = json!([{"timeUnixNano": "5000", "startTimeUnixNano": "4000", "asInt": "7"}]);
    let sum = |temporality| {
        json!({"name": "n", "unit": "By", "sum": {"aggregationTemporality": temporality,
        "isMonotonic": true, "dataPoints": points}})
    };
    let (cumulative, _) = one_metric(sum(2));
    let (delta, _) = one_metric(sum(1));
    assert_eq!(
        (data(&cumulative[0]).kind, data(&delta[0]).kind),
        (MetricKind::CumulativeSum, MetricKind::DeltaSum)
    );
    assert!(data(&delta[0]).monotonic);
    assert_eq!((data(&delta[0]).value, data(&delta[0]).start), (7.0, UnixNanos(4000)));
    let gauge = json!({"name": "k8s.pod.memory_limit_utilization", "unit": "1", "gauge": {"dataPoints":
        [{"timeUnixNano": "5000", "asDouble": 0.5}, {"timeUnixNano": "6000", "flags": 1}, {"timeUnixNano": "0", "asInt": 1}]}});
    let (events, rejected) = one_metric(gauge);
    assert_eq!((data(&events[0]).kind, data(&events[0]).limit), (MetricKind::Gauge, 1.0));
    assert_eq!((rejected.valueless, rejected.reasons().collect::<Vec<_>>()), (1, vec![(Reason::NoTime, 1)]));
    assert_eq!(
        one_metric(json!({"name": "nothing"})).1.reasons().collect::<Vec<_>>(),
        [(Reason::NoMetric, 1)]
    );
}

#[test]
fn points_are_told_apart_by_attributes_in_any_order() {
    let gauge = |pairs: &[(&str, Value)]| {
        let point = json!({"timeUnixNano": "5000", "asDouble": 1.0, "attributes": attributes(pairs)});
        one_metric(json!({"name": "n", "gauge": {"dataPoints": [point]}})).0[0].id
    };
    let (a, b) = (("a", json!("1")), ("b", json!("2")));
    assert_eq!(gauge(&[a.clone(), b.clone()]), gauge(&[b.clone(), a.clone()]));
    assert_ne!(gauge(&[a]), gauge(&[b]));
}

#[test]
fn exponential_buckets_become_explicit_ones() {
    let histogram = json!({"name": "n", "exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": [{
        "timeUnixNano": "5000", "count": "8", "sum": 16.0, "scale": 0, "zeroCount": "1",
        "positive": {"offset": 1, "bucketCounts": ["4", "2"]}, "negative": {"offset": 0, "bucketCounts": ["1"]}}]}});
    let (events, _) = one_metric(histogram);
    let data = data(&events[0]);
    assert_eq!((&data.bounds[..], &data.buckets[..]), (&[2.0, 4.0, 8.0][..], &[2, 4, 2, 0][..]));
    assert_eq!((data.value, data.count, data.monotonic), (2.0, 8, true));
    let absurd = |scale: i32| {
        json!({"name": "n", "exponentialHistogram": {"dataPoints": [{"timeUnixNano": "5000", "count": "1",
            "scale": scale, "positive": {"offset": i32::MAX, "bucketCounts": ["1"]}, "zeroCount": u64::MAX.to_string(),
            "negative": {"bucketCounts": ["18446744073709551615"]}}]}})
    };
    for scale in [i32::MIN, -1, i32::MAX] {
        let (events, rejected) = one_metric(absurd(scale));
        assert_eq!(events.len() as u64 + rejected.total(), 1, "scale {scale}");
    }
    let misfit = json!({"name": "n", "histogram": {"dataPoints": [{"timeUnixNano": "5000", "count": "1",
        "bucketCounts": ["1", "2"], "explicitBounds": [1.0, 2.0, 3.0]}]}});
    assert_eq!(one_metric(misfit).1.reasons().collect::<Vec<_>>(), [(Reason::Buckets, 1)]);
}

#[test]
fn equal_records_of_a_request_all_count_and_a_retry_gives_the_same_ids() {
    let record = json!({"timeUnixNano": "5000", "severityText": "WARN", "body": {"stringValue": "slow"},
        "traceId": TRACE, "spanId": "eee19b7ec3c1b174"});
    let first = records(json!([record, record]));
    let again = records(json!([record, record]));
    assert_ne!(first[0].id, first[1].id);
    assert_eq!((first[0].id, first[1].id), (again[0].id, again[1].id));
    assert_eq!(first[0].severity, EventSeverity::Warning);
    assert_eq!(first[0].trace.as_ref().unwrap().trace_id, TRACE.parse::<TraceId>().unwrap());
}

#[test]
fn structured_bodies_and_missing_times() {
    let body = json!({"kvlistValue": {"values": [{"key": "user", "value": {"intValue": "7"}},
        {"key": "tags", "value": {"arrayValue": {"values": [{"stringValue": "x"}]}}}]}});
    let events = records(json!([{"body": body, "severityNumber": 21, "traceId": "", "eventName": "login",
        "attributes": attributes(&[("exception.type", json!("KeyError"))])}]));
    let Payload::Log(log) = &events[0].payload else { panic!("not a log") };
    let body: Value = serde_json::from_str(&log.body).unwrap();
    assert_eq!(body, json!({"user": 7, "tags": ["x"]}));
    assert_eq!((log.logger.as_str(), log.error_type.as_str(), log.severity_number), ("app", "KeyError", 21));
    assert_eq!((events[0].timestamp, events[0].severity), (scope().observed_at, EventSeverity::Critical));
    assert!(events[0].trace.is_none());
    assert_eq!(attribute::find(&log.attributes, "event.name").unwrap().as_text(), Some("login"));
}

#[test]
fn generated_owner_names_and_services_outside_of_kubernetes() {
    let entity = |resource: &[(&str, Value)]| spans(resource, json!([span(json!({}))])).0[0].entity.clone();
    let made = entity(&[("k8s.replicaset.name", json!("api-5f6585d649")), ("k8s.pod.uid", json!("u"))]);
    assert_eq!((made.workload_kind.as_str(), made.workload.as_str()), (kinds::DEPLOYMENT, "api"));
    let by_pod = entity(&[("k8s.pod.name", json!("api-5f6585d649-x2x2x"))]);
    assert_eq!(by_pod.lineage, made.lineage);
    let with_uid = entity(&[("k8s.pod.name", json!("api-5f6585d649-x2x2x")), ("k8s.pod.uid", json!("u"))]);
    assert_eq!(with_uid.workload, "", "left for the pod index to say");
    let by_job = entity(&[("k8s.job.name", json!("backup-29012345"))]);
    assert_eq!((by_job.workload_kind.as_str(), by_job.workload.as_str()), (kinds::CRON_JOB, "backup"));
    let plain = entity(&[
        ("service.name", json!("api")),
        ("service.namespace", json!("shop")),
        ("host.name", json!("h")),
    ]);
    assert_eq!(plain.owner(), tapio_schemas::entity::Entity::namespaced(kinds::SERVICE, "shop", "api"));
    assert_eq!(plain.node, "h");
}
