//! Stage one as a whole, fed with encoded batches.

use std::sync::Arc;

use proptest::prelude::*;
use tapio_schemas::entity::kinds;
use tapio_schemas::payload::{
    KernelData, KubernetesData, MetricData, NetworkData, SpanData, SpanKind, SpanStatus,
};
use tapio_schemas::wire::{EventBatch, SignalSection};
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Signal, SignalKind, Source, SpanId,
    TraceId, UnifiedEvent, UnixNanos, event::TraceContext,
};

use super::{Counters, ShardSet, Watermark};
use crate::config::CorrelatorConfig;

/// All shards, a producer that batches, and what they said.
pub struct Sim {
    pub set: ShardSet,
    pub batches: Vec<EventBatch>,
    pub watermark: Watermark,
    pub signals: Vec<Signal>,
    pub sections: Vec<SignalSection>,
}

impl Sim {
    pub fn new() -> Self {
        Self::with(&CorrelatorConfig::default())
    }

    pub fn with(config: &CorrelatorConfig) -> Self {
        Self {
            set: ShardSet::new("c", 0..64, config),
            batches: (0..64).map(|shard| EventBatch::new(ProducerId(7), 1, shard)).collect(),
            watermark: Watermark::new(500_000_000),
            signals: Vec::new(),
            sections: Vec::new(),
        }
    }

    /// Each event in a batch of its own, in this order, the watermark following the newest.
    pub fn feed(&mut self, events: &[UnifiedEvent]) {
        for event in events {
            let bytes = self.encode(event);
            let taken = self.set.take(&bytes, None, UnixNanos::MAX).expect("a good batch");
            self.watermark.observe(taken.newest);
            self.advance();
        }
    }

    pub fn encode(&mut self, event: &UnifiedEvent) -> Vec<u8> {
        let shard = usize::from(event.key().shard());
        self.batches[shard].push(event.clone());
        self.batches[shard].finish(UnixNanos(0)).unwrap()
    }

    /// An hour passes without input.
    pub fn finish(&mut self) {
        let end = self.watermark.at().plus(3_600_000_000_000);
        self.watermark.caught_up(end);
        self.advance();
    }

    pub fn counters(&mut self) -> Counters {
        let mut sum = Counters::default();
        for c in self.set.take_counters() {
            sum.events += c.events;
            sum.late += c.late;
            sum.duplicate_batches += c.duplicate_batches;
            sum.gap_events += c.gap_events;
            sum.dropped.add(&c.dropped);
            sum.first_words += c.first_words;
            sum.unsaid.old += c.unsaid.old;
            sum.unsaid.looks += c.unsaid.looks;
            sum.unsaid.words += c.unsaid.words;
            sum.evicted.reorder += c.evicted.reorder;
            sum.evicted.series += c.evicted.series;
            sum.evicted.episodes += c.evicted.episodes;
        }
        sum
    }

    pub fn low_water(&self) -> UnixNanos {
        self.set.low_water()
    }

    pub fn advance(&mut self) {
        for section in self.set.advance(self.watermark.at()) {
            self.signals.extend(section.signals.iter().cloned());
            self.sections.push(section);
        }
    }
}

pub fn event(
    kind: EventKind,
    entity: &Arc<EntityRef>,
    at: UnixNanos,
    id: EventId,
    payload: Payload,
) -> UnifiedEvent {
    UnifiedEvent {
        id,
        timestamp: at,
        observed_at: at,
        kind,
        source: Source::Ebpf,
        severity: EventSeverity::Warning,
        entity: Arc::clone(entity),
        payload,
        ..UnifiedEvent::default()
    }
}

pub fn limit_sample(
    entity: &Arc<EntityRef>,
    at: UnixNanos,
    id: EventId,
    value: f64,
    limit: f64,
) -> UnifiedEvent {
    let data = MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value,
        limit,
        ..MetricData::default()
    };
    event(EventKind::CgroupSample, entity, at, id, Payload::Metric(Box::new(data)))
}

