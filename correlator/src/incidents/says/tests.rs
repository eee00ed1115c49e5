use super::*;
use std::sync::Arc;
use tapio_schemas::{Attribute, EntityRef, UnixNanos};

#[test]
fn sentences_hold_only_what_the_signal_carries() {
    let entity = Arc::new(EntityRef { node: "n1".into(), cgroup: "/a".into(), ..Default::default() });
    let mut growth = Signal::new(SignalKind::MemoryGrowth, entity, None, UnixNanos(1));
    assert_eq!(sentence(&growth), "memory grows");
    growth.attributes =
        vec![Attribute::new("slope_bytes_per_s", 1_048_576.0), Attribute::new("limit_bytes", 67_108_864)];
    assert_eq!(sentence(&growth), "memory grows by 1 MiB/s, limit 64 MiB");
}

/// A signal of a measure.
fn measured(kind: SignalKind, unit: &str, measure: &str, from: f64, to: f64) -> Signal {
    let mut signal = Signal::new(kind, Arc::default(), None, UnixNanos(1));
    (signal.unit, signal.baseline, signal.observed) = (unit.into(), from, to);
    signal.attributes = vec![Attribute::new("measure", measure)];
    signal
}

#[test]
fn a_measure_is_told_with_its_unit() {
    let says = |unit: &str, measure: &str, from: f64, to: f64| {
        sentence(&measured(SignalKind::MetricShift, unit, measure, from, to))
    };
    assert_eq!(says("s", "latency_s", 0.0052, 0.5874), "the latency went from 5.2 ms to 590 ms");
    assert_eq!(
        says("By", "memory_bytes", 16_531_456.0, 91_303_936.0),
        "the memory went from 15.8 MiB to 87.1 MiB"
    );
    assert_eq!(
        says("1", "memory_share", 0.302, 0.756),
        "the share of its memory that is used went from 30 % to 76 %"
    );
    assert_eq!(says("1/s", "system_calls", 12.34, 0.0), "the number of system calls went from 12/s to 0/s");
}

#[test]
fn what_is_used_of_the_processor_is_told_of_what() {
    let says = |kind, unit: &str, usual: f64, now: f64| sentence(&measured(kind, unit, "", usual, now));
    let (busy, more) = (SignalKind::CpuSaturated, SignalKind::CpuRaised);
    assert_eq!(
        says(busy, "1", 0.004, 1.1),
        "the processor is busy: 110 % of what it may use, usual are 0.4 %"
    );
    assert_eq!(says(busy, "1", f64::NAN, 0.95), "the processor is busy: 95 % of what it may use");
    assert_eq!(
        says(more, "{cpu}", 0.3, 2.42),
        "more of the processor is used than usual: 2.42 processors, usual are 0.3"
    );
}

#[test]
fn what_a_machine_said_in_several_lines_is_one() {
    let mut signal = Signal::new(SignalKind::ProbeFailed, Arc::default(), None, UnixNanos(1));
    signal.attributes = vec![Attribute::new("message", "i/o timeout\n  db unreachable\n")];
    assert_eq!(sentence(&signal), "a probe failed: i/o timeout db unreachable");
}

#[test]
fn one_request_is_one_and_calls_that_stopped_are_not_counted() {
    let mut signal = Signal::new(SignalKind::TraceShape, Arc::default(), None, UnixNanos(1));
    signal.attributes = vec![Attribute::new("bad", 1), Attribute::new("of", 1)];
    assert!(sentence(&signal).ends_with("in 1 of 1 request"), "{}", sentence(&signal));
    let stopped =
        Signal { count: 5, ..Signal::new(SignalKind::CallsStopped, Arc::default(), None, UnixNanos(1)) };
    assert_eq!(sentence(&stopped), "calls stopped");
}

#[test]
fn every_kind_has_words_and_none_is_told_by_its_name() {
    for kind in SignalKind::ALL {
        let says = sentence(&Signal::new(*kind, Arc::default(), None, UnixNanos(1)));
        assert!(!says.is_empty() && !says.contains(kind.as_str()), "{kind}: {says}");
    }
}

#[test]
fn what_was_done_to_an_object_is_said_in_words() {
    let says = |attributes: &[(&str, &str)]| {
        let mut signal = Signal::new(SignalKind::ObjectChanged, Arc::default(), None, UnixNanos(1));
        signal.attributes = attributes.iter().map(|(key, value)| Attribute::new(key, *value)).collect();
        sentence(&signal)
    };
    let (old, new) = (("old", "app=a"), ("new", "app=b"));
    assert_eq!(
        says(&[("reason", "selector"), old, new, ("changed_by", "helm")]),
        "its selector was changed from app=a to app=b by helm"
    );
    assert_eq!(says(&[("reason", "selector"), new]), "it was given the selector app=b");
    assert_eq!(says(&[("reason", "created")]), "it was made");
    assert_eq!(says(&[("reason", "deleted"), old]), "it was removed; it selected app=a");
    assert_eq!(says(&[("reason", "spec"), ("old", "00ff"), ("new", "00fe")]), "it was changed");
}

#[test]
fn entities_are_named_as_people_do() {
    assert_eq!(name(&Entity::new("Cgroup", "", "/tapio-demo", "host-1")), "cgroup /tapio-demo on host-1");
    assert_eq!(name(&Entity::namespaced("StatefulSet", "shop", "db")), "StatefulSet shop/db");
}
