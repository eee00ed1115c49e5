//! Events for tests, and a publisher that does what the node agent does.
#![allow(dead_code)]

pub mod live;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tapio_runtime::bus::{Bus, Headers};
use tapio_schemas::names::events_subject;
use tapio_schemas::payload::{KernelData, MetricData};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Source, UnifiedEvent, UnixNanos,
};

const SECOND: u64 = 1_000_000_000;
const MIB: f64 = 1024.0 * 1024.0;

/// The cgroup that leaks.
pub fn cluster_leak() -> Arc<EntityRef> {
    cgroup("/leak")
}

pub fn cgroup(path: &str) -> Arc<EntityRef> {
    let entity =
        EntityRef { cluster: "test".into(), node: "n1".into(), cgroup: path.into(), ..EntityRef::default() };
    Arc::new(entity.sealed())
}

pub fn event(
    kind: EventKind,
    source: Source,
    entity: &Arc<EntityRef>,
    at: u64,
    id: u128,
    payload: Payload,
) -> UnifiedEvent {
    UnifiedEvent {
        id: EventId(id),
        timestamp: UnixNanos(at),
        observed_at: UnixNanos(at),
        kind,
        source,
        severity: EventSeverity::Warning,
        entity: Arc::clone(entity),
        payload,
        ..UnifiedEvent::default()
    }
}

/// A minute of leaking one MiB a second up to a limit of 64 MiB, the kill, and the victim's exit; it ends just before `now`.
pub fn leaking(now: u64) -> Vec<UnifiedEvent> {
    let entity = cluster_leak();
    let start = now - 64 * SECOND;
    let mut events: Vec<UnifiedEvent> = (0..60u64)
        .map(|i| {
            let data = MetricData {
                name: "container.memory.usage".into(),
                unit: "By".into(),
                value: (4 + i) as f64 * MIB,
                limit: 64.0 * MIB,
                ..MetricData::default()
            };
            let payload = Payload::Metric(Box::new(data));
            event(
                EventKind::CgroupSample,
                Source::Cgroup,
                &entity,
                start + i * SECOND,
                1 + u128::from(i),
                payload,
            )
        })
        .collect();
    let process = |signal| {
        let data = KernelData { signal, comm: "leaky".into(), ..KernelData::default() };
        Payload::Kernel(Box::new(data))
    };
    let kill = start + 60 * SECOND + SECOND / 3;
    let mut oom = event(EventKind::OomKill, Source::Ebpf, &entity, kill, 1000, process(0));
    let mut exit = event(EventKind::ProcessExit, Source::Ebpf, &entity, kill + SECOND / 10, 1001, process(9));
    (oom.pid, exit.pid) = (4242, 4242);
    events.extend([oom, exit]);
    events
}

/// A crash in another place.
pub fn crash(now: u64) -> UnifiedEvent {
    let data = KernelData { signal: 11, is_init: true, comm: "brittle".into(), ..KernelData::default() };
    let payload = Payload::Kernel(Box::new(data));
    let mut event = event(EventKind::ProcessExit, Source::Ebpf, &cgroup("/brittle"), now, 5000, payload);
    event.pid = 77;
    event
}

/// Publishes events in batches of one, numbered as a node agent numbers them.
pub struct Publisher {
    bus: Bus,
    batches: BTreeMap<u16, EventBatch>,
    producer: ProducerId,
}

impl Publisher {
    pub fn new(bus: Bus) -> Self {
        Self { bus, batches: BTreeMap::new(), producer: ProducerId(std::process::id().into()) }
    }

    pub async fn publish(&mut self, events: &[UnifiedEvent]) {
        for event in events {
            let shard = event.key().shard();
            let producer = self.producer;
            let batch = self.batches.entry(shard).or_insert_with(|| EventBatch::new(producer, 1, shard));
            batch.push(event.clone());
            let bytes = batch.finish(UnixNanos(0)).expect("a batch");
            let subject = events_subject("test", shard);
            self.bus.publish(&subject, None, Headers::new(), Bytes::from(bytes)).await.expect("published");
        }
    }
}
