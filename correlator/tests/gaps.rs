//! A loss on the way is named in the findings of its time.

mod common;

use std::time::Duration;

use bytes::Bytes;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorParts};
use tapio_runtime::bus::{Headers, OrderedConfig};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{STREAM_INSIGHTS, events_subject};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{Finding, ProducerId, UnifiedEvent, UnixNanos};

const SECOND: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_lost_at_the_source_is_named_in_the_finding_about_its_node() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let clock = SystemClock::shared();
    let parts = CorrelatorParts {
        bus: bus.clone(),
        clock: clock.clone(),
        health: Health::new(clock),
        metrics: Metrics::new(),
    };
    let config = CorrelatorConfig { cluster: "test".into(), ..CorrelatorConfig::default() };
    let correlator = Correlator::start(config, parts).await.expect("the correlator starts");

    // One producer whose second batch, of seven samples, never leaves it.
    let now = SystemClock::new().now_unix_nanos();
    let samples = common::leaking(now);
    let shard = samples[0].key().shard();
    let mut source = EventBatch::new(ProducerId(0xabc), 1, shard);
    let mut send = async |events: &[UnifiedEvent], is_lost: bool| {
        events.iter().for_each(|event| source.push(event.clone()));
        let bytes = Bytes::from(source.finish(UnixNanos(0)).expect("a batch"));
        if !is_lost {
            bus.publish(&events_subject("test", shard), None, Headers::new(), bytes)
                .await
                .expect("published");
        }
    };
    send(&samples[..20], false).await;
    send(&samples[20..27], true).await;
    send(&samples[27..], false).await;
    // Time goes on for this producer, so that the hole has been open for long enough.
    let later = SystemClock::new().now_unix_nanos();
    let mut crash = common::crash(later);
    crash.timestamp = UnixNanos(later);
    send(&[crash], false).await;

    let mut insights = bus.ordered_consumer(OrderedConfig::new(STREAM_INSIGHTS)).await.expect("a consumer");
    let named = async {
        loop {
            for message in insights.next_batch(64, Duration::from_millis(100)).await.expect("findings") {
                let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
                let is_leak =
                    finding.entity().is_some_and(|e| e.name == common::cluster_leak().subject().name);
                if is_leak && !finding.freshness.gaps.is_empty() {
                    return finding;
                }
            }
        }
    };
    let finding = tokio::time::timeout(PATIENCE, named).await.expect("a finding that names the loss");
    assert_eq!(finding.freshness.gaps.len(), 1, "{:?}", finding.freshness.gaps);
    let gap = &finding.freshness.gaps[0];
    assert!(gap.starts_with("transport on n1 lost 7 events ") && gap.ends_with("(sequence_gap)"), "{gap}");
    assert!(finding.updated_at.0 >= now - 64 * SECOND);
    correlator.drain().await.expect("drains");
}
