//! How long nobody judges when a correlator dies, and when it is told to stop: under load, with real processes.
//!
//! A shard is taken over when another owner has told a mark under a newer lease that is not behind what the one before had
//! said: it has read what was there and judges on. The incidents are taken over when their new owner answers questions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;
use tapio_schemas::UnixNanos;
use tapio_schemas::names::{SHARD_COUNT, lease_group};

use crate::error::LoadError;
use crate::producer;
use crate::rig::observe::unix_nanos;
use crate::rig::owners::{Heard, Owners};
use crate::rig::process::{Process, stopped_badly};
use crate::rig::stack::{self, CLUSTER, Dir, Stack, StackConfig};

/// What is promised after a crash, and after a planned stop: told beside what was measured, and not judged, since it depends on
/// what else the machine does.
const GOALS: [Duration; 2] = [Duration::from_secs(3), Duration::from_millis(300)];
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ownership has to stand for so long before the next one is ended.
const STEADY: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// Name of the one resource of the incidents, and of their group.
const INCIDENTS: &str = "incidents";

/// What to run.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// First line of the report.
    pub title: String,
    /// The `tapio` binary.
    pub program: PathBuf,
    /// Arguments with which it is the producer of [`crate::producer`].
    pub producer_arguments: Vec<String>,
    /// Kills, and as many planned stops.
    pub rounds: usize,
    /// Correlator processes.
    pub replicas: usize,
    /// Further settings of the services.
    pub settings: Vec<String>,
    /// Keep directory and logs.
    pub keep: bool,
}

/// How a replica ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Kill,
    Stop,
}

/// Milliseconds of each round until all that the replica had was taken over.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Times {
    /// The last of its shards.
    pub shards_ms: Vec<f64>,
    /// The incidents.
    pub incidents_ms: Vec<f64>,
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Takeovers {
    /// First line.
    #[serde(skip)]
    pub title: String,
    /// After `kill -9`.
    pub kill: Times,
    /// After SIGTERM.
    pub stop: Times,
    /// What went wrong; makes the exit code 1.
    pub failures: Vec<String>,
}

impl Takeovers {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.title);
        for (way, times, goal) in [("kill -9", &self.kill, GOALS[0]), ("SIGTERM", &self.stop, GOALS[1])] {
            for (what, ms) in [("all shards", &times.shards_ms), ("incidents", &times.incidents_ms)] {
                let _ = writeln!(out, "  {way:<8} {what:<11} {} (goal {} ms)", figures(ms), goal.as_millis());
            }
        }
        for failure in &self.failures {
            let _ = writeln!(out, "  WRONG    {failure}");
        }
        out
    }
}

fn figures(ms: &[f64]) -> String {
    let mut sorted = ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.last() {
        Some(worst) => {
            let median = sorted[sorted.len() / 2];
            format!("median {median:.0} ms, worst {worst:.0} ms of {}", sorted.len())
        }
        None => "not measured".to_owned(),
    }
}

/// Runs it: each time the replica that owns the incidents is ended, and comes back.
///
/// # Errors
/// [`LoadError`] when it cannot be carried out.
pub async fn run(takeover: &Takeover) -> Result<Takeovers, LoadError> {
    let dir = Dir::new(takeover.keep)?;
    let nats = stack::server(dir.path()).await?;
    let config = StackConfig {
        program: takeover.program.clone(),
        dir: dir.path().to_owned(),
        replicas: takeover.replicas,
        settings: takeover.settings.clone(),
    };
    let bus = stack::connect(&nats.url(), "loadtest-observer").await?;
    // Before anyone owns anything: a fence that is posted is heard, one that was posted is not.
    let heard = Heard::start(&bus).await?;
    let mut stack = Stack::start(config, nats).await?;
    let place = dir.path().join("place");
    let start = UnixNanos(unix_nanos());
    let arguments = &takeover.producer_arguments;
    let mut producer = Process::start(producer::launch(&takeover.program, arguments, &stack, start, &place))?;
    let mut measured = Takeovers { title: takeover.title.clone(), ..Takeovers::default() };
    for _ in 0..takeover.rounds {
        for way in [Way::Kill, Way::Stop] {
            round(&mut stack, &heard, way, &mut measured).await?;
        }
    }
    if let Some(code) = producer.ended() {
        measured.failures.push(format!("the producer ended before the last round with {code:?}"));
    }
    drop(producer);
    for (name, code) in stack.stop_services().await? {
        if code != Some(0) {
            measured.failures.push(format!("{name} ended with {code:?}"));
        }
    }
    Ok(measured)
}

