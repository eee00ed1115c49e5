//! What the agent does when the way to the stream is slow, or its disk is full.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{Stream, assert_ordered, bare, drain, until};
use tapio_agents::config::AgentConfig;
use tapio_agents::ledger::{DropReason, LedgerSnapshot, Place};
use tapio_agents::node::{AgentParts, NodeAgent};
use tapio_agents::sink::EventSink;
use tapio_runtime::bus::{Bus, BusConfig};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{CustomData, Payload};
use tapio_schemas::{SignalKind, trouble};

/// Letters in an event that do not pack.
const NOISE_BYTES: usize = 64;

fn event(number: u64, severity: EventSeverity) -> UnifiedEvent {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let mut noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let text: String = (0..NOISE_BYTES)
        .map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            char::from(33 + (noise % 90) as u8)
        })
        .collect();
    let attributes = vec![Attribute::new("number", number as i64), Attribute::new("noise", text.as_str())];
    let entity = EntityRef { object: format!("o{}", number % 5).into(), ..EntityRef::default() };
    UnifiedEvent {
        timestamp: UnixNanos(since.as_nanos() as u64),
        kind: EventKind::Custom,
        severity,
        entity: Arc::new(entity.sealed()),
        payload: Payload::Custom(Box::new(CustomData { name: "load".into(), attributes, tags: vec![] })),
        ..UnifiedEvent::default()
    }
}

/// The trouble of Tapio itself that an event tells.
fn told_of(event: &UnifiedEvent) -> Option<(SignalKind, &str)> {
    let Payload::Custom(data) = &event.payload else { return None };
    trouble::told(data)
}

fn at(ledger: &LedgerSnapshot, place: Place) -> u64 {
    ledger.in_flight[place as usize].1
}

fn lost(ledger: &LedgerSnapshot, reason: DropReason) -> u64 {
    ledger.dropped.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n)
}

/// Between the agent and NATS: lets so many bytes a second through towards NATS, and everything back.
struct Throttle {
    address: String,
    bytes_per_s: Arc<AtomicU64>,
}

impl Throttle {
    fn before(nats: &NatsServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("nats://{}", listener.local_addr().expect("an address"));
        let bytes_per_s = Arc::new(AtomicU64::new(u64::MAX));
        let (rate, server) = (Arc::clone(&bytes_per_s), nats.url().replace("nats://", ""));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { return };
                let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let rate = Arc::clone(&rate);
                std::thread::spawn(move || pass(client, server, &rate));
                std::thread::spawn(move || pass(back_from, back_to, &AtomicU64::new(u64::MAX)));
            }
        });
        Self { address, bytes_per_s }
    }

    fn set(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, rate: &AtomicU64) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let per_s = rate.load(Ordering::Relaxed);
        if per_s != u64::MAX {
            // check: allow sleep, this is the slowness that the test is about
            std::thread::sleep(Duration::from_nanos(count as u64 * 1_000_000_000 / per_s));
        }
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

