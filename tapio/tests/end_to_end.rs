//! The main job, end to end, on real input. Needs root (kernel programs, a memory cgroup) and says so.

mod common;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Instance, data_dir, python, stderr, stdout, wait_for};
use serde_json::Value;
use tapio_runtime::bus::{Bus, BusConfig, Headers, OrderedConfig, StartAt};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{HEADER_REASON, STREAM_DEADLETTER, STREAM_EVENTS, events_subject};
use tapio_schemas::wire::{EventBatchView, Unpacker};
use tapio_schemas::{EventKind, Payload, UnifiedEvent, UnixNanos};

/// Ends a helper process with the test.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes cgroups and loads kernel programs: run it as root"
    );
}

fn script(name: &str) -> String {
    format!("{}/tests/python/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A plain NATS client in Python that writes what it hears to a file.
fn listen(instance: &Instance, file: &Path) -> Helper {
    let mut command = Command::new(python());
    command.arg(script("insights.py")).arg(instance.address("nats")).arg(file).stdin(Stdio::null());
    let helper = Helper(command.spawn().expect("python starts"));
    wait_for("the NATS client", || {
        std::fs::read_to_string(file).ok().filter(|text| text.starts_with("ready"))
    });
    helper
}

/// A finding as the client heard it.
struct Heard {
    subject: String,
    headers: BTreeMap<String, String>,
    finding: Value,
}

/// Findings heard so far.
fn heard(file: &Path) -> Vec<Heard> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last line may be half written.
    let lines = text.split_inclusive('\n').filter(|line| line.starts_with('{') && line.ends_with('\n'));
    let parsed = lines.map(|line| {
        let line: Value = serde_json::from_str(line).expect("what the client wrote");
        Heard {
            subject: line["subject"].as_str().expect("a subject").to_owned(),
            headers: serde_json::from_value(line["headers"].clone()).expect("headers"),
            finding: serde_json::from_str(line["payload"].as_str().expect("text"))
                .expect("a finding is JSON"),
        }
    });
    parsed.collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(future)
}

async fn bus(url: &str) -> Bus {
    let config = BusConfig { urls: vec![url.to_owned()], ..BusConfig::default() };
    Bus::connect(&config, &Metrics::new()).await.expect("the instance's NATS answers")
}

/// All events in the stream now.
fn events(url: &str) -> Vec<UnifiedEvent> {
    block_on(async {
        let bus = bus(url).await;
        let last = bus.stream_state(STREAM_EVENTS).await.expect("the stream is there").last_sequence;
        let mut config = OrderedConfig::new(STREAM_EVENTS);
        config.start = StartAt::Beginning;
        let mut consumer = bus.ordered_consumer(config).await.expect("a consumer");
        let (mut events, mut at, mut unpacker) = (Vec::new(), 0, Unpacker::default());
        while at < last {
            for message in consumer.next_batch(256, Duration::from_secs(5)).await.expect("messages") {
                at = message.sequence;
                let plain = unpacker.unpack(&message.payload).expect("a message");
                events.extend(EventBatchView::check(plain).expect("a batch").to_events());
            }
        }
        events
    })
}

/// Every document is the published JSON, key by key, and every message says in its headers what it is.
fn check_published(findings: &[Heard]) {
    let mut seen = shape::Seen::default();
    for Heard { subject, headers, finding } in findings {
        seen.look(&shape::FINDING, "", finding);
        let id = format!("{}-{}", finding["id"].as_str().unwrap(), finding["revision"]);
        let expected = [
            ("Nats-Msg-Id", id.as_str()),
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-type", "dev.tapio.finding.v1"),
            ("ce-source", "/tapio/correlator/default"),
            ("ce-id", id.as_str()),
        ];
        for (name, value) in expected {
            assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name} of {subject}");
        }
        let [time, emitted] = [&headers["ce-time"], finding["emitted_at"].as_str().unwrap()]
            .map(|time| time.parse::<UnixNanos>().expect("a time"));
        // With milliseconds in the header.
        assert!(emitted.since(time) < 1_000_000 && time <= emitted, "{time} {emitted}");
    }
    assert_eq!(seen.faults, Vec::<String>::new());
    let mut keys = BTreeSet::new();
    shape::keys_of(&shape::FINDING, "", &mut keys);
    let never: Vec<_> = keys.difference(&seen.keys).map(String::as_str).collect();
    // A control group is in no namespace and has no container logs, its story is no part of another, not each action can be undone,
    // and nobody calls it.
    let elsewhere = [".superseded_by", ".namespace", ".undo", ".outcome"];
    let never: Vec<_> =
        never.into_iter().filter(|key| !elsewhere.iter().any(|end| key.ends_with(end))).collect();
    let never: Vec<_> = never
        .into_iter()
        .filter(|key| !key.starts_with(".predictions") && !key.starts_with(".said"))
        .collect();
    assert_eq!(never, Vec::<&str>::new(), "no finding of the demonstration has these keys");
}

