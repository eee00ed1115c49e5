//! Load, faults, and at the same time every process is killed, paused and restarted: nothing may be lost or doubled.

pub mod schedule;
mod victims;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapio_schemas::UnixNanos;

use crate::balance::Balance;
use crate::ceiling;
use crate::drive::Start;
use crate::error::LoadError;
use crate::load::faults::{self, Fault, Plan};
use crate::load::world::World;
use crate::producer::Place;
use crate::report::{Figures, Report, costs, rounded};
use crate::rig::lanes::{LaneReader, Stored};
use crate::rig::observe::{Observer, Output, unix_nanos};
use crate::rig::process::{Launch, Process, Usage};
use crate::rig::scrape::{Sample, sum};
use crate::rig::stack::{self, CLUSTER, Dir, Stack, StackConfig};
use crate::rig::store;
use crate::verdict;
use schedule::{Action, Step};
use victims::Victims;

/// The producer begins so long after it is started.
const BEGIN: Duration = Duration::from_millis(1500);
/// Nothing is done before and after this part of the load.
const CALM_START: Duration = Duration::from_secs(5);
const CALM_END: Duration = Duration::from_secs(8);
/// How long the producer may go on after its time: it makes up for what it missed.
const CATCH_UP: Duration = Duration::from_secs(120);
/// How long findings, and the store, may take after the last event.
const PATIENCE: Duration = Duration::from_secs(60);
/// Event time after the last event that has to pass before nothing more is expected.
const SETTLE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Debug, Clone)]
pub struct Chaos {
    /// First line of the report.
    pub title: String,
    /// The `tapio` binary.
    pub program: PathBuf,
    /// Arguments with which it is the producer of [`crate::producer`]: URL, start and place are appended.
    pub producer_arguments: Vec<String>,
    /// Seed of the cluster, the faults and the schedule.
    pub seed: u64,
    /// Length of the load.
    pub length: Duration,
    /// Things done to processes.
    pub actions: usize,
    /// Correlator processes.
    pub replicas: usize,
    /// Faults.
    pub plan: Plan,
    /// Length of each measurement of NATS alone; zero leaves them out.
    pub ceiling: Duration,
    /// Messages for it.
    pub messages: Vec<Bytes>,
    /// Further settings of the services.
    pub settings: Vec<String>,
    /// Keep directory and logs.
    pub keep: bool,
}

