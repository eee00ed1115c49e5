//! Feedback through all parts: the correlator and the store over a real nats-server, and the command line.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{run, stderr, stdout};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::model::Model;
use tapio_correlator::{Correlator, CorrelatorHandle, CorrelatorParts};
use tapio_runtime::bus::{Bus, Headers};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::events_subject;
use tapio_schemas::payload::KernelData;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Source, UnifiedEvent, UnixNanos,
};
use tapio_storage::{StorageConfig, StorageHandle, StorageParts, StorageService};

const PATIENCE: Duration = Duration::from_secs(90);
const LIKELY: &str = "code.crash_signal";
const LOOK_ALIKE: &str = "code.crash_twin";

/// Both parts, and one that crashes again and again in another place.
struct Site {
    bus: Bus,
    correlator: CorrelatorHandle,
    storage: StorageHandle,
    crashes: u64,
}

impl Site {
    /// With two causes that explain a crash alike, the first one a little more probable.
    async fn start(nats: &NatsServer, dir: &std::path::Path) -> Self {
        let pattern = include_str!("../../correlator/patterns/code.crash_signal.yaml");
        let near = pattern.replace(LIKELY, LOOK_ALIKE).replace("prior: 0.15", "prior: 0.12");
        let model = Model::parse([("one.yaml", pattern), ("two.yaml", near.as_str())]).unwrap();
        let bus = Bus::connect(&nats.bus_config(), &Metrics::new()).await.unwrap();
        bus.ensure_streams().await.unwrap();
        let clock = SystemClock::shared();
        let config = CorrelatorConfig { cluster: "test".into(), ..CorrelatorConfig::default() };
        let health = Health::new(clock.clone());
        let parts = CorrelatorParts {
            bus: bus.clone(),
            clock: clock.clone(),
            health: health.clone(),
            metrics: Metrics::new(),
        };
        let correlator = Correlator::start_with(config, parts, Arc::new(model)).await.unwrap();
        let config = StorageConfig {
            path: dir.join("findings"),
            listen: "127.0.0.1:0".to_owned(),
            ..StorageConfig::default()
        };
        let parts = StorageParts { bus: bus.clone(), clock, health, metrics: Metrics::new() };
        let storage = StorageService::start(config, parts).await.unwrap();
        Self { bus, correlator, storage, crashes: 0 }
    }

    /// Something new crashes; returns its name.
    async fn crash(&mut self) -> String {
        self.crashes += 1;
        let name = format!("/brittle-{}", self.crashes);
        let entity = EntityRef {
            cluster: "test".into(),
            node: "n1".into(),
            cgroup: name.as_str().into(),
            ..EntityRef::default()
        };
        let data = KernelData { signal: 11, is_init: true, comm: "brittle".into(), ..KernelData::default() };
        let now = UnixNanos(SystemClock::new().now_unix_nanos());
        let event = UnifiedEvent {
            id: EventId(u128::from(self.crashes)),
            timestamp: now,
            observed_at: now,
            kind: EventKind::ProcessExit,
            source: Source::Ebpf,
            severity: EventSeverity::Warning,
            entity: Arc::new(entity.sealed()),
            payload: Payload::Kernel(Box::new(data)),
            pid: 77,
            ..UnifiedEvent::default()
        };
        let shard = event.key().shard();
        let mut batch = EventBatch::new(ProducerId(1000 + self.crashes), 1, shard);
        batch.push(event);
        let bytes = batch.finish(UnixNanos(0)).unwrap().into();
        self.bus.publish(&events_subject("test", shard), None, Headers::new(), bytes).await.unwrap();
        name
    }

    /// The answer of `tapio … --output json`.
    async fn ask(&self, words: &[&str]) -> serde_json::Value {
        let server = self.storage.grpc_addr().to_string();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let asking = move || {
            let all = words.iter().map(String::as_str).chain(["--server", &server, "--output", "json"]);
            let output = run(&all.collect::<Vec<_>>());
            serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)))
        };
        tokio::task::spawn_blocking(asking).await.unwrap()
    }

    /// What is known of a thing, once something is.
    async fn why(&self, name: &str) -> serde_json::Value {
        let begun = Instant::now();
        loop {
            let answer = self.ask(&["why", name]).await;
            if !answer.is_null() {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing is said about {name}");
        }
    }

    /// Things crash until the verdict on one puts `cause` first.
    async fn until_first(&mut self, cause: &str) -> serde_json::Value {
        let begun = Instant::now();
        loop {
            let name = self.crash().await;
            let answer = self.why(&name).await;
            if answer["hypotheses"][0]["cause"] == cause {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{cause} never comes first: {answer:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_on_a_look_alike_turns_the_next_verdict_around_and_a_reset_turns_it_back() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut site = Site::start(&nats, dir.path()).await;
    for _ in 0..2 {
        let name = site.crash().await;
        let answer = site.why(&name).await;
        assert_eq!(answer["hypotheses"][0]["cause"], LIKELY, "{answer:#}");
        let id = answer["id"].as_str().unwrap();
        let kept = site.ask(&["feedback", id, "--wrong", "--cause", LOOK_ALIKE, "--note", "seen it"]).await;
        assert_eq!(kept["actual"]["cause"], LOOK_ALIKE, "{kept:#}");
        assert_eq!(site.why(&name).await["feedback"]["note"], "seen it");
    }
    site.until_first(LOOK_ALIKE).await;
    let causes = site.ask(&["causes"]).await;
    let twin = &causes[0];
    assert_eq!((&twin["cause"], &twin["right"]), (&LOOK_ALIKE.into(), &2.0.into()), "{causes:#}");
    assert!(twin["factor"].as_f64().unwrap() > 1.5 && twin["factor"].as_f64().unwrap() <= 4.0);

    assert_eq!(site.ask(&["causes", "--reset", LOOK_ALIKE]).await["causes"], 1);
    site.until_first(LIKELY).await;
    site.correlator.drain().await.unwrap();
    site.storage.drain().await.unwrap();
}
