//! What is foretold of callers and of error budgets, from spans, samples and kernel events through both stages.

use std::collections::BTreeMap;
use std::sync::Arc;

use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::Engine;
use tapio_correlator::model::Model;
use tapio_correlator::slo::SloConfig;
use tapio_runtime::config::HumanDuration;
use tapio_schemas::finding::{Prediction, SCENARIO_BUDGET, SCENARIO_CASCADE_CALL, Status};
use tapio_schemas::payload::{KernelData, MetricData, SpanData, SpanKind, SpanStatus};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Finding, Payload, ProducerId, Source, SpanId, TraceContext,
    TraceId, UnifiedEvent, UnixNanos,
};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
const START: u64 = 1_767_225_600 * SECOND;

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

/// A request that goes along a chain of services, and fails in so many of them, counted from the innermost.
fn request(trace: u64, at: u64, chain: &[&str], failing: usize) -> Vec<UnifiedEvent> {
    let mut events = Vec::new();
    let id = TraceId(u128::from(trace) << 64 | 0x0bad_cafe);
    let mut span = |name: &str, kind, depth: usize, ids: (u64, u64), fails: bool, peer: &str| {
        let duration_ns = (40 - 3 * depth as u64) * MILLISECOND;
        let end = at + duration_ns + depth as u64 * MILLISECOND;
        let data = SpanData {
            name: "GET /".into(),
            kind,
            status: if fails { SpanStatus::Error } else { SpanStatus::Unset },
            http_status: if fails { 500 } else { 200 },
            peer: peer.into(),
            start: UnixNanos(end - duration_ns),
            duration_ns,
            ..SpanData::default()
        };
        let mut span = event(EventKind::Span, &service(name), end, Payload::Span(Box::new(data)));
        span.id = EventId::derive(UnixNanos(end), format!("{trace} {}", ids.0).as_bytes());
        let (span_id, parent_span_id) = (SpanId(ids.0), SpanId(ids.1));
        span.trace = Some(Box::new(TraceContext { trace_id: id, span_id, parent_span_id, flags: 1 }));
        events.push(span);
    };
    for (depth, name) in chain.iter().enumerate() {
        let fails = depth + failing >= chain.len();
        let server = 2 * depth as u64 + 1;
        span(name, SpanKind::Server, 2 * depth, (server, server - 1), fails, "");
        if let Some(next) = chain.get(depth + 1) {
            let call_fails = depth + 1 + failing >= chain.len();
            span(name, SpanKind::Client, 2 * depth + 1, (server + 1, server), call_fails, next);
        }
    }
    events
}

fn correlate(mut events: Vec<UnifiedEvent>, config: CorrelatorConfig) -> Vec<Finding> {
    events.sort_by_key(|event| (event.timestamp, event.id));
    let mut engine = Engine::new("prod", config, Arc::new(Model::builtin().expect("the built-in model")));
    let mut batches = BTreeMap::new();
    let mut findings = Vec::new();
    for event in events {
        let shard = event.key().shard();
        let batch = batches.entry(shard).or_insert_with(|| EventBatch::new(ProducerId(7), 1, shard));
        batch.push(event);
        engine.push_batch(&batch.finish(UnixNanos(0)).expect("a batch")).expect("taken");
        findings.extend(engine.drain());
    }
    findings.extend(engine.finish());
    findings
}

fn of<'a>(finding: &'a Finding, scenario: &str, name: &str) -> Option<&'a Prediction> {
    let is_it = |p: &&Prediction| p.scenario == scenario && p.entity.as_ref().is_some_and(|e| e.name == name);
    finding.predictions.iter().find(is_it)
}

/// A database whose memory grows until it is killed; the api that needs it fails `api_after` seconds later, and the web
/// `web_after` seconds later.
fn outage(api_after: u64, web_after: u64) -> Vec<UnifiedEvent> {
    const KILL: u64 = 90;
    let db = service("db");
    let mut events = Vec::new();
    for second in 0..240 {
        let failing = match second {
            s if s < KILL + api_after => 0,
            s if s < KILL + web_after => 2,
            _ => 3,
        };
        for number in 0..4 {
            let at = START + second * SECOND + number * 200 * MILLISECOND;
            events.extend(request(second * 10 + number, at, &["web", "api", "db"], failing));
        }
        if (20..KILL).contains(&second) {
            let mebibytes = 3.0 + 60.0 * (second - 20) as f64 / 70.0;
            let data = MetricData {
                name: "container.memory.usage".into(),
                unit: "By".into(),
                value: mebibytes * 1_048_576.0,
                limit: 64.0 * 1_048_576.0,
                ..MetricData::default()
            };
            let sample = Payload::Metric(Box::new(data));
            events.push(event(EventKind::CgroupSample, &db, START + second * SECOND + 7, sample));
        }
        if second >= KILL && second % 10 == 0 {
            let victim = KernelData { comm: "postgres".into(), is_init: true, ..KernelData::default() };
            let mut kill = event(
                EventKind::OomKill,
                &db,
                START + second * SECOND + 11,
                Payload::Kernel(Box::new(victim)),
            );
            kill.pid = 4711 + second as u32;
            events.push(kill);
        }
    }
    events
}

