//! Findings for tests.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod trouble;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tapio_runtime::bus::{Bus, Headers};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::finding::{ChainLink, FINDING_SCHEMA, Freshness, Impact, RootCause, Status};
use tapio_schemas::names::STREAM_INSIGHTS;
use tapio_schemas::proto::v1::correlation_service_client::CorrelationServiceClient;
use tapio_schemas::proto::v1::{ListFindingsRequest, SubscribeRequest, SubscribeResponse};
use tapio_schemas::{Entity, Finding, FindingId, Score, Severity, UnixNanos};
use tapio_storage::store::Incoming;
use tapio_storage::{StorageConfig, StorageHandle, StorageParts, StorageService};
use tonic::Streaming;
use tonic::transport::Channel;

/// Longest wait for something that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A second, in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// When the findings of tests happen.
pub const EPOCH: UnixNanos = UnixNanos(1_700_000_000 * SECOND);

/// A sure finding: a leak in `shop/deployment/api`, seen `number` seconds after the epoch.
pub fn finding(number: u64) -> Finding {
    let api = Entity::namespaced("Deployment", "shop", "api");
    let at = EPOCH.plus(number * SECOND);
    Finding {
        schema: FINDING_SCHEMA.into(),
        id: FindingId(u128::from(number) + 1),
        revision: 1,
        status: Status::Active,
        superseded_by: None,
        cluster: "prod".into(),
        severity: Severity::Critical,
        title: format!("finding {number}"),
        story: "api leaks memory".into(),
        opened_at: at,
        first_bad_at: at,
        updated_at: at,
        emitted_at: at,
        confidence: Score::clamped(0.9),
        root_cause: Some(RootCause { entity: api.clone(), cause: "memory.leak".into(), evidence: vec![] }),
        hypotheses: vec![],
        chain: vec![link(at, api), link(at, Entity::namespaced("Container", "shop", "api-1/app"))],
        said: vec![],
        impact: Impact::default(),
        prediction: None,
        predictions: Vec::new(),
        actions: vec![],
        semantic_group: Default::default(),
        freshness: Freshness::default(),
    }
}

pub fn link(at: UnixNanos, entity: Entity) -> ChainLink {
    ChainLink { at, entity, signal: "memory.growth".into(), says: "it grows".into(), evidence: vec![] }
}

pub fn json(finding: &Finding) -> Bytes {
    serde_json::to_vec(finding).unwrap().into()
}

pub fn incoming(finding: Finding) -> Incoming {
    Incoming { json: json(&finding), finding }
}

/// A service on its own directory and a free port.
pub struct Running {
    pub handle: StorageHandle,
    pub bus: Bus,
    pub health: Health,
    pub metrics: Metrics,
    pub client: CorrelationServiceClient<Channel>,
}

impl Running {
    pub async fn start(nats: &NatsServer, path: &Path) -> Self {
        Self::start_with(nats, config(path)).await
    }

    pub async fn start_with(nats: &NatsServer, config: StorageConfig) -> Self {
        let metrics = Metrics::new();
        let bus = Bus::connect(&nats.bus_config(), &metrics).await.unwrap();
        bus.ensure_streams().await.unwrap();
        let clock = SystemClock::shared();
        let health = Health::new(clock.clone());
        let parts =
            StorageParts { bus: bus.clone(), clock, health: health.clone(), metrics: metrics.clone() };
        let handle = StorageService::start(config, parts).await.unwrap();
        let client = connect(handle.grpc_addr()).await;
        Self { handle, bus, health, metrics, client }
    }

    /// Publishes as the correlator does.
    pub async fn publish(&self, finding: &Finding) {
        self.publish_raw(&finding.subject(), Some(&finding.message_id()), json(finding)).await;
    }

    pub async fn publish_raw(&self, subject: &str, msg_id: Option<&str>, payload: Bytes) {
        let deadline = Duration::from_secs(10);
        self.bus.publish_within(deadline, subject, msg_id, Headers::new(), payload).await.unwrap();
    }

    /// Live findings from now on.
    pub async fn follow(&mut self, include_stored: bool) -> Streaming<SubscribeResponse> {
        let request = SubscribeRequest { include_stored, ..SubscribeRequest::default() };
        self.client.subscribe(request).await.unwrap().into_inner()
    }

    pub async fn list(&mut self, request: ListFindingsRequest) -> Vec<String> {
        let answer = self.client.list_findings(request).await.unwrap().into_inner();
        answer.findings.into_iter().map(|finding| finding.title).collect()
    }
}

/// Any port, a short flush interval.
pub fn config(path: &Path) -> StorageConfig {
    StorageConfig {
        path: path.to_owned(),
        listen: "127.0.0.1:0".to_owned(),
        flush_interval: HumanDuration::from_millis(20),
        ack_wait: HumanDuration::from_secs(1),
        ..StorageConfig::default()
    }
}

pub async fn connect(addr: SocketAddr) -> CorrelationServiceClient<Channel> {
    CorrelationServiceClient::connect(format!("http://{addr}")).await.unwrap()
}

/// The next item within a patience.
pub async fn next(
    findings: &mut Streaming<SubscribeResponse>,
) -> Result<tapio_schemas::proto::v1::Finding, tonic::Status> {
    let item = tokio::time::timeout(PATIENCE, findings.next()).await.expect("a finding arrives");
    Ok(item.expect("the stream goes on")?.finding.unwrap())
}

/// What the server says of the only position in the stream of findings.
pub async fn position(bus: &Bus) -> serde_json::Value {
    let ask = async |subject: String| -> serde_json::Value {
        let answer = bus.request(&subject, Bytes::new(), PATIENCE).await.unwrap();
        serde_json::from_slice(&answer).unwrap()
    };
    let names = ask(format!("$JS.API.CONSUMER.NAMES.{STREAM_INSIGHTS}")).await;
    let [name] = &names["consumers"].as_array().unwrap()[..] else { panic!("{names}") };
    ask(format!("$JS.API.CONSUMER.INFO.{STREAM_INSIGHTS}.{}", name.as_str().unwrap())).await
}
