//! Units of a real systemd that fail, restart and recover, and what the agent tells of them.

mod support;

use std::fs;

use support::systemd::Machine;
use support::{NODE, Stream, bare, drain, start, until};
use tapio_agents::collectors::CollectorState;
use tapio_agents::config::AgentConfig;
use tapio_agents::node::AgentHandle;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::{Payload, SystemdData};

const FAILS: &str = "[Service]\nExecStart=/bin/sh -c 'exit 3'\n";

fn config(cluster: &str, machine: &Machine) -> AgentConfig {
    let mut config = bare(cluster);
    config.systemd.enabled = true;
    config.systemd.bus_socket = machine.bus_socket();
    config.systemd.retry_max = HumanDuration::from_millis(200);
    config
}

async fn running(agent: &AgentHandle) {
    until("the collector runs", || {
        let state = agent.collectors().states().get("systemd").cloned();
        (state == Some(CollectorState::Running)).then_some(())
    })
    .await;
}

fn data(event: &UnifiedEvent) -> &SystemdData {
    let Payload::Systemd(data) = &event.payload else { panic!("not of systemd: {event:?}") };
    data
}

fn of<'a>(events: &'a [UnifiedEvent], unit: &str, kind: EventKind) -> Vec<&'a UnifiedEvent> {
    events.iter().filter(|e| e.kind == kind && data(e).unit == unit).collect()
}

