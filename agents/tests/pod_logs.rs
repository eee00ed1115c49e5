//! The last lines of containers, from files as a kubelet leaves them.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tapio_agents::collectors::kubernetes::ends::FailedContainer;
use tapio_agents::collectors::pod_logs::files::{BYTES_MAX, Life, Unread, last_bytes};
use tapio_agents::collectors::pod_logs::{self, PodLogsConfig, events, horizon};
use tapio_agents::collectors::{CollectorState, CollectorStates};
use tapio_agents::ledger::Ledger;
use tapio_agents::sink::{self, Intake, Wake};
use tapio_runtime::clock::ManualClock;
use tapio_runtime::health::Health;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnifiedEvent;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, Source};
use tapio_schemas::payload::Payload;
use tokio::sync::{Mutex, mpsc};

const UID: &str = "8b4f3c0e-2f6a-4f0e-9d0b-1c2d3e4f5a6b";

fn life(number: u32) -> Life<'static> {
    Life { namespace: "shop", pod: "api-1", uid: UID, container: "app", number }
}

/// The directory of the logs, and the one of the container.
fn directories() -> (tempfile::TempDir, PathBuf) {
    let logs = tempfile::tempdir().unwrap();
    let container = logs.path().join(format!("shop_api-1_{UID}/app"));
    fs::create_dir_all(&container).unwrap();
    (logs, container)
}

fn entry(text: &str) -> String {
    format!("2030-01-01T10:00:00.123456789Z stderr F {text}\n")
}

fn text(logs: &Path, number: u32) -> Result<String, Unread> {
    last_bytes(logs, life(number)).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn of_several_lives_the_one_that_ended_is_read() {
    let (logs, container) = directories();
    fs::write(container.join("0.log"), entry("the first")).unwrap();
    fs::write(container.join("1.log"), entry("the second")).unwrap();
    assert_eq!(text(logs.path(), 0), Ok(entry("the first")));
    assert_eq!(text(logs.path(), 1), Ok(entry("the second")));
    assert!(matches!(text(logs.path(), 2), Err(Unread::Absent(_))));
}

#[test]
fn a_log_that_was_just_rotated_goes_on_in_the_file_before() {
    let (logs, container) = directories();
    fs::write(container.join("0.log.20300101-090000"), entry("long ago")).unwrap();
    fs::write(container.join("0.log.20300101-095959"), entry("panic: no database")).unwrap();
    fs::write(container.join("0.log.20300101-093000.gz"), "packed").unwrap();
    fs::write(container.join("0.log.20300101-099999.tmp"), "half packed").unwrap();
    // Between the renaming of the full file and the making of the next one.
    assert_eq!(text(logs.path(), 0), Ok(entry("panic: no database")));
    fs::write(container.join("0.log"), entry("goroutine 1")).unwrap();
    assert_eq!(text(logs.path(), 0), Ok(entry("panic: no database") + &entry("goroutine 1")));
    // A full file needs nothing before it.
    fs::write(container.join("0.log"), entry("a line").repeat(BYTES_MAX / 20)).unwrap();
    assert!(!text(logs.path(), 0).unwrap().contains("panic"));
    // Nor does one of long lines, of which the first is left out because it does not begin there.
    let lines: String = (0..20).map(|n| entry(&format!("{n} {}", "x".repeat(4000)))).collect();
    fs::write(container.join("0.log"), &lines).unwrap();
    let end = text(logs.path(), 0).unwrap();
    assert!(lines.ends_with(&end) && end.len() < BYTES_MAX - 100, "{} {}", end.len(), &end[..40]);
    // What is before cannot be read: what there is is told all the same.
    symlink("0.log", container.join("0.log.20300101-100000")).unwrap();
    fs::write(container.join("0.log"), entry("goroutine 1")).unwrap();
    assert_eq!(text(logs.path(), 0), Ok(entry("goroutine 1")));
}

#[test]
fn of_a_long_log_the_end_is_read_from_the_beginning_of_an_entry() {
    let (logs, container) = directories();
    let whole: String = (0..20_000).map(|number| entry(&format!("line {number}"))).collect();
    fs::write(container.join("0.log"), &whole).unwrap();
    let end = text(logs.path(), 0).unwrap();
    assert!(end.len() <= BYTES_MAX && end.len() > BYTES_MAX - 100, "{}", end.len());
    assert!(whole.ends_with(&end) && end.starts_with("2030-"), "{}", &end[..40]);
    // One entry that is longer than what is read has no beginning there.
    fs::write(container.join("0.log"), entry(&"x".repeat(2 * BYTES_MAX))).unwrap();
    assert!(matches!(text(logs.path(), 0), Err(Unread::Absent(_))));
}

#[test]
fn links_lead_nowhere_and_pipes_are_not_waited_for() {
    let (logs, container) = directories();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("shadow");
    fs::write(&secret, "root:secret").unwrap();
    let refused = |number| matches!(text(logs.path(), number), Err(Unread::NotPlain(_)));
    symlink(&secret, container.join("0.log")).unwrap();
    assert!(refused(0), "a link to a file");
    fs::write(container.join("real"), entry("x")).unwrap();
    symlink("real", container.join("1.log")).unwrap();
    assert!(refused(1), "a link that stays within is none the less one");
    let pipe = container.join("2.log");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(2), "a pipe");
    fs::create_dir(container.join("3.log")).unwrap();
    assert!(refused(3), "a directory");
    symlink(&secret, container.join("4.log.20300101-100000")).unwrap();
    assert!(refused(4), "a link in place of a rotated file");
    // The directory of the container, and that of the pod.
    fs::write(outside.path().join("0.log"), entry("outside")).unwrap();
    symlink(outside.path(), logs.path().join(format!("shop_api-1_{UID}/linked"))).unwrap();
    assert!(matches!(
        last_bytes(logs.path(), Life { container: "linked", ..life(0) }),
        Err(Unread::NotPlain(_))
    ));
    let pod = outside.path().join("pod");
    fs::create_dir_all(pod.join("app")).unwrap();
    fs::write(pod.join("app/0.log"), entry("outside")).unwrap();
    symlink(&pod, logs.path().join(format!("shop_other_{UID}"))).unwrap();
    assert!(matches!(last_bytes(logs.path(), Life { pod: "other", ..life(0) }), Err(Unread::NotPlain(_))));
    // Where such a name would lead there are logs.
    fs::write(logs.path().join("0.log"), entry("of nobody")).unwrap();
    fs::write(logs.path().join(format!("shop_api-1_{UID}/0.log")), entry("of the pod")).unwrap();
    fs::create_dir(logs.path().join(format!("shop_api-1_{UID}/a b"))).unwrap();
    fs::write(logs.path().join(format!("shop_api-1_{UID}/a b/0.log")), entry("of no name")).unwrap();
    fs::write(container.join("5.log"), entry("x")).unwrap();
    for name in ["..", ".", "", "a b", "app/../app", "app/", "/app"] {
        let read = last_bytes(logs.path(), Life { container: name, ..life(0) });
        assert!(matches!(read, Err(Unread::NotPlain(_))), "{name:?}: {read:?}");
        let read = last_bytes(logs.path(), Life { container: name, ..life(5) });
        assert!(matches!(read, Err(Unread::NotPlain(_))), "{name:?}: {read:?}");
    }
    assert!(text(logs.path(), 5).is_ok());
}

