//! What the tests share: a real nats-server, an agent on it, real control groups, real children.
//!
//! Other work goes on on the same machine, so every test looks only at what is its own.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod cgroup;
pub mod systemd;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tapio_agents::config::AgentConfig;
use tapio_agents::ledger::LedgerSnapshot;
use tapio_agents::node::{AgentHandle, AgentParts, NodeAgent};
use tapio_agents::sink::EventSink;
use tapio_runtime::bus::{Bus, OrderedConfig, StartAt};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::names::{STREAM_EVENTS, events_filter};
use tapio_schemas::payload::Payload;
use tapio_schemas::wire::{EventBatchView, Header, Unpacker};

/// Nothing takes longer than this, even on a machine that builds at the same time.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the machine in entities.
pub const NODE: &str = "test-node";

/// These tests are never skipped: what they check needs the kernel.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes control groups and loads kernel programs: run it as root, for example \
         `sudo -E cargo test -p tapio-agents`"
    );
}

/// Waits until `check` gives something.
pub async fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        // check: allow sleep, this is the wait for a condition
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An agent without collectors, as a base.
pub fn bare(cluster: &str) -> AgentConfig {
    let mut config = AgentConfig { cluster: cluster.into(), node: NODE.into(), ..AgentConfig::default() };
    config.ebpf.enabled = false;
    config.cgroup.enabled = false;
    config.otlp.enabled = false;
    config.kubernetes.enabled = false;
    config.systemd.enabled = false;
    config.network.enabled = false;
    config.filesystem.enabled = false;
    config.pod_logs.enabled = false;
    config
}

pub async fn parts(nats: &NatsServer) -> AgentParts {
    let clock = SystemClock::shared();
    let bus = nats.bus().await.expect("the bus connects");
    AgentParts { bus, health: Health::new(clock.clone()), clock, metrics: Metrics::new() }
}

pub async fn start(nats: &NatsServer, config: AgentConfig) -> AgentHandle {
    NodeAgent::start(config, parts(nats).await).await.expect("the agent starts")
}

/// An agent with one source that the test is.
pub async fn start_with_source(nats: &NatsServer, config: AgentConfig) -> (AgentHandle, EventSink) {
    let started = NodeAgent::start_with(config, parts(nats).await, &["test"]).await;
    let (agent, mut sinks) = started.expect("the agent starts");
    (agent, sinks.remove(0))
}

/// Drains and checks that nothing was abandoned and the counts add up.
pub async fn drain(agent: AgentHandle) -> LedgerSnapshot {
    let (report, ledger) = agent.drain().await.expect("the supervisor lives");
    assert_eq!(report.abandoned, Vec::<String>::new());
    assert!(ledger.balances(), "{ledger:?}");
    ledger
}

/// One batch of the stream.
pub struct Received {
    pub header: Header,
    pub subject: String,
    pub events: Vec<UnifiedEvent>,
}

/// Reads a cluster's events as they come.
pub struct Stream(tapio_runtime::bus::OrderedConsumer);

impl Stream {
    pub async fn open(bus: &Bus, cluster: &str) -> Self {
        let config = OrderedConfig {
            filters: vec![events_filter(cluster)],
            start: StartAt::Beginning,
            ..OrderedConfig::new(STREAM_EVENTS)
        };
        Self(bus.ordered_consumer(config).await.expect("the stream is readable"))
    }

    /// What there is, waiting a little for the first.
    pub async fn next(&mut self) -> Vec<Received> {
        let messages =
            self.0.next_batch(256, Duration::from_millis(200)).await.expect("the stream is readable");
        messages
            .into_iter()
            .map(|message| {
                let mut unpacker = Unpacker::default();
                let plain = unpacker.unpack(&message.payload).expect("a valid message");
                let view = EventBatchView::check(plain).expect("a valid batch");
                let (header, events) = (*view.header(), view.to_events());
                Received { header, subject: message.subject, events }
            })
            .collect()
    }

    /// Everything until nothing more is there.
    pub async fn rest(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        loop {
            let more = self.next().await;
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    /// Events until `done` is content.
    pub async fn events_until(
        &mut self,
        what: &str,
        done: impl Fn(&[UnifiedEvent]) -> bool,
    ) -> Vec<UnifiedEvent> {
        let deadline = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        while !done(&events) {
            assert!(Instant::now() < deadline, "waited for {what} among {} events", events.len());
            events.extend(self.next().await.into_iter().flat_map(|batch| batch.events));
        }
        events
    }
}

/// Asserts that each shard's sequences follow each other without a hole or a repetition.
pub fn assert_ordered(batches: &[Received]) {
    let mut next: BTreeMap<(u64, u32, u16), u64> = BTreeMap::new();
    for batch in batches {
        let header = &batch.header;
        let expected = next.entry((header.producer.0, header.epoch, header.shard)).or_default();
        assert_eq!(header.first_sequence, *expected, "shard {} of {}", header.shard, batch.subject);
        assert!(batch.subject.ends_with(&format!(".{}", header.shard)));
        *expected += u64::from(header.count);
    }
}

/// Name, value, limit of a metric event.
pub fn metric<'a>(event: &'a UnifiedEvent, name: &str) -> Option<&'a tapio_schemas::payload::MetricData> {
    match &event.payload {
        Payload::Metric(metric) if metric.name == name => Some(metric),
        _ => None,
    }
}
