//! What failing containers of this machine said last: why they ended, in their own words. Secrets in them are masked.
//!
//! The Kubernetes collector says which container has failed ([`FailedContainer`]); its lines are read once, from the file
//! of the life that ended. They are told as one event `runtime.container_said`, whose body is the lines, and each line
//! that differs as a log record of its own, so that words that say by themselves what is wrong are read as those of any
//! other log.

mod config;
pub mod cri;
pub mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use smol_str::SmolStr;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{LogData, Payload};
use tokio::sync::{Mutex, mpsc};

use super::sampling::waiting;
use super::status::{CollectorState, CollectorStates};
use crate::collectors::kubernetes::ends::FailedContainer;
use crate::convert::Seed;
use crate::convert::secrets::last_lines;
use crate::sink::EventSink;
use files::{Life, Unread};

pub use config::PodLogsConfig;

/// How often a file that is not there yet is looked for.
const TRIES: u32 = 4;
/// Time between two looks: the kubelet tells of an end within a second of it.
const AGAIN: Duration = Duration::from_millis(500);
/// An end is never news the moment it happens: it is heard of a while later, and longer after the API server was away.
const HISTORY_MIN: Duration = Duration::from_secs(300);
/// OpenTelemetry's number for a warning: nobody knows how bad a line is that merely came last.
const WARNING: u8 = 13;

/// What the collector needs.
#[derive(Clone)]
pub struct Parts {
    /// Configuration.
    pub config: PodLogsConfig,
    /// An end that is older than this when it is heard of, because the cluster was not to be seen, is no news: [`horizon`].
    pub history: Duration,
    /// Where failed containers come from; whoever runs holds it.
    pub failed: Arc<Mutex<mpsc::Receiver<FailedContainer>>>,
    /// Clock of observations.
    pub clock: SharedClock,
    /// Where events go.
    pub sink: EventSink,
    /// Where the state is told when it gets worse or better than at the start.
    pub states: CollectorStates,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// How old an end may be when it is heard of: `history` as the Kubernetes collector has it, but not so short that nothing would be
/// read. What is older than `age_max` is not told at all, nor what was said.
pub fn horizon(history: Duration, age_max: Duration) -> Duration {
    history.max(HISTORY_MIN).min(age_max)
}

/// What became of the failed containers.
#[derive(Clone)]
struct Outcomes(Family<[(&'static str, &'static str); 1], Counter>);

impl Outcomes {
    fn count(&self, outcome: &'static str) {
        self.0.get_or_create(&[("outcome", outcome)]).inc();
    }
}

/// Reads until it is told to stop.
///
/// # Errors
/// When reading panics.
pub async fn run(parts: Parts, context: WorkerContext) -> WorkerResult {
    let Parts { config, history, failed, clock, sink, states, metrics } = parts;
    let outcomes = Outcomes(metrics.shared(
        "pod_logs_containers",
        "Failed containers, by what became of their last lines: read, absent, not_plain, failed, old, over_limit",
    ));
    let mut failed = failed.lock().await;
    let mut budget = Budget { per_minute: config.per_minute, minute: 0, read: 0 };
    let mut warned = false;
    // Whether files can be read, as far as it knows.
    let mut reads: Option<bool> = None;
    states.set("pod_logs", CollectorState::Running);
    loop {
        let next = tokio::select! {
            () = context.shutdown.wait() => return Ok(()),
            next = waiting(&context, failed.recv()) => next,
        };
        let Some(of) = next else {
            states.set("pod_logs", deaf(&states));
            waiting(&context, context.shutdown.wait()).await;
            return Ok(());
        };
        context.progress.tick();
        if Duration::from_nanos(UnixNanos(clock.now_unix_nanos()).since(of.at)) > history {
            outcomes.count("old");
            continue;
        }
        if !budget.takes(clock.monotonic()) {
            outcomes.count("over_limit");
            continue;
        }
        match read(&config.dir, &of, &context, &clock).await? {
            Ok(bytes) => {
                outcomes.count("read");
                if reads.replace(true) != Some(true) {
                    states.set("pod_logs", CollectorState::Running);
                }
                let now = UnixNanos(clock.now_unix_nanos());
                if sink.send(events(&of, &bytes, now)).await.is_err() {
                    return Ok(());
                }
            }
            Err(unread) => {
                outcomes.count(match unread {
                    Unread::Absent(_) => "absent",
                    Unread::NotPlain(_) => "not_plain",
                    Unread::Failed { .. } | Unread::Closed { .. } => "failed",
                });
                let is_of_all = match unread {
                    Unread::Closed { .. } => true,
                    // Where one was read before, it is a matter of this container.
                    Unread::Failed { .. } => reads.is_none(),
                    Unread::Absent(_) | Unread::NotPlain(_) => false,
                };
                if is_of_all {
                    // What was known of the files of a directory says nothing once it cannot be opened.
                    reads = matches!(unread, Unread::Failed { .. }).then_some(false);
                    states.set("pod_logs", CollectorState::Degraded(unread.to_string()));
                }
                if !warned && !matches!(unread, Unread::Absent(_)) {
                    warned = true;
                    tracing::warn!(%unread, "the last lines of a failed container are not told");
                }
            }
        }
    }
}

/// The state of who hears of no failures, because the collector that would tell of them does not run.
fn deaf(states: &CollectorStates) -> CollectorState {
    let says = |reason: &str| format!("nobody tells of failed containers: {reason}");
    match states.all().get("kubernetes") {
        Some(CollectorState::Disabled(reason)) => CollectorState::Disabled(says(reason)),
        Some(CollectorState::Degraded(reason)) => CollectorState::Degraded(says(reason)),
        _ => CollectorState::Degraded(says("the kubernetes collector does not run")),
    }
}

/// The last bytes of a failed container; looks again for a file that is not there yet.
async fn read(
    dir: &Path,
    of: &FailedContainer,
    context: &WorkerContext,
    clock: &SharedClock,
) -> Result<Result<Vec<u8>, Unread>, tokio::task::JoinError> {
    for attempt in 1.. {
        let (dir, of) = (PathBuf::from(dir), of.clone());
        // A disk may be slow to answer: not on the async threads.
        let bytes = tokio::task::spawn_blocking(move || files::last_bytes(&dir, life(&of))).await?;
        if !matches!(bytes, Err(Unread::Absent(_))) || attempt == TRIES {
            return Ok(bytes);
        }
        context.progress.tick();
        tokio::select! {
            () = context.shutdown.wait() => return Ok(bytes),
            () = clock.sleep(AGAIN) => {}
        }
    }
    unreachable!("the last try returns")
}

fn life(of: &FailedContainer) -> Life<'_> {
    Life {
        namespace: &of.entity.namespace,
        pod: &of.entity.pod,
        uid: &of.uid,
        container: &of.entity.container,
        number: of.life,
    }
}