/// What happened.
struct Ran {
    start: UnixNanos,
    faults: Vec<Fault>,
    before: Vec<(&'static str, Usage)>,
    after: Vec<(&'static str, Usage)>,
    place: Place,
    stored: Stored,
    messages: u64,
    bytes: u64,
    /// Correlators' metrics at the end.
    samples: Vec<Sample>,
    /// Watermark of all shards at the end, and where it had to be.
    watermark: UnixNanos,
    wanted: UnixNanos,
    sent_in: Duration,
    done_in: Duration,
    fallen: Vec<String>,
    failures: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// [`LoadError`] when it cannot be carried out; what is wrong with the result is in the report.
pub async fn run(chaos: &Chaos) -> Result<Report, LoadError> {
    let dir = Dir::new(chaos.keep)?;
    let nats = stack::server(dir.path()).await?;
    let mut ceilings = Vec::new();
    if !chaos.ceiling.is_zero() {
        ceilings.push(ceiling::measure(&nats.url(), &chaos.messages, chaos.ceiling).await?);
    }
    let config = StackConfig {
        program: chaos.program.clone(),
        dir: dir.path().to_owned(),
        replicas: chaos.replicas,
        settings: chaos.settings.clone(),
    };
    let stack = Stack::start(config, nats).await?;
    let bus = stack::connect(&stack.url(), "loadtest-observer").await?;
    let mut observer = Observer::start(&bus).await?;
    let reading = stack::connect(&stack.url(), "loadtest-reader").await?;
    let lanes = LaneReader::start(&reading).await?;
    let actions = schedule::plan(
        chaos.seed,
        chaos.actions,
        chaos.replicas,
        CALM_START.min(chaos.length / 8),
        chaos.length.saturating_sub(CALM_END.min(chaos.length / 4)),
    );
    let mut ran = under_way(chaos, stack, &observer, &actions).await?;
    let lanes = lanes.finish(&bus).await?;
    (ran.1.stored, ran.1.messages, ran.1.bytes) = (lanes.stored(), lanes.messages, lanes.bytes);
    let findings = || observer.output().findings.clone();
    let unstored = store::settle(&bus, findings, PATIENCE).await?;
    observer.stop().await?;
    let (mut victims, ran) = ran;
    for (name, code) in victims.stack.stop_services().await? {
        if code != Some(0) {
            // It was harmed enough; how it ends is told and does not count.
            eprintln!("{name} ended with {code:?}");
        }
    }
    if !chaos.ceiling.is_zero() {
        let url = victims.stack.url();
        ceilings.push(ceiling::measure(&url, &chaos.messages, chaos.ceiling).await?);
    }
    let mut report = report(chaos, &ran, &observer.output(), &actions, ceilings);
    report.verdict.wrong.extend(unstored);
    Ok(report)
}

async fn under_way(
    chaos: &Chaos,
    stack: Stack,
    observer: &Observer,
    actions: &[Action],
) -> Result<(Victims, Ran), LoadError> {
    let world = World::new(CLUSTER, chaos.seed);
    let faults = faults::plan(&world, &chaos.plan);
    let start = Start {
        unix: UnixNanos(unix_nanos()).plus(BEGIN.as_nanos() as u64),
        instant: Instant::now() + BEGIN,
    };
    let injections = faults::injections(&world, &chaos.plan, &faults, start.unix)?;
    observer.expect(injections.iter().filter(|i| i.is_news).map(|i| (i.event, i.timestamp)));
    let place = stack.dir().join("place");
    let agent = Process::start(agent(chaos, &stack, start.unix, &place))?;
    let mut victims = Victims::new(stack, agent);
    let before = victims.usage();
    let mut fallen = Vec::new();
    let mut failures = Vec::new();

    for (at, number, step) in schedule::steps(actions) {
        while start.instant + at > Instant::now() {
            let left = (start.instant + at).saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(POLL)).await;
        }
        let action = &actions[number];
        if step == Step::Begin {
            // Whoever fell by itself since the last action is up again before the next one.
            let harmed: Vec<_> = actions.iter().filter(|a| a.at < at && at <= a.at + a.lasts).collect();
            if harmed.is_empty() {
                fallen.extend(victims.revive()?);
            }
            eprintln!("{action}");
        }
        victims.step(action, step).await?;
    }
    let sent_in = sent(&mut victims, start, chaos.length, &mut fallen, &mut failures).await?;
    fallen.extend(victims.revive()?);
    let wanted = start.after(chaos.length.max(sent_in)).plus(SETTLE.as_nanos() as u64);
    settle(observer, &faults, wanted).await;
    let after = victims.usage();
    let samples = metrics(&mut victims.stack).await?;
    let watermark = observer.output().watermark();
    let ran = Ran {
        start: start.unix,
        faults,
        before,
        after,
        place: Place::read(&place),
        stored: Stored::default(),
        messages: 0,
        bytes: 0,
        samples,
        watermark,
        wanted,
        sent_in,
        done_in: start.instant.elapsed(),
        fallen,
        failures,
    };
    Ok((victims, ran))
}

fn agent(chaos: &Chaos, stack: &Stack, start: UnixNanos, place: &std::path::Path) -> Launch {
    let mut arguments = chaos.producer_arguments.clone();
    let own = [
        ("--nats-url", stack.url()),
        ("--start-unix-nanos", start.0.to_string()),
        ("--place", place.to_string_lossy().into_owned()),
    ];
    arguments.extend(own.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    Launch {
        name: "agent".to_owned(),
        program: chaos.program.clone(),
        arguments,
        dir: stack.dir().to_owned(),
    }
}

/// Waits until the producer has sent everything and has it acknowledged; gives the time since the start.
async fn sent(
    victims: &mut Victims,
    start: Start,
    length: Duration,
    fallen: &mut Vec<String>,
    failures: &mut Vec<String>,
) -> Result<Duration, LoadError> {
    let deadline = start.instant + length + CATCH_UP;
    while victims.agent.ended() != Some(Some(0)) {
        if Instant::now() >= deadline {
            failures.push(format!("the producer was not done {} s after its time", CATCH_UP.as_secs()));
            break;
        }
        fallen.extend(victims.revive()?);
        tokio::time::sleep(POLL).await;
    }
    Ok(start.instant.elapsed())
}

async fn settle(observer: &Observer, faults: &[Fault], wanted: UnixNanos) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        {
            let output = observer.output();
            if output.watermark() >= wanted && verdict::all_told(faults, &output.findings) {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn metrics(stack: &mut Stack) -> Result<Vec<Sample>, LoadError> {
    for correlator in &mut stack.correlators {
        correlator.ready().await?;
    }
    stack.correlator_metrics().await
}

fn balance(ran: &Ran) -> Balance {
    let mut balance = Balance::new(ran.place.produced, ran.stored.events, &ran.samples);
    // Counters of killed processes are gone, and takeovers read again: what counts is that the stream has each event once and
    // that every shard's owner has said that it is past the last one.
    let is_past = ran.watermark >= ran.wanted;
    balance.read = if is_past { ran.stored.events } else { 0 };
    let dropped: u64 =
        balance.dropped.iter().filter(|(at, _)| at.starts_with("correlator.")).map(|(_, n)| n).sum();
    balance.processed = balance.read.saturating_sub(dropped);
    balance.dropped.remove("publish.unacknowledged");
    balance.duplicate_batches = 0;
    balance
}

fn report(
    chaos: &Chaos,
    ran: &Ran,
    output: &Output,
    actions: &[Action],
    ceilings: Vec<ceiling::Ceiling>,
) -> Report {
    let balance = balance(ran);
    let verdict = verdict::judge(&ran.faults, &output.findings, ran.start);
    let events = ran.place.produced;
    let (cpu_seconds_per_million, peak_rss_bytes) = costs(&ran.before, &ran.after, events);
    let message =
        chaos.messages.iter().map(Bytes::len).sum::<usize>() as f64 / chaos.messages.len().max(1) as f64;
    let bytes_per_event = message * ran.place.messages as f64 / events.max(1) as f64;
    let processed_per_s = events as f64 / ran.done_in.as_secs_f64();
    let ceiling = ceiling::mean(&ceilings);
    let ratio = if ceilings.is_empty() { 0.0 } else { processed_per_s * bytes_per_event / ceiling };
    let mut failures = ran.failures.clone();
    let Stored { doubled, holes, .. } = ran.stored;
    for (what, count) in [
        ("events are in the stream twice", doubled),
        ("events are missing in producers' numbers in the stream", holes),
        ("messages of the correlator do not decode", output.unreadable),
        ("events that are news are in no signal", output.unnamed() as u64),
        ("messages are in the stream that nobody sent", ran.messages.saturating_sub(ran.place.messages)),
    ] {
        if count > 0 {
            failures.push(format!("{count} {what}"));
        }
    }
    if ran.watermark < ran.wanted {
        let behind = ran.wanted.since(ran.watermark) / 1_000_000;
        failures.push(format!("not every shard is past the last event: {behind} ms behind"));
    }
    let notes = notes(chaos, ran, output, actions);
    let figures = Figures {
        published_per_s: (events as f64 / ran.sent_in.as_secs_f64()).round(),
        processed_per_s: processed_per_s.round(),
        bytes_per_event: rounded(bytes_per_event),
        dropped: balance.dropped.clone(),
        ceiling_bytes_per_s: ceiling.round(),
        ratio: rounded(ratio),
        latency_event_to_signal_ms: output.to_signal.percentiles(),
        latency_event_to_binding_signal_ms: output.to_binding_signal.percentiles(),
        latency_event_to_insight_ms: verdict.to_insight.percentiles(),
        latency_deciding_event_to_insight_ms: verdict.deciding_to_insight.percentiles(),
        cpu_seconds_per_million,
        peak_rss_bytes,
    };
    Report { title: chaos.title.clone(), figures, balance, verdict, ceilings, notes, failures }
}

fn notes(chaos: &Chaos, ran: &Ran, output: &Output, actions: &[Action]) -> Vec<(String, String)> {
    let mut notes = vec![
        ("seed".to_owned(), chaos.seed.to_string()),
        ("replicas".to_owned(), chaos.replicas.to_string()),
        (
            "stream".to_owned(),
            format!(
                "{} messages, {} events once each in {} lanes, {} twice, {} missing",
                ran.messages, ran.stored.events, ran.stored.lanes, ran.stored.doubled, ran.stored.holes
            ),
        ),
        ("measured".to_owned(), format!("{} signals", output.to_signal.count())),
    ];
    let causes: Vec<String> =
        faults::causes(&ran.faults).iter().map(|(cause, n)| format!("{n} {cause}")).collect();
    notes.push(("injected".to_owned(), causes.join(", ")));
    let late = sum(&ran.samples, "tapio_correlator_events_late_total");
    notes.push(("late".to_owned(), format!("{late} events came behind the watermark and were used")));
    notes.extend(actions.iter().map(|action| ("done".to_owned(), action.to_string())));
    notes.extend(ran.fallen.iter().map(|text| ("fell".to_owned(), text.clone())));
    notes
}
