//! File systems, as exporters tell of them, from samples to signals.

use std::sync::Arc;

use tapio_schemas::payload::MetricData;
use tapio_schemas::{
    Attribute, EntityRef, EventId, EventKind, Payload, Signal, SignalKind, UnifiedEvent, UnixNanos,
};

use super::super::super::shard_tests::{Sim, event, seconds};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

fn node() -> Arc<EntityRef> {
    Arc::new(EntityRef { cluster: "c".into(), node: "n1".into(), ..EntityRef::default() }.sealed())
}

fn metric(name: &str, texts: &[(&str, &str)], second: f64, value: f64, limit: f64) -> UnifiedEvent {
    let data = MetricData {
        name: name.into(),
        unit: "By".into(),
        value,
        limit,
        attributes: texts.iter().map(|(key, value)| Attribute::new(key, *value)).collect(),
        ..MetricData::default()
    };
    let seed = format!("{name}{texts:?}");
    let id = EventId::derive(seconds(second), seed.as_bytes());
    event(EventKind::Metric, &node(), seconds(second), id, Payload::Metric(Box::new(data)))
}

fn signals(mut events: Vec<UnifiedEvent>) -> Vec<Signal> {
    events.sort_by_key(|e| e.timestamp);
    let mut sim = Sim::new();
    sim.feed(&events);
    sim.finish();
    sim.signals
}

fn of(signals: &[Signal], kind: SignalKind) -> Vec<&Signal> {
    signals.iter().filter(|s| s.kind == kind).collect()
}

/// Ten seconds apart: 100 GiB, from 60 GiB on a tenth of a GiB a second until it is full.
fn used_at(second: f64) -> f64 {
    (60.0 + 0.1 * second).min(100.0) * GIB
}

/// Series of one way to tell of a disk that fills: by states, by what is available, by share, with limit.
fn told_as(way: &str, steps: u64) -> Vec<UnifiedEvent> {
    let place = |state| vec![("system.filesystem.mountpoint", "/var"), ("system.filesystem.state", state)];
    (0..steps)
        .flat_map(|i| {
            let at = i as f64 * 10.0;
            let used = used_at(at);
            let left = 100.0 * GIB - used;
            match way {
                "states" => vec![
                    metric("system.filesystem.usage", &place("used"), at, used, 0.0),
                    metric("system.filesystem.usage", &place("free"), at, left, 0.0),
                    metric("system.filesystem.usage", &place("reserved"), at, 5.0 * GIB, 0.0),
                ],
                "limit" => vec![metric("system.filesystem.usage", &place("used"), at, used, 100.0 * GIB)],
                "available" => vec![
                    metric("k8s.volume.available", &[("k8s.volume.name", "/var")], at, left, 0.0),
                    metric("k8s.volume.capacity", &[("k8s.volume.name", "/var")], at, 100.0 * GIB, 0.0),
                ],
                "node" => vec![
                    metric("node_filesystem_avail_bytes", &[("mountpoint", "/var")], at, left, 0.0),
                    metric("node_filesystem_size_bytes", &[("mountpoint", "/var")], at, 100.0 * GIB, 0.0),
                ],
                _ => vec![metric(
                    "system.filesystem.utilization",
                    &[("mountpoint", "/var")],
                    at,
                    used / (100.0 * GIB),
                    0.0,
                )],
            }
        })
        .collect()
}

#[test]
fn however_it_is_told_the_growth_is_foretold_and_the_end_is_seen() {
    for way in ["states", "limit", "available", "node", "share"] {
        let told = signals(told_as(way, 50));
        let growth = of(&told, SignalKind::DiskGrowth);
        let first = growth.first().unwrap_or_else(|| panic!("{way}: no growth"));
        assert_eq!(first.attribute("place").and_then(|v| v.as_text()), Some("/var"), "{way}");
        assert!(first.last_seen <= seconds(150.0), "{way}: found at {:?}", first.last_seen);
        let forecast = first.forecast.as_ref().expect("a forecast");
        assert_eq!(forecast.scenario, "disk_full");
        // 99.5 % are reached after 395 s, and seen at 400 s.
        assert!(
            forecast.earliest <= seconds(400.0) && seconds(400.0) <= forecast.latest,
            "{way}: {forecast:?}"
        );
        assert!(forecast.latest.since(forecast.earliest) < 200_000_000_000, "{way}: {forecast:?}");
        let full = of(&told, SignalKind::DiskFull);
        assert_eq!(full[0].onset, seconds(400.0), "{way}");
        assert!(growth.last().unwrap().ended, "{way}");
        assert_eq!(of(&told, SignalKind::DiskNearFull)[0].onset, seconds(310.0), "{way}");
    }
}

#[test]
fn a_share_beside_bytes_is_not_told_twice() {
    let mut both = told_as("states", 50);
    both.extend(told_as("share", 50));
    let ids = |signals: &[Signal]| {
        of(signals, SignalKind::DiskGrowth).iter().map(|s| s.id).collect::<std::collections::BTreeSet<_>>()
    };
    let told = signals(both);
    assert_eq!(ids(&told).len(), 1);
    let bytes = of(&told, SignalKind::DiskGrowth).last().unwrap().attribute("usage_bytes").is_some();
    assert!(bytes, "{told:?}");
}

