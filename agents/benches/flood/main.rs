//! The whole node agent under a flood of connections, or idle: real kernel programs, a real nats-server.
//!
//! ```text
//! cargo bench -p tapio-agents --bench flood -- [--seconds 30] [--rate 20000] [--idle]
//! ```
//!
//! Three processes: this one is the agent and nothing else while it is measured, a child makes the connections,
//! another is nats-server. The flood is connections over loopback that end with a reset, so that no port is held:
//! seven records of the kernel programs each, of which six become events. After the flood the stream is read back:
//! what was made must be in it, or counted as lost. The last line is one JSON object; exit code 1 when events are
//! missing without a count.

mod generator;
mod report;
mod usage;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use tapio_agents::config::AgentConfig;
use tapio_agents::node::{AgentHandle, AgentParts, NodeAgent};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;

use report::{Flood, Report};
use usage::Usage;

/// What the caller asked for.
struct Options {
    seconds: u64,
    /// Connections per second; 0 = as many as there can be.
    rate: u64,
    idle: bool,
}

impl Options {
    fn read(arguments: &[String]) -> Self {
        let number = |name: &str, default| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).map_or(default, |n| n.parse().expect("a number"))
        };
        Self {
            seconds: number("--seconds", 30),
            rate: number("--rate", 20_000),
            idle: arguments.iter().any(|argument| argument == "--idle"),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = Options::read(&arguments);
    if arguments.iter().any(|argument| argument == "--generate") {
        generator::run(Duration::from_secs(options.seconds), options.rate);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(measure(&options));
    println!("{}", report.text());
    println!("{}", report.json());
    if report.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(options: &Options) -> Report {
    let nats = NatsServer::start().expect("nats-server starts");
    let place = tempfile::tempdir().expect("a directory");
    let agent = start(&nats, place.path()).await;
    let degraded = agent.degraded();
    assert!(degraded.iter().all(|(name, _)| name != "ebpf"), "run it as root: {degraded:?}");
    // The start itself is no part of the figure: programs are loaded, groups are found.
    settle(&agent).await;
    let before = Usage::now();
    let began = Instant::now();
    let produced_before = agent.ledger().snapshot().produced;
    let flood = if options.idle {
        // check: allow sleep, idle is what is measured
        tokio::time::sleep(Duration::from_secs(options.seconds)).await;
        None
    } else {
        Some(flood(options).await)
    };
    let elapsed = began.elapsed();
    let usage = Usage::now().since(&before);
    let produced = agent.ledger().snapshot().produced - produced_before;
    let degraded = agent.degraded();
    let (stop, ledger) = agent.drain().await.expect("the supervisor lives");
    assert!(stop.abandoned.is_empty(), "{:?}", stop.abandoned);
    let bus = nats.bus().await.expect("the bus connects");
    let kinds = report::read_back(&bus, flood.as_ref().map_or(0, |flood| flood.port)).await;
    Report { elapsed, usage, produced, ledger, flood, kinds, degraded }
}

async fn start(nats: &NatsServer, place: &std::path::Path) -> AgentHandle {
    let mut config = AgentConfig { data_dir: Some(place.into()), ..AgentConfig::default() };
    config.otlp.grpc_listen = "127.0.0.1:0".to_owned();
    config.otlp.http_listen = "127.0.0.1:0".to_owned();
    let clock = SystemClock::shared();
    let bus = nats.bus().await.expect("the bus connects");
    let parts = AgentParts { bus, health: Health::new(clock.clone()), clock, metrics: Metrics::new() };
    NodeAgent::start(config, parts).await.expect("the agent starts")
}

/// Until the first samples are on their way and nothing is left of the start.
async fn settle(agent: &AgentHandle) {
    while agent.ledger().snapshot().published == 0 {
        // check: allow sleep, this is the wait for a condition
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // check: allow sleep, what the start put off is to be over
    tokio::time::sleep(Duration::from_secs(3)).await;
}

/// Lets a child make connections, and waits until it has ended.
async fn flood(options: &Options) -> Flood {
    let (seconds, rate) = (options.seconds.to_string(), options.rate.to_string());
    tokio::task::spawn_blocking(move || {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--generate", "--seconds", &seconds, "--rate", &rate])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the generator starts");
        let flood = result(&mut child);
        assert!(child.wait().expect("the generator ends").success());
        flood
    })
    .await
    .expect("the generator is watched")
}

/// The generator's one line: port, connections, nanoseconds, nanoseconds of CPU.
fn result(child: &mut Child) -> Flood {
    let out = child.stdout.take().expect("its output");
    let line = BufReader::new(out).lines().next().expect("a line").expect("text");
    let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
    let [port, connections, nanos, cpu_nanos] = numbers[..] else { panic!("unexpected line {line:?}") };
    std::io::stdout().flush().expect("the output is open");
    Flood {
        port: u16::try_from(port).expect("a port"),
        connections,
        elapsed: Duration::from_nanos(nanos),
        cpu: Duration::from_nanos(cpu_nanos),
    }
}
