//! What stage one costs per event: check, triage, order, judge. One shard, batches as the node agent makes them.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::shards::ShardSet;
use tapio_schemas::event::TraceContext;
use tapio_schemas::payload::{KernelData, MetricData, SpanData, SpanKind, SpanStatus};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Source, SpanId, TraceId, UnifiedEvent,
    UnixNanos,
};

const BATCH_EVENTS: u64 = 1024;
const BATCHES: u64 = 32;
/// Between two events: a shard at 100,000 events per second.
const STEP_NS: u64 = 10_000;

fn entities() -> Vec<Arc<EntityRef>> {
    let entity = |i: usize| EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: format!("service-{i}").into(),
        pod: format!("service-{i}-5f6585d649-fnmft").into(),
        container: "main".into(),
        service: format!("service-{i}").into(),
        node: "node-1".into(),
        ..EntityRef::default()
    };
    (0..20).map(|i| Arc::new(entity(i).sealed())).collect()
}

/// What tells one event from another.
type Part = (EventKind, Payload, Option<Box<TraceContext>>);

fn kernel(i: u64) -> Part {
    let data = KernelData { other_pid: 1, comm: format!("worker-{}", i % 8).into(), ..KernelData::default() };
    (EventKind::ProcessExec, Payload::Kernel(Box::new(data)), None)
}

fn span(i: u64) -> Part {
    let data = SpanData {
        name: "GET /cart".into(),
        kind: if i.is_multiple_of(2) { SpanKind::Server } else { SpanKind::Client },
        status: SpanStatus::Ok,
        duration_ns: 20_000_000 + i % 100 * 10_000,
        peer: "cart".into(),
        ..SpanData::default()
    };
    let trace = TraceContext {
        trace_id: TraceId(u128::from(i / 8) + 1),
        span_id: SpanId(i + 1),
        parent_span_id: SpanId(i),
        flags: 1,
    };
    (EventKind::Span, Payload::Span(Box::new(data)), Some(Box::new(trace)))
}

fn sample(i: u64) -> Part {
    let data = MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value: 1e6 + (i % 977) as f64,
        limit: 64e6,
        ..MetricData::default()
    };
    (EventKind::CgroupSample, Payload::Metric(Box::new(data)), None)
}

fn encoded(make: fn(u64) -> Part) -> Vec<Vec<u8>> {
    let entities = entities();
    let mut batch = EventBatch::new(ProducerId(1), 1, 0);
    (0..BATCHES)
        .map(|b| {
            for n in 0..BATCH_EVENTS {
                let i = b * BATCH_EVENTS + n;
                let at = UnixNanos(1_700_000_000_000_000_000 + i * STEP_NS);
                let (kind, payload, trace) = make(i);
                batch.push(UnifiedEvent {
                    id: EventId(u128::from(i) + 1),
                    timestamp: at,
                    observed_at: at,
                    kind,
                    source: Source::Ebpf,
                    severity: EventSeverity::Info,
                    entity: Arc::clone(&entities[(i / 16) as usize % entities.len()]),
                    payload,
                    trace,
                    ..UnifiedEvent::default()
                });
            }
            batch.finish(UnixNanos(0)).expect("a batch")
        })
        .collect()
}

fn stage_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("stage_one");
    group.sample_size(20);
    group.throughput(Throughput::Elements(BATCHES * BATCH_EVENTS));
    for (name, make) in
        [("process_exec", kernel as fn(u64) -> Part), ("span_ok", span), ("memory_sample", sample)]
    {
        let batches = encoded(make);
        group.bench_function(name, |b| {
            b.iter_batched(
                || ShardSet::new("c", [0], &CorrelatorConfig::default()),
                |mut shards| {
                    for bytes in &batches {
                        let taken = shards.take(bytes, None, UnixNanos::MAX).expect("taken");
                        black_box(shards.advance(taken.newest.minus(500_000_000)));
                    }
                    shards
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, stage_one);
criterion_main!(benches);
