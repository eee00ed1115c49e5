//! Every limit holds, what it costs is counted, and what is open holds the low water.

use std::sync::Arc;

use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, SignalKind, UnifiedEvent, UnixNanos,
};

use tapio_runtime::memory::Pressure;

use super::shard_tests::{Sim, cgroup, event, limit_sample};
use super::{Budget, Cursor};
use crate::config::{CorrelatorConfig, SeriesConfig, SignalConfig};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;
const MIB: f64 = 1024.0 * 1024.0;

fn kill(path: &str, at: u64, id: u128, severity: EventSeverity) -> UnifiedEvent {
    let payload = Payload::Kernel(Box::default());
    let mut kill = event(EventKind::OomKill, &cgroup(path), UnixNanos(at), EventId(id), payload);
    kill.severity = severity;
    kill.pid = id as u32;
    kill
}

#[test]
fn above_its_rate_a_producer_is_shed_from_the_least_severe() {
    let mut sim =
        Sim::with(&CorrelatorConfig { producer_events_per_s_max: 10, ..CorrelatorConfig::default() });
    let mut events: Vec<UnifiedEvent> =
        (0..50).map(|i| kill("/a", START + i, u128::from(i) + 1, EventSeverity::Info)).collect();
    events.push(kill("/a", START + 100, 1000, EventSeverity::Critical));
    sim.feed(&events);
    sim.finish();
    assert_eq!(sim.counters().dropped.rate_limited, 40);
    let counts: Vec<u64> = sim.signals.iter().filter(|s| s.ended).map(|s| s.count).collect();
    assert_eq!(counts, [11], "ten at the rate, and the critical one above it");
}

#[test]
fn a_full_buffer_releases_the_oldest_early_and_loses_nothing() {
    let mut sim = Sim::with(&CorrelatorConfig { reorder_events_max: 10, ..CorrelatorConfig::default() });
    // All within the lateness: nothing is due yet.
    let events: Vec<UnifiedEvent> = (0..50)
        .map(|i| kill("/a", START + i * 1_000_000, u128::from(i) + 1, EventSeverity::Warning))
        .collect();
    sim.feed(&events);
    assert_eq!(sim.counters().evicted.reorder, 40);
    sim.finish();
    assert_eq!(sim.signals.last().map(|s| (s.count, s.ended)), Some((50, true)));
}

#[test]
fn series_are_bounded_and_the_longest_silent_go() {
    let config = CorrelatorConfig {
        series: SeriesConfig { count_max: 8, ..SeriesConfig::default() },
        ..CorrelatorConfig::default()
    };
    let mut sim = Sim::with(&config);
    // One workload, so one shard; its containers are many series.
    let events: Vec<UnifiedEvent> = (0..40u64)
        .map(|i| {
            let entity = EntityRef {
                cluster: "c".into(),
                namespace: "shop".into(),
                workload_kind: "Deployment".into(),
                workload: "api".into(),
                pod: format!("api-{i}").into(),
                ..EntityRef::default()
            };
            let at = UnixNanos(START + i * SECOND);
            limit_sample(&Arc::new(entity.sealed()), at, EventId(u128::from(i) + 1), MIB, 64.0 * MIB)
        })
        .collect();
    sim.feed(&events);
    sim.finish();
    assert_eq!(sim.counters().evicted.series, 32);
}

#[test]
fn open_deviations_are_bounded_and_counted() {
    let config = CorrelatorConfig {
        signals: SignalConfig { open_max: 4, ..SignalConfig::default() },
        ..CorrelatorConfig::default()
    };
    let mut sim = Sim::with(&config);
    let crash = |i: u64| {
        let data = tapio_schemas::payload::NetworkData { remote_port: 1000 + i as u16, ..Default::default() };
        let at = UnixNanos(START + i * SECOND);
        let payload = Payload::Network(Box::new(data));
        event(EventKind::NetConnectRefused, &cgroup("/a"), at, EventId(u128::from(i) + 1), payload)
    };
    sim.feed(&(0..20).map(crash).collect::<Vec<_>>());
    sim.finish();
    assert_eq!(sim.counters().evicted.episodes, 16);
    assert_eq!(sim.signals.iter().filter(|s| s.ended).count(), 4);
}

