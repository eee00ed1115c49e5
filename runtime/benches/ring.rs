//! Cost of handing an item from one thread to another.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::ring::ring;
use tapio_runtime::telemetry::Metrics;

const CAPACITY: usize = 1024;

/// One thread sends `count` items, another takes them one at a time.
fn cross(count: u64) -> Duration {
    let (mut sender, mut receiver) = ring("bench", CAPACITY, SystemClock::shared(), &Metrics::new());
    let sending = thread::spawn(move || (0..count).try_for_each(|n| sender.send(n)));
    let start = Instant::now();
    while let Some(item) = receiver.recv() {
        black_box(item.value);
    }
    let elapsed = start.elapsed();
    sending.join().unwrap().unwrap();
    elapsed
}

/// The same, taken in batches.
fn cross_batched(count: u64) -> Duration {
    let (mut sender, mut receiver) = ring("bench", CAPACITY, SystemClock::shared(), &Metrics::new());
    let sending = thread::spawn(move || (0..count).try_for_each(|n| sender.send(n)));
    let mut batch = Vec::with_capacity(CAPACITY);
    let start = Instant::now();
    while let Some(first) = receiver.recv() {
        batch.push(first);
        receiver.recv_batch(&mut batch, CAPACITY);
        black_box(batch.drain(..).count());
    }
    let elapsed = start.elapsed();
    sending.join().unwrap().unwrap();
    elapsed
}

/// There and back: twice the latency of waking a thread that waits.
fn ping_pong(rounds: u64) -> Duration {
    let metrics = Metrics::new();
    let (mut ping, mut pinged) = ring("ping", 1, SystemClock::shared(), &metrics);
    let (mut pong, mut ponged) = ring("pong", 1, SystemClock::shared(), &metrics);
    let echo = thread::spawn(move || {
        while let Some(item) = pinged.recv() {
            pong.send(item.value).unwrap();
        }
    });
    let start = Instant::now();
    for round in 0..rounds {
        ping.send(round).unwrap();
        black_box(ponged.recv());
    }
    let elapsed = start.elapsed();
    ping.close();
    echo.join().unwrap();
    elapsed
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(1));
    group.bench_function("cross_threads", |bench| bench.iter_custom(cross));
    group.bench_function("cross_threads_batched", |bench| bench.iter_custom(cross_batched));
    group.bench_function("ping_pong", |bench| bench.iter_custom(ping_pong));
    group.bench_function("same_thread", |bench| {
        let (mut sender, mut receiver) = ring("bench", CAPACITY, SystemClock::shared(), &Metrics::new());
        bench.iter(|| {
            sender.send(1u64).unwrap();
            black_box(receiver.recv());
        });
    });
    group.finish();
}

criterion_group!(ring_benches, benches);
criterion_main!(ring_benches);