async fn start_at(url: &str, config: AgentConfig) -> (tapio_agents::node::AgentHandle, EventSink) {
    let clock = SystemClock::shared();
    let metrics = Metrics::new();
    let bus = Bus::connect(&BusConfig::with_url(url.to_owned()), &metrics).await.expect("the bus connects");
    bus.ensure_streams().await.expect("streams");
    let parts = AgentParts { bus, health: Health::new(clock.clone()), clock, metrics };
    let (agent, mut sinks) = NodeAgent::start_with(config, parts, &["test"]).await.expect("the agent starts");
    (agent, sinks.remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_nats_fills_the_spool_and_everything_arrives_in_order() {
    const COUNT: u64 = 20_000;
    const SLOW: u64 = 100_000;
    let nats = NatsServer::start().expect("nats-server");
    let throttle = Throttle::before(&nats);
    let dir = tempfile::tempdir().unwrap();
    let mut config = AgentConfig { data_dir: Some(dir.path().to_owned()), ..bare("slow") };
    config.backlog.memory = ByteSize(128 << 10);
    config.backlog.window = 8;
    config.batch.events = 100;
    let (agent, sink) = start_at(&throttle.address, config).await;
    let ledger = agent.ledger().clone();
    sink.send((0..100).map(|n| event(n, EventSeverity::Warning)).collect()).await.unwrap();
    until("the first events", || (ledger.snapshot().published >= 100).then_some(())).await;
    throttle.set(SLOW);
    for first in (100..COUNT).step_by(100) {
        sink.send((first..first + 100).map(|n| event(n, EventSeverity::Warning)).collect()).await.unwrap();
    }
    // More than two megabytes at a tenth of a megabyte a second: it must wait on the disk.
    until("the spool to be used", || (at(&ledger.snapshot(), Place::Spool) > 5_000).then_some(())).await;
    // It lasts for longer than a trouble needs to be told.
    let own = ledger.collector("agent");
    until("the word that it spools", || (own.get() > 0).then_some(())).await;
    assert_eq!(ledger.snapshot().dropped, vec![], "slow is no reason to lose anything");
    throttle.set(u64::MAX);
    let all = || ledger.snapshot().published == COUNT + own.get();
    until("all to be published", || all().then_some(())).await;
    let end = drain(agent).await;
    let count = COUNT + own.get();
    assert_eq!((end.produced, end.published, end.dropped_total()), (count, count, 0));
    let bus = nats.bus().await.unwrap();
    let batches = Stream::open(&bus, "slow").await.rest().await;
    assert_ordered(&batches);
    assert_eq!(batches.iter().map(|b| b.events.len() as u64).sum::<u64>(), count);
    let told: Vec<_> = batches.iter().flat_map(|b| &b.events).filter_map(told_of).collect();
    let spools = |(kind, says): &(SignalKind, &str)| {
        *kind == SignalKind::TapioSpooling && says.ends_with(" events wait on the disk")
    };
    assert!(told.iter().any(spools), "{told:?}");
}

/// A file system of its own, so small that it fills up.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status().expect("mount runs");
        assert!(done.success(), "a small file system needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_sheds_the_unimportant_first_and_what_was_kept_arrives_in_order() {
    support::require_root();
    let mut nats = NatsServer::start().expect("nats-server");
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("spool"), 2 << 20);
    let mut config = AgentConfig { data_dir: Some(dir.path().to_owned()), ..bare("full") };
    config.backlog.memory = ByteSize(64 << 10);
    // Configured for more than the disk has.
    config.backlog.spool = ByteSize(1 << 30);
    config.backlog.spool_file = ByteSize(256 << 10);
    let (agent, sink) = start_at(&nats.url(), config).await;
    let ledger = agent.ledger().clone();
    nats.kill();
    let mut number = 0;
    let mut fill = async |severity: EventSeverity, reason: DropReason| {
        for _ in 0..5_000 {
            sink.send((number..number + 50).map(|n| event(n, severity)).collect()).await.unwrap();
            number += 50;
            tokio::task::yield_now().await;
            if lost(&ledger.snapshot(), reason) > 0 {
                return ledger.snapshot();
            }
        }
        panic!("no {reason:?}: {:?}", ledger.snapshot());
    };
    let info = fill(EventSeverity::Info, DropReason::ShedInfo).await;
    assert_eq!(info.dropped_total(), lost(&info, DropReason::ShedInfo), "only info is shed: {info:?}");
    let warning = fill(EventSeverity::Warning, DropReason::ShedWarning).await;
    assert_eq!(lost(&warning, DropReason::ShedError), 0, "{warning:?}");
    let error = fill(EventSeverity::Error, DropReason::ShedError).await;
    assert_eq!(
        (lost(&error, DropReason::SpoolIo), lost(&error, DropReason::BacklogFull)),
        (0, 0),
        "the disk is never asked for more than it has: {error:?}"
    );
    sink.send((0..20).map(|n| event(n, EventSeverity::Critical)).collect()).await.unwrap();
    // Its own word waits for room, too; the agent looks at itself each second.
    let held = Duration::from_millis(1_500);
    // check: allow sleep, one look of the agent at itself while the disk is full
    tokio::time::sleep(held).await;

    nats.restart().expect("nats-server starts again");
    until("all to be published", || (ledger.snapshot().in_flight_total() == 0).then_some(())).await;
    let end = drain(agent).await;
    let bus = nats.bus().await.unwrap();
    let batches = Stream::open(&bus, "full").await.rest().await;
    assert_ordered(&batches);
    let events: Vec<_> = batches.into_iter().flat_map(|b| b.events).collect();
    assert_eq!(events.len() as u64, end.published);
    assert_eq!(events.iter().filter(|e| e.severity == EventSeverity::Critical).count(), 20);
    let told: Vec<_> = events.iter().filter(|e| e.source == Source::Tapio).filter_map(told_of).collect();
    for kind in [SignalKind::TapioLoss, SignalKind::TapioCircuitOpen, SignalKind::TapioDiskRefuses] {
        let is_told = told.iter().any(|(told, _)| *told == kind);
        assert!(is_told, "{kind:?} is not told: {told:?}, {error:?}, {end:?}");
    }
    drop(disk);
}
