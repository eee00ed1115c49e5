//! Batches of one shard as the node agent makes them: what the collectors' events look like, packed.

use std::sync::Arc;

use tapio_schemas::event::TraceContext;
use tapio_schemas::payload::{KernelData, MetricData, NetworkData, SpanData, SpanKind, SpanStatus};
use tapio_schemas::wire::{EventBatch, Packer};
use tapio_schemas::{
    Attribute, EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Source, SpanId, TraceId,
    UnifiedEvent, UnixNanos,
};

/// Events of a batch.
pub const BATCH_EVENTS: u64 = 512;
/// Batches after which windows and tables have their size: some seconds of event time.
#[allow(dead_code)]
pub const STEADY_BATCHES: usize = 200;
/// Between two events: a shard at 16,000 events per second, a million of all shards.
const STEP_NS: u64 = 62_500;

/// What a batch holds.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// Programs that start.
    Execs,
    /// Connections.
    Connections,
    /// Spans of traces.
    Spans,
    /// Samples of cgroups.
    Samples,
    /// All of them: kernel 80 %, spans 15 %, samples 5 %.
    Mix,
}

impl Load {
    /// So many batches.
    pub fn batches(self, count: usize) -> Vec<Vec<u8>> {
        let entities = entities();
        let mut batch = EventBatch::new(ProducerId(1), 1, 0);
        let mut packer = Packer::default();
        (0..count as u64)
            .map(|b| {
                for n in 0..BATCH_EVENTS {
                    let i = b * BATCH_EVENTS + n;
                    batch.push(self.event(i, &entities));
                }
                packer.pack(batch.finish(UnixNanos(0)).expect("a batch"))
            })
            .collect()
    }

    fn event(self, i: u64, entities: &[Arc<EntityRef>]) -> UnifiedEvent {
        let load = match (self, i % 20) {
            (Self::Mix, 0..=2) => Self::Spans,
            (Self::Mix, 3) => Self::Samples,
            (Self::Mix, 4..=6) => Self::Execs,
            (Self::Mix, _) => Self::Connections,
            (load, _) => load,
        };
        // Spans are numbered among themselves: a parent is a span, and who calls whom stays the same.
        let n = if matches!((self, load), (Self::Mix, Self::Spans)) { i / 20 * 3 + i % 20 } else { i };
        let entity = &entities[(n * 7 % 31) as usize % entities.len()];
        let (kind, payload, trace) = match load {
            Self::Spans => (EventKind::Span, span(n), Some(Box::new(trace(n)))),
            Self::Samples => (EventKind::CgroupSample, sample(i), None),
            Self::Execs => (EventKind::ProcessExec, exec(i), None),
            Self::Connections | Self::Mix => (EventKind::NetClose, connection(i), None),
        };
        let at = UnixNanos(1_700_000_000_000_000_000 + i * STEP_NS);
        UnifiedEvent {
            id: EventId(u128::from(i) + 1),
            timestamp: at,
            observed_at: at,
            kind,
            source: Source::Ebpf,
            severity: EventSeverity::Info,
            entity: Arc::clone(entity),
            payload,
            trace,
            ..UnifiedEvent::default()
        }
    }
}

fn entities() -> Vec<Arc<EntityRef>> {
    let entity = |i: usize| EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: format!("service-{i}").into(),
        pod: format!("service-{i}-5f6585d649-fnmft").into(),
        pod_uid: format!("3f2c1a9e-0000-4000-8000-{i:012}").into(),
        container: "main".into(),
        container_id: format!("{i:064x}").into(),
        service: format!("service-{i}").into(),
        node: "node-1".into(),
        cgroup: format!("/kubepods/burstable/pod3f2c1a9e-{i:012}/{i:064x}").into(),
        ..EntityRef::default()
    };
    (0..20).map(|i| Arc::new(entity(i).sealed())).collect()
}

fn exec(i: u64) -> Payload {
    let comm = format!("worker-{}", i % 8).into();
    Payload::Kernel(Box::new(KernelData { other_pid: 1, comm, ..KernelData::default() }))
}

fn connection(i: u64) -> Payload {
    Payload::Network(Box::new(NetworkData {
        local_port: 32_768 + (i % 28_000) as u16,
        remote_port: 8080,
        duration_ns: 150_000 + i % 900_000,
        comm: "server".into(),
        ..NetworkData::default()
    }))
}

fn trace(i: u64) -> TraceContext {
    TraceContext {
        trace_id: TraceId(u128::from(i / 8) + 1),
        span_id: SpanId(i + 1),
        // The first of eight is a root: one whose parent never comes would be kept for a minute.
        parent_span_id: SpanId(if i.is_multiple_of(8) { 0 } else { i }),
        flags: 1,
    }
}

fn span(i: u64) -> Payload {
    Payload::Span(Box::new(SpanData {
        name: "GET /cart".into(),
        kind: if i.is_multiple_of(2) { SpanKind::Server } else { SpanKind::Client },
        status: SpanStatus::Ok,
        duration_ns: 20_000_000 + i % 100 * 10_000,
        http_status: 200,
        peer: "cart".into(),
        attributes: vec![
            Attribute::new("http.request.method", "GET"),
            Attribute::new("http.route", "/cart"),
            Attribute::new("server.port", 8080i64),
        ],
        ..SpanData::default()
    }))
}

fn sample(i: u64) -> Payload {
    Payload::Metric(Box::new(MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value: 1e6 + (i % 977) as f64,
        limit: 64e6,
        ..MetricData::default()
    }))
}
