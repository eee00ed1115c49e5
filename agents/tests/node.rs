//! The whole path on a real nats-server: order, loss and what survives an outage or a stop.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use support::{Stream, assert_ordered, bare, drain, start_with_source, until};
use tapio_agents::gap::GAP_EVENT;
use tapio_agents::ledger::{DropReason, Place};
use tapio_agents::node::NodeAgent;
use tapio_agents::sink::EventSink;
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::attribute::{Attribute, find};
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{CustomData, Payload};

const CLUSTER: &str = "it";
/// Workloads, hence lineages, that the test's events are about.
const WORKLOADS: u64 = 20;

fn now() -> UnixNanos {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    UnixNanos(since.as_nanos() as u64)
}

/// Event `number` of the source, about one of the workloads.
fn event(number: u64) -> UnifiedEvent {
    let workload = format!("w{}", number % WORKLOADS);
    let entity = EntityRef {
        workload_kind: "Deployment".into(),
        workload: workload.into(),
        namespace: "shop".into(),
        ..EntityRef::default()
    };
    let attributes = vec![Attribute::new("number", number as i64)];
    UnifiedEvent {
        timestamp: now(),
        kind: EventKind::Custom,
        source: Source::Otlp,
        severity: EventSeverity::Warning,
        entity: Arc::new(entity.sealed()),
        payload: Payload::Custom(Box::new(CustomData { name: "load".into(), attributes, tags: vec![] })),
        ..UnifiedEvent::default()
    }
}

fn number(event: &UnifiedEvent) -> u64 {
    let Payload::Custom(custom) = &event.payload else { panic!("not ours: {event:?}") };
    find(&custom.attributes, "number").and_then(|value| value.as_f64()).expect("a number") as u64
}

/// Sends `count` events in batches of `size`, one batch per `pace`.
async fn load(sink: &EventSink, first: u64, count: u64, size: u64, pace: Duration) {
    let mut beat = tokio::time::interval(pace);
    let mut sent = 0u64;
    while sent < count {
        beat.tick().await;
        let batch = (sent..(sent + size).min(count)).map(|n| event(first + n)).collect();
        sink.send(batch).await.expect("the agent runs");
        sent += size;
    }
}

