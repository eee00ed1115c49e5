//! The flagship chain: memory grows in a database's container, the kernel kills it, a call to it times out, and the
//! request that made the call ends as HTTP 500. One finding, whose root cause is the leak, in any order of arrival.

use std::collections::BTreeSet;
use std::sync::Arc;

use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::Engine;
use tapio_correlator::model::Model;
use tapio_schemas::finding::Status;
use tapio_schemas::payload::{KernelData, MetricData, SpanData, SpanKind, SpanStatus};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    Entity, EntityRef, EventId, EventKind, EventSeverity, Finding, Payload, ProducerId, Source, SpanId,
    TraceContext, TraceId, UnifiedEvent, UnixNanos,
};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
const MIB: f64 = 1024.0 * 1024.0;
const START: u64 = 1_767_225_600 * SECOND;
/// Below the correlator's lateness of 500 ms.
const JITTER: u64 = 450 * MILLISECOND;
const KILL: u64 = START + 60 * SECOND + 300 * MILLISECOND;

fn database() -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: "prod".into(),
        namespace: "shop".into(),
        workload_kind: "StatefulSet".into(),
        workload: "orders-db".into(),
        pod: "orders-db-0".into(),
        container: "postgres".into(),
        node: "n1".into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

fn service(name: &str) -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: "prod".into(),
        namespace: "shop".into(),
        service: name.into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

fn event(kind: EventKind, entity: &Arc<EntityRef>, at: u64, payload: Payload) -> UnifiedEvent {
    let seed = format!("{kind} {at} {}", entity.lineage);
    UnifiedEvent {
        id: EventId::derive(UnixNanos(at), seed.as_bytes()),
        timestamp: UnixNanos(at),
        observed_at: UnixNanos(at),
        kind,
        source: Source::Replay,
        severity: EventSeverity::Warning,
        entity: Arc::clone(entity),
        payload,
        ..UnifiedEvent::default()
    }
}

fn sample(entity: &Arc<EntityRef>, at: u64, mebibytes: f64) -> UnifiedEvent {
    let data = MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value: mebibytes * MIB,
        limit: 64.0 * MIB,
        ..MetricData::default()
    };
    event(EventKind::CgroupSample, entity, at, Payload::Metric(Box::new(data)))
}

fn span(entity: &Arc<EntityRef>, trace: u128, ids: (u64, u64), end: u64, data: SpanData) -> UnifiedEvent {
    let start = UnixNanos(end - data.duration_ns);
    let mut event = event(EventKind::Span, entity, end, Payload::Span(Box::new(SpanData { start, ..data })));
    event.trace = Some(Box::new(TraceContext {
        trace_id: TraceId(trace),
        span_id: SpanId(ids.0),
        parent_span_id: SpanId(ids.1),
        flags: 1,
    }));
    event
}

/// A request to the API that ends as 500 because its call to the database timed out.
fn failing_request(trace: u128, end: u64) -> [UnifiedEvent; 2] {
    let api = service("api");
    let call = SpanData {
        name: "SELECT orders".into(),
        kind: SpanKind::Client,
        status: SpanStatus::Error,
        status_message: "deadline exceeded".into(),
        error_type: "timeout".into(),
        peer: "orders-db".into(),
        duration_ns: 5 * SECOND,
        ..SpanData::default()
    };
    let request = SpanData {
        name: "POST /orders".into(),
        kind: SpanKind::Server,
        status: SpanStatus::Error,
        http_status: 500,
        duration_ns: 5 * SECOND + 20 * MILLISECOND,
        ..SpanData::default()
    };
    [span(&api, trace, (2, 1), end, call), span(&api, trace, (1, 0), end + 10 * MILLISECOND, request)]
}

/// The whole story in time order: the calls fail `calls_at` after the kill (or before it, when negative).
fn story(calls_at: i64) -> Vec<UnifiedEvent> {
    let db = database();
    let mut events: Vec<UnifiedEvent> =
        (0..60).map(|i| sample(&db, START + i * SECOND, 3.0 + i as f64)).collect();
    let victim = KernelData { comm: "postgres".into(), is_init: true, ..KernelData::default() };
    let mut kill = event(EventKind::OomKill, &db, KILL, Payload::Kernel(Box::new(victim)));
    kill.pid = 4711;
    events.push(kill);
    let calls = KILL.saturating_add_signed(calls_at);
    for number in 0..3u128 {
        let trace = 0x00c0_ffee_0000_0000_0000_0000_0000_0001 + (number << 96);
        events.extend(failing_request(trace, calls + number as u64 * 200 * MILLISECOND));
    }
    events.sort_by_key(|e| (e.timestamp, e.id));
    events
}

/// A small generator (xorshift*), so that each seed is one order for ever.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

/// An order in which each event is at most the lateness behind.
fn arrival(mut events: Vec<UnifiedEvent>, seed: u64) -> Vec<UnifiedEvent> {
    let mut random = Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    if seed > 0 {
        events.sort_by_cached_key(|e| (e.timestamp.0 + random.below(JITTER), e.id));
    }
    events
}

