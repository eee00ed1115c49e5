//! Load, faults, and at the same time every process is killed, paused and restarted: nothing may be lost or doubled.

mod account;
pub mod schedule;
mod victims;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapio_schemas::UnixNanos;

use crate::ceiling;
use crate::drive::Start;
use crate::error::LoadError;
use crate::load::faults::{self, Fault, Plan};
use crate::load::world::World;
use crate::producer::{self, Place};
use crate::report::{Figures, Report, costs, rounded};
use crate::rig::agents::{self, Runs};
use crate::rig::lanes::{LaneReader, Lanes};
use crate::rig::observe::{Observer, Output, unix_nanos};
use crate::rig::process::{Process, Usage};
use crate::rig::scrape::{Sample, sum};
use crate::rig::stack::{self, CLUSTER, Dir, Stack, StackConfig};
use crate::rig::store;
use crate::rig::words::{Listener, Words};
use crate::verdict;
use account::Account;
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
    /// Correlators' metrics at the end.
    samples: Vec<Sample>,
    /// Watermark of all shards at the end, and where it had to be.
    watermark: UnixNanos,
    wanted: UnixNanos,
    sent_in: Duration,
    done_in: Duration,
    failures: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// [`LoadError`] when it cannot be carried out; what is wrong with the result is in the report.
pub async fn run(chaos: &Chaos) -> Result<Report, LoadError> {
    let dir = Dir::new(chaos.keep)?;
    let mut ceilings = Vec::new();
    ceilings.extend(ceiling::measure(dir.path(), &chaos.messages, chaos.ceiling).await?);
    let nats = stack::server(dir.path()).await?;
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
    let words: Listener<Words> = Listener::start(&reading).await?;
    let runs: Listener<Runs> = Listener::start(&reading).await?;
    let mut actions = schedule::plan(
        chaos.seed,
        chaos.actions,
        chaos.replicas,
        CALM_START.min(chaos.length / 8),
        chaos.length.saturating_sub(CALM_END.min(chaos.length / 4)),
    );
    let (mut victims, ran) = under_way(chaos, stack, &observer, &words, &mut actions).await?;
    let lanes = lanes.finish(&bus).await?;
    let account = Account::new(&ran.place, &lanes, &words.words());
    let agent = agent(&victims, &runs, &lanes, &words).await;
    let findings = || observer.output().findings.clone();
    let unstored = store::settle(&bus, findings, PATIENCE).await?;
    observer.stop().await?;
    victims.revive()?;
    let ended = victims.stack.stop_services().await?;
    let badly = ended.into_iter().filter(|(_, code)| *code != Some(0));
    victims.fallen.extend(badly.map(|(name, code)| format!("{name} ended with {code:?} at the end")));
    ceilings.extend(ceiling::measure(dir.path(), &chaos.messages, chaos.ceiling).await?);
    let mut report = report(chaos, &ran, account, &observer.output(), ceilings);
    report.notes.extend(notes(chaos, &ran, &lanes, &observer.output(), &actions));
    report.verdict.wrong.extend(unstored);
    report.notes.extend(agent.runs.into_iter().map(|run| ("node agent".to_owned(), run)));
    report.notes.push(("node agent".to_owned(), sees(&victims.lacks)));
    report.failures.extend(agent.wrong);
    report.failures.append(&mut victims.fallen);
    Ok(report)
}

async fn under_way(
    chaos: &Chaos,
    stack: Stack,
    observer: &Observer,
    words: &Listener<Words>,
    actions: &mut [Action],
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
    let launch = producer::launch(&chaos.program, &chaos.producer_arguments, &stack, start.unix, &place);
    let agent = Process::start(stack.agent())?;
    let mut victims = Victims::new(stack, Process::start(launch)?, agent);
    let before = victims.usage();
    let mut failures = Vec::new();

    let mut steps = schedule::steps(actions);
    while let Some((at, number, step)) = steps.pop_front() {
        while start.instant + at > Instant::now() {
            let left = (start.instant + at).saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(POLL)).await;
            victims.revive()?;
        }
        let action = actions[number];
        if step == Step::Begin {
            // What its target waits for may be paused until a later step, so nobody waits here.
            if victims.is_busy(action.target)? {
                schedule::put_back(actions, &mut steps, number);
                continue;
            }
            eprintln!("{action}");
        }
        victims.step(&action, step)?;
    }
    let sent_in = sent(&mut victims, start, chaos.length, &mut failures).await?;
    let place = Place::read(&place);
    let wanted = start.after(chaos.length.max(sent_in)).plus(SETTLE.as_nanos() as u64);
    let is_done = || {
        let output = observer.output();
        output.watermark() >= wanted
            && verdict::all_told(&faults, &output.findings)
            && words.words().said().read >= place.produced
    };
    settle(&mut victims, is_done).await?;
    let done_in = start.instant.elapsed();
    victims.stop_agent().await?;
    let after = victims.usage();
    let samples = metrics(&mut victims.stack).await?;
    let watermark = observer.output().watermark();
    let ran = Ran {
        start: start.unix,
        faults,
        before,
        after,
        place,
        samples,
        watermark,
        wanted,
        sent_in,
        done_in,
        failures,
    };
    Ok((victims, ran))
}

