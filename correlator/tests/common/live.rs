//! A correlator over a real nats-server: in this process, or in one of its own that can be killed and stopped.

use std::process::{Command, Stdio};
use std::time::Duration;

use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorHandle, CorrelatorParts};
use tapio_runtime::bus::{Bus, BusConfig, Message, OrderedConfig};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::Finding;
use tapio_schemas::names::STREAM_INSIGHTS;

/// Longest that anything may take here; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Set in a child process: the server's address.
const CHILD_URL: &str = "TAPIO_TEST_CHILD_URL";
/// Cluster of the events that tests publish.
const CLUSTER: &str = "test";

/// The settings by default, for the tests' cluster.
pub fn config() -> CorrelatorConfig {
    CorrelatorConfig { cluster: CLUSTER.into(), ..CorrelatorConfig::default() }
}

pub async fn start(bus: &Bus, config: CorrelatorConfig) -> CorrelatorHandle {
    start_measured(bus, config).await.0
}

/// With its metrics.
pub async fn start_measured(bus: &Bus, config: CorrelatorConfig) -> (CorrelatorHandle, Metrics) {
    let (clock, metrics) = (SystemClock::shared(), Metrics::new());
    let health = Health::new(clock.clone());
    let parts = CorrelatorParts { bus: bus.clone(), clock, health, metrics: metrics.clone() };
    (Correlator::start(config, parts).await.expect("the correlator starts"), metrics)
}

/// A bus whose server forgets message ids at once, so that it cannot hide what is published twice.
pub async fn forgetful(server: &NatsServer) -> Bus {
    let mut config = server.bus_config();
    config.streams.duplicate_window = HumanDuration::from_millis(100);
    let bus = Bus::connect(&config, &Metrics::new()).await.expect("a bus");
    bus.ensure_streams().await.expect("streams");
    bus
}

/// Reads a stream from its beginning until `enough` says so.
pub async fn read_until(bus: &Bus, stream: &str, mut enough: impl FnMut(&[Message]) -> bool) -> Vec<Message> {
    let mut consumer = bus.ordered_consumer(OrderedConfig::new(stream)).await.expect("a consumer");
    let mut all = Vec::new();
    let reading = async {
        while !enough(&all) {
            all.extend(consumer.next_batch(64, Duration::from_millis(100)).await.expect("a batch"));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{stream}: not enough in time"));
    all
}

/// Reads all findings from the beginning until `enough` says so.
pub async fn findings_until(bus: &Bus, mut enough: impl FnMut(&[Finding]) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut read = |messages: &[Message]| {
        findings.extend(messages[findings.len()..].iter().map(finding));
        enough(&findings)
    };
    read_until(bus, STREAM_INSIGHTS, &mut read).await;
    findings
}

/// The finding that a message is.
pub fn finding(message: &Message) -> Finding {
    serde_json::from_slice(&message.payload).expect("a finding in JSON")
}

pub fn tells(finding: &Finding, signal: &str) -> bool {
    finding.chain.iter().any(|link| link.signal == signal)
}

/// A correlator in a process of its own: this test binary again, which finds [`CHILD_URL`] set.
pub struct Child(std::process::Child);

impl Child {
    /// `test`: the test that calls [`Child::be`] first of all.
    pub fn start(url: &str, test: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--exact", test, "--nocapture"]).env(CHILD_URL, url).stdout(Stdio::null());
        Self(command.spawn().expect("a child"))
    }

    /// In the child: runs until it is killed. Elsewhere: nothing.
    pub async fn be(config: CorrelatorConfig) {
        let Ok(url) = std::env::var(CHILD_URL) else { return };
        let bus = Bus::connect(&BusConfig::with_url(url), &Metrics::new()).await.expect("a bus");
        let _correlator = start(&bus, config).await;
        std::future::pending::<()>().await;
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SIGKILL: nothing of it gets to tidy up.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
