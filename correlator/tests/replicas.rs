//! Replicas that come, go, are killed and are stopped say what one replica says that is left alone.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::live::{Child, forgetful, start};
use common::{Publisher, cgroup, event, live};
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::bus::Bus;
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::{NatsCluster, NatsServer};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::payload::KernelData;
use tapio_schemas::{EventKind, Finding, Payload, Source, UnifiedEvent, UnixNanos};

/// Length of a step of the scene.
const STEP: Duration = Duration::from_millis(100);
/// Steps of the scene: thirty seconds.
const STEPS: u64 = 300;
/// Programs that crash, one after the other.
const VICTIMS: u64 = 25;

fn config() -> CorrelatorConfig {
    CorrelatorConfig {
        workers: 2,
        // What is promised holds for events within the lateness; a busy machine may hold one up by more than the default.
        lateness: HumanDuration::from_millis(3000),
        ..live::config()
    }
}

/// What happens in a step: every program starts something, and the step's victim, if it has one, crashes three times.
fn scene(step: u64, now: u64) -> Vec<UnifiedEvent> {
    let process = |signal| {
        let data = KernelData { signal, is_init: true, comm: "program".into(), ..KernelData::default() };
        Payload::Kernel(Box::new(data))
    };
    let id = |part: u64| u128::from(step * 1000 + part + 1);
    let mut events: Vec<UnifiedEvent> = (0..40)
        .map(|n| {
            let entity = cgroup(&format!("/calm-{n}"));
            event(EventKind::ProcessExec, Source::Ebpf, &entity, now + n, id(n), process(0))
        })
        .collect();
    let every = STEPS / VICTIMS;
    if step % every < 3 {
        let entity = cgroup(&format!("/victim-{}", step / every));
        let mut crash = event(EventKind::ProcessExit, Source::Ebpf, &entity, now + 50, id(100), process(11));
        crash.pid = 1000 + step as u32;
        events.push(crash);
    }
    events
}

/// Plays the scene to both sides at once; `act` happens at each step.
async fn play(one: &Bus, many: &Bus, mut act: impl AsyncFnMut(u64)) -> UnixNanos {
    let (mut one, mut many) = (Publisher::new(one.clone()), Publisher::new(many.clone()));
    let mut now = 0;
    for step in 0..STEPS {
        let due = Instant::now() + STEP;
        now = SystemClock::new().now_unix_nanos();
        let events = scene(step, now);
        tokio::join!(one.publish(&events), many.publish(&events));
        act(step).await;
        // check: allow sleep, the scene has a pace of its own
        tokio::time::sleep_until(due.into()).await;
    }
    UnixNanos(now)
}

/// All findings up to `end` of event time, once one of a later time is there: then all before it has been decided.
async fn findings_up_to(bus: &Bus, end: UnixNanos) -> Vec<Finding> {
    let is_later = |finding: &Finding| finding.emitted_at > end;
    let mut all = live::findings_until(bus, |all| all.iter().any(is_later)).await;
    all.retain(|finding| !is_later(finding));
    all
}

/// Revisions of each finding, as they were published: title and time of each. That a correlator is behind is true of those
/// whose server died, and not of the one left alone.
fn story(findings: &[Finding]) -> BTreeMap<String, Vec<(u32, String, UnixNanos)>> {
    let mut story: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let is_behind = |f: &Finding| f.root_cause.as_ref().is_some_and(|c| c.cause == "tapio.falling_behind");
    for finding in findings.iter().filter(|finding| !is_behind(finding)) {
        let revision = (finding.revision, finding.title.to_string(), finding.emitted_at);
        story.entry(finding.id.to_string()).or_default().push(revision);
    }
    story
}

/// One more crash on both sides, after which what is to be compared is complete; gives the time before it.
async fn close(one: &Bus, many: &Bus) -> UnixNanos {
    // check: allow sleep, what was decided before the last crash shall not be decided together with it
    tokio::time::sleep(Duration::from_secs(4)).await;
    let now = SystemClock::new().now_unix_nanos();
    let crash = common::crash(now);
    let (mut a, mut b) = (Publisher::new(one.clone()), Publisher::new(many.clone()));
    tokio::join!(a.publish(std::slice::from_ref(&crash)), b.publish(std::slice::from_ref(&crash)));
    UnixNanos(now)
}

