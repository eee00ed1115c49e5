//! A running receiver whose events the test takes, and clients that are not ours.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tapio_agents::collectors::otlp::{Bounds, OtlpConfig, OtlpReceiver};
use tapio_agents::ledger::Ledger;
use tapio_agents::sink::{self, EventSink, Intake, Wake};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::ByteSize;
use tapio_runtime::health::Health;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::agent::until;

/// Largest request of the receivers in these tests.
pub const MESSAGE_MAX: usize = 1 << 20;

pub struct Running {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub sink: EventSink,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
    intake: Intake,
    task: JoinHandle<WorkerResult>,
}

pub fn config() -> OtlpConfig {
    OtlpConfig {
        grpc_listen: "127.0.0.1:0".into(),
        http_listen: "127.0.0.1:0".into(),
        message_max: ByteSize(MESSAGE_MAX as u64),
        ..OtlpConfig::default()
    }
}

pub fn bounds() -> Bounds {
    Bounds { cluster: "c".into(), age_max: Duration::from_secs(3600), future_max: Duration::from_secs(300) }
}

impl Running {
    pub fn start(config: OtlpConfig) -> Self {
        let (metrics, clock) = (Metrics::new(), SystemClock::shared());
        let ledger = Ledger::new(&metrics);
        let (sink, intake) =
            sink::channel("otlp", &Arc::new(Wake::default()), &ledger, clock.clone(), &metrics);
        let receiver = OtlpReceiver::bind(config, bounds(), sink.clone(), clock.clone(), &metrics).unwrap();
        let (grpc, http) = (receiver.grpc_addr(), receiver.http_addr());
        let shutdown = Shutdown::new();
        let context = WorkerContext {
            name: "otlp".into(),
            generation: 1,
            progress: Health::new(clock.clone()).register("otlp", None),
            shutdown: shutdown.clone(),
            clock,
        };
        let task = tokio::spawn(async move { receiver.run(context).await });
        Self { grpc, http, sink, metrics, shutdown, intake, task }
    }

    /// Everything that has arrived. What a client got an answer for has arrived.
    pub fn events(&mut self) -> Vec<UnifiedEvent> {
        std::iter::from_fn(|| self.intake.take()).flatten().collect()
    }

    /// Waits until that many requests are being worked on.
    pub async fn wait_under_way(&self, count: usize) {
        until("requests under way", || {
            (self.metric("tapio_otlp_requests_under_way") == count as f64).then_some(())
        })
        .await;
    }

    pub async fn stop(self) -> WorkerResult {
        self.shutdown.trigger();
        self.task.await.expect("the receiver does not panic")
    }

    /// One line of the metrics.
    pub fn metric(&self, line_start: &str) -> f64 {
        let text = self.metrics.encode();
        let line = text.lines().find(|line| line.starts_with(line_start));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

/// A request with that many spans of now, as OTLP/JSON.
pub fn spans_json(count: usize) -> Value {
    let now = jiff_now();
    let span = |n: usize| {
        json!({"traceId": format!("{:032x}", 7), "spanId": format!("{:016x}", n + 1), "name": "op", "kind": 2,
            "startTimeUnixNano": (now - 1_000_000).to_string(), "endTimeUnixNano": now.to_string()})
    };
    let spans: Value = (0..count).map(span).collect();
    json!({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
}

/// The same as protobuf.
pub fn spans_protobuf(count: usize) -> Vec<u8> {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    let request: ExportTraceServiceRequest = serde_json::from_value(spans_json(count)).unwrap();
    request.encode_to_vec()
}

fn jiff_now() -> u64 {
    SystemClock::shared().now_unix_nanos()
}

pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }
}

/// Sends the head of a POST over a new connection.
pub async fn open_post(to: SocketAddr, path: &str, headers: &[(&str, &str)], length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut head =
        format!("POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    stream
}

pub async fn read_answer(mut stream: TcpStream) -> Answer {
    let mut raw = Vec::new();
    // A server that refuses a large body may reset the connection after its answer.
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        raw.extend_from_slice(&chunk[..count]);
    }
    let split = raw.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer");
    let head = String::from_utf8(raw[..split].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status, headers, body: raw[split + 4..].to_vec() }
}

pub async fn post(to: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = open_post(to, path, headers, body.len()).await;
    // May fail when the server has answered already.
    let _ = stream.write_all(body).await;
    read_answer(stream).await
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs a script of `tests/python` and returns what it prints.
pub async fn python(script: &str, arguments: &[&str], input: &[u8]) -> String {
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let interpreter = crate_dir.join("../.tools/venv/bin/python");
    assert!(interpreter.exists(), "{} is missing: run `make setup`", interpreter.display());
    let mut child = tokio::process::Command::new(interpreter)
        .arg(crate_dir.join("tests/python").join(script))
        .args(arguments)
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} failed (`make setup` installs what it needs):\n{errors}");
    String::from_utf8(output.stdout).unwrap()
}
