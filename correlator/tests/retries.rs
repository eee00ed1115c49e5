//! A storm of retries, played with a queue: requests wait for a database that serves one after the other, whoever gives up
//! asks again, and what nobody waits for any more is served all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::Engine;
use tapio_correlator::model::Model;
use tapio_schemas::finding::Status;
use tapio_schemas::payload::{SpanData, SpanKind, SpanStatus};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Finding, Payload, ProducerId, Source, SpanId, TraceContext,
    TraceId, UnifiedEvent, UnixNanos,
};

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;
const START: u64 = 1_767_225_600 * SECOND;
/// Time that the database needs for a call.
const SERVICE: u64 = 100 * MILLISECOND;
/// A caller waits so long.
const PATIENCE: u64 = SECOND;
/// What would wait longer than this for the database is not taken.
const QUEUE: u64 = 3 * SECOND;
/// When something happens.
const TROUBLE: u64 = 120;

/// Requests per second at a time.
type Load = fn(u64) -> u64;

/// A scene, in seconds from its start.
struct Scene {
    load: Load,
    /// How often a call is made before it is given up.
    attempts: u32,
    /// The database does nothing from `TROUBLE` on for so long.
    stops_for: u64,
    until: u64,
}

/// The database: what it has taken is done one after the other.
struct Database {
    free_at: u64,
    stopped: (u64, u64),
}

impl Database {
    /// When a call that arrives is answered; `None` when it is not taken.
    fn answers(&mut self, at: u64) -> Option<u64> {
        let begins = self.free_at.max(at);
        if begins - at > QUEUE || (self.stopped.0..self.stopped.1).contains(&at) {
            return None;
        }
        self.free_at = begins + SERVICE;
        Some(self.free_at)
    }
}

fn service(name: &str) -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: "test".into(),
        namespace: "shop".into(),
        service: name.into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

/// Ids of a span: trace, itself, parent.
type Ids = (u128, u64, u64);

fn span(name: &str, ids: Ids, times: (u64, u64), data: SpanData) -> UnifiedEvent {
    let (start, end) = (START + times.0, START + times.1);
    let data = SpanData { start: UnixNanos(start), duration_ns: end - start, ..data };
    UnifiedEvent {
        id: EventId::derive(UnixNanos(end), format!("{name} {ids:?}").as_bytes()),
        timestamp: UnixNanos(end),
        observed_at: UnixNanos(end),
        kind: EventKind::Span,
        source: Source::Replay,
        severity: EventSeverity::Info,
        entity: service(name),
        payload: Payload::Span(Box::new(data)),
        trace: Some(Box::new(TraceContext {
            trace_id: TraceId(ids.0),
            span_id: SpanId(ids.1),
            parent_span_id: SpanId(ids.2),
            flags: 1,
        })),
        ..UnifiedEvent::default()
    }
}

fn status(failed: bool) -> SpanStatus {
    if failed { SpanStatus::Error } else { SpanStatus::Ok }
}

impl Scene {
    /// All spans in the order of their ends.
    fn spans(&self) -> Vec<UnifiedEvent> {
        let mut spans = Vec::new();
        let stopped = (TROUBLE * SECOND, (TROUBLE + self.stops_for) * SECOND);
        let mut database = Database { free_at: 0, stopped };
        // Attempts in the order of their times: (when, request, number, when the request came).
        let mut waiting: BTreeMap<(u64, u64), (u32, u64)> = BTreeMap::new();
        let mut number = 0;
        for second in 0..self.until {
            let load = (self.load)(second);
            for place in 0..load {
                let at = second * SECOND + place * SECOND / load;
                number += 1;
                waiting.insert((at, number), (1, at));
            }
        }
        while let Some(((at, request), (attempt, came))) = waiting.pop_first() {
            let (trace, call) = (u128::from(request), u64::from(attempt) * 2);
            let answer = database.answers(at);
            if let Some(done) = answer {
                let data = SpanData { name: "SELECT".into(), kind: SpanKind::Server, ..SpanData::default() };
                spans.push(span("db", (trace, call + 1, call), (at, done), data));
            }
            let in_time = answer.filter(|done| done - at < PATIENCE);
            let end = in_time.map_or(at + PATIENCE, |done| done + MILLISECOND);
            let data = SpanData {
                name: "SELECT".into(),
                kind: SpanKind::Client,
                status: status(in_time.is_none()),
                error_type: if in_time.is_none() { "timeout" } else { "" }.into(),
                peer: "db".into(),
                ..SpanData::default()
            };
            spans.push(span("api", (trace, call, 1), (at, end), data));
            if in_time.is_none() && attempt < self.attempts {
                waiting.insert((end + MILLISECOND, request), (attempt + 1, came));
                continue;
            }
            let data = SpanData {
                name: "GET /cart".into(),
                kind: SpanKind::Server,
                status: status(in_time.is_none()),
                http_status: if in_time.is_none() { 500 } else { 200 },
                ..SpanData::default()
            };
            spans.push(span("api", (trace, 1, 0), (came, end + 2 * MILLISECOND), data));
        }
        spans.retain(|span| span.timestamp.0 < START + self.until * SECOND);
        spans.sort_by_key(|span| (span.timestamp, span.id));
        spans
    }