pub fn cgroup(path: &str) -> Arc<EntityRef> {
    Arc::new(
        EntityRef { cluster: "c".into(), node: "n1".into(), cgroup: path.into(), ..EntityRef::default() }
            .sealed(),
    )
}

pub fn seconds(s: f64) -> UnixNanos {
    UnixNanos(1_700_000_000_000_000_000 + (s * 1e9) as u64)
}

pub fn exit(
    entity: &Arc<EntityRef>,
    at: f64,
    id: u128,
    pid: u32,
    code: i32,
    signal: u32,
    is_init: bool,
) -> UnifiedEvent {
    let data =
        KernelData { exit_code: code, signal, is_init, comm: "worker".into(), ..KernelData::default() };
    let mut event =
        event(EventKind::ProcessExit, entity, seconds(at), EventId(id), Payload::Kernel(Box::new(data)));
    event.pid = pid;
    event
}

pub fn oom(entity: &Arc<EntityRef>, at: f64, id: u128, pid: u32) -> UnifiedEvent {
    let data = KernelData { comm: "worker".into(), ..KernelData::default() };
    let mut event =
        event(EventKind::OomKill, entity, seconds(at), EventId(id), Payload::Kernel(Box::new(data)));
    event.pid = pid;
    event
}

pub fn refused(entity: &Arc<EntityRef>, at: f64, id: u128, port: u16) -> UnifiedEvent {
    let data = NetworkData {
        remote_addr: std::net::Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets(),
        remote_port: port,
        errno: 111,
        comm: "client".into(),
        ..NetworkData::default()
    };
    event(EventKind::NetConnectRefused, entity, seconds(at), EventId(id), Payload::Network(Box::new(data)))
}

fn span(
    service: &str,
    at: f64,
    ids: (u128, u64, u64),
    kind: SpanKind,
    status: u16,
    error: &str,
    peer: &str,
) -> UnifiedEvent {
    let entity = Arc::new(
        EntityRef {
            cluster: "c".into(),
            namespace: "shop".into(),
            service: service.into(),
            ..EntityRef::default()
        }
        .sealed(),
    );
    let data = SpanData {
        name: "GET /".into(),
        kind,
        status: if error.is_empty() { SpanStatus::Ok } else { SpanStatus::Error },
        error_type: error.into(),
        http_status: status,
        peer: peer.into(),
        duration_ns: 20_000_000,
        ..SpanData::default()
    };
    let id = EventId(ids.0 << 64 | u128::from(ids.1));
    let mut event = event(EventKind::Span, &entity, seconds(at), id, Payload::Span(Box::new(data)));
    event.trace = Some(Box::new(TraceContext {
        trace_id: TraceId(ids.0),
        span_id: SpanId(ids.1),
        parent_span_id: SpanId(ids.2),
        flags: 1,
    }));
    event
}

fn last_of(signals: &[Signal], kind: SignalKind) -> Vec<&Signal> {
    let mut last: Vec<&Signal> = Vec::new();
    for signal in signals.iter().filter(|s| s.kind == kind) {
        last.retain(|s| s.id != signal.id);
        last.push(signal);
    }
    last
}

#[test]
fn a_victims_exit_is_the_kill_and_not_a_crash() {
    let app = cgroup("/app");
    let mut sim = Sim::new();
    sim.feed(&[
        oom(&app, 1.0, 1, 42),
        exit(&app, 1.1, 2, 42, 0, 9, true),
        exit(&app, 1.2, 3, 43, 0, 11, false),
    ]);
    sim.finish();
    let kinds: std::collections::BTreeSet<SignalKind> = sim.signals.iter().map(|s| s.kind).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [SignalKind::OomKill, SignalKind::CrashSignal]);
    assert_eq!(last_of(&sim.signals, SignalKind::OomKill)[0].pid, 42);
}

