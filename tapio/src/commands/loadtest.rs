//! `tapio loadtest`: load through the real path, with faults whose truth is known.

use std::time::Duration;

use anyhow::Context;
use tapio_loadtest::chaos::{self, Chaos};
use tapio_loadtest::load::faults::Plan;
use tapio_loadtest::load::generator::{Cut, Templates};
use tapio_loadtest::load::world::World;
use tapio_loadtest::measure::{self, Measure};
use tapio_loadtest::producer::{self, ProducerConfig};
use tapio_loadtest::report::Report;
use tapio_loadtest::rig::stack::CLUSTER;
use tapio_schemas::UnixNanos;

use super::loadtest_args::{ChaosArgs, LoadtestArgs, Mode, ProducerArgs};
use crate::cli::Output;
use crate::exit::FAILED;

/// Changes per second that measure the way to the signal.
const BEACONS_PER_S: f64 = 2.0;
/// … where that is what is measured.
const BEACONS_PER_S_LATENCY: f64 = 20.0;

/// Correlators of `chaos`.
const CHAOS_REPLICAS: usize = 3;

/// Runs it and prints the report; an interrupt ends it and takes its processes and files away.
pub async fn run(args: LoadtestArgs) -> anyhow::Result<i32> {
    tokio::select! {
        code = carry_out(&args) => code,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            anyhow::bail!("interrupted: nothing was measured");
        }
    }
}

async fn carry_out(args: &LoadtestArgs) -> anyhow::Result<i32> {
    let report = match &args.mode {
        Mode::Throughput(mode) => {
            let base = Measure {
                title: format!("throughput over {} s", mode.seconds),
                length: seconds("seconds", mode.seconds)?,
                rate: mode.rate.map(|rate| positive("rate", rate)).transpose()?,
                backlog_batches: mode.backlog.max(64),
                prepared: mode.prepared,
                ..measure_of(args)?
            };
            measure::run(&base).await?
        }
        Mode::Latency(mode) => {
            let base = Measure {
                title: format!("latency at {} events/s over {} s", mode.rate, mode.seconds),
                length: seconds("seconds", mode.seconds)?,
                rate: Some(positive("rate", mode.rate)?),
                batch_age: Some(seconds("batch-age-ms", mode.batch_age_ms / 1e3)?),
                beacons_per_s: BEACONS_PER_S_LATENCY,
                ..measure_of(args)?
            };
            measure::run(&base).await?
        }
        Mode::Soak(mode) => {
            let base = Measure {
                title: format!("soak at {} events/s over {} min", mode.rate, mode.minutes),
                length: seconds("minutes", mode.minutes * 60.0)?,
                rate: Some(positive("rate", mode.rate)?),
                batch_age: Some(seconds("batch-age-ms", mode.batch_age_ms / 1e3)?),
                ..measure_of(args)?
            };
            measure::run(&base).await?
        }
        Mode::Chaos(mode) => chaos::run(&chaos_of(args, mode)?).await?,
        Mode::Producer(mode) => {
            producer::run(producer_of(args, mode)?).await?;
            return Ok(0);
        }
    };
    Ok(print(&report, args.output))
}

/// What all measurements share; the length is still to be set.
fn measure_of(args: &LoadtestArgs) -> anyhow::Result<Measure> {
    Ok(Measure {
        title: String::new(),
        program: std::env::current_exe().context("cannot find the own binary")?,
        seed: args.seed,
        length: Duration::ZERO,
        rate: None,
        batch_age: None,
        producers: args.producers,
        replicas: args.replicas.unwrap_or(1),
        backlog_batches: u64::MAX,
        prepared: false,
        fault_every: fault_every(args),
        beacons_per_s: BEACONS_PER_S,
        ceiling: seconds("ceiling-seconds", args.ceiling_seconds)?,
        settings: args.overrides.clone(),
        keep: args.keep,
    })
}

fn fault_every(args: &LoadtestArgs) -> Duration {
    Duration::from_millis(args.fault_every_ms.max(1))
}

/// Faults of `chaos`: parent and producer must make the same of the same arguments.
fn plan(args: &LoadtestArgs, length: Duration) -> Plan {
    Plan { seed: args.seed, length, every: fault_every(args), beacons_per_s: 0.0 }
}

fn chaos_of(args: &LoadtestArgs, mode: &ChaosArgs) -> anyhow::Result<Chaos> {
    let length = seconds("minutes", mode.minutes * 60.0)?;
    let rate = positive("rate", mode.rate)?;
    let events = measure::events_per_batch(rate, seconds("batch-age-ms", mode.batch_age_ms / 1e3)?);
    let cut = Cut { producers: args.producers, events: Some(events) };
    let argument = |name: &str, value: String| [format!("--{name}"), value];
    let producer_arguments = ["loadtest", "producer"].map(str::to_owned).into_iter().chain(
        [
            argument("seed", args.seed.to_string()),
            argument("producers", args.producers.to_string()),
            argument("fault-every-ms", args.fault_every_ms.to_string()),
            argument("seconds", length.as_secs_f64().to_string()),
            argument("rate", rate.to_string()),
            argument("batch-age-ms", mode.batch_age_ms.to_string()),
        ]
        .into_iter()
        .flatten(),
    );
    Ok(Chaos {
        title: format!(
            "chaos: {} things done to processes in {} min under {rate} events/s",
            mode.actions, mode.minutes
        ),
        program: std::env::current_exe().context("cannot find the own binary")?,
        producer_arguments: producer_arguments.collect(),
        seed: args.seed,
        length,
        actions: mode.actions,
        replicas: args.replicas.unwrap_or(CHAOS_REPLICAS),
        plan: plan(args, length),
        ceiling: seconds("ceiling-seconds", args.ceiling_seconds)?,
        messages: measure::messages(&Templates::new(&World::new(CLUSTER, args.seed), args.seed, cut)?),
        settings: args.overrides.clone(),
        keep: args.keep,
    })
}

fn producer_of(args: &LoadtestArgs, mode: &ProducerArgs) -> anyhow::Result<ProducerConfig> {
    Ok(ProducerConfig {
        url: mode.nats_url.clone(),
        start: UnixNanos(mode.start_unix_nanos),
        rate: positive("rate", mode.rate)?,
        batch_age: seconds("batch-age-ms", mode.batch_age_ms / 1e3)?,
        producers: args.producers,
        plan: plan(args, seconds("seconds", mode.seconds)?),
        place: mode.place.clone(),
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