#[test]
fn an_open_leak_holds_the_low_water_and_its_end_lets_it_go() {
    let mut sim = Sim::new();
    let leak = cgroup("/leak");
    let sample = |i: u64, mib: f64| {
        limit_sample(&leak, UnixNanos(START + i * SECOND), EventId(u128::from(i) + 1), mib * MIB, 64.0 * MIB)
    };
    sim.feed(&(0..9).map(|i| sample(i, 4.0 + i as f64)).collect::<Vec<_>>());
    assert!(sim.signals.is_empty(), "too early to tell");
    assert!(sim.low_water() <= UnixNanos(START), "but not to hold what it may begin with");

    sim.feed(&(9..40).map(|i| sample(i, 4.0 + i as f64)).collect::<Vec<_>>());
    assert!(sim.signals.iter().any(|s| s.kind == SignalKind::MemoryGrowth));
    let held = sim.low_water();
    assert!(held <= UnixNanos(START), "{held}: the first sample of the climb is needed");

    sim.feed(&(40..120).map(|i| sample(i, 5.0)).collect::<Vec<_>>());
    let free = sim.low_water();
    assert!(free >= UnixNanos(START + 108 * SECOND), "{free}");
}

#[test]
fn two_measures_of_one_thing_do_not_mix() {
    let leak = cgroup("/leak");
    let mut sim = Sim::new();
    let mut events = Vec::new();
    for i in 0..60u64 {
        let at = UnixNanos(START + i * SECOND);
        let id = |n: u64| EventId(u128::from(i * 2 + n) + 1);
        events.push(limit_sample(&leak, at, id(0), (4.0 + i as f64) * MIB, 64.0 * MIB));
        let mut other = limit_sample(&leak, at, id(1), 2.0 * MIB, 64.0 * MIB);
        if let Payload::Metric(data) = &mut other.payload {
            data.name = "container.memory.working_set".into();
        }
        events.push(other);
    }
    sim.feed(&events);
    assert!(sim.signals.iter().any(|s| s.kind == SignalKind::MemoryGrowth && !s.ended));
}

#[test]
fn short_of_memory_a_shard_sheds_routine_and_says_exactly_how_much() {
    for (pressure, shed) in [(Pressure::Calm, 0), (Pressure::ShedsInfo, 20), (Pressure::ShedsWarning, 50)] {
        let mut sim = Sim::new();
        let severities = [EventSeverity::Info; 20].into_iter().chain([EventSeverity::Warning; 30]);
        let severities = severities.chain([EventSeverity::Critical]);
        for (i, severity) in (0..).zip(severities) {
            let bytes = sim.encode(&kill("/a", START + i, u128::from(i) + 1, severity));
            let mut cursor = Cursor { pressure, ..Cursor::new(UnixNanos::MAX) };
            let taken = sim.set.take_within(&bytes, None, &mut cursor, &mut Budget::unlimited());
            sim.watermark.observe(taken.expect("a batch").newest);
        }
        sim.finish();
        assert_eq!(sim.counters().dropped.memory_pressure, shed);
        let gaps: Vec<_> = sim.sections.iter().flat_map(|section| &section.gaps).collect();
        let lost: Vec<_> =
            gaps.iter().map(|gap| (gap.lost, gap.reason.as_str(), gap.source.as_str())).collect();
        let expected = (shed > 0).then_some((shed, "memory_pressure", "correlator"));
        assert_eq!(lost, expected.into_iter().collect::<Vec<_>>());
        let counts: Vec<u64> = sim.signals.iter().filter(|s| s.ended).map(|s| s.count).collect();
        assert_eq!(counts, [51 - shed], "the critical one is never shed");
    }
}