#[test]
fn ordinary_exits_are_no_news() {
    let shell = cgroup("/user.slice/session-1.scope");
    let mut sim = Sim::new();
    let mut events: Vec<_> = (0..50)
        .map(|i| exit(&shell, f64::from(i) * 0.1, i as u128 + 1, 100 + i as u32, 1, 0, false))
        .collect();
    events.push(exit(&shell, 6.0, 100, 900, 0, 15, true));
    events.push(exit(&shell, 6.1, 101, 901, 0, 13, false));
    sim.feed(&events);
    sim.finish();
    assert!(sim.signals.is_empty(), "{:?}", sim.signals);
    let mut sim = Sim::new();
    sim.feed(&[exit(&cgroup("/pod"), 1.0, 1, 77, 3, 0, true)]);
    sim.finish();
    assert_eq!(last_of(&sim.signals, SignalKind::ExitNonzero).len(), 1);
}

#[test]
fn five_refused_connections_are_one_deviation_of_five() {
    let app = cgroup("/app");
    let events: Vec<_> =
        (0..5).map(|i| refused(&app, 1.0 + f64::from(i) * 0.05, i as u128 + 1, 5432)).collect();
    let mut sim = Sim::new();
    sim.feed(&events);
    sim.finish();
    let refused = last_of(&sim.signals, SignalKind::NetRefused);
    assert_eq!(refused.len(), 1);
    let signal = refused[0];
    assert_eq!((signal.count, signal.ended, signal.evidence.len()), (5, true, 5));
    assert_eq!(signal.peer.as_ref().unwrap().name, "10.0.0.9:5432");
    assert!(last_of(&sim.signals, SignalKind::NetTimeout).is_empty());
    assert_eq!(signal.onset, seconds(1.0));
}

#[test]
fn a_client_span_meets_its_callee_in_the_trace() {
    let mut sim = Sim::new();
    sim.feed(&[
        span("cart", 1.00, (9, 3, 2), SpanKind::Server, 0, "", ""),
        span("web", 1.01, (9, 2, 1), SpanKind::Client, 0, "", "cart-vip"),
        span("web", 1.02, (9, 1, 0), SpanKind::Server, 500, "boom", ""),
        span("web", 1.30, (8, 5, 0), SpanKind::Client, 0, "context deadline exceeded", "db.shop.svc:5432"),
    ]);
    sim.finish();
    let facts: Vec<String> = sim
        .sections
        .iter()
        .flat_map(|s| &s.facts)
        .map(|f| format!("{} {} {}", f.from.name, f.edge, f.to.name))
        .collect();
    for expected in ["web calls cart", "cart-vip same_as cart", "web calls db"] {
        assert!(facts.iter().any(|f| f == expected), "{expected} not in {facts:?}");
    }
    let errors = last_of(&sim.signals, SignalKind::HttpServerErrors);
    assert_eq!((errors.len(), errors[0].trace_id), (1, TraceId(9)));
    let timeouts = last_of(&sim.signals, SignalKind::SpanTimeouts);
    assert_eq!(timeouts[0].peer.as_ref().unwrap().name, "db");
    assert_eq!(timeouts[0].entity.owner().name, "web");
    let calls: u64 = sim.sections.iter().flat_map(|s| &s.tallies).map(|t| t.calls).sum();
    assert_eq!(calls, 4);
}

fn kubernetes(kind: EventKind, pod: &str, at: f64, id: u128, reason: &str) -> UnifiedEvent {
    let entity = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: kinds::DEPLOYMENT.into(),
        workload: "api".into(),
        pod: pod.into(),
        ..EntityRef::default()
    };
    let data = KubernetesData {
        object_kind: kinds::POD.into(),
        object_name: pod.into(),
        reason: reason.into(),
        ..KubernetesData::default()
    };
    event(kind, &Arc::new(entity.sealed()), seconds(at), EventId(id), Payload::Kubernetes(Box::new(data)))
}