    /// Every revision of every finding.
    fn told(&self) -> Vec<Finding> {
        let model = Arc::new(Model::builtin().expect("the built-in model loads"));
        let mut engine = Engine::new("test", CorrelatorConfig::default(), model);
        let mut batches: Vec<EventBatch> = (0..64).map(|s| EventBatch::new(ProducerId(1), 0, s)).collect();
        let mut told = Vec::new();
        for slice in self.spans().chunk_by(|a, b| a.timestamp.0 / SECOND == b.timestamp.0 / SECOND) {
            let mut shards: Vec<u16> = slice.iter().map(|span| span.key().shard()).collect();
            for (span, shard) in slice.iter().zip(&shards) {
                batches[usize::from(*shard)].push(span.clone());
            }
            shards.sort_unstable();
            shards.dedup();
            for shard in shards {
                let bytes = batches[usize::from(shard)].finish(UnixNanos(0)).expect("a batch");
                engine.push_batch(&bytes).expect("taken");
            }
            told.extend(engine.drain());
        }
        told.extend(engine.settle());
        told
    }
}

fn last(told: &[Finding]) -> Vec<&Finding> {
    let mut last: BTreeMap<_, &Finding> = BTreeMap::new();
    last.extend(told.iter().map(|finding| (finding.id, finding)));
    last.into_values().collect()
}

/// Cause and name of what it sits on.
fn cause(finding: &Finding) -> (&str, &str) {
    finding.root_cause.as_ref().map_or(("", ""), |root| (root.cause.as_str(), root.entity.name.as_str()))
}

fn causes(told: &[Finding]) -> Vec<(&str, &str)> {
    told.iter().map(cause).collect()
}

const STORM: &str = "dependency.retry_storm";

#[test]
fn what_goes_on_by_retries_alone_is_the_callers_doing() {
    let storm = Scene { load: |_| 8, attempts: 4, stops_for: 15, until: TROUBLE + 120 };
    let told = storm.told();
    let now: Vec<&Finding> = last(&told).into_iter().filter(|f| f.status == Status::Active).collect();
    assert_eq!(now.iter().map(|f| cause(f)).collect::<Vec<_>>(), [(STORM, "api")], "{:#?}", last(&told));
    let story = &now[0].story;
    assert!(story.contains("per request") && story.contains("gets 100 % of its usual requests"), "{story}");
    // While the database does nothing it is to blame.
    let within = |finding: &&Finding| finding.updated_at.0 < START + (TROUBLE + 14) * SECOND;
    let early: Vec<_> = told.iter().filter(within).map(cause).collect();
    assert!(!early.iter().any(|(cause, _)| *cause == STORM), "{early:?}");
}

#[test]
fn without_retries_the_same_is_over_when_the_callee_is_back() {
    let once = Scene { load: |_| 8, attempts: 1, stops_for: 15, until: TROUBLE + 120 };
    let told = once.told();
    assert!(!told.is_empty() && !causes(&told).iter().any(|(cause, _)| *cause == STORM), "{told:#?}");
    assert!(last(&told).iter().all(|f| f.status == Status::Recovered), "{:#?}", last(&told));
}

#[test]
fn a_callee_that_does_not_come_back_is_to_blame_however_often_it_is_asked() {
    let dead = Scene { load: |_| 8, attempts: 4, stops_for: 1000, until: TROUBLE + 60 };
    let told = dead.told();
    let last = last(&told);
    assert_eq!(last.iter().map(|f| cause(f)).collect::<Vec<_>>(), [("dependency.unresponsive", "db")]);
    assert!(!causes(&told).iter().any(|(cause, _)| *cause == STORM), "{told:#?}");
    let chain = format!("{:?}", last[0].chain);
    assert!(chain.contains("repeated"), "that it is asked again makes it worse: {chain}");
}

#[test]
fn a_load_that_rises_is_no_storm() {
    // An eighth more is served; three times as much is more than it can do, whether or not somebody tries again.
    let little: Load = |s| if s < TROUBLE { 8 } else { 9 };
    let much: Load = |s| if s < TROUBLE { 8 } else { 24 };
    for (load, attempts) in [(little, 4), (much, 1), (much, 4)] {
        let told = Scene { load, attempts, stops_for: 0, until: TROUBLE + 60 }.told();
        assert!(!causes(&told).iter().any(|(cause, _)| *cause == STORM), "{told:#?}");
    }
}