#[test]
fn file_systems_of_one_machine_are_told_apart() {
    let mut events = told_as("limit", 50);
    let texts = [("system.filesystem.mountpoint", "/"), ("system.filesystem.state", "used")];
    events
        .extend((0..50).map(|i| {
            metric("system.filesystem.usage", &texts, f64::from(i) * 10.0, 70.0 * GIB, 100.0 * GIB)
        }));
    let told = signals(events);
    let growing = of(&told, SignalKind::DiskGrowth);
    assert!(!growing.is_empty());
    let place = |s: &&Signal| s.attribute("place").and_then(|v| v.as_text()) == Some("/var");
    assert!(growing.iter().all(place), "{growing:?}");
}

#[test]
fn what_is_written_and_cleaned_is_no_growth() {
    let texts = [("system.filesystem.mountpoint", "/"), ("system.filesystem.state", "used")];
    let series = |value: &dyn Fn(f64) -> f64| -> Vec<UnifiedEvent> {
        let at = |i: u64| i as f64 * 10.0;
        (0..400)
            .map(|i| metric("system.filesystem.usage", &texts, at(i), value(at(i)) * GIB, 100.0 * GIB))
            .collect()
    };
    let cases: Vec<(&str, Vec<UnifiedEvent>)> = vec![
        ("steady", series(&|_| 97.0)),
        ("logs that are rotated", series(&|t| 60.0 + (t % 90.0) / 10.0)),
        ("one large file", series(&|t| if t < 500.0 { 60.0 } else { 75.0 })),
        ("almost empty", series(&|t| 5.0 + t / 400.0)),
        ("too slow to matter", series(&|t| 60.0 + t / 4000.0)),
    ];
    for (name, events) in cases {
        let told = signals(events);
        assert_eq!(of(&told, SignalKind::DiskGrowth).len(), 0, "{name}");
    }
}

#[test]
fn what_is_cleaned_once_is_no_growth_until_it_rises_above_its_peak() {
    let texts = [("system.filesystem.mountpoint", "/"), ("system.filesystem.state", "used")];
    let saw = (0..400u32).map(|i| {
        let at = f64::from(i) * 10.0;
        metric("system.filesystem.usage", &texts, at, (60.0 + (at % 400.0) * 0.03) * GIB, 100.0 * GIB)
    });
    let told = signals(saw.collect());
    let growth = of(&told, SignalKind::DiskGrowth);
    assert!(!growth.is_empty(), "in its first tooth nobody can know");
    assert!(growth.iter().all(|s| s.last_seen <= seconds(430.0)), "and then it is known");
}

#[test]
fn growth_over_a_day_is_found_in_the_coarse_window() {
    // 0.5 GiB an hour, a sample each minute.
    let texts = [("system.filesystem.mountpoint", "/"), ("system.filesystem.state", "used")];
    let events: Vec<UnifiedEvent> = (0..1500u32)
        .map(|i| {
            let at = f64::from(i) * 60.0;
            metric("system.filesystem.usage", &texts, at, (75.0 + at / 7200.0) * GIB, 100.0 * GIB)
        })
        .collect();
    let told = signals(events);
    let growth = of(&told, SignalKind::DiskGrowth);
    let last = growth.last().expect("growth");
    // 99.5 GiB after 49 h.
    let forecast = last.forecast.as_ref().unwrap();
    let truth = UnixNanos(seconds(49.0 * 3600.0).0);
    assert!(forecast.earliest <= truth && truth <= forecast.latest, "{forecast:?}");
    assert!(forecast.latest.since(forecast.earliest) < 6 * 3_600_000_000_000, "{forecast:?}");
}

#[test]
fn claims_of_one_name_in_two_namespaces_are_two_volumes() {
    let told = |left_in_a: f64| {
        let claim = |namespace, at: f64, capacity: f64, left: f64| {
            let texts = [("namespace", namespace), ("persistentvolumeclaim", "data-0")];
            let turned = [texts[1], texts[0]];
            [
                metric("kubelet_volume_stats_capacity_bytes", &texts, at, capacity * GIB, 0.0),
                metric("kubelet_volume_stats_available_bytes", &turned, at + 2.0, left * GIB, 0.0),
            ]
        };
        // The size of the one is told between size and room of the other.
        let both = |at| [claim("a", at, 1.0, left_in_a), claim("b", at + 1.0, 100.0, 50.0)].concat();
        signals((0..30u32).flat_map(|i| both(f64::from(i) * 10.0)).collect())
    };
    let sound = told(0.4);
    assert!(of(&sound, SignalKind::DiskFull).is_empty() && of(&sound, SignalKind::DiskNearFull).is_empty());
    let full = told(0.001);
    let places: Vec<_> =
        of(&full, SignalKind::DiskFull).iter().map(|s| s.attribute("place").unwrap().as_text()).collect();
    assert!(!places.is_empty() && places.iter().all(|place| *place == Some("a/data-0")), "{places:?}");
}