const AT: UnixNanos = UnixNanos(1_900_000_000_000_000_000);

fn failed(life: u32, at: UnixNanos) -> FailedContainer {
    let entity = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        pod: "api-1".into(),
        pod_uid: UID.into(),
        container: "app".into(),
        node: "n1".into(),
        ..EntityRef::default()
    };
    FailedContainer { entity: Arc::new(entity.sealed()), uid: UID.into(), life, at }
}

/// No file system has room for such a name.
fn unreadable() -> FailedContainer {
    let entity = EntityRef { container: "x".repeat(300).into(), ..(*failed(0, AT).entity).clone() };
    FailedContainer { entity: Arc::new(entity.sealed()), ..failed(0, AT) }
}

#[test]
fn what_was_said_is_told_once_as_a_whole_and_line_by_line_without_secrets() {
    let (at, failed) = (AT, failed(3, AT));
    let log = entry("starting")
        + &entry("retrying")
        + &entry("retrying")
        + "2030-01-01T10:00:01Z stdout P dial postgres://app:\n2030-01-01T10:00:01Z stdout F hunter2@db failed\n";
    let told = events(&failed, log.as_bytes(), at.plus(5));
    let said = |kind| {
        let of_kind = told.iter().filter(move |event| event.kind == kind);
        let body = |event: &UnifiedEvent| match &event.payload {
            Payload::Log(log) => log.body.to_string(),
            other => panic!("{other:?}"),
        };
        of_kind.map(body).collect::<Vec<_>>()
    };
    let masked = "dial postgres://app:***@db failed";
    assert_eq!(said(EventKind::ContainerSaid), [format!("starting\nretrying\nretrying\n{masked}")]);
    assert_eq!(said(EventKind::Log), ["starting", "retrying", masked]);
    for event in &told {
        assert_eq!((event.source, event.timestamp, event.observed_at), (Source::Cri, at.plus(5), at.plus(5)));
        assert_eq!(event.entity.container, "app");
    }
    let ids = |events: &[UnifiedEvent]| events.iter().map(|e| e.id).collect::<Vec<_>>();
    let again = events(&failed, log.as_bytes(), at.plus(70_000_000_000));
    assert_eq!(ids(&again), ids(&told), "told again it is the same");
    assert!(again.iter().all(|event| event.timestamp == at.plus(70_000_000_000)), "as of when it is told");
    let next = FailedContainer { life: 4, ..failed.clone() };
    assert!(ids(&events(&next, log.as_bytes(), at.plus(5))).iter().all(|id| !ids(&told).contains(id)));
    assert!(events(&failed, b"", at).is_empty());
}

