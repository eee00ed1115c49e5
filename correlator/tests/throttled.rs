//! A correlator that gets too little of the processor: the stream keeps what it has not read, it says that it is behind, and
//! with enough of the processor again it has judged everything, once.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::live::Child;
use common::{Publisher, event, leaking, live};
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::bus::{Bus, Headers, OrderedConfig};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::names::{STREAM_EVENTS, events_filter, events_subject, status_key};
use tapio_schemas::payload::MetricData;
use tapio_schemas::status::CorrelatorStatus;
use tapio_schemas::wire::{EventBatch, EventBatchView, Unpacker};
use tapio_schemas::{
    EventKind, Finding, Payload, ProducerId, SignalKind, Source, UnifiedEvent, UnixNanos, trouble,
};

const TEST: &str = "with_too_little_of_the_processor_it_is_behind_says_so_and_catches_up";
/// It falls behind for more than half a minute, and then catches up.
const PATIENCE: Duration = Duration::from_secs(120);
const CGROUPS: &str = "/sys/fs/cgroup";
/// Of each 100 ms.
const QUOTA_US: u64 = 5_000;
/// Events of a batch.
const BATCH: u64 = 512;
/// Batches sent between two looks at how far it is.
const BATCHES: u64 = 20;
/// Events come so many times as fast as they are judged, and so many more at the beginning.
const FASTER: u64 = 4;
const BACKLOG: u64 = 20_000;
/// Programs whose memory is measured, in many shards.
const PROGRAMS: u64 = 16;

/// A control group whose processes get so much of the processor.
struct Processor {
    group: PathBuf,
    quota: PathBuf,
    is_v1: bool,
}

impl Processor {
    fn new() -> Self {
        let name = format!("tapio-test-throttled-{}", std::process::id());
        let v1 = ["cpu", "cpu,cpuacct"].map(|tree| Path::new(CGROUPS).join(tree));
        let v1 =
            v1.into_iter().find(|tree| tree.join("cpu.cfs_quota_us").exists() || tree.join("tasks").exists());
        let is_v1 = v1.is_some();
        let root = v1.unwrap_or_else(|| PathBuf::from(CGROUPS));
        if !is_v1 {
            // It may be passed on already.
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+cpu");
        }
        let group = root.join(name);
        std::fs::create_dir(&group).unwrap_or_else(|e| panic!("{} (needs root): {e}", group.display()));
        let quota = group.join(if is_v1 { "cpu.cfs_quota_us" } else { "cpu.max" });
        Self { group, quota, is_v1 }
    }

    fn take(&self, child: &Child) {
        std::fs::write(self.group.join("cgroup.procs"), child.id().to_string()).expect("moved");
    }

