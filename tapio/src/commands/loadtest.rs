//! `tapio loadtest`: load through the real path, with faults whose truth is known.

use std::time::Duration;

use anyhow::Context;
use tapio_loadtest::chaos::{self, Chaos};
use tapio_loadtest::load::faults::Plan;
use tapio_loadtest::load::generator::{Cut, Templates};
use tapio_loadtest::load::traces::live;
use tapio_loadtest::load::world::World;
use tapio_loadtest::measure::{self, Measure};
use tapio_loadtest::producer::{self, ProducerConfig};
use tapio_loadtest::report::Report;
use tapio_loadtest::rig::stack::CLUSTER;
use tapio_loadtest::takeover::{self, Takeover};
use tapio_schemas::UnixNanos;

use super::loadtest_args::{ChaosArgs, LoadtestArgs, Mode, ProducerArgs, TakeoverArgs};
use crate::cli::Output;
use crate::exit::FAILED;

/// Changes per second that measure the way to the signal.
const BEACONS_PER_S: f64 = 2.0;
/// … where that is what is measured.
const BEACONS_PER_S_LATENCY: f64 = 20.0;

/// Correlators of `chaos`.
const CHAOS_REPLICAS: usize = 3;
/// … of `takeover`.
const TAKEOVER_REPLICAS: usize = 2;
/// The load of `takeover` lasts for longer than its rounds take: kill and stop, each up to so long.
const ROUND_MAX: Duration = Duration::from_secs(150);

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
        Mode::Takeover(mode) => {
            let measured = takeover::run(&takeover_of(args, mode)?).await?;
            let json = serde_json::to_string(&measured)?;
            tell(&measured.text(), &json, args.output);
            return Ok(if measured.failures.is_empty() { 0 } else { FAILED });
        }
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
    let cut = Cut { producers: args.producers, events: Some(events), live: live(Some(rate)) };
    Ok(Chaos {
        title: format!(
            "chaos: {} things done to processes in {} min under {rate} events/s",
            mode.actions, mode.minutes
        ),
        program: std::env::current_exe().context("cannot find the own binary")?,
        producer_arguments: producer_arguments(args, length, rate, mode.batch_age_ms),
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

fn producer_arguments(args: &LoadtestArgs, length: Duration, rate: f64, batch_age_ms: f64) -> Vec<String> {
    let values = [
        ("--seed", args.seed.to_string()),
        ("--producers", args.producers.to_string()),
        ("--fault-every-ms", args.fault_every_ms.to_string()),
        ("--seconds", length.as_secs_f64().to_string()),
        ("--rate", rate.to_string()),
        ("--batch-age-ms", batch_age_ms.to_string()),
    ];
    let values = values.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    ["loadtest", "producer"].map(str::to_owned).into_iter().chain(values).collect()
}

fn takeover_of(args: &LoadtestArgs, mode: &TakeoverArgs) -> anyhow::Result<Takeover> {
    let rate = positive("rate", mode.rate)?;
    let rounds = mode.rounds.max(1);
    let length = ROUND_MAX.saturating_mul(u32::try_from(2 * rounds)?);
    let replicas = args.replicas.unwrap_or(TAKEOVER_REPLICAS).max(2);
    Ok(Takeover {
        title: format!(
            "takeover: {rounds} kills and {rounds} planned stops, {replicas} replicas under {rate} events/s"
        ),
        program: std::env::current_exe().context("cannot find the own binary")?,
        producer_arguments: producer_arguments(args, length, rate, mode.batch_age_ms),
        rounds,
        replicas,
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
    tell(&report.text(), &report.json(), output);
    if report.is_good() { 0 } else { FAILED }
}

fn tell(text: &str, json: &str, output: Output) {
    match output {
        Output::Human => print!("{text}"),
        Output::Json | Output::Jsonl => {
            eprint!("{text}");
            println!("{json}");
        }
    }
}
