//! What `tapio check` and `tapio why` say, against a real nats-server and a real storage service.

mod common;

use std::path::Path;
use std::process::Output;

use common::{data_dir, run, stderr, stdout, wait_for};
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

const SECOND: u64 = 1_000_000_000;

fn now() -> UnixNanos {
    UnixNanos(SystemClock::new().now_unix_nanos())
}

/// Storage over its own nats-server; a correlator is what the test says it is.
struct World {
    runtime: Runtime,
    handle: Option<StorageHandle>,
    bus: Bus,
    published: u64,
    metrics: Metrics,
    dir: TempDir,
    _nats: NatsServer,
}

impl World {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let nats = NatsServer::start().unwrap();
        let dir = data_dir();
        let metrics = Metrics::new();
        let config = StorageConfig {
            path: dir.path().join("findings"),
            listen: "127.0.0.1:0".to_owned(),
            ..StorageConfig::default()
        };
        let (bus, handle) = runtime.block_on(async {
            let bus = Bus::connect(&nats.bus_config(), &metrics).await.unwrap();
            bus.ensure_streams().await.unwrap();
            let clock = SystemClock::shared();
            let health = Health::new(clock.clone());
            let parts = StorageParts { bus: bus.clone(), clock, health, metrics: metrics.clone() };
            (bus, StorageService::start(config, parts).await.unwrap())
        });
        Self { runtime, handle: Some(handle), bus, published: 0, metrics, dir, _nats: nats }
    }

    /// Runs a client command against it.
    fn ask(&self, args: &[&str]) -> Output {
        let addr = self.handle.as_ref().expect("it runs").grpc_addr().to_string();
        run(&[args, &["--server", &addr]].concat())
    }

    fn check(&self, args: &[&str]) -> (Option<i32>, Value) {
        let output = self.ask(&[&["check", "--output", "json"], args].concat());
        let answer = serde_json::from_slice(&output.stdout);
        (output.status.code(), answer.unwrap_or_else(|error| panic!("{error}: {}", stderr(&output))))
    }

    /// An agent says something.
    fn tell_event(&self) {
        let subject = tapio_schemas::names::events_subject("prod", 0);
        let publish = self.bus.publish(&subject, None, Headers::new(), "an event".into());
        self.runtime.block_on(publish).unwrap();
    }

    /// As stage two tells it once a second.
    fn tell_watermark(&self, watermark: UnixNanos, gaps: &[&str]) {
        let told = json!({"watermark": watermark, "gaps": gaps, "at": now()}).to_string();
        self.runtime.block_on(async {
            let kv = self.bus.kv().await.unwrap();
            kv.put("correlator.prod.freshness", told.into()).await.unwrap();
        });
    }

    /// Publishes as the correlator does, and waits until storage has taken it.
    fn publish(&mut self, finding: &Finding) {
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
    fn stop(&mut self) {
        let handle = self.handle.take().expect("it runs");
        let report = self.runtime.block_on(handle.drain()).unwrap();
        assert!(report.abandoned.is_empty());
    }
}

fn finding(number: u64, status: &str, confidence: f64) -> Finding {
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

#[test]
fn without_a_correlator_or_with_an_old_watermark_it_cannot_tell() {
    let world = World::start();
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &"not_provable".into()), "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("no correlator"), "{answer}");

    world.tell_watermark(now().minus(61 * SECOND), &[]);
    // What was read in the last second is given again.
    let answer = wait_for("the watermark", || {
        let (code, answer) = world.check(&[]);
        assert_eq!((code, &answer["verdict"]), (Some(3), &"not_provable".into()), "{answer}");
        (!answer["freshness"]["clusters"].as_array().unwrap().is_empty()).then_some(answer)
    });
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.starts_with("no event has been judged since 2"), "{reason}");
    assert!(reason.ends_with("is an agent running?"), "{reason}");
    let output = world.ask(&["check"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stdout(&output), format!("not provable: {reason}\n"));
}

#[test]
fn a_watermark_that_follows_the_clock_without_events_is_no_health() {
    let world = World::start();
    world.tell_watermark(now(), &[]);
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &"not_provable".into()), "{answer}");
    let expected = "no event has come in the last minute: is an agent running?";
    assert_eq!(answer["reason"], expected);
    world.tell_event();
    wait_for("health", || (world.check(&[]).1["verdict"] == "healthy").then_some(()));
}

#[test]
fn healthy_needs_a_fresh_watermark_and_tells_what_is_lost_and_what_was() {
    let mut world = World::start();
    world.tell_event();
    world.tell_watermark(now(), &["ebpf on node-3 lost 120 events"]);
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &"healthy".into()), "{answer}");
    assert_eq!(answer["freshness"]["gaps"], json!(["ebpf on node-3 lost 120 events"]));
    assert!(answer["freshness"]["age_ms"].as_u64().unwrap() < 60_000, "{answer}");
    assert_eq!(answer["freshness"]["clusters"][0]["cluster"], "prod");
    assert!(answer.get("reason").is_none(), "{answer}");
    let text = stdout(&world.ask(&["check"]));
    assert!(text.starts_with("healthy: nothing is wrong, everything up to "), "{text}");
    assert!(text.contains("\nincomplete: ebpf on node-3"), "{text}");

    let long_ago = Finding { updated_at: now().minus(16 * 60 * SECOND), ..finding(1, "recovered", 0.9) };
    world.publish(&long_ago);
    assert_eq!(world.check(&[]).1["verdict"], "healthy");
    world.publish(&finding(2, "recovered", 0.9));
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &"recovered".into()), "{answer}");
    assert_eq!(answer["findings"], json!([]));
    let text = stdout(&world.ask(&["check"]));
    assert!(text.contains("\nrecovered: ") && text.contains("trouble 2"), "{text}");
    assert!(!text.contains("trouble 1"), "{text}");
}

