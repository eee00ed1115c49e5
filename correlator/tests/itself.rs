//! Tapio's own trouble is a finding about Tapio, and changes nothing in what is said of others.

mod common;

use std::collections::BTreeMap;

use common::{Publisher, leaking, live};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::trouble::Trouble;
use tapio_schemas::{Finding, FindingId, Severity, SignalKind, UnixNanos};

const SECOND: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_agent_is_told_beside_the_leak_on_the_same_node() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = live::start(&bus, live::config()).await;
    let now = SystemClock::new().now_unix_nanos();
    let says = "the disk leaves room for 5 of the 9 bytes that may wait".to_owned();
    let trouble =
        Trouble { part: "agent", place: "n1".into(), kind: SignalKind::TapioDiskRefuses, says: says.clone() };
    let mut events = leaking(now);
    events.extend([40, 30, 20, 10, 1].map(|ago| trouble.event("test", UnixNanos(now - ago * SECOND))));
    events.sort_by_key(|event| event.timestamp);
    Publisher::new(bus.clone()).publish(&events).await;

    let last = |all: &[Finding]| -> BTreeMap<FindingId, Finding> {
        all.iter().map(|finding| (finding.id, finding.clone())).collect()
    };
    let both = |last: &BTreeMap<FindingId, Finding>| {
        let cause = |f: &Finding| f.root_cause.as_ref().map(|c| c.cause.to_string());
        let of = |wanted: &str| last.values().find(|f| cause(f).as_deref() == Some(wanted)).cloned();
        Some((of("tapio.disk_full")?, of("memory.leak").filter(|f| live::tells(f, "memory.oom_kill"))?))
    };
    let all = last(&live::findings_until(&bus, |all| both(&last(all)).is_some()).await);
    let (own, leak) = both(&all).expect("two findings");
    assert_eq!(all.len(), 2);
    assert_eq!(own.entity().map(|e| e.to_string()), Some("Tapio agent on n1".to_owned()));
    assert!(own.story.contains(&says) && !own.actions.is_empty(), "{own:#?}");
    assert!(own.severity < Severity::Critical && own.impact.business_impact.get() <= 0.1, "{own:#?}");
    assert_eq!(leak.entity().unwrap().name, common::cluster_leak().subject().name);
    assert!(!leak.story.contains("Tapio"), "{}", leak.story);
    correlator.drain().await.expect("drains");
}
