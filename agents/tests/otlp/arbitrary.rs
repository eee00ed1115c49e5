//! Whatever bytes arrive: no panic, and every item of a request that reads is taken, rejected or valueless.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};
use tapio_agents::collectors::otlp::convert::{self, Scope};
use tapio_agents::collectors::otlp::json;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::payload::Payload;

fn scope() -> Scope {
    Scope { items_max: 6, ..Scope::unbounded("c", UnixNanos(1_000_000_000)) }
}

fn traces() -> Value {
    let attributes = json!([{"key": "db.system", "value": {"stringValue": "x"}}, {"key": "n", "value": {"intValue": "5"}},
        {"key": "l", "value": {"arrayValue": {"values": [{"doubleValue": 1.5}, {"kvlistValue": {"values": []}}]}}}]);
    let span = json!({"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "kind": 3, "name": "n",
        "startTimeUnixNano": "5", "endTimeUnixNano": "7", "attributes": attributes, "status": {"code": 2},
        "events": [{"name": "exception", "timeUnixNano": "6", "attributes": attributes}],
        "links": [{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}]});
    json!({"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [{"spans": [span, span, span]}]}]})
}

fn metrics() -> Value {
    let number = json!([{"timeUnixNano": "5", "asDouble": 1.5}, {"timeUnixNano": "6", "asInt": "7"}]);
    json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [
        {"name": "gauge", "gauge": {"dataPoints": number}},
        {"name": "sum", "sum": {"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": number}},
        {"name": "histogram", "histogram": {"aggregationTemporality": 2, "dataPoints": [{"timeUnixNano": "5",
            "count": "3", "sum": 1.0, "bucketCounts": ["1", "2"], "explicitBounds": [0.5]}]}},
        {"name": "exponential", "exponentialHistogram": {"aggregationTemporality": 1, "dataPoints": [{"timeUnixNano": "5",
            "count": "3", "sum": 1.0, "scale": 3, "zeroCount": "1", "positive": {"offset": 1, "bucketCounts": ["2"]}}]}},
        {"name": "summary", "summary": {"dataPoints": [{"timeUnixNano": "5", "count": "3", "sum": 1.0}]}}]}]}]})
}

fn logs() -> Value {
    json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": "5", "severityNumber": 9,
        "body": {"stringValue": "x"}, "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"},
        {"observedTimeUnixNano": "6", "body": {"kvlistValue": {"values": [{"key": "a", "value": {"boolValue": true}}]}}}]}]}]})
}

fn encoded<T: json::FromOtlpJson + Message>(value: Value) -> Vec<u8> {
    json::from_value::<T>(value).unwrap().encode_to_vec()
}

/// Bytes with some of them replaced, and perhaps cut.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = bytes.len();
    let changes = prop::collection::vec((0..len, any::<u8>()), 0..6);
    (changes, prop::option::weighted(0.2, 0..len)).prop_map(move |(changes, cut)| {
        let mut bytes = bytes.clone();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.truncate(cut.unwrap_or(len));
        bytes
    })
}

fn check_traces(request: ExportTraceServiceRequest) {
    let spans =
        request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum::<usize>();
    let (events, rejected) = convert::traces(&scope(), request);
    assert_eq!(events.len() as u64 + rejected.total(), spans as u64);
    assert!(events.len() <= 6);
}

fn check_metrics(request: ExportMetricsServiceRequest) {
    let metrics = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
    let items: usize = metrics
        .map(|metric| match &metric.data {
            _ if metric.name.is_empty() => 1,
            None => 1,
            Some(Data::Gauge(data)) => data.data_points.len(),
            Some(Data::Sum(data)) => data.data_points.len(),
            Some(Data::Histogram(data)) => data.data_points.len(),
            Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
            Some(Data::Summary(data)) => data.data_points.len(),
        })
        .sum();
    let (events, rejected) = convert::metrics(&scope(), request);
    assert_eq!(events.len() as u64 + rejected.total() + rejected.valueless, items as u64);
    for event in &events {
        let Payload::Metric(metric) = &event.payload else { panic!("{event:?}") };
        assert!(metric.value.is_finite() && event.timestamp.0 != 0);
    }
}

fn check_logs(request: ExportLogsServiceRequest) {
    let records =
        request.resource_logs.iter().flat_map(|r| &r.scope_logs).map(|s| s.log_records.len()).sum::<usize>();
    let (events, rejected) = convert::logs(&scope(), request);
    assert_eq!(events.len() as u64 + rejected.total(), records as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn protobuf(
        t in damaged(encoded::<ExportTraceServiceRequest>(traces())),
        m in damaged(encoded::<ExportMetricsServiceRequest>(metrics())),
        l in damaged(encoded::<ExportLogsServiceRequest>(logs())),
    ) {
        ExportTraceServiceRequest::decode(t.as_slice()).map(check_traces).ok();
        ExportMetricsServiceRequest::decode(m.as_slice()).map(check_metrics).ok();
        ExportLogsServiceRequest::decode(l.as_slice()).map(check_logs).ok();
    }

    #[test]
    fn json_text(
        t in damaged(traces().to_string().into_bytes()),
        m in damaged(metrics().to_string().into_bytes()),
        l in damaged(logs().to_string().into_bytes()),
    ) {
        json::from_slice(&t).map(check_traces).ok();
        json::from_slice(&m).map(check_metrics).ok();
        json::from_slice(&l).map(check_logs).ok();
    }
}

#[test]
fn undamaged_requests_read() {
    check_traces(json::from_value(traces()).unwrap());
    check_metrics(json::from_value(metrics()).unwrap());
    check_logs(json::from_value(logs()).unwrap());
    assert_eq!(
        convert::metrics(&scope(), json::from_value(metrics()).unwrap()).0.len(),
        6,
        "within the limit"
    );
}
