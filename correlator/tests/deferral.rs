//! A batch that takes longer than it may, live: others are decided meanwhile, the verdicts are the same, and what is given up is
//! in the dead letters and in the word of the replica.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorParts};
use tapio_runtime::bus::{Bus, Headers, OrderedConfig};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{HEADER_REASON, STREAM_DEADLETTER, STREAM_INSIGHTS, events_subject, status_key};
use tapio_schemas::status::CorrelatorStatus;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{Finding, ProducerId, UnifiedEvent, UnixNanos};

const PATIENCE: Duration = Duration::from_secs(60);
/// Events of no interest before the leak, in one batch with it: many looks at the clock.
const MANY: u64 = 4000;

struct Live {
    _server: NatsServer,
    bus: Bus,
    metrics: Metrics,
    correlator: tapio_correlator::CorrelatorHandle,
}

async fn start(deferred_batches_max: usize) -> Live {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let (clock, metrics) = (SystemClock::shared(), Metrics::new());
    let health = Health::new(Arc::clone(&clock));
    let parts = CorrelatorParts { bus: bus.clone(), clock, health, metrics: metrics.clone() };
    let config = CorrelatorConfig {
        cluster: "test".into(),
        replica: "r1".into(),
        // Every look at the clock finds that the time is over.
        batch_time_max: HumanDuration::from_millis(0),
        deferred_batches_max,
        ..CorrelatorConfig::default()
    };
    let correlator = Correlator::start(config, parts).await.expect("the correlator starts");
    Live { _server: server, bus, metrics, correlator }
}

/// The leak in one batch, behind many other events of its cgroup, and a crash elsewhere: events and their shards.
fn scene(now: u64) -> [Vec<UnifiedEvent>; 2] {
    let leak = common::leaking(now);
    let mut many: Vec<UnifiedEvent> = (0..MANY)
        .map(|n| UnifiedEvent {
            id: tapio_schemas::EventId(u128::from(100_000 + n)),
            timestamp: UnixNanos(leak[0].timestamp.0 + n),
            ..common::event(
                tapio_schemas::EventKind::ProcessExec,
                tapio_schemas::Source::Ebpf,
                &common::cluster_leak(),
                now,
                1,
                tapio_schemas::Payload::Kernel(Box::default()),
            )
        })
        .collect();
    many.extend(leak);
    [many, vec![common::crash(now)]]
}

async fn publish(bus: &Bus, events: &[UnifiedEvent]) {
    let shard = events[0].key().shard();
    let mut batch = EventBatch::new(ProducerId(0xdef), 1, shard);
    events.iter().for_each(|event| batch.push(event.clone()));
    let bytes = Bytes::from(batch.finish(UnixNanos(0)).expect("a batch"));
    bus.publish(&events_subject("test", shard), None, Headers::new(), bytes).await.expect("published");
}

/// Waits until findings with all these causes are there.
async fn causes(bus: &Bus, wanted: &[&str]) {
    let mut insights = bus.ordered_consumer(OrderedConfig::new(STREAM_INSIGHTS)).await.expect("a consumer");
    let mut seen = BTreeSet::new();
    let all = async {
        while !wanted.iter().all(|cause| seen.contains(*cause)) {
            for message in insights.next_batch(64, Duration::from_millis(100)).await.expect("findings") {
                let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
                seen.extend(finding.root_cause.map(|root| root.cause.to_string()));
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, all).await;
    assert!(found.is_ok(), "{wanted:?} wanted, {seen:?} found");
}

/// What the replica says of itself once it is right.
async fn word(bus: &Bus, is_right: impl Fn(&CorrelatorStatus) -> bool) -> CorrelatorStatus {
    let bucket = bus.kv().await.expect("the bucket");
    let mut said = None;
    let right = async {
        loop {
            let entry = bucket.get(&status_key("correlator", "test", "r1")).await.expect("read");
            let word = entry.map(|entry| serde_json::from_slice(&entry.value).expect("a word"));
            match word.clone().filter(&is_right) {
                Some(word) => return word,
                None => said = word,
            }
            // check: allow sleep, this is the wait for a condition
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let right = tokio::time::timeout(PATIENCE, right).await;
    right.unwrap_or_else(|_| panic!("not said: {said:?}"))
}

fn count(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.encode();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_aside_is_decided_like_everything_else() {
    let live = start(1024).await;
    let [leak, crash] = scene(SystemClock::new().now_unix_nanos());
    publish(&live.bus, &leak).await;
    publish(&live.bus, &crash).await;
    causes(&live.bus, &["memory.leak", "code.crash_signal"]).await;
    assert!(count(&live.metrics, "tapio_correlator_deferred_total") > 0);
    let all = (leak.len() + crash.len()) as u64;
    let read = |word: &CorrelatorStatus| -> u64 {
        word.producers.iter().flat_map(|p| &p.shards).map(|read| read.4).sum()
    };
    let word = word(&live.bus, |word| read(word) == all).await;
    assert_eq!((word.batches_rejected, word.deferred.batches), (0, 0));
    live.correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_room_is_for_is_in_the_dead_letters_and_counted_and_others_are_decided() {
    let live = start(0).await;
    let [leak, crash] = scene(SystemClock::new().now_unix_nanos());
    publish(&live.bus, &leak).await;
    publish(&live.bus, &crash).await;
    causes(&live.bus, &["code.crash_signal"]).await;
    let mut letters =
        live.bus.ordered_consumer(OrderedConfig::new(STREAM_DEADLETTER)).await.expect("letters");
    let letter = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(letter) = letters.next_batch(1, Duration::from_millis(100)).await.expect("read").pop()
            {
                return letter;
            }
        }
    });
    let letter = letter.await.expect("a dead letter");
    let reason = letter.headers.get(HEADER_REASON).expect("a reason").to_owned();
    assert!(reason.starts_with("batch_time: "), "{reason}");
    let word = word(&live.bus, |word| word.batches_rejected == 1).await;
    let read = |all: &CorrelatorStatus| -> Vec<(u64, u64, u64)> {
        let shards = all.producers.iter().flat_map(|p| &p.shards);
        shards.map(|read| (read.3 - read.2, read.4, read.5)).collect()
    };
    let (events, processed, dropped) =
        *read(&word).iter().find(|(events, ..)| *events == leak.len() as u64).expect("the shard of the leak");
    assert_eq!(events, processed + dropped);
    assert!(processed >= 500 && dropped > 500, "{processed} processed, {dropped} dropped");
    let told = word.producers.iter().flat_map(|p| &p.dropped).find(|d| d.reason == "batch_time");
    assert_eq!(told.map(|d| (d.stage.as_str(), d.count)), Some(("correlator", dropped)));
    live.correlator.drain().await.expect("drains");
}
