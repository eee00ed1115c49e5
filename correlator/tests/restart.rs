//! What a restart keeps, over a real nats-server.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::live::PATIENCE;
use common::{Publisher, cgroup, crash, event, leaking, live};
use tapio_correlator::CorrelatorHandle;
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::bus::Bus;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::finding::Status;
use tapio_schemas::names::{STREAM_EVENTS, STREAM_SIGNALS};
use tapio_schemas::payload::{ChangeData, KernelData};
use tapio_schemas::{EventKind, Finding, Payload, Source, UnifiedEvent, UnixNanos};

const SECOND: u64 = 1_000_000_000;
/// Key of the remembered changes.
const CHANGES: &str = "correlator.test.changes";
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);

fn config() -> CorrelatorConfig {
    let mut config = live::config();
    // So that the mark follows within seconds what is decided.
    config.signals.topology_refresh = HumanDuration::from_secs(1);
    config
}

async fn start(bus: &Bus) -> CorrelatorHandle {
    live::start(bus, config()).await
}

/// Looks again and again until there is what is waited for.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            // check: allow sleep, between two looks at the condition
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// The value of a key once it is as wanted.
async fn kept(bus: &Bus, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let kv = bus.kv().await.expect("the bucket");
    let key = format!("correlator.test.{what}");
    let look = async || {
        let entry = kv.get(&key).await.expect("the key")?;
        serde_json::from_slice(&entry.value).ok().filter(&wanted)
    };
    until(&key, look).await
}