    /// `None`: as much as there is.
    fn limit(&self, quota_us: Option<u64>) {
        let none = if self.is_v1 { "-1" } else { "max" };
        let quota = quota_us.map_or(none.to_owned(), |us| us.to_string());
        std::fs::write(&self.quota, &quota).unwrap_or_else(|e| panic!("{quota} to {:?}: {e}", self.quota));
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        // A process that was just killed may still be leaving.
        while std::fs::remove_dir(&self.group).is_err() && Instant::now() < deadline {
            // check: allow sleep, the kernel tells no one when a group becomes empty
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What the correlator says of itself.
async fn word(bus: &Bus) -> Option<CorrelatorStatus> {
    let bucket = bus.kv().await.expect("the bucket");
    let entry = bucket.get(&status_key("correlator", "test", "only")).await.expect("the bucket answers")?;
    serde_json::from_slice(&entry.value).ok()
}

async fn word_that(bus: &Bus, what: &str, is_right: impl Fn(&CorrelatorStatus) -> bool) -> CorrelatorStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let word = word(bus).await;
        match word {
            Some(word) if is_right(&word) => return word,
            word => assert!(Instant::now() < deadline, "not said: {what}: {word:?}"),
        }
        // check: allow sleep, this is the wait for a condition
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Measures the memory of programs, again and again: all of it is well.
struct Load {
    bus: Bus,
    batches: BTreeMap<u16, EventBatch>,
    published: u64,
}

impl Load {
    const PRODUCER: ProducerId = ProducerId(0x10ad);

    async fn publish(&mut self) {
        let now = SystemClock::new().now_unix_nanos();
        let program = common::cgroup(&format!("/steady-{}", self.published / BATCH % PROGRAMS));
        let mut shard = 0;
        for n in 0..BATCH {
            let data = MetricData {
                name: "container.memory.usage".into(),
                unit: "By".into(),
                value: 20e6,
                limit: 64e6,
                ..MetricData::default()
            };
            let id = u128::from(1_000_000 + self.published + n);
            let payload = Payload::Metric(Box::new(data));
            let event = event(EventKind::CgroupSample, Source::Cgroup, &program, now + n, id, payload);
            shard = event.key().shard();
            let batch =
                self.batches.entry(shard).or_insert_with(|| EventBatch::new(Self::PRODUCER, 1, shard));
            batch.push(event);
        }
        let bytes = self.batches.get_mut(&shard).expect("a batch").finish(UnixNanos(0)).expect("encodes");
        self.published += BATCH;
        let subject = events_subject("test", shard);
        self.bus.publish(&subject, None, Headers::new(), Bytes::from(bytes)).await.expect("published");
    }
}

/// What is told of Tapio itself in the events.
async fn troubles(bus: &Bus) -> Vec<(UnifiedEvent, SignalKind, String)> {
    let filters = vec![events_filter("test")];
    let config = OrderedConfig { filters, ..OrderedConfig::new(STREAM_EVENTS) };
    let mut consumer = bus.ordered_consumer(config).await.expect("a consumer");
    let mut unpacker = Unpacker::default();
    let mut told = Vec::new();
    while let Some(message) = consumer.next_or_current().await.expect("messages") {
        let plain = unpacker.unpack(&message.payload).expect("unpacks");
        let batch = EventBatchView::check(plain).expect("a batch");
        if batch.len() as u64 == BATCH {
            continue;
        }
        for event in batch.to_events() {
            let Payload::Custom(data) = &event.payload else { continue };
            let Some((kind, says)) = trouble::told(data) else { continue };
            told.push((event.clone(), kind, says.to_owned()));
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_too_little_of_the_processor_it_is_behind_says_so_and_catches_up() {
    let config = CorrelatorConfig {
        replica: "only".into(),
        // With so little of the processor a batch may take long; that is another trouble, with its own test.
        batch_time_max: HumanDuration::from_secs(120),
        ..live::config()
    };
    Child::be(config).await;
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let processor = Processor::new();
    let child = Child::start(&server.url(), TEST);
    processor.take(&child);
    word_that(&bus, "all shards", |word| word.shards.len() == 64).await;

    processor.limit(Some(QUOTA_US));
    let leak = leaking(SystemClock::new().now_unix_nanos());
    Publisher::new(bus.clone()).publish(&leak).await;
    let mut load = Load { bus: bus.clone(), batches: BTreeMap::new(), published: 0 };
    let all_of =
        |word: &CorrelatorStatus| word.producers.iter().flat_map(|p| &p.shards).map(|row| row.4).sum::<u64>();
    let deadline = Instant::now() + PATIENCE;
    // Events come faster than it judges them, until it has said that it is behind.
    let behind = loop {
        let word = word(&bus).await.expect("it speaks while it is behind");
        if word.lag() > trouble::LAG_MAX {
            break word;
        }
        assert!(Instant::now() < deadline, "it is not behind: {:?}", word.lag());
        for _ in 0..BATCHES {
            if load.published < FASTER * all_of(&word) + BACKLOG {
                load.publish().await;
            }
        }
        // check: allow sleep, the pause between two looks at a condition
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let messages = bus.stream_state(STREAM_EVENTS).await.expect("the stream").messages;
    assert!(messages >= load.published / BATCH + leak.len() as u64, "the stream keeps all: {messages}");
    processor.limit(None);

    let all = load.published + leak.len() as u64;
    let producers = [Load::PRODUCER, ProducerId(std::process::id().into())];
    let rows = |word: &CorrelatorStatus| {
        let ours = word.producers.iter().filter(|read| producers.contains(&read.producer));
        ours.flat_map(|read| read.shards.clone()).collect::<Vec<_>>()
    };
    // With so little of the processor it may lose a lease, and reads some events again as the next owner.
    let read_up_to = |word: &CorrelatorStatus| -> u64 { rows(word).iter().map(|row| row.3).sum() };
    assert!(read_up_to(&behind) < all, "it was behind by events, too");
    let end = word_that(&bus, "everything", |word| read_up_to(word) == all).await;
    for row in rows(&end) {
        assert_eq!((row.3 - row.2, row.5, row.6), (row.4, 0, 0), "each event once: {row:?}");
    }
    word_that(&bus, "that it is not behind", |word| word.lag() < trouble::LAG_MAX).await;

    let told = troubles(&bus).await;
    let (event, _, says) =
        told.iter().find(|(_, kind, _)| *kind == SignalKind::TapioLag).expect("the lag is told");
    assert_eq!(event.entity.subject().to_string(), "Tapio correlator on only");
    assert!(says.starts_with("replica only is ") && says.ends_with(" s behind the events"), "{says}");
    let cause = |finding: &Finding| finding.root_cause.as_ref().map(|root| root.cause.to_string());
    let is_of = |finding: &Finding, wanted: &str| cause(finding).as_deref() == Some(wanted);
    let findings = live::findings_until(&bus, |all| {
        all.iter().any(|finding| is_of(finding, "tapio.falling_behind"))
            && all.iter().any(|f| is_of(f, "memory.leak") && live::tells(f, "memory.oom_kill"))
    })
    .await;
    let mut last: BTreeMap<_, Finding> = BTreeMap::new();
    last.extend(findings.into_iter().map(|finding| (finding.id, finding)));
    let mut causes: Vec<_> = last.values().filter_map(cause).collect();
    causes.sort_unstable();
    assert_eq!(causes, ["memory.leak", "tapio.falling_behind"]);
    let gaps: Vec<_> = last.values().flat_map(|finding| finding.freshness.gaps.clone()).collect();
    assert!(gaps.is_empty(), "nothing is missing in what was found: {gaps:?}");
}
