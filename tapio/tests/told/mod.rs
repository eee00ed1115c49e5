//! What a running instance is asked, without one: a real nats-server and a real storage service; the correlator is what the
//! test says it is.
#![allow(dead_code)]

use std::process::Output;

use serde_json::{Value, json};
use tapio_runtime::bus::{Bus, Headers};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::{Finding, UnixNanos};
use tapio_storage::{StorageConfig, StorageHandle, StorageParts, StorageService};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common::{data_dir, run, stderr, wait_for};

pub const SECOND: u64 = 1_000_000_000;

pub fn now() -> UnixNanos {
    UnixNanos(SystemClock::new().now_unix_nanos())
}

/// Storage over its own nats-server; a correlator is what the test says it is.
pub struct World {
    pub runtime: Runtime,
    handle: Option<StorageHandle>,
    pub bus: Bus,
    pub published: u64,
    metrics: Metrics,
    pub dir: TempDir,
    address: String,
    _nats: NatsServer,
}

impl World {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let nats = NatsServer::start().unwrap();
        let dir = data_dir();
        let metrics = Metrics::new();
        let bus = runtime.block_on(async {
            let bus = Bus::connect(&nats.bus_config(), &metrics).await.unwrap();
            bus.ensure_streams().await.unwrap();
            bus
        });
        let address = "127.0.0.1:0".to_owned();
        let mut world = Self { runtime, handle: None, bus, published: 0, metrics, dir, address, _nats: nats };
        world.serve();
        world
    }

    /// Starts storage; after [`Self::stop`] where it was.
    pub fn serve(&mut self) {
        let config = StorageConfig {
            path: self.dir.path().join("findings"),
            listen: self.address.clone(),
            ..StorageConfig::default()
        };
        (self.metrics, self.published) = (Metrics::new(), 0);
        let clock = SystemClock::shared();
        let health = Health::new(clock.clone());
        let parts = StorageParts { bus: self.bus.clone(), clock, health, metrics: self.metrics.clone() };
        let handle = self.runtime.block_on(StorageService::start(config, parts)).unwrap();
        self.address = handle.grpc_addr().to_string();
        self.handle = Some(handle);
    }

    /// Runs a client command against it.
    pub fn ask(&self, args: &[&str]) -> Output {
        run(&[args, &["--server", self.address()]].concat())
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn check(&self, args: &[&str]) -> (Option<i32>, Value) {
        let output = self.ask(&[&["check", "--output", "json"], args].concat());
        let answer = serde_json::from_slice(&output.stdout);
        (output.status.code(), answer.unwrap_or_else(|error| panic!("{error}: {}", stderr(&output))))
    }

    /// An agent says something.
    pub fn tell_event(&self) {
        let subject = tapio_schemas::names::events_subject("prod", 0);
        let publish = self.bus.publish(&subject, None, Headers::new(), "an event".into());
        self.runtime.block_on(publish).unwrap();
    }

    /// As stage two tells it once a second.
    pub fn tell_watermark(&self, watermark: UnixNanos, gaps: &[&str]) {
        let told = json!({"watermark": watermark, "gaps": gaps, "at": now()}).to_string();
        self.runtime.block_on(async {
            let kv = self.bus.kv().await.unwrap();
            kv.put("correlator.prod.freshness", told.into()).await.unwrap();
        });
    }

    /// Publishes as the correlator does, and waits until storage has taken it.
    pub fn publish(&mut self, finding: &Finding) {
        let payload = serde_json::to_vec(finding).unwrap();
        let (subject, id) = (finding.subject(), finding.message_id());
        let publish = self.bus.publish(&subject, Some(&id), Headers::new(), payload.into());
        self.runtime.block_on(publish).unwrap();
        self.published += 1;
        wait_for("the finding in the store", || {
            let text = self.metrics.encode();
            let value = |name: &str| -> u64 {
                let lines = text.lines().filter(|line| line.starts_with(name));
                lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
            };
            let taken = value("tapio_storage_findings_stored_total")
                + value("tapio_storage_findings_not_stored_total");
            (taken == self.published).then_some(())
        });
    }

    /// Ends storage, which lets go of the store.
    pub fn stop(&mut self) {
        let handle = self.handle.take().expect("it runs");
        let report = self.runtime.block_on(handle.drain()).unwrap();
        assert!(report.abandoned.is_empty());
    }
}

pub fn finding(number: u64, status: &str, confidence: f64) -> Finding {
    let at = now().minus(5 * SECOND).plus(number);
    let root = json!({"entity": {"kind": "Deployment", "namespace": "shop", "name": "api"},
                      "cause": "memory.leak", "evidence": []});
    serde_json::from_value(json!({
        "schema": "tapio.finding/v1", "id": format!("fnd-{number:032x}"), "revision": 1, "status": status,
        "cluster": "prod", "severity": "error", "title": format!("trouble {number}"), "story": "it fails",
        "opened_at": at, "first_bad_at": at, "updated_at": at, "emitted_at": at, "confidence": confidence,
        "root_cause": if confidence > 0.7 { root } else { Value::Null }, "hypotheses": [],
        "chain": [{"at": at, "entity": {"kind": "Deployment", "namespace": "shop", "name": "api"},
                   "signal": "memory.growth", "says": "it grows", "evidence": []}],
        "impact": {"business_impact": 0, "customer_facing": false, "slo_impact": false, "cascade_risk": 0,
                   "requests_affected": 0, "callers": []},
        "actions": [], "semantic_group": {"id": format!("grp-{:032x}", 0), "type": "", "intent": ""},
        "freshness": {"watermark": at, "gaps": []},
    }))
    .unwrap()
}
