//! Findings that fill a disk, and what the service tells of itself meanwhile.

use std::time::{Duration, Instant};

use tapio_runtime::bus::{Bus, OrderedConsumer};
use tapio_schemas::finding::Status;
use tapio_schemas::names::status_key;
use tapio_schemas::status::StorageStatus;
use tapio_schemas::wire::{EventBatchView, Unpacker};
use tapio_schemas::{Finding, Payload, SignalKind, UnifiedEvent, trouble};

use super::{PATIENCE, finding, position};

/// Waits for something that a busy disk may hold up for minutes.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE * 6;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        // check: allow sleep, this is the wait for a condition
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Forty kilobytes each, which do not pack.
pub fn large(number: u64) -> Finding {
    let word = |n: u64| format!("{:08x}", (n + number * 7919).wrapping_mul(0x9e37_79b9) as u32);
    Finding { story: (0..5_000).map(word).collect(), status: Status::Active, ..finding(number) }
}

/// What the service tells of itself.
pub async fn word(bus: &Bus) -> Option<StorageStatus> {
    let name = position(bus).await["name"].as_str()?.to_owned();
    let entry = bus.kv().await.unwrap().get(&status_key("storage", "all", &name)).await.unwrap()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

/// A correlator that speaks makes its cluster known.
pub async fn make_known(bus: &Bus, cluster: &str) {
    bus.kv().await.unwrap().put(&status_key("correlator", cluster, "r1"), "{}".into()).await.unwrap();
}

/// Troubles of Tapio among the new events.
pub async fn troubles(events: &mut OrderedConsumer) -> Vec<(UnifiedEvent, SignalKind, String)> {
    let mut unpacker = Unpacker::default();
    let mut told = Vec::new();
    for message in events.next_batch(64, Duration::from_millis(100)).await.unwrap() {
        let plain = unpacker.unpack(&message.payload).unwrap();
        for event in EventBatchView::check(plain).unwrap().to_events() {
            let Payload::Custom(data) = &event.payload else { continue };
            let Some((kind, says)) = trouble::told(data) else { continue };
            told.push((event.clone(), kind, says.to_owned()));
        }
    }
    told
}