/// How many are read in a minute.
struct Budget {
    per_minute: u32,
    minute: u64,
    read: u32,
}

impl Budget {
    fn takes(&mut self, now: Duration) -> bool {
        let minute = now.as_secs() / 60;
        if minute != self.minute {
            (self.minute, self.read) = (minute, 0);
        }
        self.read += 1;
        self.read <= self.per_minute
    }
}

/// What the bytes of a failed container's log tell: all of the last lines, then each that differs. The ids are those of the end:
/// whenever it is told again, it is the same.
pub fn events(of: &FailedContainer, bytes: &[u8], observed_at: UnixNanos) -> Vec<UnifiedEvent> {
    let text = cri::lines(bytes).join(&b'\n');
    let lines = last_lines(&text);
    if lines.is_empty() {
        return Vec::new();
    }
    let whole = SmolStr::new(lines.join("\n"));
    let mut told = vec![event(of, EventKind::ContainerSaid, whole, observed_at)];
    let mut distinct: Vec<&String> = Vec::new();
    for line in &lines {
        if !distinct.contains(&line) {
            distinct.push(line);
            told.push(event(of, EventKind::Log, SmolStr::new(line), observed_at));
        }
    }
    told
}

fn event(of: &FailedContainer, kind: EventKind, body: SmolStr, observed_at: UnixNanos) -> UnifiedEvent {
    // Told as of when it was read: the end itself was told before, and what comes behind it would come too late.
    let at = observed_at;
    let id = Seed::new("said")
        .text(kind.as_str())
        .text(&of.uid)
        .text(&of.entity.container)
        .number(of.life.into())
        .text(&body)
        .event(of.at);
    let data = LogData { severity_number: WARNING, body, ..LogData::default() };
    UnifiedEvent {
        id,
        timestamp: at,
        observed_at,
        kind,
        source: Source::Cri,
        severity: EventSeverity::Warning,
        entity: Arc::clone(&of.entity),
        payload: Payload::Log(Box::new(data)),
        ..UnifiedEvent::default()
    }
}
