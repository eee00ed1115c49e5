//! A full disk under the store: nothing is lost, it is told, and it goes on when there is room.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::Running;
use common::trouble::{large, make_known, troubles, until, word};
use tapio_runtime::bus::OrderedConfig;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::names::STREAM_EVENTS;
use tapio_schemas::{SignalKind, UnifiedEvent};

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

#[tokio::test(flavor = "multi_thread")]
async fn findings_wait_in_the_stream_until_the_disk_has_room() {
    const COUNT: u64 = 400;
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path());
    let service = Running::start(&nats, dir.path()).await;
    let mut events = service.bus.ordered_consumer(OrderedConfig::new(STREAM_EVENTS)).await.unwrap();
    make_known(&service.bus, "prod").await;

    // The disk holds a third of them.
    for number in 0..COUNT {
        service.publish(&large(number)).await;
    }
    let failed = until("the word that the disk is full", async || word(&service.bus).await?.failed).await;
    let stored = service.handle.store_metrics().stored_count();
    assert!(stored < COUNT, "the disk was large enough: {stored}");
    // A machine that takes long to fill the disk has a store that is behind before.
    let is_full = |told: &(UnifiedEvent, SignalKind, String)| told.1 == SignalKind::TapioDiskRefuses;
    let told = until("the trouble", async || troubles(&mut events).await.into_iter().find(is_full)).await;
    assert!(told.2.contains("bytes left") && failed.contains("bytes left"), "{told:?} {failed}");
    let waiting = |text: String| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with("tapio_storage_findings_waiting "))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    assert!(waiting(service.metrics.encode()).is_some_and(|count| count > 0), "what waits is measured");

    disk.grow();
    let counts = service.handle.store_metrics().clone();
    until("the rest", async || (counts.stored_count() >= COUNT).then_some(())).await;
    until("the word that all is well", async || word(&service.bus).await?.failed.is_none().then_some(()))
        .await;
    let last = until("the last word", async || word(&service.bus).await.filter(|w| w.stored >= COUNT)).await;
    let refused: u64 = last.refused.iter().map(|d| d.count).sum();
    assert_eq!(last.received, last.stored + last.retried + refused, "{last:?}");
    assert!(last.retried > 0, "{last:?}");
    let none = async || waiting(service.metrics.encode()).filter(|count| *count == 0);
    until("the measure that nothing waits", none).await;
    service.handle.drain().await.unwrap();
}
