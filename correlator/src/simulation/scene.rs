//! What happens in a cluster in a minute: a leak that ends in a kill, a program that crashes again and again, a
//! dependency that refuses, requests that fail in many shards, and a change before it.

use std::sync::Arc;

use tapio_schemas::payload::{
    KernelData, KubernetesData, MetricData, NetworkData, SpanData, SpanKind, SpanStatus,
};
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, Source, SpanId, TraceContext, TraceId,
    UnifiedEvent, UnixNanos,
};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;
/// 2026-01-01.
pub const START: u64 = 1_767_225_600 * SECOND;
/// Length of the scene.
pub const LENGTH: u64 = 50 * SECOND;
/// When the last fault happens, after the start: one event says it, and nothing repeats it.
pub const LAST_FAULT: u64 = 46 * SECOND;
/// When the event comes at which a shard panics, after the start.
const TRAP: u64 = 20 * SECOND + 500 * MS;
pub const CLUSTER: &str = "c";
const MIB: f64 = 1024.0 * 1024.0;

fn cgroup(path: &str) -> Arc<EntityRef> {
    let own =
        EntityRef { cluster: CLUSTER.into(), node: "n1".into(), cgroup: path.into(), ..Default::default() };
    Arc::new(own.sealed())
}

fn service(name: &str) -> Arc<EntityRef> {
    let own = EntityRef {
        cluster: CLUSTER.into(),
        namespace: "shop".into(),
        service: name.into(),
        ..Default::default()
    };
    Arc::new(own.sealed())
}

fn pod(name: &str, number: u64) -> Arc<EntityRef> {
    let own = EntityRef {
        cluster: CLUSTER.into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: name.into(),
        pod: format!("{name}-{number}").into(),
        container: "main".into(),
        node: format!("n{number}").into(),
        ..Default::default()
    };
    Arc::new(own.sealed())
}

fn event(kind: EventKind, entity: &Arc<EntityRef>, at: u64, payload: Payload) -> UnifiedEvent {
    UnifiedEvent {
        id: EventId::derive(UnixNanos(at), format!("{kind} {at} {}", entity.lineage).as_bytes()),
        timestamp: UnixNanos(START + at),
        observed_at: UnixNanos(START + at),
        kind,
        source: Source::Replay,
        severity: EventSeverity::Warning,
        entity: Arc::clone(entity),
        payload,
        ..UnifiedEvent::default()
    }
}

fn process(kind: EventKind, entity: &Arc<EntityRef>, at: u64, signal: u32) -> UnifiedEvent {
    let data = KernelData { signal, is_init: true, comm: "main".into(), ..KernelData::default() };
    let mut event = event(kind, entity, at, Payload::Kernel(Box::new(data)));
    event.pid = 77;
    event
}

fn sample(entity: &Arc<EntityRef>, at: u64, mebibytes: f64) -> UnifiedEvent {
    let data = MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value: mebibytes * MIB,
        limit: 64.0 * MIB,
        ..MetricData::default()
    };
    event(EventKind::CgroupSample, entity, at, Payload::Metric(Box::new(data)))
}

fn refused(number: u64, at: u64) -> UnifiedEvent {
    let data = NetworkData { remote_port: 5432, errno: 111, peer: "shop/db".into(), ..Default::default() };
    event(EventKind::NetConnectRefused, &pod("cart", 1 + number % 3), at, Payload::Network(Box::new(data)))
}

fn request(number: u64, at: u64, fails: bool) -> UnifiedEvent {
    let data = SpanData {
        name: "POST /orders".into(),
        kind: SpanKind::Server,
        status: if fails { SpanStatus::Error } else { SpanStatus::Ok },
        http_status: if fails { 500 } else { 200 },
        duration_ns: 20 * MS,
        start: UnixNanos(START + at - 20 * MS),
        ..SpanData::default()
    };
    let mut event = event(EventKind::Span, &service("api"), at, Payload::Span(Box::new(data)));
    event.trace = Some(Box::new(TraceContext {
        trace_id: TraceId(u128::from(number + 1) << 96 | 1),
        span_id: SpanId(number + 1),
        parent_span_id: SpanId(0),
        flags: 1,
    }));
    event
}

fn image_change(at: u64) -> UnifiedEvent {
    let data =
        KubernetesData { old_value: "pay:1".into(), new_value: "pay:2".into(), ..KubernetesData::default() };
    event(EventKind::K8sImageChanged, &pod("pay", 1), at, Payload::Kubernetes(Box::new(data)))
}

pub fn is_last_fault(event: &UnifiedEvent) -> bool {
    event.timestamp.0 == START + LAST_FAULT && event.entity.cgroup == "/late"
}

/// An event of the program that leaks, amid the leak and apart from its neighbours, at which the work on its shard panics.
pub fn trap(id: EventId) -> UnifiedEvent {
    UnifiedEvent { id, ..process(EventKind::ProcessExit, &cgroup("/leak"), TRAP, 11) }
}

/// The events in the order of their times.
pub fn events() -> Vec<UnifiedEvent> {
    let mut events: Vec<UnifiedEvent> =
        (0..35).map(|i| sample(&cgroup("/leak"), i * SECOND + 10 * MS, 4.0 + 1.7 * i as f64)).collect();
    events.push(process(EventKind::OomKill, &cgroup("/leak"), 35 * SECOND + 333 * MS, 0));
    events.push(process(EventKind::ProcessExit, &cgroup("/leak"), 35 * SECOND + 433 * MS, 9));
    events.extend((0..40).map(|i| sample(&cgroup("/steady"), i * 1250 * MS, 20.0)));
    for at in [8, 11, 17, 29] {
        events.push(process(EventKind::ProcessExit, &cgroup("/brittle"), at * SECOND + 77 * MS, 11));
    }
    events.extend((0..12).map(|n| refused(n, 20 * SECOND + n * 700 * MS)));
    events.extend((0..200).map(|n| request(n, SECOND + n * 230 * MS, (80..140).contains(&n) && n % 2 == 0)));
    events.push(image_change(9 * SECOND));
    for at in [13, 16, 22] {
        events.push(process(EventKind::ProcessExit, &pod("pay", 1), at * SECOND + 140 * MS, 6));
    }
    events.push(process(EventKind::ProcessExit, &cgroup("/late"), LAST_FAULT, 11));
    // Calm programs, so that most shards have something to read.
    events.extend((0..150u64).map(|n| {
        process(EventKind::ProcessExec, &cgroup(&format!("/calm-{}", n % 60)), n * 331 * MS + 5 * MS, 0)
    }));
    events.sort_by_key(|e| (e.timestamp, e.id));
    events
}
