//! The wire format: golden bytes, round trips, hostile bytes.

mod common;

use std::sync::Arc;

use proptest::prelude::*;
use tapio_schemas::payload::*;
use tapio_schemas::wire::*;
use tapio_schemas::*;

fn encode(events: &[UnifiedEvent]) -> Vec<u8> {
    let mut batch = EventBatch::new(ProducerId(7), 3, 11);
    events.iter().cloned().for_each(|e| batch.push(e));
    batch.finish(UnixNanos(99)).expect("encodes")
}

fn golden_events() -> Vec<UnifiedEvent> {
    let (a, b) = (common::entity(1), common::entity(2));
    vec![common::kernel(0, &a), common::span(1, &b), common::kernel(2, &b)]
}

/// What requests did, since version 3.
fn golden_services() -> SignalSection {
    let (front, back) =
        (Entity::namespaced("Service", "shop", "web"), Entity::namespaced("Service", "shop", "api"));
    let step = |kind, service: &str, name: &str| Step { kind, service: service.into(), name: name.into() };
    let shape = Shape {
        id: 77,
        count: 3,
        steps: vec![step(StepKind::Call, "api", "GET /items"), step(StepKind::Log, "", "found * items")],
        inner: vec![78],
        evidence: EventId(6),
    };
    SignalSection {
        marks: vec![ShardMark { shard: 3, epoch: 2, at: UnixNanos(5_000_000_000) }],
        operations: vec![OperationTally {
            window_ns: 5_000_000_000,
            service: front.clone(),
            operation: "GET /".into(),
            requests: 4,
            own_time: vec![(180, 3), (190, 1)],
            shapes: vec![shape],
            unshaped: 1,
            evidence: EventId(7),
            ..OperationTally::default()
        }],
        call_gaps: vec![CallGapTally {
            window_ns: 5_000_000_000,
            from: front,
            to: back.clone(),
            operation: "GET /items".into(),
            gap: vec![(160, 3)],
            evidence: EventId(8),
            ..CallGapTally::default()
        }],
        meters: vec![ServiceMeter {
            at: UnixNanos(4),
            service: back,
            pod: "api-0".into(),
            measure: Measure::LatencySeconds,
            label: "server".into(),
            value: 0.25,
            evidence: EventId(9),
        }],
        ..SignalSection::default()
    }
}

fn golden_signals() -> SignalSection {
    let mut signal = Signal::new(SignalKind::MemoryGrowth, common::entity(1), None, UnixNanos(1_000));
    signal.baseline = 1.0;
    signal.observed = 2.0;
    signal.unit = "By".into();
    signal.evidence = vec![EventId(5)];
    signal.attributes = vec![Attribute::new("slope_bytes_per_s", 1048576.0)];
    let to = Entity::new("Cgroup", "", "/a", "n1");
    SignalSection {
        marks: vec![
            ShardMark { shard: 0, epoch: 1, at: UnixNanos(5) },
            ShardMark { shard: 63, epoch: 1, at: UnixNanos(6) },
        ],
        facts: vec![Fact {
            at: UnixNanos(1),
            edge: signal::EdgeKind::Calls,
            from: Entity::namespaced("Service", "shop", "api"),
            to,
            gone: false,
        }],
        signals: vec![signal],
        ..SignalSection::default()
    }
}

/// Set `TAPIO_WRITE_GOLDEN=1` to write the file of a NEW schema version; existing ones never change.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("TAPIO_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, bytes).expect("golden file is writable");
    }
    std::fs::read(&path).expect("golden file exists")
}

#[test]
fn golden_event_batch_v1_is_what_we_write_and_read() {
    let bytes = encode(&golden_events());
    let stored = golden("events-v1.bin", &bytes);
    assert_eq!(bytes, stored, "the wire format changed: raise SCHEMA_VERSION and keep reading version 1");
    let view = EventBatchView::check(&stored).expect("golden bytes decode");
    assert_eq!(view.to_events(), golden_events());
}

#[test]
fn golden_signal_batch_v1_is_still_read() {
    let stored = golden("signals-v1.bin", &[]);
    let read = SignalBatchView::check(&stored).unwrap().to_section();
    assert_eq!(read, golden_signals(), "marks get the epoch of the header, which was 1");
}

#[test]
fn golden_signal_batch_v2_is_still_read() {
    let stored = golden("signals-v2.bin", &[]);
    assert_eq!(SignalBatchView::check(&stored).unwrap().to_section(), golden_signals());
}

#[test]
fn golden_signal_batch_v3_is_what_we_write_and_read() {
    let section = SignalSection { signals: golden_signals().signals, ..golden_services() };
    let bytes = encode_signals(ProducerId(9), 1, 4, &section).unwrap();
    let stored = golden("signals-v3.bin", &bytes);
    assert_eq!(bytes, stored);
    let read = SignalBatchView::check(&stored).unwrap().to_section();
    // NaN is not equal to itself; the golden signal has none.
    assert_eq!(read, section);
}

