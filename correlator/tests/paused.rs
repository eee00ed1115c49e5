//! A correlator, or a server, that stands still: the stream keeps the events, and what comes afterwards is not too late.

mod common;

use std::time::Duration;

use common::live::{Child, PATIENCE};
use common::{Publisher, crash, leaking, live};
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::bus::Bus;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::Finding;
use tapio_schemas::names::{KEY_STATUS_PREFIX, STREAM_EVENTS, status_key};
use tapio_schemas::status::CorrelatorStatus;

const TEST: &str = "what_comes_while_it_stands_still_waits_in_the_stream_and_is_judged_afterwards";

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
    Child::be(CorrelatorConfig { replica: "only".into(), ..live::config() }).await;
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let child = Child::start(&server.url(), TEST);
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

    let is_judged = |finding: &Finding| live::tells(finding, "memory.oom_kill");
    let findings = live::findings_until(&bus, |all| all.iter().any(is_judged)).await;
    let finding = findings.iter().find(|finding| is_judged(finding)).expect("the finding");
    assert_eq!(finding.root_cause.as_ref().map(|c| c.cause.as_str()), Some("memory.leak"));
    assert_eq!(finding.freshness.gaps, Vec::<String>::new());
    let end = word(&bus, |word| read_up_to(word) == all.len() as u64).await;
    let rows: Vec<_> = end.producers.iter().flat_map(|p| &p.shards).collect();
    assert!(rows.iter().all(|row| row.5 == 0 && row.6 == 0), "nothing dropped, nothing missing: {rows:?}");
    assert!(rows.iter().all(|row| row.3 - row.2 == row.4), "each event once: {rows:?}");
}

/// How long the server stands still: twice the lateness bound, and shorter than leases last.
const STANDS_STILL: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_stands_still_no_shard_follows_the_clock_past_what_waits_in_it() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = live::start(&bus, CorrelatorConfig { replica: "only".into(), ..live::config() }).await;
    let clock = SystemClock::new();
    let follows = clock.now_unix_nanos();
    word(&bus, |word| word.shards.len() == 64 && word.shards.iter().all(|shard| shard.3.0 > follows)).await;

    let signal = |signal: &str| {
        let status = std::process::Command::new("kill").args([signal, &server.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    };
    signal("-STOP");
    let event = crash(clock.now_unix_nanos());
    let mut publisher = Publisher::new(bus.clone());
    let publishing = tokio::spawn(async move { publisher.publish(&[event]).await });
    // check: allow sleep, this is how long it stands still
    tokio::time::sleep(STANDS_STILL).await;
    signal("-CONT");
    publishing.await.expect("published");

    let end = word(&bus, |word| processed(word) == 1).await;
    assert_eq!(end.producers.iter().map(|producer| producer.late).collect::<Vec<_>>(), [0]);
    live::findings_until(&bus, |all| all.iter().any(|f| live::tells(f, "process.crash_signal"))).await;
    correlator.drain().await.expect("drains");
}
