//! Tapio's own trouble is a finding about Tapio, and changes nothing in what is said of others.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Publisher, leaking};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorParts};
use tapio_runtime::bus::OrderedConfig;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::STREAM_INSIGHTS;
use tapio_schemas::trouble::Trouble;
use tapio_schemas::{Finding, Severity, SignalKind, UnixNanos};

const PATIENCE: Duration = Duration::from_secs(60);
const SECOND: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_agent_is_told_beside_the_leak_on_the_same_node() {
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
    let now = SystemClock::new().now_unix_nanos();
    let says = "the disk leaves room for 5 of the 9 bytes that may wait".to_owned();
    let trouble =
        Trouble { part: "agent", place: "n1".into(), kind: SignalKind::TapioDiskRefuses, says: says.clone() };
    let mut events = leaking(now);
    events.extend([40, 30, 20, 10, 1].map(|ago| trouble.event("test", UnixNanos(now - ago * SECOND))));
    events.sort_by_key(|event| event.timestamp);
    Publisher::new(bus.clone()).publish(&events).await;

    let mut insights = bus.ordered_consumer(OrderedConfig::new(STREAM_INSIGHTS)).await.expect("a consumer");
    let both = async {
        let mut last: BTreeMap<_, Finding> = BTreeMap::new();
        loop {
            for message in insights.next_batch(64, Duration::from_millis(100)).await.expect("findings") {
                let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
                last.insert(finding.id, finding);
            }
            let cause = |f: &Finding| f.root_cause.as_ref().map(|c| c.cause.to_string());
            let of = |wanted: &str| last.values().find(|f| cause(f).as_deref() == Some(wanted));
            let killed = |f: &&Finding| f.chain.iter().any(|link| link.signal == "memory.oom_kill");
            if let (Some(own), Some(leak)) = (of("tapio.disk_full"), of("memory.leak").filter(killed)) {
                return (own.clone(), leak.clone(), last.len());
            }
        }
    };
    let (own, leak, count) = tokio::time::timeout(PATIENCE, both).await.expect("two findings");
    assert_eq!(count, 2);
    assert_eq!(own.entity().map(|e| e.to_string()), Some("Tapio agent on n1".to_owned()));
    assert!(own.story.contains(&says) && !own.actions.is_empty(), "{own:#?}");
    assert!(own.severity < Severity::Critical && own.impact.business_impact.get() <= 0.1, "{own:#?}");
    assert_eq!(leak.entity().unwrap().name, common::cluster_leak().subject().name);
    assert!(!leak.story.contains("Tapio"), "{}", leak.story);
    correlator.drain().await.expect("drains");
}