#[test]
fn the_header_is_readable_without_the_body() {
    let bytes = encode(&golden_events());
    let view = EventBatchView::check(&bytes).unwrap();
    let header = view.header();
    assert_eq!((header.shard, header.count, header.epoch), (11, 3, 3));
    assert_eq!((header.producer, header.watermark), (ProducerId(7), UnixNanos(99)));
}

#[test]
fn an_entity_and_a_text_travel_once() {
    let shared = common::entity(1);
    let events: Vec<_> = (0..1000).map(|n| common::kernel(n, &shared)).collect();
    let bytes = encode(&events);
    let view = EventBatchView::check(&bytes).unwrap();
    assert_eq!(view.entities().len(), 1);
    let per_event = bytes.len() as f64 / 1000.0;
    assert!(per_event <= 120.0, "{per_event} bytes per kernel event");
}

#[test]
fn equal_entities_of_different_allocations_are_one() {
    let events: Vec<_> = (0..10).map(|n| common::kernel(n, &common::entity(1))).collect();
    assert_eq!(EventBatchView::check(&encode(&events)).unwrap().entities().len(), 1);
}

#[test]
fn sequences_count_on_over_batches() {
    let shared = common::entity(1);
    let mut batch = EventBatch::new(ProducerId(1), 0, 0);
    batch.push(common::kernel(0, &shared));
    batch.push(common::kernel(1, &shared));
    batch.finish(UnixNanos(0)).unwrap();
    batch.push(common::kernel(2, &shared));
    let bytes = batch.finish(UnixNanos(0)).unwrap();
    assert_eq!(EventBatchView::check(&bytes).unwrap().header().first_sequence, 2);
}

#[test]
fn every_single_byte_change_and_every_truncation_is_survived() {
    let bytes = encode(&golden_events());
    for end in 0..bytes.len() {
        assert!(EventBatchView::check(&bytes[..end]).is_err(), "truncated at {end}");
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut hurt = bytes.clone();
            hurt[at] ^= flip;
            if let Ok(view) = EventBatchView::check(&hurt) {
                let _ = view.to_events();
                view.iter().for_each(|e| {
                    let _ = (e.key(), e.timestamp());
                });
            }
        }
    }
}

#[test]
fn every_payload_survives_json() {
    for event in every_payload() {
        let json = serde_json::to_string(&event).unwrap();
        let back: UnifiedEvent = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
        // The lineage is derived, not written.
        let entity = Arc::new(EntityRef::clone(&back.entity).sealed());
        assert_eq!(UnifiedEvent { entity, ..back }, event);
    }
}

#[test]
fn every_payload_survives_the_wire() {
    let events = every_payload();
    assert_eq!(EventBatchView::check(&encode(&events)).unwrap().to_events(), events);
}

fn every_payload() -> Vec<UnifiedEvent> {
    let base = common::span(3, &common::entity(3));
    let payloads = [
        Payload::Kernel(Box::new(KernelData {
            victim: Some(Box::new(VictimData { oom_score_adj: -998, ..Default::default() })),
            is_init: true,
            ..Default::default()
        })),
        Payload::Network(Box::new(NetworkData {
            errno: 111,
            peer: "db".into(),
            detail: Some(Box::new(NetworkDetail {
                sent_bytes: 9,
                drop_reason: "NO_SOCKET".into(),
                ..Default::default()
            })),
            ..Default::default()
        })),
        Payload::Application(Box::new(ApplicationData { stack: "a\nb".into(), ..Default::default() })),
        Payload::Kubernetes(Box::new(KubernetesData {
            relations: vec![Relation { edge: "owns".into(), kind: "Pod".into(), name: "p".into() }],
            ..Default::default()
        })),
        Payload::Metric(Box::new(MetricData {
            value: 1.5,
            buckets: vec![1, 2],
            bounds: vec![0.5],
            attributes: vec![
                Attribute { key: "flag".into(), value: AttributeValue::Bool(true) },
                Attribute::new("n", 7i64),
                Attribute::new("half", 0.5),
            ],
            ..Default::default()
        })),
        base.payload.clone(),
        Payload::Log(Box::new(LogData { body: "connection refused äöü".into(), ..Default::default() })),
        Payload::Systemd(Box::new(SystemdData { unit: "ssh.service".into(), ..Default::default() })),
        Payload::Runtime(Box::new(RuntimeData { image: "a:b".into(), ..Default::default() })),
        Payload::Cni(Box::new(CniData { error_code: 11, ..Default::default() })),
        Payload::Change(Box::new(ChangeData { what: "image".into(), ..Default::default() })),
        Payload::Custom(Box::new(CustomData { tags: vec!["x".into()], ..Default::default() })),
    ];
    payloads.into_iter().map(|payload| UnifiedEvent { payload, ..base.clone() }).collect()
}

fn any_text() -> impl Strategy<Value = SmolStr> {
    ".{0,40}".prop_map(SmolStr::from)
}

