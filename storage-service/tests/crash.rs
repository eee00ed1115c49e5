//! What a `kill -9` and a full disk do: real processes, real signals, a real limit.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{EPOCH, PATIENCE, config, connect, finding, incoming, json, position};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tapio_runtime::bus::{Bus, BusConfig, Headers};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::{Health, HealthState};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::FindingId;
use tapio_schemas::proto::v1::ListFindingsRequest;
use tapio_storage::store::{Store, StoreMetrics, StoreOptions};
use tapio_storage::{StorageParts, StorageService};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A child process that runs one of the ignored tests below.
struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// The shell makes writes beyond a size limit an error instead of a signal.
    fn start(test: &str, dir: &Path, nats: &str) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("STORAGE_TEST_DIR", dir)
            .env("STORAGE_TEST_NATS", nats)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The rest of the next line that has the word.
    fn wait_for(&mut self, word: &str) -> Option<String> {
        for line in &mut self.lines {
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once(word) {
                return Some(rest.trim().to_owned());
            }
        }
        None
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(&mut self) {
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn environment(name: &str) -> String {
    std::env::var(name).expect("set by the parent test")
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).unwrap();
}

fn open(dir: &Path) -> Store {
    Store::open(&StoreOptions::new(dir), StoreMetrics::default(), EPOCH).unwrap()
}

#[test]
#[ignore = "a child process of `what_was_acknowledged_survives_kill_9`"]
fn child_puts() {
    let store = open(Path::new(&environment("STORAGE_TEST_DIR")));
    let first = store.totals().unwrap().records;
    for number in first.. {
        store.put(vec![incoming(finding(number))], EPOCH).unwrap();
        say(&format!("durable {number}"));
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=3 {
        let mut process = Process::start("child_puts", dir.path(), "");
        for _ in 0..40 {
            process.wait_for("durable").expect("the child goes on");
        }
        process.kill();
        while process.wait_for("durable").is_some() {
            acknowledged += 1;
        }
        acknowledged += 40;
        let store = open(dir.path());
        let records = store.totals().unwrap().records;
        assert!(records >= acknowledged, "round {round}: {acknowledged} acknowledged, {records} there");
        for number in 0..records {
            let id = FindingId(u128::from(number) + 1);
            let stored = store.get(id, None).unwrap().expect("no hole");
            assert_eq!(stored.finding, finding(number));
        }
        assert_eq!(store.export(&mut std::io::sink()).unwrap(), records);
        // Stored but not said: the answer was lost with the process.
        acknowledged = records;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of the tests below"]
async fn child_serves() {
    let metrics = Metrics::new();
    let bus = Bus::connect(&BusConfig::with_url(environment("STORAGE_TEST_NATS")), &metrics).await.unwrap();
    bus.ensure_streams().await.unwrap();
    let clock = SystemClock::shared();
    let health = Health::new(clock.clone());
    let parts = StorageParts { bus, clock, health: health.clone(), metrics };
    let config = config(Path::new(&environment("STORAGE_TEST_DIR")));
    let handle = StorageService::start(config, parts).await.unwrap();
    say(&format!("listens {}", handle.grpc_addr()));
    let mut failed = false;
    loop {
        // check: allow sleep, the pause between two looks at a condition
        tokio::time::sleep(Duration::from_millis(10)).await;
        let writer = health.report().into_iter().find(|part| part.name == "storage-writer").unwrap();
        if failed != (writer.state == HealthState::Failed) {
            failed = !failed;
            say(if failed { "failed" } else { "recovered" });
        }
    }
}

async fn publish(bus: &Bus, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let finding = finding(number);
        let (subject, id) = (finding.subject(), finding.message_id());
        bus.publish_within(PATIENCE, &subject, Some(&id), Headers::new(), json(&finding)).await.unwrap();
    }
}

/// Titles of all findings of the service at this address; why not, while its store is not open.
async fn stored(addr: SocketAddr) -> Result<Vec<String>, tonic::Status> {
    let mut client = connect(addr).await;
    let request = ListFindingsRequest { page_size: 1000, ..ListFindingsRequest::default() };
    let answer = client.list_findings(request).await?.into_inner();
    assert!(answer.next_page_token.is_empty(), "one page");
    Ok(answer.findings.into_iter().map(|finding| finding.title).collect())
}

async fn wait_until_health(addr: SocketAddr, service: &str, expected: ServingStatus) {
    let url = format!("http://{addr}");
    let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut health = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    let waiting =
        async { while health.message().await.unwrap().expect("the watch goes on").status() != expected {} };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the health says how it is");
}

async fn wait_until_stored(addr: SocketAddr, count: u64) {
    let expected: Vec<_> = (0..count).rev().map(|number| format!("finding {number}")).collect();
    let waiting = async {
        loop {
            match stored(addr).await {
                Ok(stored) if stored == expected => return,
                Ok(_) => {}
                Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
            }
            // check: allow sleep, the pause between two looks at a condition
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("all findings are stored, each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_service_loses_and_doubles_nothing() {
    const COUNT: u64 = 300;
    let nats = NatsServer::start().unwrap();
    let bus = nats.bus().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start("child_serves", dir.path(), &nats.url());
    process.wait_for("listens").unwrap();
    publish(&bus, 0..COUNT / 2).await;
    process.kill();
    publish(&bus, COUNT / 2..COUNT).await;
    let mut process = Process::start("child_serves", dir.path(), &nats.url());
    let addr = process.wait_for("listens").unwrap().parse().unwrap();
    wait_until_stored(addr, COUNT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_flushed_is_not_acknowledged_and_comes_again() {
    const COUNT: u64 = 300;
    /// Room for the empty store and some findings.
    const DISK_BYTES: u64 = 600 << 10;
    let nats = NatsServer::start().unwrap();
    let bus = nats.bus().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start("child_serves", dir.path(), &nats.url());
    let addr = process.wait_for("listens").unwrap().parse().unwrap();
    let full = Rlimit { current: Some(DISK_BYTES), maximum: None };
    let before = prlimit(Some(process.pid()), Resource::Fsize, full).unwrap();
    assert_eq!(before.maximum, None, "the limit can be lifted again");
    publish(&bus, 0..COUNT).await;
    process.wait_for("failed").expect("the disk is full before the end, and the writer says so");
    let unacknowledged = position(&bus).await["num_ack_pending"].as_u64().unwrap();
    assert!(unacknowledged > 0, "what is not on disk is still the stream's");
    for service in ["", "tapio.v1.CorrelationService"] {
        wait_until_health(addr, service, ServingStatus::NotServing).await;
    }
    let answer = connect(addr).await.list_findings(ListFindingsRequest::default()).await;
    // The store may be closed just now.
    if let Ok(answer) = answer {
        let gaps = answer.into_inner().gaps;
        assert!(gaps.iter().any(|gap| gap.contains("does not take findings")), "{gaps:?}");
    }
    prlimit(Some(process.pid()), Resource::Fsize, before).unwrap();
    process.wait_for("recovered").expect("the writer comes back by itself");
    wait_until_health(addr, "tapio.v1.CorrelationService", ServingStatus::Serving).await;
    wait_until_stored(addr, COUNT).await;
}
