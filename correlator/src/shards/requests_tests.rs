//! What stage one tells of requests, fed with encoded batches.

use std::sync::Arc;

use proptest::prelude::*;
use tapio_schemas::payload::{LogData, MetricData, MetricKind, SpanData, SpanKind};
use tapio_schemas::{
    Attribute, CallGapTally, EntityRef, EventId, EventKind, EventSeverity, Measure, OperationTally, Payload,
    ServiceMeter, SpanId, StepKind, TraceId, UnifiedEvent, UnixNanos, event::TraceContext,
};

use super::calls::latency_bucket;
use super::shard_tests::{Sim, event, seconds};

/// A span, in milliseconds since the beginning.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub service: &'static str,
    pub name: &'static str,
    pub kind: SpanKind,
    /// Trace, span, parent.
    pub ids: (u128, u64, u64),
    pub from: f64,
    pub to: f64,
}

fn entity(service: &str) -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        service: service.into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

fn context(ids: (u128, u64, u64)) -> Box<TraceContext> {
    let (trace, span, parent) = ids;
    Box::new(TraceContext {
        trace_id: TraceId(trace),
        span_id: SpanId(span),
        parent_span_id: SpanId(parent),
        flags: 1,
    })
}

pub(super) fn spanned(span: Span) -> UnifiedEvent {
    let data = SpanData {
        name: span.name.into(),
        kind: span.kind,
        duration_ns: ((span.to - span.from).max(0.0) * 1e6) as u64,
        ..SpanData::default()
    };
    let id = EventId(span.ids.0 << 64 | u128::from(span.ids.1));
    let at = seconds(span.to / 1e3);
    let event = event(EventKind::Span, &entity(span.service), at, id, Payload::Span(Box::new(data)));
    UnifiedEvent { trace: Some(context(span.ids)), ..event }
}

fn logged(
    service: &str,
    at: f64,
    ids: (u128, u64),
    n: u128,
    body: &str,
    severity: EventSeverity,
) -> UnifiedEvent {
    let data = LogData { body: body.into(), ..LogData::default() };
    let id = EventId(ids.0 << 64 | 1 << 63 | n);
    let event = event(EventKind::Log, &entity(service), seconds(at / 1e3), id, Payload::Log(Box::new(data)));
    UnifiedEvent { trace: Some(context((ids.0, ids.1, 0))), severity, ..event }
}

/// Web asks the cart: 100 ms, of which 60 in the client span and 40 of these in the cart; 10 ms are an inner span's.
pub(super) fn request(trace: u128, start: f64) -> Vec<UnifiedEvent> {
    let span = |service, name, kind, span, parent, from: f64, to: f64| Span {
        service,
        name,
        kind,
        ids: (trace, span, parent),
        from: start + from,
        to: start + to,
    };
    use SpanKind::{Client, Internal, Server};
    let spans = [
        span("web", "GET /checkout/4711", Server, 1, 0, 0.0, 100.0),
        span("web", "GET", Client, 2, 1, 20.0, 80.0),
        span("cart", "GET /cart", Server, 3, 2, 30.0, 70.0),
        span("cart", "query", Internal, 4, 3, 40.0, 50.0),
    ];
    let mut events: Vec<UnifiedEvent> = spans.into_iter().map(spanned).collect();
    events.push(logged("cart", start + 45.0, (trace, 4), 1, "12:00:00.5 read 7 items", EventSeverity::Info));
    events
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    pub operations: Vec<OperationTally>,
    pub gaps: Vec<CallGapTally>,
    pub meters: Vec<ServiceMeter>,
}

pub(super) fn told(events: &[UnifiedEvent]) -> (Told, Sim) {
    let mut sim = Sim::new();
    sim.feed(events);
    sim.finish();
    let mut told = Told::default();
    for section in &sim.sections {
        told.operations.extend(section.operations.iter().cloned());
        told.gaps.extend(section.call_gaps.iter().cloned());
        told.meters.extend(section.meters.iter().cloned());
    }
    (told, sim)
}

pub(super) fn by_time(mut events: Vec<UnifiedEvent>) -> Vec<UnifiedEvent> {
    events.sort_by_key(|e| (e.timestamp, e.id));
    events
}

fn of<'a>(told: &'a Told, service: &str) -> &'a OperationTally {
    let mut found = told.operations.iter().filter(|t| t.service.name == service);
    let tally = found.next().unwrap_or_else(|| panic!("no requests of {service}: {told:?}"));
    assert!(found.next().is_none(), "one tally of {service}: {told:?}");
    tally
}

fn ms(ms: u64) -> u16 {
    latency_bucket(ms * 1_000_000)
}