#[test]
fn the_callers_of_what_breaks_are_foretold_and_scored() {
    let findings = correlate(outage(12, 30), CorrelatorConfig::default());
    let told = findings.iter().find(|f| of(f, SCENARIO_CASCADE_CALL, "api").is_some()).expect("foretold");
    assert!(told.confidence.get() > 0.7, "{:?}", told.confidence);
    assert_eq!(told.root_cause.as_ref().map(|root| root.cause.as_str()), Some("memory.leak"));
    let api = of(told, SCENARIO_CASCADE_CALL, "api").expect("the api");
    let web = of(told, SCENARIO_CASCADE_CALL, "web").expect("the web");
    assert!(api.probability > web.probability && web.at > api.at, "{api:?} {web:?}");
    assert!(told.emitted_at < UnixNanos(START + 102 * SECOND), "before the api fails: {}", told.emitted_at);
    assert!(told.story.contains("May suffer next: service shop/api"), "{}", told.story);
    let last = findings.iter().rev().find(|f| f.id == told.id).expect("the last revision");
    for name in ["api", "web"] {
        let outcome = of(last, SCENARIO_CASCADE_CALL, name).and_then(|p| p.outcome.as_deref());
        assert_eq!(outcome, Some("hit"), "{name}: {:?}", last.predictions);
    }
    assert_eq!(
        findings,
        correlate(outage(12, 30), CorrelatorConfig::default()),
        "a second replay says the same"
    );
}

/// Requests to one service, four per second, of which one of so many fails from `bad` on until `good`; 0 = none.
fn errors(seconds: u64, bad: u64, good: u64, one_of: u64) -> Vec<UnifiedEvent> {
    let mut events = Vec::new();
    let mut number = 0;
    for second in 0..seconds {
        for part in 0..4 {
            number += 1;
            let fails = (bad..good).contains(&second) && number % one_of == 0;
            let at = START + second * SECOND + part * 220 * MILLISECOND;
            events.extend(request(number, at, &["shop"], usize::from(fails)));
        }
    }
    events
}

/// An objective of 99.5 % within a day: all failing, the budget lasts seven minutes.
fn a_day() -> CorrelatorConfig {
    let window = HumanDuration::from_secs(86_400);
    let slo = SloConfig { objective: 0.995, window, own_findings: true, ..SloConfig::default() };
    CorrelatorConfig { slo, ..CorrelatorConfig::default() }
}

fn budgets(findings: &[Finding]) -> impl Iterator<Item = (&Finding, &Prediction)> {
    findings.iter().filter_map(|f| Some((f, of(f, SCENARIO_BUDGET, "shop")?)))
}

#[test]
fn a_budget_that_burns_is_foretold_with_the_errors_and_scored_when_it_is_used_up() {
    // One of two requests fails: the budget of a day is gone after 864 s.
    let findings = correlate(errors(1300, 200, 1300, 2), a_day());
    let (first, told) = budgets(&findings).next().expect("foretold");
    assert!(first.impact.slo_impact);
    assert!(first.story.contains("error budget of service shop/shop (99.5 % in 24.0 h)"), "{}", first.story);
    assert!(first.story.contains("what was before is not known"), "{}", first.story);
    assert!(told.interval.0 <= told.at && told.at <= told.interval.1, "{told:?}");
    let used_up = UnixNanos(START + (200 + 864) * SECOND);
    let half_way = budgets(&findings).filter(|(f, _)| f.emitted_at < UnixNanos(START + 600 * SECOND)).last();
    let (_, forecast) = half_way.expect("told at half the way");
    assert!(forecast.interval.0 <= used_up && used_up <= forecast.interval.1, "{forecast:?} {used_up}");
    let (_, last) = budgets(&findings).last().expect("the last word");
    assert_eq!(last.outcome.as_deref(), Some("hit"), "{last:?}");
}

#[test]
fn errors_that_stop_take_the_forecast_back() {
    let findings = correlate(errors(900, 200, 500, 2), a_day());
    let (_, last) = budgets(&findings).last().expect("foretold");
    assert_eq!(last.outcome.as_deref(), Some("not_due"), "{last:?}");
    assert!(budgets(&findings).any(|(_, told)| told.outcome.as_deref() == Some("pending")));
}

#[test]
fn what_fails_as_often_as_ever_burns_its_budget_all_the_same() {
    // From the first moment on one of ten fails: that is usual here, and twenty times too much.
    let findings = correlate(errors(900, 0, 900, 10), a_day());
    let titles = || findings.iter().map(|f| &f.title).collect::<Vec<_>>();
    let (first, _) = budgets(&findings).next().unwrap_or_else(|| panic!("{:?}", titles()));
    assert!(first.story.contains("requests, and what was before is not known"), "{}", first.story);
    assert_eq!(findings.last().map(|f| f.status), Some(Status::Recovered), "it ends with the recording");
    // Without objectives nothing is told of them.
    let slo = SloConfig { enabled: false, ..a_day().slo };
    let without = correlate(errors(900, 0, 900, 10), CorrelatorConfig { slo, ..CorrelatorConfig::default() });
    assert!(budgets(&without).next().is_none());
}