async fn round(
    stack: &mut Stack,
    heard: &Heard,
    way: Way,
    measured: &mut Takeovers,
) -> Result<(), LoadError> {
    let (victim, had) = steady(stack, heard).await?;
    let process = &mut stack.correlators[victim];
    let began = Instant::now();
    match way {
        Way::Kill => process.kill(),
        Way::Stop => drop(process.signal(Signal::TERM)),
    }
    let after = |(at, _): (Instant, u64)| at.saturating_duration_since(began).as_secs_f64() * 1e3;
    let taken = loop {
        let (shards, incidents) = (heard.shards(), heard.incidents());
        let later = |shard: &u16, epoch: u64| shards.get(shard).copied().filter(|taken| taken.1 > epoch);
        let shards: Option<Vec<_>> = had.shards.iter().map(|(shard, epoch)| later(shard, *epoch)).collect();
        let incidents = incidents.filter(|taken| Some(taken.1) > had.incidents);
        if let (Some(shards), Some(incidents)) = (shards, incidents) {
            break Some((shards.into_iter().map(after).fold(0.0, f64::max), after(incidents)));
        }
        if began.elapsed() >= PATIENCE {
            break None;
        }
        tokio::time::sleep(POLL).await;
    };
    let process = &mut stack.correlators[victim];
    let name = process.name().to_owned();
    match taken {
        Some((shards, incidents)) => {
            let count = had.shards.len();
            eprintln!("{way:?} of {name} with {count} shards: {shards:.0} ms, incidents {incidents:.0} ms");
            let times = if way == Way::Kill { &mut measured.kill } else { &mut measured.stop };
            times.shards_ms.push(shards);
            times.incidents_ms.push(incidents);
        }
        None => {
            let seconds = PATIENCE.as_secs();
            measured
                .failures
                .push(format!("what {name} had was not taken over within {seconds} s ({way:?})"));
        }
    }
    // Told once already: a second time would force it.
    if way == Way::Stop
        && let Some(wrong) = stopped_badly(&name, process.drained().await)
    {
        measured.failures.push(wrong);
    }
    // Whatever came of it: the next round needs it.
    process.restart()?;
    process.ready().await
}

/// Waits until every shard and the incidents have an owner that is heard, and nothing changes; gives the number of the replica
/// that owns the incidents, and what it has.
async fn steady(stack: &Stack, heard: &Heard) -> Result<(usize, Owners), LoadError> {
    let deadline = Instant::now() + PATIENCE;
    let (mut before, mut since) = (Vec::new(), Instant::now());
    while Instant::now() < deadline {
        let mut owners = Vec::new();
        for process in &stack.correlators {
            owners.push(Owners::of(
                &process.scrape().await?,
                &lease_group("shards", CLUSTER),
                &incidents_group(),
            ));
        }
        let (shards, incidents) = (heard.shards(), heard.incidents());
        let all: BTreeMap<u16, u64> = owners.iter().flat_map(|owned| owned.shards.clone()).collect();
        let is_heard =
            all.iter().all(|(shard, epoch)| shards.get(shard).is_some_and(|taken| taken.1 == *epoch));
        let decides = owners.iter().position(|owned| owned.incidents.is_some());
        let shared = owners.iter().all(|owned| !owned.shards.is_empty());
        if owners != before || !is_heard || !shared || all.len() != usize::from(SHARD_COUNT) {
            (before, since) = (owners, Instant::now());
        } else if let Some(victim) = decides.filter(|_| since.elapsed() >= STEADY)
            && incidents.map(|taken| taken.1) == owners[victim].incidents
        {
            return Ok((victim, owners.swap_remove(victim)));
        }
        tokio::time::sleep(10 * POLL).await;
    }
    let what = "an owner of every shard and of the incidents".to_owned();
    Err(LoadError::Timeout { what, seconds: PATIENCE.as_secs() })
}

fn incidents_group() -> String {
    lease_group(INCIDENTS, CLUSTER)
}