#[test]
fn the_demo_predicts_explains_and_the_story_outlives_a_restart() {
    require_root();
    let dir = data_dir();
    let insights = dir.path().join("insights.txt");
    let instance = Instance::start(dir.path());
    let listener = listen(&instance, &insights);
    let output = instance.ask(&["demo", "memory-leak", "--limit-mib", "48"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}\n{}", stderr(&output), instance.log());
    let cgroup = text
        .lines()
        .find_map(|l| l.strip_prefix("Ask again with: tapio why "))
        .expect("the cgroup")
        .to_owned();

    let findings = heard(&insights);
    drop(listener);
    check_published(&findings);
    let of_cgroup = |heard: &&Heard| heard.finding["root_cause"]["entity"]["name"] == cgroup.as_str();
    let Heard { subject, finding: story, .. } =
        findings.iter().rfind(of_cgroup).expect("a NATS client hears the finding");
    assert_eq!(story["root_cause"]["cause"], "memory.leak");
    let severity = story["severity"].as_str().unwrap();
    let name = tapio_schemas::names::token(&cgroup);
    assert_eq!(*subject, format!("tapio.v1.insights.{severity}.default._.Cgroup.{name}"));
    let predicted = findings.iter().find(|heard| heard.finding["prediction"]["scenario"] == "oom_kill");
    let predicted = &predicted.expect("a prediction").finding;
    assert_eq!(predicted["id"], story["id"], "prediction and kill are one incident");

    assert_eq!(instance.interrupt(), Some(0));
    let again = Instance::start(dir.path());
    let why = again.ask(&["why", &cgroup]);
    assert_eq!(why.status.code(), Some(2), "{}", stderr(&why));
    assert!(stdout(&why).contains("memory.leak"), "{}", stdout(&why));
    let json = again.ask(&["check", &cgroup, "--output", "json"]);
    let answer: Value = serde_json::from_slice(&json.stdout).expect("check prints JSON");
    assert!(
        answer["verdict"].is_string() && answer["findings"].is_array() && answer["freshness"].is_object()
    );
}

#[test]
fn a_failing_python_service_is_in_the_events_and_in_a_finding() {
    require_root();
    let dir = data_dir();
    let insights = dir.path().join("insights.txt");
    let instance = Instance::start(dir.path());
    let _listener = listen(&instance, &insights);
    let closed = closed_port().port();
    let endpoint = format!("http://{}", instance.address("otlp_grpc"));
    let output = Command::new(python())
        .arg(script("failing_service.py"))
        .args([&endpoint, &closed.to_string(), "60"])
        .output()
        .expect("python starts");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("exported 120"), "{}", stdout(&output));

    let spans = wait_for("all spans in the events", || {
        let events = events(instance.address("nats"));
        let count =
            events.iter().filter(|e| e.kind == EventKind::Span && e.entity.service == "checkout").count();
        (count >= 120).then_some(count)
    });
    assert_eq!(spans, 120);
    wait_for("a finding about the service", || {
        let names = |f: &Value| {
            let chain = f["chain"].as_array().cloned().unwrap_or_default();
            chain.iter().any(|link| {
                link["entity"]["name"] == "checkout" && link["evidence"] != Value::Array(Vec::new())
            })
        };
        let all = heard(&insights);
        all.into_iter().find(|heard| heard.finding["status"] != "recovered" && names(&heard.finding))
    });
    let mut seen = shape::Seen::default();
    for heard in heard(&insights) {
        seen.look(&shape::FINDING, "", &heard.finding);
    }
    assert_eq!(seen.faults, Vec::<String>::new());
}

#[test]
fn five_refused_connections_are_five_refused_events_and_resets_are_resets() {
    require_root();
    let dir = data_dir();
    let instance = Instance::start(dir.path());
    let closed = closed_port();
    for _ in 0..5 {
        TcpStream::connect(closed).expect_err("nobody listens");
    }
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = open.local_addr().unwrap();
    for _ in 0..3 {
        let client = TcpStream::connect(address).unwrap();
        let (mut server, _) = open.accept().unwrap();
        // Unread data turns the close into a reset.
        server.write_all(b"never read").unwrap();
        wait_for("the data", || (client.peek(&mut [0; 16]).ok()? > 0).then_some(()));
        drop(client);
        wait_for("the reset", || server.write(b"more").err());
    }
    wait_for("five refused events and three resets", || {
        let events = events(instance.address("nats"));
        let refused = of_port(&events, closed, EventKind::NetConnectRefused);
        (refused >= 5 && of_port(&events, address, EventKind::NetReset) >= 3).then_some(())
    });
    let exact = |events: &[UnifiedEvent]| {
        use EventKind::{NetConnectRefused, NetConnectReset, NetConnectTimeout, NetReset};
        let of_kinds = |address, kinds: [EventKind; 4]| kinds.map(|kind| of_port(events, address, kind));
        let kinds = [NetConnectRefused, NetConnectTimeout, NetConnectReset, NetReset];
        assert_eq!(of_kinds(closed, kinds), [5, 0, 0, 0], "{events:#?}");
        assert_eq!(of_kinds(address, kinds), [0, 0, 0, 3], "{events:#?}");
    };
    // What comes later is seen: everything that was on its way before this one is there, and again when all is drained.
    let later = closed_port();
    TcpStream::connect(later).expect_err("nobody listens");
    let with_later = wait_for("a later event", || {
        let events = events(instance.address("nats"));
        (of_port(&events, later, EventKind::NetConnectRefused) > 0).then_some(events)
    });
    exact(&with_later);
    assert_eq!(instance.interrupt(), Some(0));
    let again = Instance::start(dir.path());
    let drained = events(again.address("nats"));
    exact(&drained);
    assert_eq!(of_port(&drained, later, EventKind::NetConnectRefused), 1);
}

