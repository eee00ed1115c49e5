//! Tapio's own trouble from where it arises to what is told of it: a real agent, a disk that is really full, a real correlator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tapio_agents::config::AgentConfig;
use tapio_agents::ledger::{DropReason, LedgerSnapshot};
use tapio_agents::node::{AgentParts, NodeAgent};
use tapio_agents::sink::EventSink;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorParts};
use tapio_runtime::bus::OrderedConfig;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::STREAM_INSIGHTS;
use tapio_schemas::payload::CustomData;
use tapio_schemas::{
    Attribute, EntityRef, EventKind, EventSeverity, Finding, Payload, UnifiedEvent, UnixNanos,
};

const CLUSTER: &str = "own";
const NODE: &str = "n1";
/// Longest wait for something that happens by itself.
const PATIENCE: Duration = Duration::from_secs(120);
const DISK_BYTES: u64 = 2 << 20;
/// The agent looks at itself each second; a busy machine is slower.
const LOOKS: Duration = Duration::from_secs(5);

/// A file system of its own, so small that it fills up.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        let size = format!("size={DISK_BYTES}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        assert!(done.expect("mount runs").success(), "a small file system needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// An agent without collectors, whose spool may be larger than its disk is.
fn config(dir: &Path) -> AgentConfig {
    let mut config = AgentConfig {
        cluster: CLUSTER.into(),
        node: NODE.into(),
        data_dir: Some(dir.to_owned()),
        ..AgentConfig::default()
    };
    config.ebpf.enabled = false;
    config.cgroup.enabled = false;
    config.otlp.enabled = false;
    config.kubernetes.enabled = false;
    config.systemd.enabled = false;
    config.network.enabled = false;
    config.filesystem.enabled = false;
    config.pod_logs.enabled = false;
    // The correlator is in the same process, and what it takes is not the agent's trouble.
    config.memory_max = ByteSize(4 << 30);
    config.backlog.memory = ByteSize(64 << 10);
    config.backlog.spool = ByteSize(1 << 30);
    config.backlog.spool_file = ByteSize(256 << 10);
    config
}

fn event(number: u64) -> UnifiedEvent {
    // Does not pack.
    let noise =
        format!("{:032x}", u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    let attributes = vec![Attribute::new("noise", noise.as_str())];
    let entity = EntityRef { object: format!("o{}", number % 5).into(), ..EntityRef::default() };
    UnifiedEvent {
        timestamp: UnixNanos(SystemClock::new().now_unix_nanos()),
        kind: EventKind::Custom,
        severity: EventSeverity::Info,
        entity: Arc::new(entity.sealed()),
        payload: Payload::Custom(Box::new(CustomData { name: "load".into(), attributes, tags: vec![] })),
        ..UnifiedEvent::default()
    }
}

/// Sends until the first event is shed because the disk has no room for more.
async fn fill(sink: &EventSink, ledger: impl Fn() -> LedgerSnapshot) {
    let is_shed =
        || ledger().dropped.iter().any(|(reason, count)| *reason == DropReason::ShedInfo && *count > 0);
    for first in (0..1_000_000).step_by(50) {
        sink.send((first..first + 50).map(event).collect()).await.expect("taken");
        if is_shed() {
            return;
        }
    }
    panic!("the disk does not fill: {:?}", ledger());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_disk_is_full_is_a_finding_with_what_to_do() {
    let mut nats = NatsServer::start().expect("nats-server");
    let dir = tempfile::tempdir().expect("a directory");
    let _disk = SmallDisk::mount(&dir.path().join("spool"));
    let clock = SystemClock::shared();
    let health = Health::new(Arc::clone(&clock));
    let bus = nats.bus().await.expect("a bus");
    let parts =
        AgentParts { bus, health: health.clone(), clock: Arc::clone(&clock), metrics: Metrics::new() };
    let (agent, sinks) =
        NodeAgent::start_with(config(dir.path()), parts, &["test"]).await.expect("the agent starts");
    let bus = nats.bus().await.expect("a bus");
    let parts = CorrelatorParts {
        bus: bus.clone(),
        clock,
        health: Health::new(SystemClock::shared()),
        metrics: Metrics::new(),
    };
    let own = CorrelatorConfig { cluster: CLUSTER.into(), ..CorrelatorConfig::default() };
    let correlator = Correlator::start(own, parts).await.expect("the correlator starts");

    nats.kill();
    let ledger = agent.ledger().clone();
    fill(&sinks[0], || ledger.snapshot()).await;
    // check: allow sleep, looks of the agent at itself while the disk is full
    tokio::time::sleep(LOOKS).await;
    nats.restart().expect("nats-server starts again");

    let mut insights = bus.ordered_consumer(OrderedConfig::new(STREAM_INSIGHTS)).await.expect("a consumer");
    let mut heard = Vec::new();
    let reading = async {
        loop {
            for message in insights.next_batch(64, Duration::from_millis(100)).await.expect("findings") {
                let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
                let cause = finding.root_cause.as_ref().map(|root| root.cause.to_string());
                if cause.as_deref() == Some("tapio.disk_full") {
                    return finding;
                }
                heard.push((cause, finding.title));
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, reading).await;
    let found = found.unwrap_or_else(|_| panic!("not found; heard: {heard:?}, {:?}", ledger.snapshot()));
    assert_eq!(found.entity().map(|entity| entity.to_string()), Some(format!("Tapio agent on {NODE}")));
    assert!(found.story.contains("the disk leaves room for "), "{}", found.story);
    assert!(!found.actions.is_empty());
    correlator.drain().await.expect("drains");
    agent.drain().await.expect("drains");
}
