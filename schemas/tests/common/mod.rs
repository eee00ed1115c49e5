//! Events of every kind, for the wire tests and benches.

use std::sync::Arc;

use tapio_schemas::payload::*;
use tapio_schemas::*;

pub fn entity(n: u32) -> Arc<EntityRef> {
    Arc::new(
        EntityRef {
            cluster: "prod".into(),
            namespace: "shop".into(),
            workload_kind: "Deployment".into(),
            workload: format!("api-{}", n % 5).into(),
            pod: format!("api-{}-6c9f7d8b5-x{n:04}", n % 5).into(),
            pod_uid: format!("3f2c1a9e-0000-4000-8000-{n:012}").into(),
            container: "api".into(),
            container_id: format!("{n:064x}").into(),
            node: "node-7".into(),
            cgroup: format!("/kubepods/burstable/pod3f2c1a9e-{n:012}/{n:064x}").into(),
            ..EntityRef::default()
        }
        .sealed(),
    )
}

pub fn kernel(n: u64, entity: &Arc<EntityRef>) -> UnifiedEvent {
    let timestamp = UnixNanos(1_760_000_000_000_000_000 + n * 1_000);
    UnifiedEvent {
        id: EventId::sequenced(timestamp, ProducerId(7), n),
        timestamp,
        observed_at: timestamp.plus(50_000),
        kind: EventKind::NetConnect,
        source: Source::Ebpf,
        severity: EventSeverity::Info,
        pid: 4242 + (n % 7) as u32,
        entity: Arc::clone(entity),
        payload: Payload::Kernel(Box::new(KernelData {
            other_pid: 1,
            exit_code: 1,
            comm: "postgres".into(),
            ..KernelData::default()
        })),
        ..UnifiedEvent::default()
    }
}

pub fn span(n: u64, entity: &Arc<EntityRef>) -> UnifiedEvent {
    let mut event = kernel(n, entity);
    event.kind = EventKind::Span;
    event.trace = Some(Box::new(TraceContext {
        trace_id: TraceId(0xabc << 64 | u128::from(n / 4 + 1)),
        span_id: SpanId(n + 1),
        parent_span_id: SpanId(n),
        flags: 1,
    }));
    event.semantic = Some(Box::new(SemanticContext {
        intent: "payment-processing".into(),
        category: Category::Business,
        tags: vec!["checkout".into(), "card".into()],
    }));
    event.payload = Payload::Span(Box::new(SpanData {
        name: "POST /pay".into(),
        kind: SpanKind::Server,
        status: SpanStatus::Error,
        http_status: 500,
        peer: "db".into(),
        attributes: vec![
            Attribute::new("http.request.method", "POST"),
            Attribute::new("server.port", 8080i64),
            Attribute::new("ratio", 0.5f64),
        ],
        links: vec![SpanLink { trace_id: TraceId(5), span_id: SpanId(6) }],
        ..SpanData::default()
    }));
    event
}