fn correlate(events: &[UnifiedEvent]) -> Vec<Finding> {
    let model = Arc::new(Model::builtin().unwrap());
    let mut engine = Engine::new("prod", CorrelatorConfig::default(), model);
    let mut batches = std::collections::BTreeMap::new();
    let mut findings = Vec::new();
    for event in events {
        let shard = event.key().shard();
        let batch = batches.entry(shard).or_insert_with(|| EventBatch::new(ProducerId(7), 1, shard));
        batch.push(event.clone());
        engine.push_batch(&batch.finish(UnixNanos(0)).unwrap()).unwrap();
        findings.extend(engine.drain());
    }
    findings.extend(engine.finish());
    findings
}

fn places(finding: &Finding, kinds: &[&str]) -> Vec<usize> {
    let chain = &finding.chain;
    kinds
        .iter()
        .map(|kind| {
            let at = chain.iter().position(|link| link.signal == *kind);
            at.unwrap_or_else(|| {
                panic!("no {kind} in {:?}", chain.iter().map(|l| &l.signal).collect::<Vec<_>>())
            })
        })
        .collect()
}

#[test]
fn one_finding_names_the_leak_and_tells_the_whole_chain() {
    let findings = correlate(&arrival(story(5 * SECOND as i64), 0));
    let ids: BTreeSet<_> = findings.iter().map(|f| f.id).collect();
    assert_eq!(ids.len(), 1, "{:?}", findings.iter().map(|f| &f.title).collect::<Vec<_>>());

    let workload = Entity::namespaced("StatefulSet", "shop", "orders-db");
    let before =
        findings.iter().take_while(|f| f.emitted_at < UnixNanos(KILL)).last().expect("said before the kill");
    assert_eq!(before.status, Status::Active);
    assert_eq!(before.root_cause.as_ref().unwrap().cause, "memory.leak");
    assert!(before.confidence.get() > 0.7, "{:?}", before.confidence);
    let foretold = before.prediction.as_ref().expect("a prediction");
    assert!(foretold.interval.0 <= UnixNanos(KILL + 2 * SECOND) && foretold.interval.1 >= UnixNanos(KILL));

    let told = findings.iter().rfind(|f| f.status == Status::Active).unwrap();
    let root = told.root_cause.as_ref().unwrap();
    assert_eq!((&root.entity, root.cause.as_str()), (&workload, "memory.leak"));
    assert!(told.confidence.get() > 0.9, "{:?}", told.confidence);
    let order = places(told, &["memory.growth", "memory.oom_kill", "span.timeouts", "http.server_errors"]);
    assert!(order.is_sorted(), "{order:?}");
    assert!(told.chain.is_sorted_by_key(|link| link.at));
    assert!(told.chain.iter().all(|link| !link.evidence.is_empty()));
    assert!(told.impact.callers.iter().any(|c| c.contains("api")), "{:?}", told.impact);
    assert!(told.impact.customer_facing);
    assert_eq!(told.severity, tapio_schemas::Severity::Critical);

    let alternatives: Vec<_> = told.hypotheses[1..].iter().filter(|h| !h.refuted_by.is_empty()).collect();
    assert!(alternatives.len() >= 2, "{:?}", told.hypotheses);
    assert!(alternatives.iter().any(|h| h.cause == "memory.limit_exceeded"));
    assert_eq!(findings.last().unwrap().status, Status::Recovered);
    let revisions: Vec<u32> = findings.iter().map(|f| f.revision).collect();
    assert_eq!(revisions, (1..=findings.len() as u32).collect::<Vec<_>>());
}

#[test]
fn any_order_of_arrival_within_the_lateness_gives_the_very_same_findings() {
    for calls_at in [5 * SECOND as i64, 400 * MILLISECOND as i64, -(2 * SECOND as i64)] {
        let expected = correlate(&arrival(story(calls_at), 0));
        let ids: BTreeSet<_> = expected.iter().map(|f| f.id).collect();
        assert_eq!(ids.len(), 1, "{calls_at}: {:?}", expected.iter().map(|f| &f.title).collect::<Vec<_>>());
        assert_eq!(expected.last().unwrap().root_cause.as_ref().unwrap().cause, "memory.leak");
        for seed in 1..=8 {
            let found = correlate(&arrival(story(calls_at), seed));
            assert_eq!(found, expected, "calls at {calls_at} ns, seed {seed}");
        }
    }
}

#[test]
fn a_leak_next_door_at_the_same_time_is_another_incident() {
    let mut events = story(5 * SECOND as i64);
    let other = EntityRef {
        cluster: "prod".into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: "mailer".into(),
        pod: "mailer-1".into(),
        container: "mailer".into(),
        node: "n1".into(),
        ..EntityRef::default()
    };
    let other = Arc::new(other.sealed());
    events.extend((0..60).map(|i| sample(&other, START + i * SECOND + 7, 3.0 + i as f64)));
    events.sort_by_key(|e| (e.timestamp, e.id));
    let findings = correlate(&events);
    let seats: BTreeSet<_> = findings
        .iter()
        .filter_map(|f| f.root_cause.as_ref().map(|r| (f.id, r.entity.name.clone())))
        .collect();
    let names: Vec<_> = seats.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(seats.len(), 2, "{seats:?}");
    assert!(names.contains(&"orders-db") && names.contains(&"mailer"), "{names:?}");
    let mailer =
        findings.iter().rfind(|f| f.root_cause.as_ref().is_some_and(|r| r.entity.name == "mailer")).unwrap();
    assert!(mailer.chain.iter().all(|l| l.entity.name.starts_with("mailer")), "{:?}", mailer.chain);
}
