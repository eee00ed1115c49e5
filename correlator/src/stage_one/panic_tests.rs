//! A batch at which the work on its shard panics, with a real server and the real supervisor: everybody else goes on, it is
//! tried again once, and then it is in the dead letters, counted, and named in the findings of that time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Bus, Headers, Message, OrderedConfig};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{
    HEADER_REASON, STREAM_DEADLETTER, STREAM_EVENTS, STREAM_INSIGHTS, events_subject, status_key,
};
use tapio_schemas::payload::KernelData;
use tapio_schemas::status::CorrelatorStatus;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Finding, Payload, ProducerId, UnifiedEvent, UnixNanos,
};

use crate::config::CorrelatorConfig;
use crate::pipeline::{Correlator, CorrelatorHandle, CorrelatorParts};
use crate::shards::trap;

const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "panics";
const REPLICA: &str = "only";
/// Events of the batch at which the work panics.
const BATCH: u64 = 10;

struct Live {
    _server: NatsServer,
    bus: Bus,
    metrics: Metrics,
    correlator: CorrelatorHandle,
    batches: BTreeMap<u16, EventBatch>,
    published: u64,
}

impl Live {
    async fn start() -> Self {
        let server = NatsServer::start().expect("nats-server");
        let bus = server.bus().await.expect("a bus");
        let (clock, metrics) = (SystemClock::shared(), Metrics::new());
        let health = Health::new(Arc::clone(&clock));
        let parts = CorrelatorParts { bus: bus.clone(), clock, health, metrics: metrics.clone() };
        let config = CorrelatorConfig {
            cluster: CLUSTER.into(),
            replica: REPLICA.into(),
            ..CorrelatorConfig::default()
        };
        let correlator = Correlator::start(config, parts).await.expect("the correlator starts");
        Self { _server: server, bus, metrics, correlator, batches: BTreeMap::new(), published: 0 }
    }

    /// Crashes of a program, in one batch.
    async fn crashes(&mut self, path: &str, ids: impl IntoIterator<Item = EventId>) {
        let now = SystemClock::new().now_unix_nanos();
        let events: Vec<_> = ids.into_iter().zip(0..).map(|(id, n)| crash(path, now + n, id)).collect();
        let shard = events[0].key().shard();
        let batch = self.batches.entry(shard).or_insert_with(|| EventBatch::new(ProducerId(7), 1, shard));
        self.published += events.len() as u64;
        events.into_iter().for_each(|event| batch.push(event));
        let bytes = Bytes::from(batch.finish(UnixNanos(0)).expect("a batch"));
        let subject = events_subject(CLUSTER, shard);
        self.bus.publish(&subject, None, Headers::new(), bytes).await.expect("published");
    }