fn time(value: &serde_json::Value) -> UnixNanos {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

/// Findings from the beginning of the stream until one of them is as wanted.
async fn findings_until(bus: &Bus, wanted: impl Fn(&Finding) -> bool) -> Vec<Finding> {
    live::findings_until(bus, |all| all.iter().any(&wanted)).await
}

/// Twelve minutes: within what the cause looks back, and far more than the signals that are read again here.
const CHANGED_BEFORE_NS: u64 = 12 * 60 * SECOND;

fn settings_changed(at: u64) -> UnifiedEvent {
    let data = ChangeData {
        what: "config".into(),
        who: "ci".into(),
        old_value: "port 80".into(),
        new_value: "port 81".into(),
    };
    event(EventKind::Change, Source::Replay, &cgroup("/pay"), at, 9000, Payload::Change(Box::new(data)))
}

/// The main process ends with code 3, again and again.
fn exits(at: u64) -> Vec<UnifiedEvent> {
    let data = KernelData { exit_code: 3, is_init: true, comm: "pay".into(), ..KernelData::default() };
    let exit = |n: u64| {
        let payload = Payload::Kernel(Box::new(data.clone()));
        let at = at + n * SECOND / 20;
        let mut exit =
            event(EventKind::ProcessExit, Source::Ebpf, &cgroup("/pay"), at, 7000 + u128::from(n), payload);
        exit.pid = 100 + n as u32;
        exit
    };
    (0..4).map(exit).collect()
}

/// Whether failures long after a change, with a restart between them, are told with the change.
async fn change_is_named(forget: bool) -> bool {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let now = SystemClock::new().now_unix_nanos();
    let first = start(&bus).await;
    Publisher::new(bus.clone()).publish(&[settings_changed(now - CHANGED_BEFORE_NS)]).await;
    // It is told and remembered, and the mark has passed it: it is not read again.
    let kv = bus.kv().await.expect("the bucket");
    let remembered = async || kv.get(CHANGES).await.expect("the key").filter(|entry| !entry.value.is_empty());
    until("the change is remembered", remembered).await;
    let told = bus.stream_state(STREAM_SIGNALS).await.expect("state").last_sequence;
    kept(&bus, "signals", |mark| mark["sequence"].as_u64() > Some(told)).await;
    first.drain().await.expect("drains");
    if forget {
        kv.delete(CHANGES).await.expect("deleted");
    }
    let second = start(&bus).await;
    Publisher::new(bus.clone()).publish(&exits(SystemClock::new().now_unix_nanos())).await;
    let failed = |f: &Finding| f.chain.iter().any(|link| link.signal == "process.exit_nonzero");
    let all = findings_until(&bus, failed).await;
    second.drain().await.expect("drains");
    let told = all.iter().find(|f| failed(f)).expect("told");
    told.chain.iter().any(|link| link.signal == "change.config")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_from_long_before_is_named_after_a_restart() {
    assert!(change_is_named(false).await);
    assert!(!change_is_named(true).await, "it is the memory that names it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finding_whose_evidence_is_lost_is_not_left_active() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let first = start(&bus).await;
    let all = leaking(SystemClock::new().now_unix_nanos());
    // It leaks; the kill is not there yet.
    let growing = &all[..all.len() - 2];
    Publisher::new(bus.clone()).publish(growing).await;
    let told = findings_until(&bus, |f| f.status == Status::Active).await;
    first.drain().await.expect("drains");
    for stream in [STREAM_EVENTS, STREAM_SIGNALS] {
        let purge = format!("$JS.API.STREAM.PURGE.{stream}");
        bus.request(&purge, Bytes::new(), Duration::from_secs(5)).await.expect("purged");
        assert_eq!(bus.stream_state(stream).await.expect("state").messages, 0);
    }
    let (second, metrics) = live::start_measured(&bus, config()).await;
    Publisher::new(bus.clone()).publish(&[crash(SystemClock::new().now_unix_nanos())]).await;
    let all = findings_until(&bus, |f| f.id == told[0].id && f.status == Status::NotProvable).await;
    let last = all.iter().rfind(|f| f.id == told[0].id).expect("its last word");
    assert!(last.story.contains("the evidence was lost in a restart"), "{}", last.story);
    let before = all.iter().filter(|f| f.id == told[0].id && f.status == Status::Active);
    assert_eq!(last.revision, before.map(|f| f.revision).max().expect("it was active") + 1);
    // Counted, too.
    let closed = "tapio_correlator_findings_settled_total{reason=\"closed\"} 1";
    until("the last word is counted", async || metrics.encode().contains(closed).then_some(())).await;
    second.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_fresh_the_verdicts_are_is_told_each_second() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let began = UnixNanos(SystemClock::new().now_unix_nanos());
    let correlator = start(&bus).await;
    Publisher::new(bus.clone()).publish(&[crash(began.0)]).await;
    let first = kept(&bus, "freshness", |fresh| time(&fresh["watermark"]) > began).await;
    assert!(first["gaps"].as_array().is_some_and(Vec::is_empty), "{first}");
    assert!(time(&first["at"]) > time(&first["watermark"]));
    let next = kept(&bus, "freshness", |fresh| time(&fresh["at"]) > time(&first["at"])).await;
    let (one, two) = (time(&first["at"]), time(&next["at"]));
    assert!(two.since(one) >= SECOND * 9 / 10, "{one} {two}");
    correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_fresh_the_verdicts_were_is_forgotten_after_the_last_word_and_not_before() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let began = UnixNanos(SystemClock::new().now_unix_nanos());
    let forget_after = Duration::from_secs(3);
    let config = CorrelatorConfig { forget_after: forget_after.into(), ..config() };
    let correlator = live::start(&bus, config).await;
    Publisher::new(bus.clone()).publish(&[crash(began.0)]).await;
    // Told again and again, it outlives the time.
    let later =
        |fresh: &serde_json::Value| time(&fresh["at"]).since(began) > 2 * forget_after.as_nanos() as u64;
    let last = kept(&bus, "freshness", later).await;
    correlator.drain().await.expect("drains");
    let kv = bus.kv().await.expect("the bucket");
    let is_gone =
        async || kv.get("correlator.test.freshness").await.expect("the key").is_none().then_some(());
    until("it is forgotten", is_gone).await;
    let gone_after = UnixNanos(SystemClock::new().now_unix_nanos()).since(time(&last["at"]));
    assert!(gone_after >= forget_after.as_nanos() as u64, "{gone_after} ns");
    // What a restart needs stays.
    assert!(kv.get("correlator.test.signals").await.expect("the key").is_some());
}
