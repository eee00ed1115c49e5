//! The control side with real leases: what an answer of an earlier lease does to the one that is held.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::lease::{LeaseConfig, LeaseEvent, Leases};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnixNanos;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::intake::Command;
use super::memory::Memory;
use super::worker::{Answer, Shared};
use super::{Control, Lane};
use crate::config::CorrelatorConfig;
use crate::low_water::LowWater;
use crate::metrics::CorrelatorMetrics;

const PATIENCE: Duration = Duration::from_secs(30);
const SHARD: u16 = 5;
const MARK: LowWater = LowWater { sequence: 77, from: UnixNanos(9), said: UnixNanos(8) };

/// A control side of one shard whose lane is the test.
struct Site {
    leases: Leases,
    told: mpsc::Receiver<Command>,
    answers: mpsc::Sender<Answer>,
    shutdown: Shutdown,
    running: JoinHandle<WorkerResult>,
}

async fn join(server: &NatsServer, replica: &str) -> (Leases, tapio_runtime::lease::LeaseEvents) {
    let bus = server.bus().await.expect("a bus");
    let config = LeaseConfig::new("shards", replica, vec![format!("shard.{SHARD}")]);
    let clock = SystemClock::shared();
    Leases::join(&bus, config, clock, &Metrics::new(), Shutdown::new()).await.expect("joined")
}

async fn site(server: &NatsServer, replica: &str) -> Site {
    let (leases, events) = join(server, replica).await;
    let (commands, told) = mpsc::channel(16);
    let (answers, answered) = mpsc::channel(16);
    let lane = Lane { commands: Some(commands), intake: tokio::spawn(std::future::pending()), thread: None };
    let (clock, shutdown) = (SystemClock::shared(), Shutdown::new());
    let context = WorkerContext {
        name: "control".into(),
        generation: 1,
        progress: Health::new(Arc::clone(&clock)).register("control", None),
        shutdown: shutdown.clone(),
        clock,
    };
    let mut control = Control {
        bus: server.bus().await.expect("a bus"),
        lanes: vec![lane],
        leases: leases.clone(),
        held: HashMap::new(),
        shared: Arc::new(Shared::new(0)),
        turns: Vec::new(),
        memory: Memory::new(&CorrelatorConfig::default(), &CorrelatorMetrics::new(&Metrics::new())),
    };
    let running = tokio::spawn(async move { control.run(events, answered, &context).await });
    Site { leases, told, answers, shutdown, running }
}

async fn soon<T>(what: &str, future: impl Future<Output = Option<T>>) -> T {
    let value = tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no {what}"));
    value.unwrap_or_else(|| panic!("the end instead of {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_an_earlier_lease_neither_ends_nor_marks_the_one_held() {
    let server = NatsServer::start().expect("nats-server");
    // Somebody owned the shard before, so that there is an earlier lease.
    let (before, mut events) = join(&server, "r0").await;
    let Some(LeaseEvent::Acquired { lease: earlier, .. }) = events.next().await else { panic!("no lease") };
    let leaving = tokio::spawn({
        let before = before.clone();
        async move { before.leave().await }
    });
    while let Some(event) = events.next().await {
        if let LeaseEvent::Release { lease } = event {
            before.released(&lease, Vec::new().into()).await.expect("given back");
        }
    }
    leaving.await.expect("left");

    let mut site = site(&server, "r1").await;
    let Command::Own { shard, epoch, from } = soon("shard", site.told.recv()).await else {
        panic!("not owned")
    };
    assert_eq!((shard, from), (SHARD, None));
    assert!(epoch > earlier.epoch(), "{epoch} after {}", earlier.epoch());
    let answer = |epoch, sequence, released| {
        let low_water = Some(LowWater { sequence, ..MARK });
        Answer { shard: SHARD, epoch, low_water, released }
    };
    // Late words of the earlier lease: one of a mark, one of its end.
    for released in [false, true] {
        site.answers.send(answer(earlier.epoch(), 5, released)).await.expect("heard");
    }
    site.answers.send(answer(epoch, MARK.sequence, false)).await.expect("heard");
    // It gives the shard back as asked, and only its own answer ends that.
    site.shutdown.trigger();
    let Command::Release(SHARD) = soon("release", site.told.recv()).await else { panic!("not released") };
    site.answers.send(answer(earlier.epoch(), 6, true)).await.expect("heard");
    let held: Vec<u64> = site.leases.held().iter().map(|lease| lease.epoch()).collect();
    assert_eq!(held, [epoch], "still held after the answers of the earlier lease");
    assert!(!site.running.is_finished());
    // The last word says nothing new of the mark.
    let last = Answer { low_water: Some(MARK), ..answer(epoch, 0, true) };
    site.answers.send(last).await.expect("heard");
    soon("end", async { (&mut site.running).await.ok() }).await.expect("ends well");

    // The next owner begins where the right answers said.
    let (_, mut events) = join(&server, "r2").await;
    let Some(LeaseEvent::Acquired { note, lease }) = soon("lease", async { Some(events.next().await) }).await
    else {
        panic!("no lease")
    };
    assert!(lease.epoch() > epoch);
    assert_eq!(serde_json::from_slice::<LowWater>(&note).ok(), Some(MARK));
}