/// A collector that reads, on a clock that stands still.
struct Running {
    failed: mpsc::Sender<FailedContainer>,
    intake: Intake,
    metrics: Metrics,
    states: CollectorStates,
    clock: ManualClock,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<WorkerResult>,
}

impl Running {
    fn start(dir: &Path, per_minute: u32) -> Self {
        // The shortest there is.
        Self::start_with(dir, per_minute, Duration::ZERO)
    }

    /// `history` as the Kubernetes collector has it.
    fn start_with(dir: &Path, per_minute: u32, history: Duration) -> Self {
        let (metrics, clock, shutdown) = (Metrics::new(), ManualClock::new(AT.0), Shutdown::new());
        let states = CollectorStates::new(&metrics);
        // As one leaves it that ends unexpectedly.
        states.set("pod_logs", CollectorState::Degraded("as it was before".to_owned()));
        let (wake, ledger) = (Arc::new(Wake::default()), Ledger::new(&metrics));
        let (sink, intake) = sink::channel("pod_logs", &wake, &ledger, clock.shared(), &metrics);
        let (failed, heard) = mpsc::channel(64);
        let parts = pod_logs::Parts {
            config: PodLogsConfig { dir: dir.to_owned(), per_minute, ..PodLogsConfig::default() },
            history: horizon(history, Duration::from_secs(3600)),
            failed: Arc::new(Mutex::new(heard)),
            clock: clock.shared(),
            sink,
            states: states.clone(),
            metrics: metrics.clone(),
        };
        let context = WorkerContext {
            name: "pod_logs".into(),
            generation: 1,
            progress: Health::new(clock.shared()).register("pod_logs", None),
            shutdown: shutdown.clone(),
            clock: clock.shared(),
        };
        let task = tokio::spawn(pod_logs::run(parts, context));
        Self { failed, intake, metrics, states, clock, shutdown, task }
    }

    fn count(&self, outcome: &str) -> u64 {
        let text = self.metrics.encode();
        let line = format!("pod_logs_containers_total{{outcome=\"{outcome}\"}} ");
        let found = text.lines().find_map(|found| found.split_once(&line));
        found.map_or(0, |(_, count)| count.parse().unwrap())
    }

    async fn wait_for(&self, outcome: &str, count: u64) {
        let what = format!("{count} {outcome}");
        support::until(&what, || (self.count(outcome) == count).then_some(())).await;
    }

    async fn wait_for_state(&self, what: &str, is_it: impl Fn(&CollectorState) -> bool) {
        support::until(what, || self.states.all().get("pod_logs").filter(|state| is_it(state)).map(|_| ()))
            .await;
    }
}

