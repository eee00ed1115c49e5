//! What is beyond its bounds, and what is not.

use std::sync::Arc;

use tapio_schemas::payload::{MetricData, MetricKind};
use tapio_schemas::{Attribute, EntityRef, EventId, EventKind, Payload, Signal, SignalKind, UnifiedEvent};

use super::super::super::shard_tests::{Sim, event, seconds};
use super::*;

fn point(name: &str, at: f64, value: f64, count: u64, label: (&str, &str)) -> UnifiedEvent {
    let entity = EntityRef { cluster: "c".into(), node: "n1".into(), ..EntityRef::default() };
    let entity = Arc::new(entity.sealed());
    let data = MetricData {
        name: name.into(),
        value,
        count,
        kind: if count > 0 { MetricKind::Histogram } else { MetricKind::Gauge },
        attributes: vec![Attribute::new(label.0, label.1)],
        ..MetricData::default()
    };
    let id = EventId::derive(seconds(at), format!("{name}{}", label.1).as_bytes());
    event(EventKind::Metric, &entity, seconds(at), id, Payload::Metric(Box::new(data)))
}

/// Name, value at a second, observations between two samples.
type Series<'a> = (&'a str, &'a dyn Fn(f64) -> f64, u64);

/// What samples of each half minute lead to.
fn beyond(series: &[Series<'_>], label: (&str, &str)) -> Vec<Signal> {
    let mut sim = Sim::new();
    let mut events = Vec::new();
    for i in 0..20 {
        let at = f64::from(i) * 30.0;
        for (name, value, per_step) in series {
            events.push(point(name, at, value(at), per_step * u64::from(i as u32 + 1), label));
        }
    }
    sim.feed(&events);
    sim.finish();
    sim.signals.into_iter().filter(|s| s.kind == SignalKind::MetricBeyond).collect()
}

fn measure(signals: &[Signal]) -> Option<&str> {
    signals.first()?.attribute("measure")?.as_text()
}

#[test]
fn the_rows_are_in_order() {
    assert!(ROWS.windows(2).all(|pair| pair[0].name < pair[1].name));
    for row in &ROWS {
        assert!(find(row.name).is_some_and(|at| ROWS[usize::from(at)].name == row.name));
    }
    assert_eq!(find("node_filefd_allocate"), None);
}

#[test]
fn a_part_is_weighed_with_its_whole() {
    let whole: &dyn Fn(f64) -> f64 = &|_| 1000.0;
    for (part, all, value, expected) in [
        ("node_nf_conntrack_entries", "node_nf_conntrack_entries_limit", 960.0, Some("conntrack")),
        ("node_nf_conntrack_entries", "node_nf_conntrack_entries_limit", 700.0, None),
        ("node_filesystem_files_free", "node_filesystem_files", 3.0, Some("inodes")),
        ("node_filesystem_files_free", "node_filesystem_files", 300.0, None),
        ("process_open_fds", "process_max_fds", 1000.0, Some("open_files")),
    ] {
        let told = beyond(&[(all, whole, 0), (part, &|_| value, 0)], ("mountpoint", "/var"));
        assert_eq!(measure(&told), expected, "{part} {value}");
    }
    assert!(beyond(&[("process_open_fds", &|_| 9e9, 0)], ("a", "b")).is_empty(), "of an unknown whole");
}

#[test]
fn it_is_over_when_the_value_is_sound_again() {
    let told =
        beyond(&[("node_timex_offset_seconds", &|at| if at < 300.0 { -0.3 } else { 0.001 }, 0)], ("a", "b"));
    assert_eq!(measure(&told), Some("clock_offset"));
    assert!(told.iter().any(|signal| signal.ended));
}

#[test]
fn histograms_are_judged_by_what_is_new_in_them() {
    let slow = |at: f64| if at < 300.0 { 0.01 } else { 0.6 };
    assert_eq!(
        measure(&beyond(&[("etcd_disk_wal_fsync_duration_seconds", &slow, 50)], ("a", "b"))),
        Some("etcd_fsync")
    );
    assert!(beyond(&[("etcd_disk_wal_fsync_duration_seconds", &slow, 1)], ("a", "b")).is_empty(), "too few");
    let name = "apiserver_request_duration_seconds";
    assert_eq!(measure(&beyond(&[(name, &|_| 3.0, 50)], ("verb", "LIST"))), Some("api_latency"));
    assert!(beyond(&[(name, &|_| 300.0, 50)], ("verb", "WATCH")).is_empty());
}

#[test]
fn sums_are_judged_by_their_pace() {
    let name = "apiserver_flowcontrol_rejected_requests_total";
    assert_eq!(
        measure(&beyond(&[(name, &|at| at * 4.0, 0)], ("priority_level", "workload-low"))),
        Some("api_rejections")
    );
    assert!(beyond(&[(name, &|_| 5000.0, 0)], ("priority_level", "workload-low")).is_empty());
}

#[test]
fn claims_of_one_name_in_two_namespaces_have_their_own_inodes() {
    let told = |free_in_a: f64| {
        let claim = |name, at, value, namespace| {
            let mut event = point(name, at, value, 0, ("namespace", namespace));
            if let Payload::Metric(data) = &mut event.payload {
                data.attributes.push(Attribute::new("persistentvolumeclaim", "data-0"));
            }
            event
        };
        let (inodes, free) = ("kubelet_volume_stats_inodes", "kubelet_volume_stats_inodes_free");
        // The size of the one is told between size and room of the other.
        let events = (0..20u32).flat_map(|i| {
            let at = f64::from(i) * 30.0;
            [
                claim(inodes, at, 1000.0, "a"),
                claim(inodes, at + 1.0, 100_000.0, "b"),
                claim(free, at + 2.0, free_in_a, "a"),
                claim(free, at + 3.0, 90_000.0, "b"),
            ]
        });
        let mut sim = Sim::new();
        sim.feed(&events.collect::<Vec<_>>());
        sim.finish();
        sim.signals.into_iter().filter(|s| s.kind == SignalKind::MetricBeyond).collect::<Vec<_>>()
    };
    assert!(told(500.0).is_empty());
    let scarce = told(10.0);
    assert!(
        !scarce.is_empty()
            && scarce.iter().all(|s| s.attribute("place").unwrap().as_text() == Some("a/data-0"))
    );
}