/// Every event 0..count exactly once, in order per workload; sequences without holes per shard.
fn assert_exactly_once(batches: &[support::Received], count: u64) {
    assert_ordered(batches);
    let mut seen = HashSet::new();
    let mut last = vec![None; WORKLOADS as usize];
    // What the agent tells of its own troubles is its own.
    for event in batches.iter().flat_map(|batch| &batch.events).filter(|e| e.source != Source::Tapio) {
        let number = number(event);
        assert!(seen.insert(number), "event {number} came twice");
        let workload = (number % WORKLOADS) as usize;
        assert!(last[workload] < Some(number), "workload {workload}: {number} after {:?}", last[workload]);
        last[workload] = Some(number);
    }
    assert_eq!(seen.len() as u64, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_once_in_order_with_their_entity() {
    let nats = NatsServer::start().expect("nats-server");
    let (agent, sink) = start_with_source(&nats, bare(CLUSTER)).await;
    load(&sink, 0, 5_000, 100, Duration::from_millis(1)).await;
    // What is not valid is refused with its reason, and does not hold up the rest.
    sink.send(vec![UnifiedEvent { timestamp: UnixNanos(0), ..event(1) }]).await.unwrap();
    sink.send(vec![UnifiedEvent { timestamp: UnixNanos(1), ..event(1) }]).await.unwrap();
    let ledger = drain(agent).await;
    assert_eq!(ledger.published, 5_000);
    assert_eq!(ledger.dropped, vec![(DropReason::NoTime, 1), (DropReason::TooOld, 1)]);
    assert_eq!(ledger.in_flight_total(), 0);

    let bus = nats.bus().await.unwrap();
    let batches = Stream::open(&bus, CLUSTER).await.rest().await;
    assert_exactly_once(&batches, 5_000);
    for event in batches.iter().flat_map(|batch| &batch.events) {
        assert_eq!(event.entity.cluster, CLUSTER, "the node fills the cluster");
        assert_ne!(event.id.0, 0);
    }
    let shards: HashSet<u16> = batches.iter().map(|batch| batch.header.shard).collect();
    assert!(shards.len() > 5, "{shards:?}");
    assert!(sink.send(vec![event(0)]).await.is_err(), "a stopped agent takes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_away_for_ten_seconds_under_load_loses_and_repeats_nothing() {
    const AWAY: Duration = Duration::from_secs(10);
    const COUNT: u64 = 70_000;
    let mut nats = NatsServer::start().expect("nats-server");
    let dir = tempfile::tempdir().unwrap();
    let mut config = bare(CLUSTER);
    config.data_dir = Some(dir.path().to_owned());
    config.backlog.memory = ByteSize(256 << 10);
    let (agent, sink) = start_with_source(&nats, config).await;
    let ledger = agent.ledger().clone();
    // 70 batches a second for 14 s: before, in and after the outage.
    let loading = tokio::spawn({
        let sink = sink.clone();
        async move { load(&sink, 0, COUNT, 70, Duration::from_millis(14)).await }
    });
    until("the first events", || (ledger.snapshot().published > 1_000).then_some(())).await;
    nats.kill();
    // check: allow sleep, the length of the outage is what the test is about
    tokio::time::sleep(AWAY).await;
    let away = ledger.snapshot();
    assert!(away.in_flight[Place::Spool as usize].1 > 10_000, "the spool is in use: {away:?}");
    assert_eq!(away.dropped, vec![]);
    nats.restart().expect("nats-server starts again");
    loading.await.unwrap();
    let own = ledger.collector("agent");
    let all = || ledger.snapshot().published == COUNT + own.get();
    until("all to be published", || all().then_some(())).await;
    let end = drain(agent).await;
    let count = COUNT + own.get();
    assert_eq!((end.produced, end.published, end.dropped_total()), (count, count, 0));
    assert_eq!(std::fs::read_dir(dir.path().join("spool")).unwrap().count(), 1, "the lock alone");

    let bus = nats.bus().await.unwrap();
    assert_exactly_once(&Stream::open(&bus, CLUSTER).await.rest().await, COUNT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_without_nats_keeps_everything_for_the_next_start() {
    let mut nats = NatsServer::start().expect("nats-server");
    let dir = tempfile::tempdir().unwrap();
    let mut config = bare(CLUSTER);
    config.data_dir = Some(dir.path().to_owned());
    let (agent, sink) = start_with_source(&nats, config.clone()).await;
    load(&sink, 0, 2_000, 100, Duration::from_millis(1)).await;
    let ledger = agent.ledger().clone();
    until("the first events", || (ledger.snapshot().published == 2_000).then_some(())).await;
    nats.kill();
    load(&sink, 2_000, 3_000, 100, Duration::from_millis(1)).await;
    let first = drain(agent).await;
    // NATS is away, and it says so.
    let own = ledger.collector("agent").get();
    assert_eq!((first.produced, first.dropped_total()), (5_000 + own, 0));
    let kept = first.in_flight[Place::Spool as usize].1;
    assert_eq!(first.published + kept, 5_000 + own);
    assert!(kept >= 2_900, "{first:?}");

    nats.restart().expect("nats-server starts again");
    let (agent, sink) = start_with_source(&nats, config).await;
    assert_eq!(agent.ledger().snapshot().produced, kept);
    let own = agent.ledger().collector("agent");
    load(&sink, 5_000, 1_000, 100, Duration::from_millis(1)).await;
    let second = drain(agent).await;
    assert_eq!((second.published, second.in_flight_total()), (kept + 1_000 + own.get(), 0));

    let bus = nats.bus().await.unwrap();
    assert_exactly_once(&Stream::open(&bus, CLUSTER).await.rest().await, 6_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backlog_sheds_the_unimportant_and_counts_it() {
    let mut nats = NatsServer::start().expect("nats-server");
    let mut config = bare(CLUSTER);
    config.backlog.memory = ByteSize(200 << 10);
    let (agent, sink) = start_with_source(&nats, config).await;
    nats.kill();
    let ledger = agent.ledger().clone();
    let info = |n| UnifiedEvent { severity: EventSeverity::Info, ..event(n) };
    let shed = |reason: DropReason| {
        let ledger = ledger.clone();
        move || ledger.snapshot().dropped.iter().any(|(r, _)| *r == reason).then_some(())
    };
    let mut sent = 0u64;
    while shed(DropReason::ShedInfo)().is_none() {
        sink.send((0..50).map(|k| info(sent + k)).collect()).await.unwrap();
        sent += 50;
        assert!(sent < 500_000, "{:?}", ledger.snapshot());
        tokio::task::yield_now().await;
    }
    let critical = |n| UnifiedEvent { severity: EventSeverity::Critical, ..event(n) };
    sink.send((0..10).map(|n| critical(1_000_000 + n)).collect()).await.unwrap();
    nats.restart().expect("nats-server starts again");
    // Once there is room again, the agent says what is missing.
    let told = ledger.clone();
    until("all to be published", || (told.snapshot().in_flight_total() == 0).then_some(())).await;
    let end = drain(agent).await;
    // What the agent says of itself, from the moment on at which the server was away.
    let own = end.produced - sent - 10;
    assert!(own >= 1, "{end:?}");
    assert!(end.dropped.iter().all(|(reason, _)| *reason == DropReason::ShedInfo), "{end:?}");

    let bus = nats.bus().await.unwrap();
    let events: Vec<_> =
        Stream::open(&bus, CLUSTER).await.rest().await.into_iter().flat_map(|batch| batch.events).collect();
    assert_eq!(events.len() as u64, end.published);
    let critical = events.iter().filter(|event| event.severity == EventSeverity::Critical).count();
    assert_eq!(critical, 10, "the important ones get through");
    let lost = |e: &UnifiedEvent| match &e.payload {
        Payload::Custom(c) if c.name == GAP_EVENT => find(&c.attributes, "gap.lost").and_then(|v| v.as_f64()),
        _ => None,
    };
    let lost: Vec<f64> = events.iter().filter_map(lost).collect();
    let troubles = events.iter().filter(|e| e.source == Source::Tapio).count() - lost.len();
    assert_eq!((lost.len() + troubles) as u64, own);
    assert!(!lost.is_empty() && troubles > 0, "{end:?}");
    assert_eq!(lost.iter().sum::<f64>() as u64, end.dropped_total(), "what the gaps say is what was dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn otlp_has_its_addresses_and_a_port_in_use_is_named() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = bare(CLUSTER);
    config.otlp.enabled = true;
    config.otlp.grpc_listen = "127.0.0.1:0".to_owned();
    config.otlp.http_listen = "127.0.0.1:0".to_owned();
    let agent = support::start(&nats, config.clone()).await;
    let grpc = agent.otlp_grpc().expect("an address");
    assert!(grpc.port() > 0 && agent.otlp_http().is_some_and(|http| http != grpc));
    assert_eq!(agent.degraded(), vec![]);

    config.otlp.grpc_listen = grpc.to_string();
    let refused = NodeAgent::start(config, support::parts(&nats).await).await;
    let line = refused.err().expect("the port is in use").to_string();
    assert!(line.contains(&grpc.to_string()) && line.contains("otlp.grpc_listen"), "{line}");
    drain(agent).await;
}
