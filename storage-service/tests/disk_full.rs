//! A full disk under the store: nothing is lost, it is told, and it goes on when there is room.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{PATIENCE, Running, finding, position};
use tapio_runtime::bus::{OrderedConfig, OrderedConsumer};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::finding::Status;
use tapio_schemas::names::{STREAM_EVENTS, status_key};
use tapio_schemas::status::StorageStatus;
use tapio_schemas::wire::{EventBatchView, Unpacker};
use tapio_schemas::{Finding, Payload, SignalKind, trouble};

const SMALL_BYTES: u64 = 20 << 20;
const LARGE_BYTES: u64 = 256 << 20;

/// A file system of its own, so small that it fills up.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let disk = Self(at.to_owned());
        disk.run(&format!("size={SMALL_BYTES}"));
        disk
    }

    fn grow(&self) {
        self.run(&format!("remount,size={LARGE_BYTES}"));
    }

    fn run(&self, options: &str) {
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0).status();
        assert!(done.expect("mount runs").success(), "a small file system needs root");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    // On a busy machine a disk takes twice the usual half minute to fill.
    let deadline = Instant::now() + PATIENCE * 4;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        // check: allow sleep, this is the wait for a condition
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the service tells of itself.
async fn word(service: &Running) -> Option<StorageStatus> {
    let name = position(&service.bus).await["name"].as_str()?.to_owned();
    let entry = service.bus.kv().await.unwrap().get(&status_key("storage", "all", &name)).await.unwrap()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

/// Troubles told in the events of the cluster `prod`.
async fn troubles(events: &mut OrderedConsumer) -> Vec<(SignalKind, String)> {
    let mut unpacker = Unpacker::default();
    let mut told = Vec::new();
    for message in events.next_batch(64, Duration::from_millis(100)).await.unwrap() {
        let plain = unpacker.unpack(&message.payload).unwrap();
        for event in EventBatchView::check(plain).unwrap().to_events() {
            let Payload::Custom(data) = &event.payload else { continue };
            told.extend(trouble::told(data).map(|(kind, says)| (kind, says.to_owned())));
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_wait_in_the_stream_until_the_disk_has_room() {
    const COUNT: u64 = 400;
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path());
    let service = Running::start(&nats, dir.path()).await;
    let mut events = service.bus.ordered_consumer(OrderedConfig::new(STREAM_EVENTS)).await.unwrap();
    // A correlator that speaks makes the cluster known.
    let key = status_key("correlator", "prod", "r1");
    service.bus.kv().await.unwrap().put(&key, "{}".into()).await.unwrap();

    // Forty kilobytes each, of which the disk holds a third.
    let noise = |number: u64| {
        (0..5_000u64)
            .map(|n| format!("{:08x}", (n + number * 7919).wrapping_mul(0x9e37_79b9) as u32))
            .collect()
    };
    let large = |number: u64| Finding { story: noise(number), status: Status::Active, ..finding(number) };
    for number in 0..COUNT {
        service.publish(&large(number)).await;
    }
    let failed = until("the word that the disk is full", async || word(&service).await?.failed).await;
    let stored = service.handle.store_metrics().stored_count();
    assert!(stored < COUNT, "the disk was large enough: {stored}");
    // A machine that takes long to fill the disk has a store that is behind before.
    let is_full = |told: &(SignalKind, String)| told.0 == SignalKind::TapioDiskRefuses;
    let told = until("the trouble", async || troubles(&mut events).await.into_iter().find(is_full)).await;
    assert!(told.1.contains("bytes left") && failed.contains("bytes left"), "{told:?} {failed}");
    let waiting = |text: String| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with("tapio_storage_findings_waiting "))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    assert!(waiting(service.metrics.encode()).is_some_and(|count| count > 0), "what waits is measured");

    disk.grow();
    let counts = service.handle.store_metrics().clone();
    until("the rest", async || (counts.stored_count() >= COUNT).then_some(())).await;
    until("the word that all is well", async || word(&service).await?.failed.is_none().then_some(())).await;
    let word = until("the last word", async || word(&service).await.filter(|w| w.stored >= COUNT)).await;
    let refused: u64 = word.refused.iter().map(|d| d.count).sum();
    assert_eq!(word.received, word.stored + word.retried + refused, "{word:?}");
    assert!(word.retried > 0, "{word:?}");
    let none = async || waiting(service.metrics.encode()).filter(|count| *count == 0);
    until("the measure that nothing waits", none).await;
    service.handle.drain().await.unwrap();
}