/// Waits until the producer has sent everything and has it acknowledged; gives the time since the start.
async fn sent(
    victims: &mut Victims,
    start: Start,
    length: Duration,
    failures: &mut Vec<String>,
) -> Result<Duration, LoadError> {
    let deadline = start.instant + length + CATCH_UP;
    while victims.sender.ended() != Some(Some(0)) {
        if Instant::now() >= deadline {
            failures.push(format!("the producer was not done {} s after its time", CATCH_UP.as_secs()));
            break;
        }
        victims.revive()?;
        tokio::time::sleep(POLL).await;
    }
    Ok(start.instant.elapsed())
}

/// Waits until all is there that is to come; not longer than [`PATIENCE`].
async fn settle(victims: &mut Victims, is_done: impl Fn() -> bool) -> Result<(), LoadError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && (victims.is_draining() || !is_done()) {
        victims.revive()?;
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// What became of the node agent's events, once correlators have said that they read them; not waited for longer than
/// [`PATIENCE`].
async fn agent(
    victims: &Victims,
    runs: &Listener<Runs>,
    lanes: &Lanes,
    words: &Listener<Words>,
) -> agents::Account {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let account = runs.words().account(&victims.ends, lanes, &words.words());
        if account.wrong.is_empty() || Instant::now() >= deadline {
            return account;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether it can do here what a node agent does.
fn sees(lacks: &[String]) -> String {
    match lacks {
        [] => "it read this machine's kernel, with its programs there".to_owned(),
        lacks => format!("DEGRADED: it ran without {}", lacks.join("; without ")),
    }
}

async fn metrics(stack: &mut Stack) -> Result<Vec<Sample>, LoadError> {
    for correlator in &mut stack.correlators {
        correlator.ready().await?;
    }
    stack.correlator_metrics().await
}

fn report(
    chaos: &Chaos,
    ran: &Ran,
    account: Account,
    output: &Output,
    ceilings: Vec<ceiling::Ceiling>,
) -> Report {
    let Account { balance, wrong } = account;
    let verdict = verdict::judge(&ran.faults, &output.findings, ran.start);
    let events = ran.place.produced;
    let (cpu_seconds_per_million, peak_rss_bytes) = costs(&ran.before, &ran.after, events);
    let message =
        chaos.messages.iter().map(Bytes::len).sum::<usize>() as f64 / chaos.messages.len().max(1) as f64;
    let bytes_per_event = message * ran.place.messages as f64 / events.max(1) as f64;
    let processed_per_s = events as f64 / ran.done_in.as_secs_f64();
    let ceiling = ceiling::mean(&ceilings);
    let ratio = if ceilings.is_empty() { 0.0 } else { processed_per_s * bytes_per_event / ceiling };
    let mut failures = [ran.failures.clone(), wrong].concat();
    for (what, count) in [
        ("messages of the correlator do not decode", output.unreadable),
        ("events that are news are in no signal", output.unnamed() as u64),
    ] {
        if count > 0 {
            failures.push(format!("{count} {what}"));
        }
    }
    if ran.watermark < ran.wanted {
        let behind = ran.wanted.since(ran.watermark) / 1_000_000;
        failures.push(format!("not every shard is past the last event: {behind} ms behind"));
    }
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
    Report { title: chaos.title.clone(), figures, balance, verdict, ceilings, notes: Vec::new(), failures }
}

fn notes(
    chaos: &Chaos,
    ran: &Ran,
    lanes: &Lanes,
    output: &Output,
    actions: &[Action],
) -> Vec<(String, String)> {
    let stored = lanes.stored();
    let mut notes = vec![
        ("seed".to_owned(), chaos.seed.to_string()),
        ("replicas".to_owned(), chaos.replicas.to_string()),
        (
            "stream".to_owned(),
            format!(
                "{} messages, {} events once each in {} lanes, {} twice, {} missing",
                lanes.messages, stored.events, stored.lanes, stored.doubled, stored.holes
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
    notes
}
