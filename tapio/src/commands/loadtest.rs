//! `tapio loadtest`: load through the real path, with faults whose truth is known.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use tapio_loadtest::measure::{self, Measure};
use tapio_loadtest::report::Report;

use crate::cli::Output;
use crate::exit::FAILED;

/// Arguments of `loadtest`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  tapio loadtest throughput\n  tapio loadtest latency --rate 165000\n  tapio loadtest soak --minutes 30\n\nEverything runs in processes of its own: a nats-server with a store on disk, storage, correlators. Exit code 1 when an\nevent is not accounted for, or a finding is missing, doubled, or about a thing in which nothing was injected."
)]
pub struct LoadtestArgs {
    /// What to measure.
    #[command(subcommand)]
    pub mode: Mode,
    /// Form of the report; as JSON one object is the last line, and the text goes to standard error.
    #[arg(long, short, value_enum, default_value_t, global = true)]
    pub output: Output,
    /// Seed of the cluster, its events and its faults.
    #[arg(long, default_value_t = 1, global = true)]
    pub seed: u64,
    /// Correlator processes.
    #[arg(long, global = true)]
    pub replicas: Option<usize>,
    /// Node agents that publish.
    #[arg(long, default_value_t = 50, global = true)]
    pub producers: usize,
    /// Milliseconds between two injected faults.
    #[arg(long, default_value_t = 3000, global = true)]
    pub fault_every_ms: u64,
    /// Seconds of each of the two measurements of NATS alone; 0 leaves them out.
    #[arg(long, default_value_t = 5.0, global = true)]
    pub ceiling_seconds: f64,
    /// Override one configuration key of the services, such as `correlator.workers=2`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    pub overrides: Vec<String>,
    /// Keep the directory with logs and streams.
    #[arg(long, global = true)]
    pub keep: bool,
}

/// What to measure.
#[derive(Debug, Clone, Subcommand)]
pub enum Mode {
    /// As many events as the correlator takes, without loss.
    Throughput(ThroughputArgs),
    /// How long an event takes to its signal and a fault to its finding, at a steady rate.
    Latency(LatencyArgs),
    /// A steady rate for a long time: memory must not grow.
    Soak(SoakArgs),
}

/// Arguments of `loadtest throughput`.
#[derive(Debug, Clone, Args)]
pub struct ThroughputArgs {
    /// Length of the load.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Events per second; without it as fast as the correlator takes them.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Batches that may be published and not yet processed.
    #[arg(long, default_value_t = 2048)]
    pub backlog: u64,
}

/// Arguments of `loadtest latency`.
#[derive(Debug, Clone, Args)]
pub struct LatencyArgs {
    /// Events per second.
    #[arg(long)]
    pub rate: f64,
    /// Length of the load.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long, default_value_t = 5.0)]
    pub batch_age_ms: f64,
}

/// Arguments of `loadtest soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Length of the load.
    #[arg(long)]
    pub minutes: f64,
    /// Events per second.
    #[arg(long, default_value_t = 50_000.0)]
    pub rate: f64,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long, default_value_t = 100.0)]
    pub batch_age_ms: f64,
}

/// Changes per second that measure the way to the signal.
const BEACONS_PER_S: f64 = 2.0;
/// … where that is what is measured.
const BEACONS_PER_S_LATENCY: f64 = 10.0;

/// Runs it and prints the report.
pub async fn run(args: LoadtestArgs) -> anyhow::Result<i32> {
    let report = measure::run(&measure_of(&args)?).await?;
    Ok(print(&report, args.output))
}

fn measure_of(args: &LoadtestArgs) -> anyhow::Result<Measure> {
    let base = Measure {
        title: String::new(),
        program: std::env::current_exe().context("cannot find the own binary")?,
        seed: args.seed,
        length: Duration::ZERO,
        rate: None,
        batch_age: None,
        producers: args.producers,
        replicas: args.replicas.unwrap_or(1),
        backlog_batches: u64::MAX,
        fault_every: Duration::from_millis(args.fault_every_ms.max(1)),
        beacons_per_s: BEACONS_PER_S,
        ceiling: seconds("ceiling-seconds", args.ceiling_seconds)?,
        settings: args.overrides.clone(),
        keep: args.keep,
    };
    Ok(match &args.mode {
        Mode::Throughput(mode) => Measure {
            title: format!("throughput over {} s", mode.seconds),
            length: seconds("seconds", mode.seconds)?,
            rate: mode.rate.map(|rate| positive("rate", rate)).transpose()?,
            backlog_batches: mode.backlog.max(64),
            ..base
        },
        Mode::Latency(mode) => Measure {
            title: format!("latency at {} events/s over {} s", mode.rate, mode.seconds),
            length: seconds("seconds", mode.seconds)?,
            rate: Some(positive("rate", mode.rate)?),
            batch_age: Some(seconds("batch-age-ms", mode.batch_age_ms / 1e3)?),
            beacons_per_s: BEACONS_PER_S_LATENCY,
            ..base
        },
        Mode::Soak(mode) => Measure {
            title: format!("soak at {} events/s over {} min", mode.rate, mode.minutes),
            length: seconds("minutes", mode.minutes * 60.0)?,
            rate: Some(positive("rate", mode.rate)?),
            batch_age: Some(seconds("batch-age-ms", mode.batch_age_ms / 1e3)?),
            ..base
        },
    })
}

fn seconds(name: &str, value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("--{name}: {value} is not a length of time"))
}

fn positive(name: &str, value: f64) -> anyhow::Result<f64> {
    anyhow::ensure!(value.is_finite() && value > 0.0, "--{name}: {value} is not a rate");
    Ok(value)
}

/// The report; 1 when it is not good.
fn print(report: &Report, output: Output) -> i32 {
    match output {
        Output::Human => print!("{}", report.text()),
        Output::Json | Output::Jsonl => {
            eprint!("{}", report.text());
            println!("{}", report.json());
        }
    }
    if report.is_good() { 0 } else { FAILED }
}
