//! Cost of encode, check and access per kernel event. `cargo bench -p tapio-schemas --bench wire`
//!
//! With `--no-default-features` archived numbers are aligned; the aligned copy that reading them from a
//! network buffer needs is then part of `check`.

#[path = "../tests/common/mod.rs"]
#[allow(dead_code)]
mod common;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tapio_schemas::payload::{NetworkData, Payload};
use tapio_schemas::wire::{EventBatch, EventBatchView};
use tapio_schemas::{EventKind, ProducerId, UnifiedEvent, UnixNanos};

const EVENTS: u64 = 512;

fn events() -> Vec<UnifiedEvent> {
    let entities: Vec<_> = (0..20).map(common::entity).collect();
    (0..EVENTS).map(|n| common::kernel(n, &entities[(n * 7 % 20) as usize])).collect()
}

/// The most frequent kernel events by far are about connections.
fn connections() -> Vec<UnifiedEvent> {
    let mut events = events();
    for (n, event) in events.iter_mut().enumerate() {
        event.kind = EventKind::NetConnect;
        event.payload = Payload::Network(Box::new(NetworkData {
            local_port: 30_000 + n as u16,
            remote_port: 5432,
            duration_ns: 200_000,
            comm: "postgres".into(),
            ..NetworkData::default()
        }));
    }
    events
}

fn batch(events: Vec<UnifiedEvent>) -> EventBatch {
    let mut batch = EventBatch::new(ProducerId(1), 0, 0);
    events.into_iter().for_each(|e| batch.push(e));
    batch
}

/// A network buffer: starts anywhere.
fn received(bytes: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0u8; 3];
    buffer.extend_from_slice(bytes);
    buffer
}

#[cfg(feature = "unaligned")]
fn with_view<R>(bytes: &[u8], f: impl FnOnce(EventBatchView<'_>) -> R) -> R {
    f(EventBatchView::check(bytes).expect("checks"))
}

#[cfg(not(feature = "unaligned"))]
fn with_view<R>(bytes: &[u8], f: impl FnOnce(EventBatchView<'_>) -> R) -> R {
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    f(EventBatchView::check(&aligned).expect("checks"))
}

fn wire(c: &mut Criterion) {
    let bytes = batch(events()).finish(UnixNanos(0)).expect("encodes");
    println!("bytes per kernel event: {:.1}", bytes.len() as f64 / EVENTS as f64);
    let network = batch(connections()).finish(UnixNanos(0)).expect("encodes");
    println!("bytes per connection event: {:.1}", network.len() as f64 / EVENTS as f64);
    let buffer = received(&bytes);
    let message = &buffer[3..];
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Elements(EVENTS));
    let mut writer = EventBatch::new(ProducerId(1), 0, 0);
    group.bench_function("encode", |b| {
        b.iter_batched(
            events,
            |events| {
                events.into_iter().for_each(|e| writer.push(e));
                black_box(writer.finish(UnixNanos(0)).expect("encodes"))
            },
            BatchSize::LargeInput,
        )
    });
    group.bench_function("check", |b| b.iter(|| with_view(black_box(message), |v| v.len())));
    group.bench_function("check_and_access", |b| {
        b.iter(|| {
            with_view(black_box(message), |view| {
                view.iter().fold(0u64, |sum, e| sum ^ e.timestamp().0 ^ u64::from(e.key().shard()))
            })
        })
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