/// An address at which nobody listens.
fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn of_port(events: &[UnifiedEvent], address: SocketAddr, kind: EventKind) -> usize {
    let port = address.port();
    let is_of_port = |event: &&UnifiedEvent| matches!(&event.payload, Payload::Network(n) if n.remote_port == port || n.local_port == port);
    events.iter().filter(|event| event.kind == kind).filter(is_of_port).count()
}

#[test]
fn garbage_and_truncated_batches_go_to_the_dead_letters_with_a_reason() {
    let dir = data_dir();
    let instance = Instance::start(dir.path());
    block_on(async {
        let bus = bus(instance.address("nats")).await;
        let subject = events_subject("default", 3);
        let whole = EventBatchBytes::one();
        for payload in [b"garbage".to_vec(), whole[..whole.len() - 7].to_vec()] {
            bus.publish(&subject, None, Headers::new(), payload.into()).await.expect("published");
        }
        let mut config = OrderedConfig::new(STREAM_DEADLETTER);
        config.start = StartAt::Beginning;
        let mut dead = bus.ordered_consumer(config).await.expect("a consumer");
        for _ in 0..2 {
            let letters = dead.next_batch(1, common::PATIENCE).await.expect("dead letters");
            let letter = letters.first().expect("a dead letter for each bad batch");
            assert!(!letter.headers.get(HEADER_REASON).unwrap_or("").is_empty());
        }
    });
}

struct EventBatchBytes;

impl EventBatchBytes {
    fn one() -> Vec<u8> {
        let mut batch = tapio_schemas::wire::EventBatch::new(tapio_schemas::ProducerId(1), 0, 3);
        batch.push(UnifiedEvent::default());
        batch.finish(tapio_schemas::UnixNanos(0)).expect("encodes")
    }
}

#[test]
fn a_ctrl_c_during_exports_loses_and_doubles_nothing_that_was_acknowledged() {
    const THREADS: usize = 3;
    const SPANS: usize = 100;
    /// Acknowledged exports before the Ctrl-C.
    const ACKED_FIRST: usize = 30;
    let dir = data_dir();
    let instance = Instance::start(dir.path());
    let endpoint = format!("http://{}", instance.address("otlp_grpc"));
    let mut command = Command::new(python());
    command.arg(script("steady_exporter.py")).arg(&endpoint);
    command.args([THREADS.to_string(), SPANS.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut exporter = Helper(command.spawn().expect("python starts"));
    let mut lines = BufReader::new(exporter.0.stdout.take().expect("piped")).lines();
    let (mut tried, mut acked) = (BTreeSet::new(), BTreeSet::new());
    let mut note = |line: String| {
        let (what, export) = line.split_once(' ').expect("two words");
        let exports = if what == "acked" { &mut acked } else { &mut tried };
        assert!(exports.insert(export.replace(' ', "-")), "{line} twice");
        acked.len()
    };
    while note(lines.next().expect("the exports go on").expect("text")) < ACKED_FIRST {}
    // The threads export without a pause, so this comes in the middle of something.
    instance.signal("-INT");
    for line in lines {
        note(line.expect("text"));
    }
    assert_eq!(instance.ended(), Some(0));
    assert_eq!(tried.len(), acked.len() + THREADS, "each thread was refused once, at the end");

    let again = Instance::start(dir.path());
    let mut stored = BTreeMap::new();
    for event in events(again.address("nats")) {
        if let Payload::Span(span) = &event.payload {
            *stored.entry(span.name.to_string()).or_insert(0) += 1;
        }
    }
    for export in &acked {
        for index in 0..SPANS {
            let name = format!("{export}-{index}");
            assert_eq!(stored.remove(&name), Some(1), "{name} of an acknowledged export");
        }
    }
    // What was refused at the end may have come through, but not twice.
    for (name, count) in stored {
        let (export, _) = name.rsplit_once('-').expect("a name of ours");
        assert!(tried.contains(export) && count == 1, "{name}: {count}");
    }
}
