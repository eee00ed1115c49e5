//! Traces, metrics and logs of the OpenTelemetry SDK for Python arrive as events, each once, with the right ids.

use std::collections::BTreeSet;

use serde_json::Value;
use tapio_agents::sink::SINK_EVENTS_MAX;
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{MetricKind, Payload, SpanStatus};

use crate::agent::until;
use crate::support::{Running, config, python};

async fn export(protocol: &str, running: &Running, compression: &str) -> Value {
    let endpoint = match protocol {
        "grpc" => running.grpc.to_string(),
        _ => format!("http://{}", running.http),
    };
    let said = python("otlp_export.py", &[protocol, &endpoint, compression], b"").await;
    serde_json::from_str(&said).unwrap()
}

fn of_kind(events: &[UnifiedEvent], kind: EventKind) -> Vec<&UnifiedEvent> {
    events.iter().filter(|event| event.kind == kind).collect()
}

/// Trace id, span id, parent, name of what the script says it sent and of what arrived.
fn check_spans(said: &Value, spans: &[&UnifiedEvent]) {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let sent: BTreeSet<Vec<String>> = said["spans"]
        .as_array()
        .unwrap()
        .iter()
        .map(|span| span.as_array().unwrap().iter().map(text).collect())
        .collect();
    let arrived: Vec<Vec<String>> = spans
        .iter()
        .map(|event| {
            let trace = event.trace.as_ref().unwrap();
            let Payload::Span(span) = &event.payload else { panic!("{event:?}") };
            let ids =
                [trace.trace_id.to_string(), trace.span_id.to_string(), trace.parent_span_id.to_string()];
            ids.into_iter().chain([span.name.to_string()]).collect()
        })
        .collect();
    assert_eq!(arrived.len(), 20, "each span once");
    assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>(), sent);
}

fn check_failure(events: &[UnifiedEvent]) {
    let spans = of_kind(events, EventKind::Span);
    let failed: Vec<_> = spans.iter().filter(|e| e.severity == EventSeverity::Error).collect();
    assert_eq!(failed.len(), 2);
    let trace = &failed[0].trace.as_ref().unwrap().trace_id;
    for event in &failed {
        let Payload::Span(span) = &event.payload else { panic!("{event:?}") };
        assert_eq!((span.status, &event.trace.as_ref().unwrap().trace_id), (SpanStatus::Error, trace));
        if span.name == "INSERT orders" {
            assert_eq!((span.peer.as_str(), span.error_type.as_str()), ("orders-db", "TimeoutError"));
            assert_eq!(span.error_message, "database call timed out");
        } else {
            assert_eq!(span.http_status, 500);
        }
    }
    let logs = of_kind(events, EventKind::Log);
    assert_eq!(logs.len(), 1);
    let Payload::Log(log) = &logs[0].payload else { panic!("{:?}", logs[0]) };
    assert_eq!((log.body.as_str(), log.logger.as_str()), ("order 9 failed", "shop.checkout"));
    assert_eq!(&logs[0].trace.as_ref().unwrap().trace_id, trace, "the log is in the failed trace");
}

fn check_metrics(events: &[UnifiedEvent]) {
    let metrics: Vec<_> = events
        .iter()
        .filter_map(|event| if let Payload::Metric(metric) = &event.payload { Some(metric) } else { None })
        .collect();
    let orders: Vec<_> = metrics.iter().filter(|m| m.name == "shop.orders").collect();
    assert!(!orders.is_empty());
    assert!(orders.iter().all(|m| (m.kind, m.value) == (MetricKind::CumulativeSum, 10.0)), "{orders:?}");
    let latency = metrics.iter().find(|m| m.name == "http.server.request.duration").unwrap();
    assert_eq!((latency.kind, latency.count, latency.value), (MetricKind::Histogram, 10, 1.125));
    assert_eq!(latency.buckets.iter().sum::<u64>(), 10);
}

pub fn check_all(said: &Value, events: &[UnifiedEvent]) {
    assert_eq!(said["flushed"], true, "the SDK says it could export");
    check_spans(said, &of_kind(events, EventKind::Span));
    check_failure(events);
    check_metrics(events);
    for event in events {
        assert_eq!((event.source, event.pid), (Source::Otlp, 4242));
        let entity = &event.entity;
        assert_eq!(
            (entity.workload_kind.as_str(), entity.workload.as_str()),
            (kinds::DEPLOYMENT, "checkout")
        );
        assert_eq!((entity.namespace.as_str(), entity.service.as_str()), ("shop", "checkout"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_http_with_and_without_gzip() {
    for (protocol, compression) in [("grpc", "none"), ("grpc", "gzip"), ("http", "none"), ("http", "gzip")] {
        let mut running = Running::start(config());
        let said = export(protocol, &running, compression).await;
        let events = running.events();
        check_all(&said, &events);
        running.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_waits_out_a_backlog_and_loses_nothing() {
    let mut running = Running::start(config());
    running.sink.try_send(vec![UnifiedEvent::default(); SINK_EVENTS_MAX as usize]).unwrap();
    let endpoint = running.grpc.to_string();
    let client =
        tokio::spawn(async move { python("otlp_export.py", &["grpc", &endpoint, "none"], b"").await });
    let refused = r#"tapio_otlp_requests_total{protocol="grpc",signal="traces",outcome="backlog"}"#;
    // The exporter meets the backlog before there is room again.
    until("a refused request", || {
        assert!(!client.is_finished(), "finished against a full pipeline");
        (running.metric(refused) >= 1.0).then_some(())
    })
    .await;
    assert_eq!(running.events().len() as u64, SINK_EVENTS_MAX, "nothing of a refused request was taken");
    let said: Value = serde_json::from_str(&client.await.unwrap()).unwrap();
    check_all(&said, &running.events());
    running.stop().await.unwrap();
}