#[test]
fn what_goes_on_is_told_proven_or_not() {
    let mut world = World::start();
    world.tell_event();
    world.tell_watermark(now(), &[]);
    world.publish(&finding(1, "not_provable", 0.2));
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(2), &"not_provable".into()), "{answer}");
    assert_eq!(answer["findings"][0]["title"], "trouble 1");
    let why = world.ask(&["why", "deployment/api"]);
    assert_eq!(why.status.code(), Some(2));
    assert!(stdout(&why).contains("not provable from the evidence"), "{}", stdout(&why));

    world.publish(&finding(2, "active", 0.5));
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(2), &"active".into()), "{answer}");
    let titles = |answer: &Value| -> Vec<String> {
        let findings = answer["findings"].as_array().unwrap();
        findings.iter().map(|finding| finding["title"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(titles(&answer), ["trouble 2", "trouble 1"]);
    let (code, answer) = world.check(&["deployment/other"]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &"healthy".into()), "{answer}");

    // It ends: the same finding with a later revision.
    for number in [1, 2] {
        world.publish(&Finding { revision: 2, ..finding(number, "recovered", 0.2) });
    }
    assert_eq!(world.check(&[]).1["verdict"], "healthy");
}

#[test]
fn more_than_a_screen_is_counted_and_nothing_is_left_out_of_the_pages() {
    const COUNT: u64 = 620;
    let mut world = World::start();
    world.tell_event();
    world.tell_watermark(now(), &[]);
    for number in 1..=COUNT {
        let confidence = if number % 2 == 0 { 0.9 } else { 0.5 };
        let finding = finding(number, "active", confidence);
        let (subject, payload) = (finding.subject(), serde_json::to_vec(&finding).unwrap());
        let publish = world.bus.publish(&subject, None, Headers::new(), payload.into());
        world.runtime.block_on(publish).unwrap();
        world.published += 1;
    }
    world.publish(&finding(COUNT + 1, "active", 0.9));
    let (code, answer) = world.check(&[]);
    assert_eq!(code, Some(2));
    assert_eq!(answer["findings"].as_array().unwrap().len() as u64, COUNT + 1);
    let text = stdout(&world.ask(&["check"]));
    assert_eq!(text.lines().filter(|line| line.starts_with("also: ")).count(), 10);
    assert!(text.contains(&format!("and {} more: tapio check --all\n", COUNT - 10)), "{text}");
    let text = stdout(&world.ask(&["check", "--all"]));
    assert_eq!(text.lines().filter(|line| line.starts_with("also: ")).count() as u64, COUNT);
}

#[test]
fn why_of_something_that_looks_like_an_id_is_a_plain_sentence() {
    let mut world = World::start();
    let known = finding(0xab, "active", 0.9);
    world.publish(&known);
    let output = world.ask(&["why", "fnd-zz"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sentence =
        "nothing is known against fnd-zz; the id of a finding is `fnd-` and 32 hexadecimal digits\n";
    assert_eq!(stdout(&output), sentence);
    let output = world.ask(&["why", &known.id.to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

fn data(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[test]
fn an_export_is_imported_elsewhere_and_exported_the_same() {
    let mut world = World::start();
    for number in 1..=3 {
        world.publish(&finding(number, "active", 0.9));
    }
    let file = world.dir.path().join("findings.jsonl.zst");
    let from = data(world.dir.path()).to_owned();
    let refused = run(&["export", data(&file), "--data-dir", &from]);
    assert_eq!(refused.status.code(), Some(1), "the store is in use");
    assert!(stderr(&refused).contains("another process"), "{}", stderr(&refused));
    world.stop();
    let exported = run(&["export", data(&file), "--data-dir", &from]);
    assert_eq!(exported.status.code(), Some(0), "{}", stderr(&exported));

    let elsewhere = data_dir();
    let to = data(elsewhere.path());
    for expected in ["3 revisions stored, 0 known", "0 revisions stored, 3 known"] {
        let imported = run(&["import", data(&file), "--data-dir", to]);
        assert_eq!(imported.status.code(), Some(0), "{}", stderr(&imported));
        assert!(stdout(&imported).starts_with(expected), "{}", stdout(&imported));
    }
    let [first, second] = [from.as_str(), to].map(|dir| run(&["export", "-", "--data-dir", dir]));
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(stdout(&first).lines().count(), 3);
    let nowhere = run(&["export", "-", "--data-dir", data(&elsewhere.path().join("nowhere"))]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("no store of findings"), "{}", stderr(&nowhere));
}
