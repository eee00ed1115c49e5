//! One measured run, in the order in which it happens: `throughput`, `latency` and `soak` are this with other numbers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapio_schemas::UnixNanos;

use crate::balance::Balance;
use crate::ceiling::{self, Ceiling};
use crate::drive::{self, Batches, Drive, Driven, Start};
use crate::error::LoadError;
use crate::growth::{self, Growth};
use crate::load::PRODUCER;
use crate::load::faults::{self, Fault, Plan};
use crate::load::generator::{Cut, Generator, Templates};
use crate::load::traces::live;
use crate::load::world::World;
use crate::report::{Figures, Report, costs, rounded};
use crate::rig::observe::{Observer, unix_nanos};
use crate::rig::process::Usage;
use crate::rig::scrape::sum;
use crate::rig::stack::{self, CLUSTER, Dir, Stack, StackConfig};
use crate::rig::store;
use crate::verdict;

/// Messages of the ceiling: distinct, as many as two rounds over the shards.
const CEILING_MESSAGES: u16 = 128;
/// How often progress is looked at.
const PROGRESS: Duration = Duration::from_millis(50);
/// The correlator that does not get on for so long has lost something.
const STANDSTILL: Duration = Duration::from_secs(20);
/// Findings that are still to come get so long.
const FINDINGS: Duration = Duration::from_secs(20);
/// Event time after the last event that has to pass before nothing more is expected.
const SETTLE: Duration = Duration::from_secs(3);
/// Preparing takes as long as making, and a little more.
const PREPARE_MIN: Duration = Duration::from_secs(1);
const PREPARE_FACTOR: f64 = 1.3;
/// What the generator alone is measured for.
const GENERATOR_ALONE: Duration = Duration::from_millis(300);

/// What to run.
#[derive(Debug, Clone)]
pub struct Measure {
    /// First line of the report.
    pub title: String,
    /// The `tapio` binary.
    pub program: PathBuf,
    /// Seed of everything.
    pub seed: u64,
    /// Length of the load.
    pub length: Duration,
    /// Events per second; `None`: as fast as the correlator takes them.
    pub rate: Option<f64>,
    /// Oldest event of a batch; `None`: batches are filled.
    pub batch_age: Option<Duration>,
    /// Node agents.
    pub producers: usize,
    /// Correlator processes.
    pub replicas: usize,
    /// Batches published and not yet processed; then the sender waits.
    pub backlog_batches: u64,
    /// With a rate: make all batches before the start.
    pub prepared: bool,
    /// Time between two faults.
    pub fault_every: Duration,
    /// Changes per second that measure the way to the signal.
    pub beacons_per_s: f64,
    /// Length of each measurement of NATS alone; zero leaves them out.
    pub ceiling: Duration,
    /// Further settings of the services.
    pub settings: Vec<String>,
    /// Keep directory and logs.
    pub keep: bool,
}

impl Measure {
    fn cut(&self) -> Cut {
        let events = self.rate.zip(self.batch_age).map(|(rate, age)| events_per_batch(rate, age));
        Cut { producers: self.producers, events, live: live(self.rate) }
    }

    fn plan(&self) -> Plan {
        Plan {
            seed: self.seed,
            length: self.length,
            every: self.fault_every,
            beacons_per_s: self.beacons_per_s,
        }
    }
}

/// Events of a batch that is sent at this age.
pub fn events_per_batch(rate: f64, age: Duration) -> usize {
    let of_shard = rate / f64::from(tapio_schemas::names::SHARD_COUNT);
    ((of_shard * age.as_secs_f64()) as usize).max(1)
}

/// Runs it.
///
/// # Errors
/// [`LoadError`] when it cannot be carried out; what is wrong with the result is in the report.
pub async fn run(measure: &Measure) -> Result<Report, LoadError> {
    let world = World::new(CLUSTER, measure.seed);
    let dir = Dir::new(measure.keep)?;
    let templates = Templates::new(&world, measure.seed, measure.cut())?;
    let messages = messages(&templates);
    let mut ceilings = Vec::new();
    ceilings.extend(ceiling::measure(dir.path(), &messages, measure.ceiling).await?);
    let nats = stack::server(dir.path()).await?;
    let config = StackConfig {
        program: measure.program.clone(),
        dir: dir.path().to_owned(),
        replicas: measure.replicas,
        settings: measure.settings.clone(),
    };
    let mut stack = Stack::start(config, nats).await?;
    let listening = stack::connect(&stack.url(), "loadtest-observer").await?;
    let mut observer = Observer::start(&listening).await?;
    let ran = load(&stack, &observer, &world, &templates, measure).await?;
    let findings = || observer.output().findings.clone();
    let unstored = store::settle(&listening, findings, FINDINGS).await?;
    observer.stop().await?;
    let subjects = ceiling::subjects(&stack.url()).await?;
    let ended = stack.stop_services().await?;
    ceilings.extend(ceiling::measure(dir.path(), &messages, measure.ceiling).await?);

    let output = observer.output();
    let mut report = report(measure, &ran, &output, ceilings);
    report.verdict.wrong.extend(unstored);
    report.notes.push(("subjects".to_owned(), subjects.to_string()));
    let badly = ended.iter().filter(|(_, code)| *code != Some(0));
    report.failures.extend(badly.map(|(name, code)| format!("{name} ended with {code:?}")));
    Ok(report)
}