fn steps(tally: &OperationTally, shape: usize) -> Vec<String> {
    let shape = &tally.shapes[shape];
    shape.steps.iter().map(|s| format!("{} {} {}", s.kind.as_str(), s.service, s.name)).collect()
}

pub(super) fn evicted(sim: &mut Sim, map: &str) -> u64 {
    let all = sim.set.take_counters().flat_map(|c| c.evicted.by_map()).collect::<Vec<_>>();
    all.into_iter().filter(|(name, _)| *name == map).map(|(_, count)| count).sum()
}

#[test]
fn a_request_is_taken_apart_into_own_time_gap_and_steps() {
    let (told, _) = told(&by_time(request(9, 100.0)));
    let (web, cart) = (of(&told, "web"), of(&told, "cart"));
    assert_eq!((web.operation.as_str(), web.requests), ("GET /checkout/*", 1));
    assert_eq!(web.own_time, [(ms(40), 1)], "without what it waited for");
    assert_eq!(cart.own_time, [(ms(40), 1)], "with what its inner span took");
    assert_eq!(steps(web, 0), ["call cart GET /cart", "call web GET"]);
    assert_eq!(steps(cart, 0), ["call cart query", "log cart read * items"]);
    assert_eq!(web.shapes[0].inner, [cart.shapes[0].id]);
    assert!(cart.shapes[0].inner.is_empty());
    let gap = &told.gaps[0];
    assert_eq!(
        (gap.from.name.as_str(), gap.to.name.as_str(), gap.operation.as_str()),
        ("web", "cart", "GET /cart")
    );
    assert_eq!(gap.gap, [(ms(20), 1)]);
    assert_eq!((gap.evidence, web.evidence), (EventId(9 << 64 | 2), EventId(9 << 64 | 1)));
    assert_eq!(web.window_start.plus(web.window_ns), seconds(5.0));
}

#[test]
fn a_request_that_is_delivered_again_counts_once() {
    let (once, again) = (request(9, 100.0), request(9, 100.0));
    // Event time has passed the first delivery when the second one comes.
    let last = request(10, 8_000.0);
    let (told_once, _) = told(&[by_time(once.clone()), by_time(last.clone())].concat());
    let (told_twice, mut sim) = told(&[by_time(once), by_time(last), by_time(again)].concat());
    assert_eq!(told_twice, told_once);
    assert_eq!(sim.counters().dropped.duplicate, 4, "its spans; a line is a step of its span, once");
}

#[test]
fn what_does_not_happen_makes_another_shape() {
    let mut events = request(9, 100.0);
    events.extend(request(10, 300.0).into_iter().filter(|e| e.kind != EventKind::Log));
    events.extend(request(11, 500.0));
    let (told, _) = told(&by_time(events));
    // Traces are in several shards: the same way has the same identity in all of them.
    let mut shapes: Vec<(u64, u32)> = Vec::new();
    for tally in told.operations.iter().filter(|t| t.service.name == "web") {
        for shape in &tally.shapes {
            match shapes.iter_mut().find(|(id, _)| *id == shape.id) {
                Some((_, count)) => *count += shape.count,
                None => shapes.push((shape.id, shape.count)),
            }
        }
    }
    let mut counts: Vec<u32> = shapes.into_iter().map(|(_, count)| count).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 2]);
}

#[test]
fn services_of_inner_spans_only_are_entered_where_the_service_changes() {
    let span = |service, name, span, parent, from, to| {
        spanned(Span { service, name, kind: SpanKind::Internal, ids: (9, span, parent), from, to })
    };
    let (told, _) = told(&by_time(vec![
        span("a", "root", 1, 0, 0.0, 100.0),
        span("a", "inner", 2, 1, 10.0, 90.0),
        span("b", "asked", 3, 2, 20.0, 60.0),
        span("b", "inner", 4, 3, 30.0, 40.0),
    ]));
    assert_eq!(of(&told, "a").own_time, [(ms(60), 1)]);
    assert_eq!(of(&told, "a").shapes[0].inner, [of(&told, "b").shapes[0].id]);
    assert_eq!((of(&told, "b").operation.as_str(), of(&told, "b").requests), ("asked", 1));
    assert_eq!(steps(of(&told, "b"), 0), ["call b inner"]);
    assert!(told.gaps.is_empty(), "no client span says what was waited for");
}

#[test]
fn a_client_without_a_server_waits_for_somebody_else() {
    let span = |kind, span, parent, from, to| {
        spanned(Span { service: "web", name: "x", kind, ids: (9, span, parent), from, to })
    };
    let (told, _) =
        told(&[span(SpanKind::Client, 2, 1, 10.0, 90.0), span(SpanKind::Server, 1, 0, 0.0, 100.0)]);
    assert_eq!(of(&told, "web").own_time, [(ms(20), 1)]);
    assert!(told.gaps.is_empty());
}