#[test]
fn a_pod_that_is_ready_again_ends_its_unreadiness_and_no_other() {
    let mut sim = Sim::new();
    sim.feed(&[
        kubernetes(EventKind::K8sPodNotReady, "api-1", 1.0, 1, "ContainersNotReady"),
        kubernetes(EventKind::K8sPodNotReady, "api-2", 1.5, 2, "ContainersNotReady"),
        kubernetes(EventKind::K8sPodReady, "api-1", 20.0, 3, ""),
        kubernetes(EventKind::K8sPodReady, "api-9", 25.0, 4, ""),
    ]);
    let ended: Vec<_> = sim.signals.iter().filter(|s| s.ended).map(|s| s.entity.pod.as_str()).collect();
    assert_eq!(ended, ["api-1"]);
    assert_eq!(last_of(&sim.signals, SignalKind::PodNotReady).len(), 2);
}

#[test]
fn a_pod_that_stays_ready_has_ended_its_crashes_and_one_that_crashes_again_has_not() {
    let loops = |pod: &str, at: f64, id: u128| {
        kubernetes(EventKind::K8sContainerWaiting, pod, at, id, "CrashLoopBackOff")
    };
    let mut sim = Sim::new();
    sim.feed(&[
        loops("api-1", 1.0, 1),
        loops("api-2", 1.5, 2),
        kubernetes(EventKind::K8sPodReady, "api-1", 20.0, 3, ""),
        kubernetes(EventKind::K8sPodReady, "api-2", 20.0, 4, ""),
        loops("api-2", 40.0, 5),
        kubernetes(EventKind::K8sPodReady, "api-9", 110.0, 6, ""),
    ]);
    let ended: Vec<_> = sim.signals.iter().filter(|s| s.ended).map(|s| s.entity.pod.as_str()).collect();
    assert_eq!(ended, ["api-1"]);
}

#[test]
fn a_machine_that_is_not_ready_is_told_of_its_pods_as_theirs() {
    let node = EntityRef {
        cluster: "c".into(),
        node: "n1".into(),
        object_kind: kinds::NODE.into(),
        object: "n1".into(),
        ..EntityRef::default()
    };
    let data = KubernetesData {
        object_kind: kinds::NODE.into(),
        object_name: "n1".into(),
        reason: "NodeNotReady".into(),
        ..KubernetesData::default()
    };
    let payload = Payload::Kubernetes(Box::new(data));
    let of_node = event(EventKind::K8sEvent, &Arc::new(node.sealed()), seconds(1.0), EventId(1), payload);
    let mut sim = Sim::new();
    sim.feed(&[of_node, kubernetes(EventKind::K8sEvent, "api-1", 1.5, 2, "NodeNotReady")]);
    sim.finish();
    let pods: Vec<_> =
        last_of(&sim.signals, SignalKind::PodNotReady).iter().map(|s| s.entity.pod.as_str()).collect();
    assert_eq!(pods, ["api-1"]);
    let nodes: Vec<_> =
        last_of(&sim.signals, SignalKind::NodeNotReady).iter().map(|s| s.entity.subject().kind).collect();
    assert_eq!(nodes, [kinds::NODE]);
}

