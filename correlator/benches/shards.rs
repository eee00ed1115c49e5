//! What stage one costs per event: unpack, check, triage, order, judge. One shard of one worker; then the first two alone.
//! `cargo bench -p tapio-correlator --bench shards`

mod load;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use load::{BATCH_EVENTS, Load};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::shards::ShardSet;
use tapio_schemas::UnixNanos;
use tapio_schemas::wire::{EventBatchView, Unpacker};

const BATCHES: usize = 64;

fn stage_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("stage_one");
    group.sample_size(20);
    group.throughput(Throughput::Elements(BATCHES as u64 * BATCH_EVENTS));
    for load in [Load::Execs, Load::Connections, Load::Spans, Load::Samples, Load::Mix] {
        let batches = load.batches(BATCHES);
        group.bench_function(format!("{load:?}").to_lowercase(), |b| {
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
    let batches = Load::Mix.batches(BATCHES);
    group.bench_function("unpack_and_check", |b| {
        let mut unpacker = Unpacker::default();
        b.iter(|| {
            for bytes in &batches {
                let plain = unpacker.unpack(bytes).expect("unpacks");
                black_box(EventBatchView::check(plain).expect("checks").len());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, stage_one);
criterion_main!(benches);
