//! A loss on the way is named in the findings of its time.

mod common;

use bytes::Bytes;
use common::live;
use tapio_runtime::bus::Headers;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::names::events_subject;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{Finding, ProducerId, UnifiedEvent, UnixNanos};

const SECOND: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_lost_at_the_source_is_named_in_the_finding_about_its_node() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = live::start(&bus, live::config()).await;

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

    let leaking = common::cluster_leak().subject().name;
    let names = |finding: &Finding| {
        finding.entity().is_some_and(|e| e.name == leaking) && !finding.freshness.gaps.is_empty()
    };
    let findings = live::findings_until(&bus, |all| all.iter().any(names)).await;
    let finding = findings.iter().find(|finding| names(finding)).expect("one that names the loss");
    assert_eq!(finding.freshness.gaps.len(), 1, "{:?}", finding.freshness.gaps);
    let gap = &finding.freshness.gaps[0];
    assert!(gap.starts_with("transport on n1 lost 7 events ") && gap.ends_with("(sequence_gap)"), "{gap}");
    assert!(finding.updated_at.0 >= now - 64 * SECOND);
    correlator.drain().await.expect("drains");
}