/// A mixed scene: a leak with its kill, refused connections, spans that fail, crashes.
fn scene() -> Vec<UnifiedEvent> {
    let (leak, web) = (cgroup("/leak"), cgroup("/web"));
    let mut events: Vec<UnifiedEvent> = (0..60)
        .map(|i| {
            let value = (4.0 + f64::from(i)) * 1024.0 * 1024.0;
            limit_sample(
                &leak,
                seconds(f64::from(i)),
                EventId(1000 + i as u128),
                value,
                64.0 * 1024.0 * 1024.0,
            )
        })
        .collect();
    events.push(oom(&leak, 60.2, 2000, 42));
    events.push(exit(&leak, 60.3, 2001, 42, 0, 9, true));
    events.extend((0..30).map(|i| refused(&web, 60.5 + f64::from(i) * 0.3, 3000 + i as u128, 5432)));
    for i in 0..40u64 {
        let at = 50.0 + i as f64 * 0.5;
        let trace = u128::from(i) + 77;
        let error = if i > 20 { "timeout" } else { "" };
        events.push(span("api", at, (trace, 2, 1), SpanKind::Client, 0, error, "db"));
        let status = if i > 20 { 500 } else { 200 };
        events.push(span("api", at + 0.001, (trace, 1, 0), SpanKind::Server, status, error, ""));
    }
    events.push(exit(&web, 71.0, 4000, 99, 0, 11, false));
    events.sort_by_key(|e| (e.timestamp, e.id));
    events
}

/// Everything said, in an order of its own: (visible time, text).
fn said(order: &[UnifiedEvent]) -> Vec<String> {
    let mut sim = Sim::new();
    sim.feed(order);
    let late = sim.counters().late;
    assert_eq!(late, 0, "the order must stay within the lateness");
    sim.finish();
    let mut all: Vec<String> = sim.signals.iter().map(|s| format!("{} {s:?}", s.last_seen.0)).collect();
    all.extend(sim.sections.iter().flat_map(|s| &s.facts).map(|f| format!("{f:?}")));
    all.extend(sim.sections.iter().flat_map(|s| &s.tallies).map(|t| format!("{t:?}")));
    all.sort();
    all
}

#[test]
fn what_is_visible_in_a_step_was_said_before_its_watermark() {
    let mut sim = Sim::new();
    sim.feed(&scene());
    sim.finish();
    let mut passed = [UnixNanos(0); 64];
    for section in &sim.sections {
        assert!(section.is_heartbeat() || section.marks.len() == 1, "content is of one shard and step");
        for mark in &section.marks {
            let before = &mut passed[usize::from(mark.shard)];
            for signal in &section.signals {
                assert!(signal.last_seen > *before && signal.last_seen <= mark.at, "{signal:?}, {mark:?}");
            }
            assert!(mark.at >= *before);
            *before = mark.at;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any order of arrival within the lateness gives the same signals, facts and tallies.
    #[test]
    fn order_within_the_lateness_does_not_matter(jitter in prop::collection::vec(0u64..249_000_000, 200)) {
        let events = scene();
        let mut shuffled: Vec<(u64, &UnifiedEvent)> = events
            .iter()
            .enumerate()
            .map(|(i, e)| (e.timestamp.0 + jitter[i % jitter.len()] * 2, e))
            .collect();
        shuffled.sort_by_key(|(arrival, e)| (*arrival, std::cmp::Reverse(e.id)));
        let shuffled: Vec<UnifiedEvent> = shuffled.into_iter().map(|(_, e)| e.clone()).collect();
        prop_assert_eq!(said(&events), said(&shuffled));
    }
}

#[test]
fn a_service_keeps_its_place_in_the_graph() {
    let entity = Arc::new(
        EntityRef {
            cluster: "c".into(),
            namespace: "shop".into(),
            workload_kind: kinds::DEPLOYMENT.into(),
            workload: "api".into(),
            pod: "api-1".into(),
            container: "main".into(),
            service: "api-svc".into(),
            node: "n1".into(),
            ..EntityRef::default()
        }
        .sealed(),
    );
    let mut sim = Sim::new();
    sim.feed(&[limit_sample(&entity, seconds(1.0), EventId(1), 1.0, 9.0)]);
    sim.finish();
    let facts: Vec<String> = sim
        .sections
        .iter()
        .flat_map(|s| &s.facts)
        .map(|f| format!("{} {} {}", f.from.name, f.edge, f.to.name))
        .collect();
    assert_eq!(facts, ["api owns api-1", "api-1 owns api-1/main", "api-1 runs_on n1", "api-svc same_as api"]);
}