#[tokio::test]
async fn what_is_too_much_for_a_minute_or_too_old_is_counted_and_not_told() {
    let (logs, container) = directories();
    (0..9).for_each(|n| fs::write(container.join(format!("{n}.log")), entry(&format!("life {n}"))).unwrap());
    let mut running = Running::start(logs.path(), 2);
    running.failed.send(failed(0, AT.minus(301_000_000_000))).await.unwrap();
    for life in 1..=5 {
        running.failed.send(failed(life, AT.minus(299_000_000_000))).await.unwrap();
    }
    running.wait_for("over_limit", 3).await;
    running.clock.advance(Duration::from_secs(60));
    running.failed.send(failed(6, AT)).await.unwrap();
    running.failed.send(failed(7, AT)).await.unwrap();
    running.wait_for("read", 4).await;
    assert_eq!(["read", "over_limit", "old"].map(|outcome| running.count(outcome)), [4, 3, 1], "of eight");
    running.shutdown.trigger();
    running.task.await.unwrap().unwrap();
    let told: Vec<UnifiedEvent> = std::iter::from_fn(|| running.intake.take()).flatten().collect();
    let said = told.iter().filter(|event| event.kind == EventKind::ContainerSaid);
    let said: Vec<String> = said
        .map(|event| match &event.payload {
            Payload::Log(log) => log.body.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(said, ["life 1", "life 2", "life 6", "life 7"]);
}

#[tokio::test]
async fn how_old_an_end_may_be_follows_from_the_history_within_its_bounds() {
    let (logs, container) = directories();
    fs::write(container.join("0.log"), entry("x")).unwrap();
    // (history, seconds since an end that is read, and since one that is not)
    for (history, read, old) in [(0, 299, 301), (600, 599, 601), (7200, 3599, 3601)] {
        let running = Running::start_with(logs.path(), 30, Duration::from_secs(history));
        for age in [old, read] {
            running.failed.send(failed(0, AT.minus(age * 1_000_000_000))).await.unwrap();
        }
        running.wait_for("read", 1).await;
        assert_eq!(running.count("old"), 1, "with a history of {history} s");
        running.shutdown.trigger();
        running.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn who_begins_again_runs_and_one_unreadable_file_is_no_fault_of_all() {
    let (logs, container) = directories();
    (0..2).for_each(|n| fs::write(container.join(format!("{n}.log")), entry("x")).unwrap());
    let running = Running::start(logs.path(), 30);
    running.wait_for_state("that it runs", |state| *state == CollectorState::Running).await;
    // It may be that nothing can be read.
    running.failed.send(unreadable()).await.unwrap();
    let of_it = |state: &CollectorState| matches!(state, CollectorState::Degraded(reason) if reason.contains("shop_api-1"));
    running.wait_for_state("which file it cannot read", of_it).await;
    running.failed.send(failed(0, AT)).await.unwrap();
    running.wait_for_state("that it reads", |state| *state == CollectorState::Running).await;
    running.failed.send(unreadable()).await.unwrap();
    running.wait_for("failed", 2).await;
    assert_eq!(running.states.all()["pod_logs"], CollectorState::Running, "the others can be read");
    running.shutdown.trigger();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_reason_is_that_of_now() {
    let (logs, container) = directories();
    fs::write(container.join("0.log"), entry("x")).unwrap();
    let (root, away) = (logs.path().join("pods"), logs.path().join("away"));
    fs::create_dir(&root).unwrap();
    fs::rename(container.parent().unwrap(), root.join(format!("shop_api-1_{UID}"))).unwrap();
    let running = Running::start(&root, 30);
    let reason = |of: &'static str| move |state: &CollectorState| matches!(state, CollectorState::Degraded(reason) if reason.starts_with(of));
    for _ in 0..2 {
        running.failed.send(unreadable()).await.unwrap();
        running.wait_for_state("which file it cannot read", reason("cannot read shop_api-1")).await;
        fs::rename(&root, &away).unwrap();
        running.failed.send(failed(0, AT)).await.unwrap();
        running.wait_for_state("which directory it cannot open", reason("cannot open ")).await;
        fs::rename(&away, &root).unwrap();
    }
    running.failed.send(failed(0, AT)).await.unwrap();
    running.wait_for_state("that it reads", |state| *state == CollectorState::Running).await;
    running.shutdown.trigger();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_can_read_nothing_or_hears_nothing_says_so() {
    let parent = tempfile::tempdir().unwrap();
    let logs = parent.path().join("pods");
    let running = Running::start(&logs, 30);
    running.failed.send(failed(0, AT)).await.unwrap();
    let of_logs =
        |state: &CollectorState| matches!(state, CollectorState::Degraded(reason) if reason.contains("pods"));
    running.wait_for_state("a directory that is not there", of_logs).await;
    assert_eq!(running.count("failed"), 1);
    let container = logs.join(format!("shop_api-1_{UID}/app"));
    fs::create_dir_all(&container).unwrap();
    fs::write(container.join("1.log"), entry("x")).unwrap();
    running.failed.send(failed(1, AT)).await.unwrap();
    running.wait_for_state("that it reads", |state| *state == CollectorState::Running).await;
    // Whoever would tell of failures has not come to be.
    running.states.set("kubernetes", CollectorState::Disabled("no cluster".to_owned()));
    let Running { failed, states, shutdown, task, .. } = running;
    drop(failed);
    let expected = "nobody tells of failed containers: no cluster".to_owned();
    let expected = CollectorState::Disabled(expected);
    support::until("that it hears nothing", || (states.all()["pod_logs"] == expected).then_some(())).await;
    shutdown.trigger();
    task.await.unwrap().unwrap();
}