#[test]
fn children_and_lines_may_end_a_little_after_their_span() {
    let mut events = request(9, 100.0);
    for event in &mut events {
        if event.trace.as_ref().is_some_and(|t| t.span_id == SpanId(3)) {
            event.timestamp = seconds(0.500);
        }
        if event.kind == EventKind::Log {
            event.timestamp = seconds(0.555);
        }
    }
    let (told, mut sim) = told(&by_time(events));
    assert_eq!(of(&told, "web").shapes[0].inner, [of(&told, "cart").shapes[0].id]);
    assert_eq!(steps(of(&told, "cart"), 0).len(), 2);
    assert_eq!(evicted(&mut sim, "unparented"), 0);
}

#[test]
fn what_comes_too_late_for_its_span_is_counted() {
    let late = logged("cart", 800.0, (9, 4), 2, "too late", EventSeverity::Info);
    let mut events = request(9, 100.0);
    events.push(late);
    // Time goes on in this shard.
    let kind = SpanKind::Server;
    events.push(spanned(Span {
        service: "web",
        name: "x",
        kind,
        ids: (9, 77, 0),
        from: 90_000.0,
        to: 90_001.0,
    }));
    let (told, mut sim) = told(&by_time(events));
    assert_eq!(evicted(&mut sim, "unparented"), 1);
    assert!(
        told.operations.iter().all(|t| t.shapes.iter().all(|s| s.steps.iter().all(|s| s.name != "too late")))
    );
}

#[test]
fn error_lines_are_steps_of_their_own_kind() {
    let mut events = request(9, 100.0);
    events.push(logged("cart", 50.0, (9, 3), 5, "cannot reach 10.0.0.1", EventSeverity::Error));
    let (told, _) = told(&by_time(events));
    let kinds: Vec<StepKind> = of(&told, "cart").shapes[0].steps.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [StepKind::Call, StepKind::Log, StepKind::ErrorLog]);
}

#[test]
fn spans_that_make_no_sense_do_no_harm() {
    let span = |trace, span, parent, from, to| {
        spanned(Span {
            service: "a",
            name: "x",
            kind: SpanKind::Internal,
            ids: (trace, span, parent),
            from,
            to,
        })
    };
    let mut events = vec![
        // Its own parent.
        span(1, 5, 5, 0.0, 10.0),
        // Each the other's parent.
        span(2, 6, 7, 0.0, 10.0),
        span(2, 7, 6, 0.0, 10.0),
        // Ends before it begins, and at once.
        span(3, 8, 0, 10.0, 5.0),
        span(4, 9, 0, 10.0, 10.0),
        // The same span twice.
        span(5, 10, 0, 0.0, 10.0),
        span(5, 10, 0, 0.0, 10.0),
    ];
    // A ring of three, and a long chain that ends all at once.
    events.extend((1..=3).map(|i| span(6, i, i % 3 + 1, 0.0, 10.0)));
    events.extend((1..2000).map(|i| span(7, i, i - 1, 0.0, 10.0)));
    // More children than a span may have.
    events.extend((2..1500).map(|i| span(8, i, 1, 0.0, 10.0)));
    events.push(span(8, 1, 0, 0.0, 20.0));
    events.extend(request(99, 80_000.0));
    let (told, mut sim) = told(&by_time(events));
    let requests: u64 = told.operations.iter().filter(|t| t.service.name == "a").map(|t| t.requests).sum();
    assert_eq!(requests, 6, "roots, and none of the rings");
    assert_eq!(of(&told, "web").requests, 1);
    assert_eq!(evicted(&mut sim, "children"), 1498 - 1024);
    let open: usize = sim.set.open().into_iter().filter(|(kind, _)| *kind == "spans").map(|(_, n)| n).sum();
    assert_eq!(open, 0, "nothing is left behind");
}

#[test]
fn more_spans_than_there_is_room_for_are_counted() {
    let orphan = |i: u64| {
        let at = i as f64 * 0.05;
        spanned(Span {
            service: "a",
            name: "x",
            kind: SpanKind::Internal,
            ids: (64, i + 10, (1 << 40) + i),
            from: at,
            to: at,
        })
    };
    let events: Vec<UnifiedEvent> = (0..40_000).map(orphan).collect();
    let (told, mut sim) = told(&events);
    assert!(told.operations.is_empty(), "whether they were entries is not known");
    assert!(evicted(&mut sim, "open_spans") >= 40_000 - 16_384);
}

fn metric(at: f64, n: u128, data: MetricData) -> UnifiedEvent {
    event(EventKind::Metric, &entity("cart"), seconds(at), EventId(n), Payload::Metric(Box::new(data)))
}