/// What happened under load.
struct Ran {
    start: Start,
    faults: Vec<Fault>,
    driven: Driven,
    balance: Balance,
    /// From the start until the last batch was taken.
    processed_in: Duration,
    before: Vec<(&'static str, Usage)>,
    after: Vec<(&'static str, Usage)>,
    sizes: Vec<(Duration, Vec<(&'static str, Usage)>)>,
    generator_ns: f64,
}

async fn load(
    stack: &Stack,
    observer: &Observer,
    world: &World,
    templates: &Templates,
    measure: &Measure,
) -> Result<Ran, LoadError> {
    let generator_ns = alone(templates);
    let bus = stack::connect(&stack.url(), "loadtest-producers").await?;
    let plan = measure.plan();
    let faults = faults::plan(world, &plan);
    // Nothing else runs meanwhile, so this thread may be kept.
    let (start, batches) = tokio::task::block_in_place(|| batches(templates, measure, generator_ns));
    let injections = faults::injections(world, &plan, &faults, start.unix)?;
    observer.expect(injections.iter().filter(|i| i.is_news).map(|i| (i.event, i.timestamp)));

    let before = stack.usage();
    let processed = Arc::new(AtomicU64::new(0));
    let drive =
        Drive { rate: measure.rate, length: measure.length, backlog_batches: measure.backlog_batches };
    let driving = drive::drive(&bus, batches, injections, start, drive, Arc::clone(&processed));
    let (driven, sizes) = watch(stack, start, driving, &processed).await?;
    let batches = "tapio_correlator_batches_total";
    stack.wait_counter(batches, driven.batches, STANDSTILL).await?;
    let processed_in = start.instant.elapsed();
    let after = stack.usage();
    // Events are counted when event time moves on; that is also when findings come.
    stack.wait_counter("tapio_correlator_events_total", driven.produced, STANDSTILL).await?;
    settle(observer, &faults, start.after(measure.length.max(driven.took))).await?;
    let balance = Balance::new(driven.produced, driven.acknowledged, &stack.correlator_metrics().await?);
    Ok(Ran { start, faults, driven, balance, processed_in, before, after, sizes, generator_ns })
}

/// The batches and the moment of the start, which lies ahead when they are prepared.
fn batches(templates: &Templates, measure: &Measure, generator_ns: f64) -> (Start, Batches) {
    let now = Start::now();
    let Some(rate) = measure.rate.filter(|_| measure.prepared) else {
        return (now, Batches::Live(Box::new(Generator::new(templates, PRODUCER, now.unix))));
    };
    let events = rate * measure.length.as_secs_f64();
    let ahead = PREPARE_MIN + Duration::from_secs_f64(PREPARE_FACTOR * events * generator_ns / 1e9);
    let start = Start { unix: now.after(ahead), instant: now.instant + ahead };
    let generator = Generator::new(templates, PRODUCER, start.unix);
    let batches = Batches::prepare(generator, start, rate, measure.length);
    std::thread::sleep(start.instant.saturating_duration_since(Instant::now()));
    (start, batches)
}

/// Follows the correlators' progress, which holds the sender back, and their sizes.
async fn watch(
    stack: &Stack,
    start: Start,
    driving: impl Future<Output = Result<Driven, LoadError>>,
    processed: &AtomicU64,
) -> Result<(Driven, Vec<(Duration, Vec<(&'static str, Usage)>)>), LoadError> {
    tokio::pin!(driving);
    let mut tick = tokio::time::interval(PROGRESS);
    let mut sizes = Vec::new();
    let mut measured = Instant::now();
    loop {
        tokio::select! {
            driven = &mut driving => return Ok((driven?, sizes)),
            _ = tick.tick() => {
                let samples = stack.correlator_metrics().await?;
                processed.store(sum(&samples, "tapio_correlator_batches_total"), Ordering::Relaxed);
                if measured.elapsed() >= Duration::from_secs(1) {
                    measured = Instant::now();
                    sizes.push((start.instant.elapsed(), stack.usage()));
                }
            }
        }
    }
}

/// Waits until event time has passed the end by enough and every fault is told; not longer than [`FINDINGS`].
async fn settle(observer: &Observer, faults: &[Fault], end: UnixNanos) -> Result<(), LoadError> {
    let deadline = Instant::now() + FINDINGS;
    let quiet = end.plus(SETTLE.as_nanos() as u64);
    while Instant::now() < deadline {
        {
            let output = observer.output();
            if output.watermark() >= quiet && verdict::all_told(faults, &output.findings) {
                return Ok(());
            }
        }
        tokio::time::sleep(PROGRESS).await;
    }
    Ok(())
}

/// Nanoseconds per event that the generator needs when nothing else runs.
fn alone(templates: &Templates) -> f64 {
    let mut generator = Generator::new(templates, PRODUCER, Start::now().unix);
    let (began, mut events) = (Instant::now(), 0u64);
    let mut shard = 0;
    while began.elapsed() < GENERATOR_ALONE {
        events += std::hint::black_box(generator.batch(shard, UnixNanos(unix_nanos()))).events;
        shard = (shard + 1) % tapio_schemas::names::SHARD_COUNT;
    }
    began.elapsed().as_nanos() as f64 / events.max(1) as f64
}

/// Messages of the load, for the measurement of NATS alone.
pub fn messages(templates: &Templates) -> Vec<Bytes> {
    let start = Start::now().unix;
    let mut generator = Generator::new(templates, PRODUCER, start);
    let shards = tapio_schemas::names::SHARD_COUNT;
    (0..CEILING_MESSAGES)
        .map(|n| Bytes::from(generator.batch(n % shards, start.plus(1_000_000)).bytes))
        .collect()
}

fn report(
    measure: &Measure,
    ran: &Ran,
    output: &crate::rig::observe::Output,
    ceilings: Vec<Ceiling>,
) -> Report {
    let driven = &ran.driven;
    let verdict = verdict::judge(&ran.faults, &output.findings, ran.start.unix);
    let (cpu_seconds_per_million, peak_rss_bytes) = costs(&ran.before, &ran.after, driven.produced);
    let bytes_per_event = driven.bytes as f64 / driven.produced.max(1) as f64;
    let processed_per_s = driven.produced as f64 / ran.processed_in.as_secs_f64();
    let ceiling_bytes_per_s = ceiling::mean(&ceilings);
    let ratio = match ceilings.len() {
        0 => 0.0,
        _ => processed_per_s * bytes_per_event / ceiling_bytes_per_s,
    };
    let figures = Figures {
        published_per_s: (driven.produced as f64 / driven.took.as_secs_f64()).round(),
        processed_per_s: processed_per_s.round(),
        bytes_per_event: rounded(bytes_per_event),
        dropped: ran.balance.dropped.clone(),
        ceiling_bytes_per_s: ceiling_bytes_per_s.round(),
        ratio: rounded(ratio),
        latency_event_to_signal_ms: output.to_signal.percentiles(),
        latency_event_to_binding_signal_ms: output.to_binding_signal.percentiles(),
        latency_event_to_insight_ms: verdict.to_insight.percentiles(),
        latency_deciding_event_to_insight_ms: verdict.deciding_to_insight.percentiles(),
        cpu_seconds_per_million,
        peak_rss_bytes,
    };
    let mut failures = Vec::new();
    if output.unreadable > 0 {
        failures.push(format!("{} messages of the correlator do not decode", output.unreadable));
    }
    if output.unnamed() > 0 {
        failures.push(format!("{} events that are news are in no signal", output.unnamed()));
    }
    if driven.duplicates > 0 {
        failures.push(format!("{} messages were taken for copies of others", driven.duplicates));
    }
    failures.extend(growth::of(&ran.sizes).iter().filter_map(Growth::failure));
    let notes = notes(measure, ran, output, &verdict);
    Report {
        title: measure.title.clone(),
        figures,
        balance: ran.balance.clone(),
        verdict,
        ceilings,
        notes,
        failures,
    }
}

fn notes(
    measure: &Measure,
    ran: &Ran,
    output: &crate::rig::observe::Output,
    verdict: &verdict::Verdict,
) -> Vec<(String, String)> {
    let driven = &ran.driven;
    let mut notes = vec![
        ("seed".to_owned(), measure.seed.to_string()),
        (
            "messages".to_owned(),
            format!(
                "{} of {:.1} KiB, {:.1} events each, {} producers",
                driven.batches,
                driven.bytes as f64 / 1024.0 / driven.batches.max(1) as f64,
                driven.produced as f64 / driven.batches.max(1) as f64,
                measure.producers
            ),
        ),
        ("generator alone".to_owned(), format!("{:.0} ns per event", ran.generator_ns)),
        (
            "measured".to_owned(),
            format!(
                "{} signals ({} told at once), {} findings",
                output.to_signal.count(),
                output.first_words,
                verdict.to_insight.count()
            ),
        ),
    ];
    let causes: Vec<String> =
        faults::causes(&ran.faults).iter().map(|(cause, n)| format!("{n} {cause}")).collect();
    notes.push(("injected".to_owned(), causes.join(", ")));
    if measure.rate.is_some() {
        let behind = driven.behind_max.as_secs_f64() * 1e3;
        notes.push(("behind schedule".to_owned(), format!("{behind:.1} ms at worst")));
    }
    notes.extend(growth::of(&ran.sizes).iter().map(|of| (format!("growth {}", of.name), of.text())));
    notes
}
