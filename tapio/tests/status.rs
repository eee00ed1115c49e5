//! `tapio status` against real instances: every event is accounted for, and a loss is named with its place.

mod common;

use std::time::Duration;

use common::{Instance, data_dir, stderr, stdout, wait_for};
use serde_json::Value;
use tapio_runtime::bus::{Bus, BusConfig, Headers};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{events_subject, status_key};
use tapio_schemas::status::{AgentStatus, SentShard};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{EventId, ProducerId, UnifiedEvent, UnixNanos};

const CLUSTER: &str = "default";

fn status(instance: &Instance) -> (Option<i32>, Value) {
    let output = instance.ask(&["status", "--output", "json"]);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}{}", stdout(&output), stderr(&output)));
    (output.status.code(), report)
}

#[test]
fn a_running_instance_accounts_for_every_event_and_a_stopped_one_is_not_there() {
    let dir = data_dir();
    let instance = Instance::start(dir.path());
    let (code, report) = wait_for("a thousand processed events", || {
        let (code, report) = status(&instance);
        (report["accounts"][0]["processed"].as_u64()? >= 100).then_some((code, report))
    });
    assert_eq!((code, &report["exact"]), (Some(0), &Value::Bool(true)), "{report:#}");
    let account = &report["accounts"][0];
    let number = |key: &str| account[key].as_u64().unwrap_or_else(|| panic!("{key} in {account}"));
    assert!(number("produced") >= number("acknowledged") && number("acknowledged") > 0, "{account}");
    assert_eq!(number("missing"), 0);
    assert_eq!(report["correlators"][0]["shards"], 64, "{report:#}");
    assert_eq!(report["correlators"][0]["circuit"], "closed");
    assert_eq!(report["storage"].as_array().map(Vec::len), Some(1), "{report:#}");
    let text = stdout(&instance.ask(&["status"]));
    assert!(text.ends_with("balance: exact\n") && text.contains("correlator "), "{text}");

    // Another node, whose last word is old: of it nothing is known.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = BusConfig { urls: vec![instance.address("nats").to_owned()], ..BusConfig::default() };
        let bus = Bus::connect(&config, &Metrics::new()).await.expect("NATS answers");
        let at = SystemClock::new().now_unix_nanos() - 60_000_000_000;
        let word = agent(at, ProducerId(0x99), "n8", 10, 0);
        let (key, json) = (status_key("agent", CLUSTER, "n8"), serde_json::to_vec(&word).expect("JSON"));
        let bucket = bus.kv().await.expect("the bucket");
        bucket.put_with_ttl(&key, json.into(), Duration::from_secs(60)).await.expect("told");
    });
    let silent = instance.ask(&["status"]);
    let text = stdout(&silent);
    assert_eq!(silent.status.code(), Some(3), "{text}");
    assert!(text.ends_with("silent: agent n8\nbalance: exact, as far as they speak\n"), "{text}");

    assert_eq!(instance.interrupt(), Some(0));
    let gone = common::run(&["status", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(gone.status.code(), Some(69), "{}", stderr(&gone));
}

/// The word of an agent that has sent so much to shard 3.
fn agent(at: u64, producer: ProducerId, node: &str, acknowledged: u64, position: u64) -> AgentStatus {
    AgentStatus {
        at: UnixNanos(at),
        started: UnixNanos(at),
        node: node.to_owned(),
        producer,
        epoch: 1,
        produced: acknowledged,
        acknowledged,
        acknowledged_earlier: 0,
        dropped: Vec::new(),
        in_flight: Vec::new(),
        sent: vec![SentShard(3, position, 0)],
        backlog_bytes: 0,
        backlog_bytes_max: 1,
        circuit: "closed".to_owned(),
        watches: Vec::new(),
    }
}

/// A batch of shard 3, numbered by its producer from `first` on.
fn batch(producer: ProducerId, first: u64, count: u64, now: u64) -> Vec<u8> {
    let mut batch = EventBatch::new(producer, 1, 3);
    // What is not sent is numbered all the same.
    if first > 0 {
        (0..first).for_each(|_| batch.push(UnifiedEvent::default()));
        batch.finish(UnixNanos(0)).expect("encodes");
    }
    for n in 0..count {
        let event = UnifiedEvent {
            id: EventId(u128::from(first + n + 1)),
            timestamp: UnixNanos(now + n),
            entity: std::sync::Arc::new(
                tapio_schemas::EntityRef { cluster: CLUSTER.into(), node: "n9".into(), ..Default::default() }
                    .sealed(),
            ),
            ..UnifiedEvent::default()
        };
        batch.push(event);
    }
    batch.finish(UnixNanos(0)).expect("encodes")
}

#[test]
fn a_batch_that_the_stream_lost_is_missed_between_the_stream_and_the_correlator() {
    let dir = data_dir();
    let quiet =
        ["ebpf", "cgroup", "otlp", "systemd", "kubernetes"].map(|c| format!("agent.{c}.enabled=false"));
    let mut args = Vec::new();
    quiet.iter().for_each(|key| args.extend(["--set", key.as_str()]));
    let instance = Instance::start_with(dir.path(), &args);
    let producer = ProducerId(0x77);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let config = BusConfig { urls: vec![instance.address("nats").to_owned()], ..BusConfig::default() };
    let bus = runtime.block_on(Bus::connect(&config, &Metrics::new())).expect("NATS answers");
    // Three batches of ten, of which the second is gone; an agent that has had all three acknowledged.
    let told = |acknowledged: u64, position: u64| {
        agent(SystemClock::new().now_unix_nanos(), producer, "n9", acknowledged, position)
    };
    let tell = |word: AgentStatus| {
        runtime.block_on(async {
            let json = serde_json::to_vec(&word).expect("JSON");
            let key = status_key("agent", CLUSTER, "n9");
            let bucket = bus.kv().await.expect("the bucket");
            bucket.put_with_ttl(&key, json.into(), Duration::from_secs(60)).await.expect("told");
        });
    };
    let now = SystemClock::new().now_unix_nanos();
    for first in [0, 20] {
        let payload = batch(producer, first, 10, now);
        let subject = events_subject(CLUSTER, 3);
        let sent = bus.publish(&subject, None, Headers::new(), payload.into());
        runtime.block_on(sent).expect("published");
    }
    let report = wait_for("the loss", || {
        tell(told(30, 30));
        let (code, report) = status(&instance);
        (code == Some(2)).then_some(report)
    });
    let lost = &report["unaccounted"][0];
    assert_eq!(report["unaccounted"].as_array().map(Vec::len), Some(1), "{report:#}");
    assert_eq!((&lost["events"], &lost["node"]), (&10.into(), &"n9".into()), "{report:#}");
    assert_eq!((&lost["after"], &lost["before"]), (&"the stream".into(), &"the correlator".into()));
    tell(told(30, 30));
    let text = stdout(&instance.ask(&["status"]));
    assert!(
        text.contains("balance: 10 events unaccounted between the stream and the correlator (n9)"),
        "{text}"
    );
    assert_eq!(instance.interrupt(), Some(0));
}