fn values(told: &Told, measure: Measure) -> Vec<f64> {
    told.meters.iter().filter(|m| m.measure == measure).map(|m| (m.value * 1e3).round() / 1e3).collect()
}

#[test]
fn the_last_value_of_a_window_counts_and_counters_become_rates() {
    let cpu = |at, n, value| {
        metric(
            at,
            n,
            MetricData {
                name: "k8s.pod.cpu_limit_utilization".into(),
                unit: "1".into(),
                value,
                ..MetricData::default()
            },
        )
    };
    let requests = |at, n, value, route: &str| {
        let data = MetricData {
            name: "http_requests_total".into(),
            kind: MetricKind::CumulativeSum,
            monotonic: true,
            value,
            attributes: vec![Attribute::new("route", route)],
            ..MetricData::default()
        };
        metric(at, n, data)
    };
    let duration = |at, n, value, count| {
        let data = MetricData {
            name: "http.server.request.duration".into(),
            unit: "ms".into(),
            kind: MetricKind::Histogram,
            value,
            count,
            monotonic: true,
            ..MetricData::default()
        };
        metric(at, n, data)
    };
    let (told, _) = told(&[
        cpu(1.0, 1, 0.2),
        cpu(2.0, 2, 0.7),
        requests(2.0, 3, 100.0, "/a"),
        requests(2.0, 4, 50.0, "/b"),
        duration(2.0, 5, 10.0, 100),
        requests(12.0, 6, 200.0, "/a"),
        requests(12.0, 7, 80.0, "/b"),
        duration(12.0, 8, 20.0, 200),
        // The process began anew.
        requests(22.0, 9, 40.0, "/a"),
    ]);
    assert_eq!(values(&told, Measure::CpuShare), [0.7]);
    assert_eq!(values(&told, Measure::LatencySeconds), [0.03], "a hundred of 10 ms, then a hundred of 30 ms");
    assert_eq!(values(&told, Measure::RequestsPerSecond), [10.0 + 13.0, 4.0]);
}

/// All of them in one batch per shard, each batch before the watermark moves.
pub(super) fn feed_together(sim: &mut Sim, events: &[UnifiedEvent]) {
    for event in events {
        sim.batches[usize::from(event.key().shard())].push(event.clone());
    }
    let filled: Vec<_> = sim.batches.iter_mut().filter(|batch| !batch.is_empty()).collect();
    let bytes: Vec<Vec<u8>> = filled.into_iter().map(|b| b.finish(UnixNanos(0)).unwrap()).collect();
    for bytes in bytes {
        let taken = sim.set.take(&bytes, None, UnixNanos::MAX).expect("a good batch");
        sim.watermark.observe(taken.newest);
    }
    sim.advance();
}

/// Sections with everything that is told of requests, at their steps.
fn said(events: &[UnifiedEvent], batch: usize) -> String {
    let mut sim = Sim::new();
    for chunk in events.chunks(batch) {
        feed_together(&mut sim, chunk);
    }
    sim.finish();
    let mut said: Vec<String> = sim
        .sections
        .iter()
        .filter(|s| !(s.operations.is_empty() && s.call_gaps.is_empty() && s.meters.is_empty()))
        .map(|s| format!("{:?} {:?} {:?} {:?}", s.marks, s.operations, s.call_gaps, s.meters))
        .collect();
    said.sort();
    said.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any order of arrival within the lateness, in batches of any size, gives the same tallies at the same steps.
    #[test]
    fn order_and_batches_do_not_matter(jitter in prop::collection::vec(0u64..240_000_000, 50), batch in 1usize..40) {
        let mut events: Vec<UnifiedEvent> =
            (0..60).flat_map(|i| request(u128::from(i as u32) + 5, 100.0 + f64::from(i) * 211.0)).collect();
        events.extend((0..30).map(|i| {
            let data = MetricData { name: "pod.cpu.utilization".into(), unit: "1".into(), value: f64::from(i), ..MetricData::default() };
            metric(f64::from(i) * 0.4, 7000 + i as u128, data)
        }));
        let events = by_time(events);
        let mut shuffled: Vec<(u64, &UnifiedEvent)> = events
            .iter()
            .enumerate()
            .map(|(i, e)| (e.timestamp.0 + jitter[i % jitter.len()] * 2, e))
            .collect();
        shuffled.sort_by_key(|(arrival, e)| (*arrival, std::cmp::Reverse(e.id)));
        let shuffled: Vec<UnifiedEvent> = shuffled.into_iter().map(|(_, e)| e.clone()).collect();
        prop_assert_eq!(said(&events, 1), said(&shuffled, batch));
    }
}