    async fn read<T>(&self, stream: &str, pick: impl Fn(&Message) -> Option<T>) -> T {
        let mut consumer = self.bus.ordered_consumer(OrderedConfig::new(stream)).await.expect("a consumer");
        let reading = async {
            loop {
                let messages = consumer.next_batch(64, Duration::from_millis(100)).await.expect("messages");
                if let Some(picked) = messages.iter().find_map(&pick) {
                    return picked;
                }
            }
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.unwrap_or_else(|_| panic!("not in {stream} in time: {}", self.panics()))
    }

    /// The finding about the crash of a program.
    async fn found(&self, path: &str) -> Finding {
        let about = |message: &Message| {
            let finding: Finding = serde_json::from_slice(&message.payload).expect("a finding");
            finding.entity().is_some_and(|entity| entity.name == path).then_some(finding)
        };
        self.read(STREAM_INSIGHTS, about).await
    }

    fn panics(&self) -> String {
        let text = self.metrics.encode();
        text.lines().filter(|line| line.contains("correlator_panics_total{")).collect()
    }

    async fn until(&self, what: &str, is: impl AsyncFn() -> bool) {
        let waiting = async {
            while !is().await {
                // check: allow sleep, this is the wait for a condition
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{what} did not come: {}", self.panics());
    }

    async fn word(&self) -> Option<CorrelatorStatus> {
        let key = status_key("correlator", CLUSTER, REPLICA);
        let entry = self.bus.kv().await.expect("the bucket").get(&key).await.expect("read")?;
        Some(serde_json::from_slice(&entry.value).expect("a word"))
    }

    /// Each number of each producer is used, refused or missed once, and nothing was built anew.
    async fn end(self, dropped: u64) {
        let all = self.published;
        let is_read = async || {
            let Some(word) = self.word().await else { return false };
            let rows: Vec<_> = word.producers.iter().flat_map(|p| &p.shards).collect();
            let sum = |of: fn(&&tapio_schemas::status::ReadShard) -> u64| rows.iter().map(of).sum::<u64>();
            let (read, processed) = (sum(|row| row.3 - row.2), sum(|row| row.4));
            (read, processed, sum(|row| row.5), sum(|row| row.6)) == (all, all - dropped, dropped, 0)
        };
        self.until("the balance", is_read).await;
        let events = self.bus.stream_state(STREAM_EVENTS).await.expect("the stream");
        assert!(events.messages > 0 && events.first_sequence == 1, "what came is still in the stream");
        let states = self.correlator.status().await.expect("the supervisor answers");
        let anew: Vec<_> = states.iter().filter(|state| state.restarts > 0).collect();
        assert!(anew.is_empty(), "nothing else was disturbed: {anew:?}");
        self.correlator.drain().await.expect("drains");
    }
}

fn crash(path: &str, at: u64, id: EventId) -> UnifiedEvent {
    let entity =
        EntityRef { cluster: CLUSTER.into(), node: "n1".into(), cgroup: path.into(), ..EntityRef::default() };
    let data = KernelData { signal: 11, is_init: true, comm: "main".into(), ..KernelData::default() };
    UnifiedEvent {
        id,
        timestamp: UnixNanos(at),
        observed_at: UnixNanos(at),
        kind: EventKind::ProcessExit,
        severity: EventSeverity::Warning,
        entity: Arc::new(entity.sealed()),
        payload: Payload::Kernel(Box::new(data)),
        pid: 7,
        ..UnifiedEvent::default()
    }
}

fn ids(from: u128) -> impl Iterator<Item = EventId> {
    (0..).map(move |n| EventId(from + n))
}

async fn a_batch_is_buried(trapped: EventId, over: &str) {
    let mut live = Live::start().await;
    live.crashes("/before", ids(100).take(1)).await;
    live.found("/before").await;
    // The event at which the work panics is amid others.
    let amid = ids(200).take(4).chain([trapped]).chain(ids(300)).take(BATCH as usize);
    live.crashes("/at", amid).await;
    live.crashes("/elsewhere", ids(400).take(1)).await;
    let reason = live.read(STREAM_DEADLETTER, |m| m.headers.get(HEADER_REASON).map(str::to_owned)).await;
    assert_eq!(reason, "panicked: the work on it panicked 2 times");
    assert_eq!(live.panics(), format!("tapio_correlator_panics_total{{over=\"{over}\"}} 2"));
    live.found("/elsewhere").await;
    live.crashes("/at", ids(500).take(1)).await;
    let gaps = live.found("/at").await.freshness.gaps;
    let is_told =
        |gap: &String| gap.starts_with("correlator on n1 lost 10 events ") && gap.ends_with(" (panicked)");
    assert!(gaps.iter().any(is_told), "{gaps:?}");
    let text = live.metrics.encode();
    for counted in [
        "tapio_correlator_events_dropped_total{reason=\"panicked\"} 10",
        "tapio_correlator_batches_rejected_total{reason=\"panicked\"} 1",
    ] {
        assert!(text.contains(counted), "{counted}: {text}");
    }
    live.end(BATCH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_be_taken_in_is_given_up_after_two_panics() {
    a_batch_is_buried(trap::TAKEN, "batch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_batch_of_an_event_that_cannot_be_judged_is_given_up_after_two_panics() {
    a_batch_is_buried(trap::JUDGED, "event").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_cannot_tell_a_step_begins_anew_behind_what_was_read() {
    let mut live = Live::start().await;
    live.crashes("/at", [trap::TOLD]).await;
    let panics = "tapio_correlator_panics_total{over=\"step\"} 2";
    live.until("the second panic", async || live.panics() == panics).await;
    live.crashes("/at", ids(500).take(1)).await;
    live.found("/at").await;
    assert_eq!(live.panics(), panics);
    // What a shard has read before it begins anew is with the owner before.
    live.published = 1;
    live.end(0).await;
}
