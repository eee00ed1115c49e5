//! A real leak in a real cgroup: predicted, killed by the kernel, explained.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tapio_runtime::shutdown::{Shutdown, trigger_on_signals};
use tapio_schemas::finding::{PERSIST_CONFIDENCE_ABOVE, Prediction};
use tapio_schemas::proto::v1 as api;
use tapio_schemas::{Finding, SignalKind, UnixNanos};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tonic::Streaming;

use super::cgroup::LimitedCgroup;
use crate::cli::{MemoryLeakArgs, RunArgs};
use crate::client::{Client, parse, said};
use crate::commands::run::{Instance, Role};
use crate::exit::FAILED;
use crate::render;

/// After the kill the story must be there within this time.
const STORY_PATIENCE: Duration = Duration::from_secs(30);

/// What the run has shown so far.
#[derive(Default)]
struct Seen {
    /// First prediction that was told before the kill.
    first_prediction: Option<Prediction>,
    /// Last one before the kill.
    last_prediction: Option<Prediction>,
    killed_at: Option<UnixNanos>,
    story: Option<Finding>,
}

/// Runs the demonstration against a running instance, or one of its own.
pub async fn run(args: MemoryLeakArgs) -> anyhow::Result<i32> {
    let stop = Shutdown::new();
    trigger_on_signals(&stop).context("cannot listen for signals")?;
    match Client::connect(&args.client).await {
        Ok(mut client) => {
            println!("Using the instance at {}.", client.address);
            let (name, seen) = demonstrate(&args, &mut client, &stop).await?;
            let code = report(&name, &seen);
            println!("Ask again with: tapio why {name}");
            Ok(code)
        }
        Err(error) if args.client.server().is_some() || args.client.data_dir().is_some() => Err(error),
        Err(_) => run_alone(&args, &stop).await,
    }
}

/// With an instance of its own, which leaves nothing behind.
async fn run_alone(args: &MemoryLeakArgs, stop: &Shutdown) -> anyhow::Result<i32> {
    println!("No instance is running: starting one for the demonstration.");
    let dir = OwnDirectory(std::env::temp_dir().join(format!("tapio-demo-{}", std::process::id())));
    let run = RunArgs { data_dir: Some(dir.0.clone()), free_ports: true, ..RunArgs::default() };
    let instance = Instance::start(Role::All, &run).await?;
    let mut client = Client::connect_to(&instance.endpoints().api_grpc).await?;
    let result = demonstrate(args, &mut client, stop).await;
    drop(client);
    instance.drain().await?;
    let (name, seen) = result?;
    Ok(report(&name, &seen))
}

struct OwnDirectory(PathBuf);

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("tapio: cannot remove {}: {error}", self.0.display());
        }
    }
}

async fn demonstrate(
    args: &MemoryLeakArgs,
    client: &mut Client,
    stop: &Shutdown,
) -> anyhow::Result<(String, Seen)> {
    let cgroup = LimitedCgroup::create(args.limit_mib << 20)?;
    println!(
        "A process will leak {} KiB/s in cgroup {} with a limit of {} MiB. Findings as they come:\n",
        args.rate_kib, cgroup.name, args.limit_mib
    );
    let request = api::SubscribeRequest { entity: cgroup.name.clone(), ..Default::default() };
    let mut findings = client.correlation.subscribe(request).await.map_err(said)?.into_inner();
    let mut child = Command::new(std::env::current_exe().context("cannot find this program's own file")?)
        .arg("leak-child")
        .arg("--procs")
        .arg(cgroup.procs())
        .args(["--rate-kib", &args.rate_kib.to_string()])
        .args(["--stop-mib", &(args.limit_mib * 2).to_string()])
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the leaking process")?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout_seconds);
    let seen = follow(&mut child, &cgroup, &mut findings, deadline, stop).await;
    // The cgroup can only be removed once its process is reaped.
    child.kill().await.context("cannot stop the leaking process")?;
    Ok((cgroup.name.clone(), seen?))
}

async fn follow(
    child: &mut Child,
    cgroup: &LimitedCgroup,
    findings: &mut Streaming<api::SubscribeResponse>,
    mut deadline: Instant,
    stop: &Shutdown,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            status = child.wait(), if seen.killed_at.is_none() => {
                seen.killed_at = Some(killed(status?, cgroup)?);
                println!("{} the kernel killed the process", render::clock(now()));
                deadline = Instant::now() + STORY_PATIENCE;
            }
            message = findings.message() => {
                let message = message.map_err(said)?.context("the instance ended")?;
                let Some(finding) = message.finding.as_ref().map(parse).transpose()? else { continue };
                note(&mut seen, finding);
                if seen.story.is_some() && seen.killed_at.is_some() {
                    return Ok(seen);
                }
            }
            () = tokio::time::sleep_until(deadline) => return Ok(seen),
            () = stop.wait() => bail!("interrupted: the leaking process is stopped and its cgroup removed"),
        }
    }
}

/// Keeps what counts of a finding and prints its line.
fn note(seen: &mut Seen, finding: Finding) {
    println!("{}", render::line(&finding));
    // What is open and not sure yet is told, too; the story is what is sure.
    let sure = finding.confidence.get() > PERSIST_CONFIDENCE_ABOVE;
    let told_kill = sure && finding.chain.iter().any(|link| link.signal == SignalKind::OomKill.as_str());
    if told_kill {
        seen.story = Some(finding);
    } else if seen.killed_at.is_none()
        && let Some(prediction) = finding.prediction
    {
        seen.first_prediction.get_or_insert_with(|| prediction.clone());
        seen.last_prediction = Some(prediction);
    }
}

fn killed(status: ExitStatus, cgroup: &LimitedCgroup) -> anyhow::Result<UnixNanos> {
    use std::os::unix::process::ExitStatusExt;
    if status.signal() != Some(libc::SIGKILL) || cgroup.oom_kills() == 0 {
        bail!(
            "the process ended with {status} and the kernel counted {} kills: no demonstration",
            cgroup.oom_kills()
        );
    }
    Ok(now())
}

fn now() -> UnixNanos {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixNanos(elapsed.as_nanos() as u64)
}

/// Says how it went; exit code 1 when anything promised is missing.
fn report(cgroup: &str, seen: &Seen) -> i32 {
    let mut missing = Vec::new();
    if let Some(story) = &seen.story {
        println!("\n{}", render::story(story));
        let root = story.root_cause.as_ref();
        if !root.is_some_and(|r| r.cause == "memory.leak" && r.entity.name == cgroup) {
            missing.push("the story does not name the leak in this cgroup as root cause".to_owned());
        }
    } else {
        missing.push("no story of the kill arrived".to_owned());
    }
    match (&seen.first_prediction, &seen.last_prediction, seen.killed_at) {
        (Some(first), Some(last), Some(killed)) => {
            for (label, p) in [("First", first), ("Last", last)] {
                let inside = (p.interval.0..=p.interval.1).contains(&killed);
                let verdict = if inside { "inside" } else { "outside" };
                println!(
                    "{label} prediction {} ({} – {}), killed {}: {verdict} the interval.",
                    render::clock(p.at),
                    render::clock(p.interval.0),
                    render::clock(p.interval.1),
                    render::clock(killed)
                );
                if !inside {
                    missing.push(format!("the {} interval missed the kill", label.to_lowercase()));
                }
            }
        }
        (_, _, None) => missing.push("the kernel did not kill the process in time".to_owned()),
        _ => missing.push("no prediction came before the kill".to_owned()),
    }
    for what in &missing {
        eprintln!("tapio: {what}");
    }
    if missing.is_empty() { 0 } else { FAILED }
}