/// Both sides have said the same, each word once.
async fn compare(one: &Bus, many: &Bus) {
    let end = close(one, many).await;
    let (expected, got) = (findings_up_to(one, end).await, findings_up_to(many, end).await);
    assert_eq!(story(&got), story(&expected));
    assert_eq!(story(&expected).len() as u64, VICTIMS, "each victim has its finding");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_stopped_replicas_lose_and_double_nothing() {
    const NAME: &str = "killed_and_stopped_replicas_lose_and_double_nothing";
    Child::be(config()).await;
    let (left, right) =
        (NatsServer::start().expect("nats-server"), NatsServer::start().expect("nats-server"));
    let (one, many) = (forgetful(&left).await, forgetful(&right).await);
    let alone = start(&one, config()).await;
    let mut replicas: BTreeMap<u32, Child> = BTreeMap::new();
    let url = right.url();
    play(&one, &many, async |step| match step {
        0 => drop(replicas.insert(1, Child::start(&url, NAME))),
        40 => drop(replicas.insert(2, Child::start(&url, NAME))),
        80 => {
            replicas.insert(3, Child::start(&url, NAME));
            replicas.insert(4, Child::start(&url, NAME));
        }
        120 => drop(replicas.remove(&1)),
        150 => replicas[&2].signal("-STOP"),
        190 => drop(replicas.remove(&3)),
        210 => replicas[&2].signal("-CONT"),
        250 => drop(replicas.remove(&4)),
        _ => {}
    })
    .await;
    compare(&one, &many).await;
    alone.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_come_and_leave_lose_and_double_nothing() {
    let (left, right) =
        (NatsServer::start().expect("nats-server"), NatsServer::start().expect("nats-server"));
    let (one, many) = (forgetful(&left).await, forgetful(&right).await);
    let alone = start(&one, config()).await;
    let mut replicas = vec![start(&many, config()).await];
    play(&one, &many, async |step| match step {
        40 | 80 | 90 => replicas.push(start(&many, config()).await),
        150 | 200 | 250 => replicas.remove(0).drain().await.expect("drains"),
        _ => {}
    })
    .await;
    compare(&one, &many).await;
    alone.drain().await.expect("drains");
    for replica in replicas {
        replica.drain().await.expect("drains");
    }
}

/// Streams of events in the cluster, each with a leader of its own.
const STREAMS: u16 = 4;
/// Until a message that went to a dead leader is sent again and a new one is there, with room for a busy machine. Events that
/// nobody can store for so long are still put in order.
const LEADERLESS: HumanDuration = HumanDuration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_of_streams_that_die_lose_and_double_nothing() {
    let left = NatsServer::start().expect("nats-server");
    let mut cluster = NatsCluster::start(3).expect("three nats-servers");
    let mut settings = cluster.bus_config();
    settings.streams.events.streams = STREAMS;
    let connect = async || {
        let bus = Bus::connect(&settings, &Metrics::new()).await.expect("a bus");
        bus.ensure_streams().await.expect("streams");
        bus
    };
    let (one, many) = (forgetful(&left).await, connect().await);
    let config = || CorrelatorConfig { lateness: LEADERLESS, ..config() };
    let alone = start(&one, config()).await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(start(&connect().await, config()).await);
    }
    let streams = many.events_streams();
    assert_eq!(streams.len(), usize::from(STREAMS));
    let mut dead = None;
    play(&one, &many, async |step| match step {
        60 | 180 => {
            let stream = &streams[usize::from(step > 60)];
            let leader = cluster.leader(&many, &stream.name).await.expect("a leader");
            cluster.kill(leader);
            dead = Some(leader);
        }
        120 | 240 => cluster.restart(dead.take().expect("it was killed")).expect("it starts again"),
        _ => {}
    })
    .await;
    compare(&one, &many).await;
    for stream in &streams {
        let stored = many.stream_state(&stream.name).await.expect("the stream");
        assert!(stored.messages > 0, "{} held a part of the events", stream.name);
    }
    alone.drain().await.expect("drains");
    for replica in replicas {
        replica.drain().await.expect("drains");
    }
}