fn has(unit: &str, kind: EventKind, count: usize) -> impl Fn(&[UnifiedEvent]) -> bool {
    move |events| of(events, unit, kind).len() >= count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_once_through_restarts_of_manager_and_agent() {
    let nats = NatsServer::start().unwrap();
    let mut machine = Machine::boot("fails", &[("bad.service", FAILS), ("later.service", FAILS)]);
    let agent = start(&nats, config("fails", &machine)).await;
    running(&agent).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = Stream::open(&bus, "fails").await;

    machine.systemctl(&["start", "bad.service"]);
    let events =
        stream.events_until("the failure", has("bad.service", EventKind::SystemdUnitFailed, 1)).await;
    let failure = of(&events, "bad.service", EventKind::SystemdUnitFailed)[0].clone();
    let told = data(&failure);
    assert_eq!((told.result.as_str(), told.exit_code, told.restarts), ("exit-code", 3, 0), "{told:?}");
    assert_eq!((told.active_state.as_str(), failure.severity), ("failed", EventSeverity::Error));
    assert_eq!(failure.entity.owner(), Entity::new(kinds::SYSTEMD_UNIT, "", "bad.service", NODE));
    let by_path = agent.attribution().resolve_path("/system.slice/bad.service");
    assert_eq!(failure.entity.lineage, by_path.lineage, "one shard with what the kernel says of it");
    assert!(failure.pid > 0 && failure.timestamp <= failure.observed_at);

    // The manager executes itself anew and closes its connections; what has failed stays so.
    machine.systemctl(&["daemon-reexec"]);
    machine.systemctl(&["start", "later.service"]);
    let mut all = events;
    all.extend(
        stream.events_until("the next failure", has("later.service", EventKind::SystemdUnitFailed, 1)).await,
    );
    drain(agent).await;
    // A new agent finds both failures, and tells them under the ids they have.
    let agent = start(&nats, config("fails", &machine)).await;
    let again = stream.events_until("the list", has("bad.service", EventKind::SystemdUnitFailed, 1)).await;
    assert_eq!(of(&again, "bad.service", EventKind::SystemdUnitFailed)[0].id, failure.id);
    assert_eq!(of(&all, "bad.service", EventKind::SystemdUnitFailed).len(), 1);

    // Another manager, which knows nothing of the units before: a failure there is another failure.
    machine.kill();
    until("the end is seen", || {
        (agent.collectors().states()["systemd"] != CollectorState::Running).then_some(())
    })
    .await;
    machine.start();
    running(&agent).await;
    machine.systemctl(&["start", "bad.service"]);
    let other =
        stream.events_until("it fails there", has("bad.service", EventKind::SystemdUnitFailed, 1)).await;
    assert_ne!(of(&other, "bad.service", EventKind::SystemdUnitFailed)[0].id, failure.id);
    drain(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_are_counted_and_the_end_of_them_is_the_failure() {
    const LOOPS: &str = "StartLimitIntervalSec=60\nStartLimitBurst=4\n[Service]\nRestart=on-failure\n\
        RestartSec=100ms\nExecStart=/bin/sh -c 'exit 7'\n";
    let nats = NatsServer::start().unwrap();
    let machine = Machine::boot("loops", &[("loop.service", LOOPS)]);
    let agent = start(&nats, config("loops", &machine)).await;
    running(&agent).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = Stream::open(&bus, "loops").await;
    machine.systemctl(&["start", "loop.service"]);
    let done = has("loop.service", EventKind::SystemdUnitFailed, 1);
    let events = stream.events_until("systemd gives up", done).await;
    drain(agent).await;
    let events: Vec<_> =
        events.into_iter().chain(stream.rest().await.into_iter().flat_map(|batch| batch.events)).collect();
    let ends = of(&events, "loop.service", EventKind::SystemdUnitStopped);
    let restarts: Vec<_> = ends.iter().map(|e| (data(e).result.as_str(), data(e).exit_code)).collect();
    assert_eq!(restarts, [("exit-code", 7); 4], "each end before a restart");
    assert!(ends.iter().all(|e| e.severity == EventSeverity::Warning));
    let counts: Vec<_> = ends.iter().map(|e| data(e).restarts).collect();
    assert_eq!(counts, [0, 1, 2, 3]);
    let failed = of(&events, "loop.service", EventKind::SystemdUnitFailed);
    assert_eq!(failed.len(), 1);
    assert_eq!((data(failed[0]).restarts, data(failed[0]).exit_code), (4, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_without_end_is_told_as_long_as_it_goes_on_and_when_somebody_ends_it() {
    const LOOPS: &str = "StartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=100ms\n\
        ExecStart=/bin/sh -c 'exit 7'\n";
    let nats = NatsServer::start().unwrap();
    let machine = Machine::boot("endless", &[("endless.service", LOOPS)]);
    let agent = start(&nats, config("endless", &machine)).await;
    running(&agent).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = Stream::open(&bus, "endless").await;
    machine.systemctl(&["start", "endless.service"]);
    let again = has("endless.service", EventKind::SystemdUnitStopped, 5);
    let mut events = stream.events_until("five ends", again).await;
    machine.systemctl(&["stop", "endless.service"]);
    // Nearly always it waits for its restart then; when it just runs, that may be its last error.
    let state = machine.systemctl(&["show", "--property=ActiveState", "--value", "endless.service"]);
    let end = match state.trim() {
        "failed" => EventKind::SystemdUnitFailed,
        "inactive" => EventKind::SystemdUnitStopped,
        other => panic!("stopped and {other}"),
    };
    let is_over = |e: &UnifiedEvent| e.kind == end && data(e).active_state == state.trim();
    events.extend(stream.events_until("the end", |events| events.iter().any(is_over)).await);
    drain(agent).await;
    events.extend(stream.rest().await.into_iter().flat_map(|batch| batch.events));
    let (over, ends): (Vec<_>, Vec<_>) = events.iter().partition(|e| is_over(e));
    let ends: Vec<_> = ends.into_iter().filter(|e| e.kind != EventKind::SystemdUnitStarted).collect();
    assert!(ends.iter().all(|e| data(e).sub_state.starts_with("auto-restart")), "{ends:?}");
    assert!(ends.windows(2).all(|pair| data(pair[0]).restarts < data(pair[1]).restarts), "{ends:?}");
    assert_eq!(over.len(), 1, "{over:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_restart_that_somebody_ends_is_told_once_and_is_no_failure() {
    const WAITS: &str = "[Service]\nRestart=always\nRestartSec=1h\nExecStart=/bin/sh -c 'exit 7'\n";
    let nats = NatsServer::start().unwrap();
    let machine = Machine::boot("waits", &[("waits.service", WAITS)]);
    let agent = start(&nats, config("waits", &machine)).await;
    running(&agent).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = Stream::open(&bus, "waits").await;
    machine.systemctl(&["start", "waits.service"]);
    let waits = has("waits.service", EventKind::SystemdUnitStopped, 1);
    let mut events = stream.events_until("the wait", waits).await;
    machine.systemctl(&["stop", "waits.service"]);
    let stopped = has("waits.service", EventKind::SystemdUnitStopped, 1);
    events.extend(stream.events_until("the stop", stopped).await);
    drain(agent).await;
    events.extend(stream.rest().await.into_iter().flat_map(|batch| batch.events));
    let ends = of(&events, "waits.service", EventKind::SystemdUnitStopped);
    let ends: Vec<_> = ends.iter().map(|e| (e.severity, data(e).active_state.as_str())).collect();
    assert_eq!(ends, [(EventSeverity::Warning, "activating"), (EventSeverity::Info, "inactive")]);
    assert_eq!(of(&events, "waits.service", EventKind::SystemdUnitFailed).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_before_the_agent_is_told_and_its_recovery_too() {
    let nats = NatsServer::start().unwrap();
    let machine = Machine::boot("before", &[]);
    let good = machine.path("good");
    let job = format!("[Service]\nType=oneshot\nExecStart=/bin/sh -c 'test -e {}'\n", good.display());
    let service =
        format!("[Service]\nExecStart=/bin/sh -c 'test -e {} && exec sleep 1000'\n", good.display());
    for (name, text) in [("job.service", &job), ("serves.service", &service)] {
        machine.unit(name, &format!("[Unit]\nDefaultDependencies=no\n{text}"));
        machine.systemctl(&["start", name]);
    }
    let is_failed = |unit: &str| machine.systemctl(&["is-failed", unit]).starts_with("failed");
    until("both have failed", || (is_failed("job.service") && is_failed("serves.service")).then_some(()))
        .await;
    let agent = start(&nats, config("before", &machine)).await;
    let bus = nats.bus().await.unwrap();
    let mut stream = Stream::open(&bus, "before").await;
    let both =
        |kind| move |e: &[UnifiedEvent]| has("job.service", kind, 1)(e) && has("serves.service", kind, 1)(e);
    let failures = stream.events_until("both failures", both(EventKind::SystemdUnitFailed)).await;
    let failure = of(&failures, "serves.service", EventKind::SystemdUnitFailed)[0];
    assert!(failure.observed_at.since(failure.timestamp) > 0, "the manager's time, not the agent's");
    assert_eq!(failures.len(), 2, "{failures:?}");

    fs::write(good, "").unwrap();
    machine.systemctl(&["start", "job.service", "serves.service"]);
    let started = stream.events_until("both recover", both(EventKind::SystemdUnitStarted)).await;
    assert_eq!(data(of(&started, "job.service", EventKind::SystemdUnitStarted)[0]).result, "success");
    machine.systemctl(&["stop", "serves.service"]);
    let stopped = has("serves.service", EventKind::SystemdUnitStopped, 1);
    let events = stream.events_until("an ordinary stop", stopped).await;
    let stop = of(&events, "serves.service", EventKind::SystemdUnitStopped)[0];
    assert_eq!(stop.severity, EventSeverity::Info);
    drain(agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_systemd_is_said_and_the_agent_runs() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = bare("without");
    config.systemd.enabled = true;
    config.systemd.bus_socket = dir.path().join("bus");
    let agent = start(&nats, config).await;
    let state = agent.collectors().states()["systemd"].clone();
    let CollectorState::Disabled(reason) = state else { panic!("{state:?}") };
    assert!(
        reason.starts_with("no systemd here: nobody listens at /") && reason.contains("/run/dbus"),
        "{reason}"
    );
    drain(agent).await;
    // A socket that nobody serves is no systemd either.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("bus")).unwrap());
    let mut config = bare("without");
    config.systemd.enabled = true;
    config.systemd.bus_socket = dir.path().join("bus");
    let agent = start(&nats, config).await;
    let served = until("an attempt", || agent.collectors().states().get("systemd").cloned()).await;
    assert!(matches!(served, CollectorState::Disabled(_)), "{served:?}");
    drain(agent).await;
}
