//! A correlator that has more memory than it may: routine is shed and counted, errors are decided, and it says so of itself.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::Publisher;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorParts};
use tapio_runtime::bus::OrderedConfig;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{STREAM_INSIGHTS, status_key};
use tapio_schemas::status::CorrelatorStatus;
use tapio_schemas::{EventId, EventSeverity, Finding, UnifiedEvent};

const PATIENCE: Duration = Duration::from_secs(60);
const SECOND: u64 = 1_000_000_000;
const ROUTINE: u64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_its_bound_a_correlator_sheds_routine_and_decides_errors_and_says_so() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let clock = SystemClock::shared();
    let health = Health::new(Arc::clone(&clock));
    let parts = CorrelatorParts { bus: bus.clone(), clock, health, metrics: Metrics::new() };
    let config = CorrelatorConfig {
        cluster: "test".into(),
        replica: "r1".into(),
        // No process is that small, so it is above its bound from the first look on.
        memory_max: ByteSize::mib(1),
        ..CorrelatorConfig::default()
    };
    let correlator = Correlator::start(config, parts).await.expect("the correlator starts");
    let bucket = bus.kv().await.expect("the bucket");
    let word = async |is_right: &dyn Fn(&CorrelatorStatus) -> bool| -> CorrelatorStatus {
        let right = async {
            loop {
                let entry = bucket.get(&status_key("correlator", "test", "r1")).await.expect("read");
                let word = entry.map(|entry| serde_json::from_slice(&entry.value).expect("a word"));
                if let Some(word) = word.filter(is_right) {
                    return word;
                }
                // check: allow sleep, this is the wait for a condition
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, right).await.expect("the word")
    };
    let shedding = word(&|word| word.memory.sheds.is_some()).await;
    assert_eq!((shedding.memory.sheds, shedding.memory.bytes_max), (Some(EventSeverity::Warning), 1 << 20));

    let now = SystemClock::new().now_unix_nanos();
    // Warnings of a program that crashes, and an error of the same kind in another place.
    let mut events: Vec<UnifiedEvent> = (0..ROUTINE)
        .map(|n| {
            let mut routine = common::crash(now - SECOND + n);
            routine.id = EventId(u128::from(10_000 + n));
            routine.entity = common::cgroup("/shed");
            routine
        })
        .collect();
    let mut crash = common::crash(now);
    crash.severity = EventSeverity::Error;
    events.push(crash);
    Publisher::new(bus.clone()).publish(&events).await;

    let mut insights = bus.ordered_consumer(OrderedConfig::new(STREAM_INSIGHTS)).await.expect("a consumer");
    let both = async {
        let mut last: BTreeMap<_, Finding> = BTreeMap::new();
        loop {
            for message in insights.next_batch(64, Duration::from_millis(100)).await.expect("findings") {
                let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
                last.insert(finding.id, finding);
            }
            let of = |name: &str| last.values().find(|f| f.entity().is_some_and(|e| e.name == name)).cloned();
            if let (Some(crash), Some(own)) = (of("/brittle"), of("correlator on r1")) {
                return (crash, own, of("/shed"));
            }
        }
    };
    let (crash, own, shed) = tokio::time::timeout(PATIENCE, both).await.expect("two findings");
    assert_eq!(shed, None);
    assert_eq!(
        own.root_cause.as_ref().map(|c| c.cause.to_string()).as_deref(),
        Some("tapio.short_of_memory")
    );
    assert!(own.story.contains("of 1 MiB are used") && !own.actions.is_empty(), "{}", own.story);
    // The verdict says that it rests on incomplete data.
    let gaps = &crash.freshness.gaps;
    assert!(gaps.iter().any(|gap| gap.starts_with("correlator on n1 lost ")), "{gaps:?}");
    assert!(gaps.iter().all(|gap| gap.ends_with("(memory_pressure)")), "{gaps:?}");
    let read = |word: &CorrelatorStatus| -> (u64, u64) {
        let shards = || word.producers.iter().flat_map(|p| &p.shards);
        (shards().map(|read| read.4).sum(), shards().map(|read| read.5).sum())
    };
    let counted = word(&|word| read(word).1 == ROUTINE).await;
    let reasons: Vec<_> = counted.producers.iter().flat_map(|p| &p.dropped).collect();
    assert!(reasons.iter().all(|d| d.stage == "correlator" && d.reason == "memory_pressure"), "{reasons:?}");
    correlator.drain().await.expect("drains");
}