prop_compose! {
    fn any_event()(
        at in any::<u64>(), seen in any::<u64>(), pid in any::<u32>(), id in any::<u128>(),
        kind in prop::sample::select(EventKind::ALL), severity in prop::sample::select(EventSeverity::ALL),
        ns in any_text(), pod in any_text(), comm in any_text(), trace in any::<Option<u128>>(),
        tags in prop::collection::vec(any_text(), 0..4), value in -1e300f64..1e300, n in any::<i64>(),
        span in any::<bool>(), impact in any::<Option<bool>>(),
    ) -> UnifiedEvent {
        let entity = EntityRef { cluster: "c".into(), namespace: ns, pod, ..EntityRef::default() }.sealed();
        let attributes = vec![Attribute::new("v", value), Attribute::new("n", n)];
        UnifiedEvent {
            id: EventId(id),
            timestamp: UnixNanos(at),
            observed_at: UnixNanos(seen),
            kind, severity, pid,
            source: Source::Ebpf,
            entity: Arc::new(entity),
            payload: if span {
                Payload::Span(Box::new(SpanData { name: comm, attributes, ..SpanData::default() }))
            } else {
                Payload::Custom(Box::new(CustomData { name: comm, attributes, tags }))
            },
            trace: trace.map(|t| Box::new(TraceContext { trace_id: TraceId(t), ..Default::default() })),
            impact: impact.map(|c| Box::new(ImpactContext { customer_facing: c, ..Default::default() })),
            ..UnifiedEvent::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn events_survive_the_wire(events in prop::collection::vec(any_event(), 0..40)) {
        let bytes = encode(&events);
        let view = EventBatchView::check(&bytes).unwrap();
        prop_assert_eq!(view.to_events(), events.clone());
        for (view, event) in view.iter().zip(&events) {
            prop_assert_eq!(view.key(), event.key());
            prop_assert_eq!(view.timestamp(), event.timestamp);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(EventBatchView::check(&bytes).is_err());
        prop_assert!(SignalBatchView::check(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_behind_a_good_header_never_panic(
        body in prop::collection::vec(any::<u8>(), 0..2048), at in 80usize..4000, signals in any::<bool>(),
    ) {
        let mut bytes = if signals {
            encode_signals(ProducerId(1), 0, 0, &golden_signals()).unwrap()
        } else {
            encode(&golden_events())
        };
        let at = at.min(bytes.len());
        let end = (at + body.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&body[..end - at]);
        if let Ok(view) = EventBatchView::check(&bytes) { let _ = view.to_events(); }
        if let Ok(view) = SignalBatchView::check(&bytes) { let _ = view.to_section(); }
    }
}

#[test]
fn a_packed_batch_is_a_fraction_and_opens_to_the_very_same() {
    let entities: Vec<_> = (0..20).map(common::entity).collect();
    let events: Vec<_> = (0..1000).map(|n| common::kernel(n, &entities[(n % 20) as usize])).collect();
    let plain = encode(&events);
    let packed = Packer::default().pack(plain.clone());
    assert!(packed.len() * 3 < plain.len(), "{} of {}", packed.len(), plain.len());
    assert!(EventBatchView::check(&packed).is_err(), "a packed message is not read by accident");
    let mut unpacker = Unpacker::default();
    assert_eq!(unpacker.unpack(&packed).unwrap(), plain);
    assert_eq!(unpacker.unpack(&plain).unwrap(), plain, "a plain message is left as it is");
    let small = encode(&events[..1]);
    assert_eq!(Packer::default().pack(small.clone()), small, "a small message is left as it is");
}

#[test]
fn golden_packed_batch_v2_is_still_read() {
    let events: Vec<_> = (0..20).map(|n| common::kernel(n, &common::entity(1))).collect();
    let plain = encode(&events);
    let stored = golden("events-v2-packed.bin", &Packer::default().pack(plain.clone()));
    assert_eq!(Unpacker::default().unpack(&stored).unwrap(), plain);
}

#[test]
fn a_packed_message_that_promises_too_much_or_too_little_is_refused() {
    let events: Vec<_> = (0..100).map(|n| common::kernel(n, &common::entity(1))).collect();
    let packed = Packer::default().pack(encode(&events));
    let mut unpacker = Unpacker::default();
    for (size, named) in [(u32::MAX, "too large"), (100, "too small")] {
        let mut hurt = packed.clone();
        hurt[44..48].copy_from_slice(&size.to_le_bytes());
        assert!(unpacker.unpack(&hurt).is_err(), "{named}");
    }
    for end in 80..packed.len() {
        assert!(unpacker.unpack(&packed[..end]).is_err(), "truncated at {end}");
    }
    assert!(unpacker.unpack(&packed).is_ok(), "what failed before leaves nothing behind");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_behind_a_packed_header_never_panic(
        body in prop::collection::vec(any::<u8>(), 0..2048), at in 40usize..4000,
    ) {
        let events: Vec<_> = (0..100).map(|n| common::kernel(n, &common::entity(1))).collect();
        let mut bytes = Packer::default().pack(encode(&events));
        let at = at.min(bytes.len());
        let end = (at + body.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&body[..end - at]);
        let mut unpacker = Unpacker::default();
        if let Ok(plain) = unpacker.unpack(&bytes)
            && let Ok(view) = EventBatchView::check(plain)
        {
            let _ = view.to_events();
        }
    }
}
