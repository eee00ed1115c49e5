//! The cluster agent at the size of a large cluster: a real agent with its batches and its spool, a real nats-server, and the
//! API server of the tests, which knows how to list and to watch and not what objects mean.
//!
//! ```text
//! cargo bench -p tapio-agents --bench cluster -- [--pods 10000] [--rate 200] [--seconds 60]
//! ```
//!
//! Three processes: this one is the agent and nothing else while it is measured, a child is the API server with the objects and
//! their changes, another is nats-server. First the lists are read; then changes come at the rate. The last line is one JSON
//! object.

mod objects;
#[path = "../../tests/kubernetes/server.rs"]
mod server;
#[path = "../flood/usage.rs"]
mod usage;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tapio_agents::config::AgentConfig;
use tapio_agents::node::{AgentHandle, AgentParts, NodeAgent};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;

use usage::Usage;

/// What the caller asked for.
#[derive(Clone, Copy)]
struct Options {
    pods: usize,
    /// Changes per second.
    rate: usize,
    seconds: u64,
}

impl Options {
    fn read(arguments: &[String]) -> Self {
        let number = |name: &str, default: u64| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).map_or(default, |n| n.parse().expect("a number"))
        };
        Self {
            pods: number("--pods", 10_000) as usize,
            rate: number("--rate", 200) as usize,
            seconds: number("--seconds", 60),
        }
    }
}

/// Ends the API server with this process.
struct Api(Child);

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = Options::read(&arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if arguments.iter().any(|argument| argument == "--serve") {
        runtime.block_on(objects::serve(options.pods, options.rate));
        return;
    }
    runtime.block_on(measure(options));
}

async fn measure(options: Options) {
    let nats = NatsServer::start().expect("nats-server starts");
    let place = tempfile::tempdir().expect("a directory");
    let (_api, mut changes, address) = api(options);
    let began = (Instant::now(), Usage::now());
    let agent = start(&nats, place.path(), address).await;
    let listed = listed(&agent).await;
    let (list_time, list_usage) = (began.0.elapsed(), Usage::now().since(&began.1));

    changes.write_all(b"go\n").expect("the API server listens");
    let before = (Instant::now(), Usage::now(), agent.ledger().snapshot());
    // check: allow sleep, changes come in this time
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let usage = Usage::now().since(&before.1);
    let produced = agent.ledger().snapshot().produced - before.2.produced;
    let (elapsed, degraded) = (before.0.elapsed(), agent.degraded());
    let (stop, ledger) = agent.drain().await.expect("the supervisor lives");
    assert!(stop.abandoned.is_empty() && ledger.balances(), "{:?} {ledger:?}", stop.abandoned);
    assert!(produced > 0, "changes make events");
    let share = usage.cpu.as_secs_f64() / elapsed.as_secs_f64();
    let mib = |bytes: u64| bytes / (1 << 20);
    println!(
        "{} pods listed: {listed} events in {list_time:.1?}, {:.2?} of CPU",
        options.pods, list_usage.cpu
    );
    println!(
        "{} changes/s for {elapsed:.0?}: {:.1} % of a core, {} MiB resident, {} MiB at most, {produced} events",
        options.rate,
        share * 100.0,
        mib(usage.resident_bytes),
        mib(usage.peak_bytes)
    );
    for (name, cpu) in usage.by_thread().into_iter().take(5) {
        println!("  {name:<16} {cpu:.2?}");
    }
    println!("dropped {:?}, degraded {degraded:?}", ledger.dropped);
    let figures = json!({"pods": options.pods, "rate": options.rate, "seconds": options.seconds, "core_share": share,
        "resident_bytes": usage.resident_bytes, "peak_bytes": usage.peak_bytes, "list_s": list_time.as_secs_f64(),
        "list_cpu_s": list_usage.cpu.as_secs_f64(), "list_events": listed, "events": produced});
    println!("{figures}");
}

/// Starts the API server; gives its input, on which a line begins the changes.
fn api(options: Options) -> (Api, std::process::ChildStdin, SocketAddr) {
    let (pods, rate) = (options.pods.to_string(), options.rate.to_string());
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--serve", "--pods", &pods, "--rate", &rate])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the API server starts");
    let out = child.stdout.take().expect("its output");
    let line = BufReader::new(out).lines().next().expect("a line").expect("text");
    let input = child.stdin.take().expect("its input");
    (Api(child), input, line.parse().expect("an address"))
}

async fn start(nats: &NatsServer, place: &std::path::Path, server: SocketAddr) -> AgentHandle {
    let mut config = AgentConfig { data_dir: Some(place.into()), ..AgentConfig::default() };
    config.ebpf.enabled = false;
    config.cgroup.enabled = false;
    config.otlp.enabled = false;
    config.systemd.enabled = false;
    config.network.enabled = false;
    config.filesystem.enabled = false;
    let kubeconfig = place.join("kubeconfig");
    let cluster = json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "t", "user": {}}], "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}]});
    std::fs::write(&kubeconfig, cluster.to_string()).expect("a file");
    config.kubernetes.kubeconfig = Some(kubeconfig);
    let clock = SystemClock::shared();
    let bus = nats.bus().await.expect("the bus connects");
    let parts = AgentParts { bus, health: Health::new(clock.clone()), clock, metrics: Metrics::new() };
    NodeAgent::start(config, parts).await.expect("the agent starts")
}

/// Until the lists are read: no event more for two seconds.
async fn listed(agent: &AgentHandle) -> u64 {
    let mut last = (0, Instant::now());
    loop {
        // check: allow sleep, this is the wait for a condition
        tokio::time::sleep(Duration::from_millis(100)).await;
        let produced = agent.ledger().snapshot().produced;
        if produced != last.0 {
            last = (produced, Instant::now());
        }
        // What is told again for the topology goes on for ever, some thirty a second.
        if produced > 0 && last.1.elapsed() > Duration::from_millis(900) {
            return produced;
        }
    }
}
