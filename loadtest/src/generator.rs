//! Batches in the shape the node agent makes them: connections, exits and samples of many containers.

use std::sync::Arc;

use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::payload::{KernelData, MetricData, NetworkData};
use tapio_schemas::wire::{EventBatch, WireError};
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Source, UnifiedEvent, UnixNanos,
};

/// Events of one batch.
pub const BATCH_EVENTS: usize = 512;
const WORKLOADS: u32 = 200;
const PODS: u32 = 2000;
const NODES: u32 = 50;
/// Event time between two events.
const EVENT_STEP_NS: u64 = 1_000;

/// A batch ready to publish.
pub struct Encoded {
    /// Shard it belongs to.
    pub shard: u16,
    /// Events inside.
    pub events: u64,
    /// The message.
    pub bytes: Vec<u8>,
}

/// An endless source of batches; the same seed gives the same events.
pub struct Generator {
    /// Entities by shard: a workload's events meet in one shard.
    entities: Vec<Vec<Arc<EntityRef>>>,
    batches: Vec<EventBatch>,
    producer: ProducerId,
    at: UnixNanos,
    made: u64,
    shard: usize,
}

impl Generator {
    /// A generator whose first event is at `start`.
    pub fn new(cluster: &str, producer: ProducerId, start: UnixNanos) -> Self {
        let mut entities = vec![Vec::new(); usize::from(SHARD_COUNT)];
        for pod in 0..PODS {
            let entity = Arc::new(pod_entity(cluster, pod));
            let shard = tapio_schemas::shard(entity.lineage);
            entities[usize::from(shard)].push(entity);
        }
        let batches = (0..SHARD_COUNT).map(|shard| EventBatch::new(producer, 0, shard)).collect();
        Self { entities, batches, producer, at: start, made: 0, shard: 0 }
    }

    /// The next batch; shards take turns.
    ///
    /// # Errors
    /// [`WireError`] when a batch cannot be encoded.
    pub fn next_batch(&mut self) -> Result<Encoded, WireError> {
        let shard = self.next_shard();
        for n in 0..BATCH_EVENTS {
            let of_shard = &self.entities[shard];
            let entity = Arc::clone(&of_shard[(self.made as usize / 7 + n) % of_shard.len()]);
            let event = self.event(entity);
            self.batches[shard].push(event);
        }
        let bytes = self.batches[shard].finish(UnixNanos(0))?;
        Ok(Encoded { shard: shard as u16, events: BATCH_EVENTS as u64, bytes })
    }

    fn next_shard(&mut self) -> usize {
        loop {
            let shard = self.shard;
            self.shard = (self.shard + 1) % self.entities.len();
            if !self.entities[shard].is_empty() {
                return shard;
            }
        }
    }

    fn event(&mut self, entity: Arc<EntityRef>) -> UnifiedEvent {
        self.at = self.at.plus(EVENT_STEP_NS);
        self.made += 1;
        let (kind, source, payload) = match self.made % 10 {
            0 => (EventKind::CgroupSample, Source::Cgroup, sample(self.made)),
            1 | 2 => (EventKind::ProcessExec, Source::Ebpf, exec(self.made)),
            _ => (EventKind::NetConnect, Source::Ebpf, connection(self.made)),
        };
        UnifiedEvent {
            id: EventId::sequenced(self.at, self.producer, self.made),
            timestamp: self.at,
            observed_at: self.at.plus(20_000),
            kind,
            source,
            severity: EventSeverity::Info,
            pid: 1000 + (self.made % 5000) as u32,
            entity,
            payload,
            ..UnifiedEvent::default()
        }
    }
}

fn pod_entity(cluster: &str, pod: u32) -> EntityRef {
    let workload = format!("service-{}", pod % WORKLOADS);
    EntityRef {
        cluster: cluster.into(),
        namespace: format!("team-{}", pod % 20).into(),
        workload_kind: "Deployment".into(),
        pod: format!("{workload}-5d9c7b-{pod:05}").into(),
        workload: workload.into(),
        pod_uid: format!("00000000-0000-4000-8000-{pod:012}").into(),
        container: "main".into(),
        container_id: format!("{pod:064x}").into(),
        node: format!("node-{}", pod % NODES).into(),
        ..EntityRef::default()
    }
    .sealed()
}

fn connection(n: u64) -> Payload {
    Payload::Network(Box::new(NetworkData {
        local_port: 32_768 + (n % 28_000) as u16,
        remote_port: 8080,
        duration_ns: 150_000 + n % 90_000,
        comm: "server".into(),
        ..NetworkData::default()
    }))
}

fn exec(n: u64) -> Payload {
    Payload::Kernel(Box::new(KernelData {
        other_pid: (n % 3000) as u32,
        comm: "sh".into(),
        ..KernelData::default()
    }))
}

fn sample(n: u64) -> Payload {
    Payload::Metric(Box::new(MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value: 100e6 + (n % 1000) as f64,
        limit: 512e6,
        ..MetricData::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::wire::EventBatchView;

    #[test]
    fn batches_hold_events_of_their_shard_alone() {
        let mut generator = Generator::new("load", ProducerId(1), UnixNanos(1_700_000_000_000_000_000));
        for _ in 0..70 {
            let batch = generator.next_batch().unwrap();
            let view = EventBatchView::check(&batch.bytes).unwrap();
            assert_eq!(view.len() as u64, batch.events);
            assert!(view.iter().all(|event| event.key().shard() == batch.shard));
        }
    }
}
