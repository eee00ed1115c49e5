//! A correlator that stands still: the stream keeps the events, and it catches up in order.

mod common;

use std::time::Duration;

use common::{Publisher, leaking};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorParts};
use tapio_runtime::bus::{Bus, BusConfig, OrderedConfig};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::Finding;
use tapio_schemas::names::{KEY_STATUS_PREFIX, STREAM_EVENTS, STREAM_INSIGHTS, status_key};
use tapio_schemas::status::CorrelatorStatus;

const PATIENCE: Duration = Duration::from_secs(60);
const CHILD_URL: &str = "TAPIO_TEST_PAUSED_URL";
const TEST: &str = "what_comes_while_it_stands_still_waits_in_the_stream_and_is_judged_afterwards";

async fn be_the_child(url: String) {
    let bus = Bus::connect(&BusConfig::with_url(url), &Metrics::new()).await.expect("a bus");
    let clock = SystemClock::shared();
    let parts =
        CorrelatorParts { bus, clock: clock.clone(), health: Health::new(clock), metrics: Metrics::new() };
    let config =
        CorrelatorConfig { cluster: "test".into(), replica: "only".into(), ..CorrelatorConfig::default() };
    let _correlator = Correlator::start(config, parts).await.expect("the correlator starts");
    std::future::pending::<()>().await;
}

struct Child(std::process::Child);

impl Child {
    fn signal(&self, signal: &str) {
        let sent = std::process::Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the correlator tells of itself, once `is_right`.
async fn word(bus: &Bus, is_right: impl Fn(&CorrelatorStatus) -> bool) -> CorrelatorStatus {
    let bucket = bus.kv().await.expect("the bucket");
    let key = status_key("correlator", "test", "only");
    assert!(key.starts_with(KEY_STATUS_PREFIX));
    let waiting = async {
        loop {
            if let Some(entry) = bucket.get(&key).await.expect("the bucket answers")
                && let Ok(word) = serde_json::from_slice(&entry.value)
                && is_right(&word)
            {
                return word;
            }
            // check: allow sleep, this is the wait for a condition
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the word")
}

fn processed(word: &CorrelatorStatus) -> u64 {
    word.producers.iter().flat_map(|p| &p.shards).map(|row| row.4).sum()
}

/// How far the numbers of all producers are read.
fn read_up_to(word: &CorrelatorStatus) -> u64 {
    word.producers.iter().flat_map(|p| &p.shards).map(|row| row.3).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_it_stands_still_waits_in_the_stream_and_is_judged_afterwards() {
    if let Ok(url) = std::env::var(CHILD_URL) {
        return be_the_child(url).await;
    }
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let exe = std::env::current_exe().expect("own path");
    let mut command = std::process::Command::new(exe);
    command.args(["--exact", TEST, "--nocapture"]).env(CHILD_URL, server.url());
    let child = Child(command.stdout(std::process::Stdio::null()).spawn().expect("a child"));
    word(&bus, |word| word.shards.len() == 64).await;

    let all = leaking(SystemClock::new().now_unix_nanos());
    let mut publisher = Publisher::new(bus.clone());
    publisher.publish(&all[..20]).await;
    word(&bus, |word| processed(word) == 20).await;
    child.signal("-STOP");
    publisher.publish(&all[20..]).await;
    // Events reach the stream whatever becomes of their judgement.
    let stream = bus.stream_state(STREAM_EVENTS).await.expect("the stream");
    assert_eq!(stream.messages, all.len() as u64);
    child.signal("-CONT");

    let mut insights = bus.ordered_consumer(OrderedConfig::new(STREAM_INSIGHTS)).await.expect("a consumer");
    let judged = async {
        loop {
            for message in insights.next_batch(64, Duration::from_millis(100)).await.expect("findings") {
                let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
                if finding.chain.iter().any(|link| link.signal == "memory.oom_kill") {
                    return finding;
                }
            }
        }
    };
    let finding = tokio::time::timeout(PATIENCE, judged).await.expect("the finding");
    assert_eq!(finding.root_cause.as_ref().map(|c| c.cause.as_str()), Some("memory.leak"));
    assert_eq!(finding.freshness.gaps, Vec::<String>::new());
    let end = word(&bus, |word| read_up_to(word) == all.len() as u64).await;
    let rows: Vec<_> = end.producers.iter().flat_map(|p| &p.shards).collect();
    assert!(rows.iter().all(|row| row.5 == 0 && row.6 == 0), "nothing dropped, nothing missing: {rows:?}");
    assert!(rows.iter().all(|row| row.3 - row.2 == row.4), "each event once: {rows:?}");
}
