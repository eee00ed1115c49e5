//! `kill -9` of an agent while NATS is away: what had reached the disk comes, in order and once.

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use support::cgroup::Running;
use support::{Stream, bare, drain, start, until};
use tapio_agents::config::AgentConfig;
use tapio_agents::ledger::Place;
use tapio_agents::node::{AgentParts, NodeAgent};
use tapio_runtime::bus::{Bus, BusConfig};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventSeverity;

const URL: &str = "TAPIO_TEST_NATS_URL";
const DIR: &str = "TAPIO_TEST_DIR";
/// Spooled events after which the parent kills.
const ENOUGH: u64 = 5_000;

fn config(dir: PathBuf) -> AgentConfig {
    let mut config = AgentConfig { data_dir: Some(dir), ..bare("crash") };
    config.backlog.memory = ByteSize(64 << 10);
    config.backlog.spool_file = ByteSize(128 << 10);
    config
}

/// The process that is killed: this test's own program, started by it with an environment that says so.
async fn be_killed(url: String, dir: String) {
    let (clock, metrics) = (SystemClock::shared(), Metrics::new());
    let bus = Bus::connect(&BusConfig::with_url(url), &metrics).await.expect("the bus connects");
    let parts = AgentParts { bus, health: Health::new(clock.clone()), clock: clock.clone(), metrics };
    let (agent, sinks) =
        NodeAgent::start_with(config(dir.into()), parts, &["test"]).await.expect("the agent starts");
    let ledger = agent.ledger().clone();
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    let mut told = (false, false);
    for batch in 0u32.. {
        beat.tick().await;
        let event = |n: u32| UnifiedEvent {
            timestamp: UnixNanos(clock.now_unix_nanos()),
            severity: EventSeverity::Error,
            pid: n + 1,
            entity: Arc::new(
                EntityRef { object: format!("o{}", n % 7).into(), ..EntityRef::default() }.sealed(),
            ),
            ..UnifiedEvent::default()
        };
        sinks[0].send((batch * 100..batch * 100 + 100).map(event).collect()).await.expect("the agent runs");
        let now = ledger.snapshot();
        if now.published > 1_000 && !told.0 {
            println!("published");
            told.0 = true;
        }
        let spooled = now.in_flight[Place::Spool as usize].1;
        if spooled > ENOUGH && !told.1 {
            println!("spooled {spooled}");
            told.1 = true;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_disk_survives_kill_9() {
    if let (Ok(url), Ok(dir)) = (std::env::var(URL), std::env::var(DIR)) {
        return be_killed(url, dir).await;
    }
    let mut nats = NatsServer::start().expect("nats-server");
    let bus = nats.bus().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut child = Running(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_is_on_disk_survives_kill_9", "--nocapture"])
            .env(URL, nats.url())
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child runs"),
    );
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(|line| line.expect("text"));
    assert!(lines.any(|line| line.ends_with("published")), "the child publishes");
    nats.kill();
    let spooled = lines.find_map(|line| line.strip_prefix("spooled ")?.parse::<u64>().ok());
    let spooled = spooled.expect("the child spools");
    drop(child); // SIGKILL

    nats.restart().expect("nats-server starts again");
    let agent = start(&nats, config(dir.path().to_owned())).await;
    let ledger = agent.ledger().clone();
    assert!(ledger.snapshot().produced >= spooled, "{:?} of {spooled}", ledger.snapshot());
    until("the spool to be empty", || (ledger.snapshot().in_flight_total() == 0).then_some(())).await;
    let end = drain(agent).await;
    assert_eq!((end.published, end.dropped_total()), (end.produced, 0));
    let left = std::fs::read_dir(dir.path().join("spool")).unwrap().count();
    assert_eq!(left, 1, "the lock alone: files that were sent are gone");

    let events = Stream::open(&bus, "crash").await.rest().await.into_iter().flat_map(|batch| batch.events);
    let mut last: HashMap<String, u32> = HashMap::new();
    let mut count = 0;
    for event in events {
        let before = last.insert(event.entity.object.to_string(), event.pid);
        assert!(before < Some(event.pid), "{} after {before:?}", event.pid);
        count += 1;
    }
    assert!(count > 1_000 + spooled, "{count}");
}
