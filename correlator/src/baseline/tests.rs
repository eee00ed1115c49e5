//! Each method blames what its rule says, and not what another would.

use std::sync::Arc;

use tapio_schemas::service::{CallGapTally, Measure, ServiceMeter};
use tapio_schemas::{EntityRef, SignalKind};

use super::*;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> UnixNanos {
    UnixNanos(1_000_000 * SECOND + seconds * SECOND)
}

fn service(name: &str) -> EntityRef {
    EntityRef { service: name.into(), ..EntityRef::default() }.sealed()
}

fn signal(kind: SignalKind, name: &str, onset: u64, strength: f64) -> Signal {
    let mut signal = Signal::new(kind, Arc::new(service(name)), None, at(onset));
    signal.strength = Score::clamped(strength);
    signal.last_seen = at(20);
    signal
}

fn said(signals: Vec<Signal>) -> SignalSection {
    SignalSection { signals, ..SignalSection::default() }
}

fn blamed(finding: &Finding) -> (&str, &str) {
    let root = finding.root_cause.as_ref().expect("something is always blamed");
    (root.entity.name.as_str(), root.cause.as_str())
}

fn scene() -> Vec<Signal> {
    vec![
        signal(SignalKind::LogErrors, "weak", 5, 0.2),
        signal(SignalKind::SpanSlow, "first", 10, 0.6),
        signal(SignalKind::SpanErrors, "loud", 11, 0.9),
        signal(SignalKind::CpuSaturated, "loud", 12, 0.95),
    ]
}

fn decide(method: Method, watermark: u64) -> Vec<Finding> {
    let mut baseline = Baseline::new(method).unwrap();
    baseline.apply(said(scene()));
    baseline.advance(at(watermark))
}

#[test]
fn the_inference_is_no_baseline() {
    assert!(Baseline::new(Method::Causal).is_none());
}

#[test]
fn the_earliest_strong_signal_is_blamed() {
    let findings = decide(Method::Earliest, 60);
    assert_eq!(findings.len(), 1, "nothing changes after the first decision");
    assert_eq!(blamed(&findings[0]), ("first", "code.blamed"));
    assert_eq!(findings[0].hypotheses.len(), 2, "what is weak is not weighed");
}

#[test]
fn the_loudest_entity_is_blamed_for_its_loudest_category() {
    assert_eq!(blamed(&decide(Method::Loudest, 60)[0]), ("loud", "cpu.blamed"));
}

#[test]
fn nothing_is_decided_before_its_time_and_it_recovers() {
    assert!(decide(Method::Earliest, 15).is_empty());
    let mut baseline = Baseline::new(Method::Earliest).unwrap();
    baseline.apply(said(scene()));
    let first = baseline.advance(at(25));
    let ended = scene().into_iter().map(|s| Signal { ended: true, revision: s.revision + 1, ..s });
    baseline.apply(said(ended.collect()));
    let last = baseline.advance(at(30));
    assert_eq!((first.len(), last.len()), (1, 1));
    assert_eq!((last[0].status, last[0].revision, last[0].id), (Status::Recovered, 2, first[0].id));
}

#[test]
fn the_measure_that_left_its_range_furthest_is_blamed() {
    let mut baseline = Baseline::new(Method::RankSum).unwrap();
    for second in (0..60).step_by(5) {
        let is_bad = second >= 10 + 30;
        let meter = |name: &str, value: f64| ServiceMeter {
            at: at(second),
            service: service(name).owner(),
            measure: Measure::CpuShare,
            value,
            ..ServiceMeter::default()
        };
        let wobble = 0.01 * (second % 3) as f64;
        let gap = CallGapTally {
            window_start: at(second),
            window_ns: 5 * SECOND,
            from: service("a").owner(),
            to: service("b").owner(),
            gap: vec![(if is_bad { 200 } else { 160 + (second % 2) as u16 }, 3)],
            ..CallGapTally::default()
        };
        let meters = vec![meter("busy", 0.2 + wobble + if is_bad { 0.1 } else { 0.0 })];
        baseline.observe(&SignalSection { meters, call_gaps: vec![gap], ..SignalSection::default() });
    }
    let alarm = Signal { last_seen: at(55), ..signal(SignalKind::SpanSlow, "a", 40, 0.9) };
    baseline.apply(said(vec![alarm]));
    let findings = baseline.advance(at(60));
    assert_eq!(blamed(findings.last().unwrap()), ("b", "network.blamed"));
    let names: Vec<&str> =
        findings.last().unwrap().hypotheses.iter().map(|h| h.entity.name.as_str()).collect();
    assert_eq!(names, ["b", "busy"], "what did not move is not blamed");
}
