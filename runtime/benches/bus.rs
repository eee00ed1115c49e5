//! Batches through JetStream on disk: acknowledged publishing, and reading in order.
//!
//! One nats-server on the same machine takes part of the same cores, so the figure is what a
//! one-machine installation can reach, not what the client costs alone.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tapio_runtime::bus::{Bus, Headers, OrderedConfig, Outgoing, StartAt};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::names;

const WINDOW: usize = 256;
/// A batch of about 500 kernel events.
const BATCH_BYTES: usize = 64 << 10;

fn batch(number: u64) -> Outgoing {
    Outgoing {
        subject: names::events_subject("bench", (number % 64) as u16),
        msg_id: None,
        headers: Headers::new(),
        payload: Bytes::from(vec![0x5a; BATCH_BYTES]),
    }
}

async fn publish(bus: &Bus, count: u64) -> Duration {
    let (mut publisher, mut reports) = bus.publisher(WINDOW, Shutdown::new());
    let start = Instant::now();
    let submitting = tokio::spawn(async move {
        for number in 0..count {
            publisher.submit(batch(number)).await.unwrap();
        }
    });
    while let Some(report) = reports.next().await {
        black_box(report.result.unwrap());
    }
    submitting.await.unwrap();
    start.elapsed()
}

/// Publishes and reads at the same time; the time until the last one is read.
async fn publish_and_read(bus: &Bus, count: u64) -> Duration {
    let config = OrderedConfig { start: StartAt::New, ..OrderedConfig::new(names::STREAM_EVENTS) };
    let mut reader = bus.ordered_consumer(config).await.unwrap();
    let publisher = bus.clone();
    let start = Instant::now();
    let publishing = tokio::spawn(async move { publish(&publisher, count).await });
    for _ in 0..count {
        black_box(reader.next().await.unwrap());
    }
    let elapsed = start.elapsed();
    publishing.await.unwrap();
    elapsed
}

async fn publish_one(bus: &Bus, count: u64) -> Duration {
    let start = Instant::now();
    for number in 0..count {
        let Outgoing { subject, headers, .. } = batch(number);
        let payload = Bytes::from_static(b"a small message");
        black_box(bus.publish(&subject, None, headers, payload).await.unwrap());
    }
    start.elapsed()
}

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = NatsServer::start().unwrap();
    let bus = runtime.block_on(server.bus()).unwrap();
    let mut group = criterion.benchmark_group("bus");
    group.sample_size(10).throughput(Throughput::Bytes(BATCH_BYTES as u64));
    group.bench_function("publish_batches", |bench| {
        bench.iter_custom(|count| runtime.block_on(publish(&bus, count)));
    });
    group.bench_function("publish_and_read_batches", |bench| {
        bench.iter_custom(|count| runtime.block_on(publish_and_read(&bus, count)));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("publish_one_and_wait", |bench| {
        bench.iter_custom(|count| runtime.block_on(publish_one(&bus, count)));
    });
    group.finish();
}

criterion_group!(bus_benches, benches);
criterion_main!(bus_benches);
