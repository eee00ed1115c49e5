//! A cause that was named stays named while what is wrong goes away, and no longer.

use std::sync::Arc;

use tapio_schemas::finding::Status;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Finding, Score, Signal, SignalKind};

use super::tests::{at_second as at, service};
use super::{IncidentConfig, IncidentEngine};
use crate::model::Model;
use crate::services::ServiceState;

/// A cause with one symptom, two refuters that weigh little, and a share that tempers it a little.
const SLOW: &str = r#"
id: code.slow
title: ["{seat} is slow"]
sits_on: [Service]
prior: 0.2
symptoms:
  - { signal: span.own_time, on: self, probability: 0.95, required: true, weight: 2 }
refuted_by:
  - { signal: log.errors, on: self, when: "!signal.ended", factor: 0.9, says: "its log has errors since {signal.onset|time}" }
  - { signal: net.retransmits, on: self, when: "!signal.ended", factor: 0.9, says: "packets of it are sent again since {signal.onset|time}" }
tempered_by:
  - { share: calls_normal, factor: 0.9, says: "on {share|percent} of its edges calls take no longer than usual" }
story: { what: ["{seat} is slow."] }
impact: { severity: warning, business_impact: 0.1, cascade_risk: 0.1 }
cases: [{ name: none, at: 1s, signals: [], expect: {} }]
"#;

fn of_web(kind: SignalKind, onset: u64) -> Signal {
    let signal = Signal::new(kind, service("web"), None, at(onset));
    Signal { revision: 1, count: 50, strength: Score::ONE, ..signal }
}

/// The same as it is seen at this second.
fn later(signal: &Signal, seen: u64, strength: f64) -> Signal {
    let strength = Score::clamped(strength);
    Signal { revision: seen as u32, last_seen: at(seen), strength, ..signal.clone() }
}

fn ended(signal: &Signal, seen: u64) -> Signal {
    Signal { ended: true, ..later(signal, seen, 1.0) }
}

fn calls(second: u64, edges_slow: u32) -> ServiceState {
    ServiceState {
        at: at(second),
        service: service("web").owner(),
        edges: 4,
        edges_slow,
        cpu_normal_at: None,
    }
}

/// What is told of it at last, when it is slow from the first second on and hardly slow any more at the twentieth.
fn told(others: Vec<Signal>, states: Vec<ServiceState>) -> Finding {
    let slow = of_web(SignalKind::OwnTime, 1);
    let model = Model::parse([("slow.yaml", SLOW)]).unwrap();
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(model));
    engine.learn(states);
    let fading = later(&slow, 20, 0.2);
    let signals = [vec![later(&slow, 2, 1.0), fading], others].concat();
    engine.apply(SignalSection { signals, ..SignalSection::default() });
    let findings = engine.finish(at(30));
    let id = findings.iter().find(|f| f.chain.iter().any(|l| l.signal == "span.own_time")).expect("told").id;
    let mut of_it = findings.into_iter().filter(|f| f.id == id);
    let first = of_it.next().expect("told");
    assert_eq!(first.root_cause.as_ref().map(|root| root.cause.as_str()), Some("code.slow"), "{first:?}");
    of_it.next_back().unwrap_or(first)
}

#[test]
fn calls_that_recover_do_not_unname_the_cause() {
    let last = told(Vec::new(), vec![calls(1, 4), calls(20, 0)]);
    let tempered = &last.hypotheses[0].refuted_by;
    assert!(tempered.iter().any(|reason| reason.contains("take no longer than usual")), "{last:?}");
    assert!(last.status == Status::Active && last.root_cause.is_some(), "{last:?}");
}

#[test]
fn a_refuter_that_was_there_when_it_was_named_leaves_it_named() {
    let log = of_web(SignalKind::LogErrors, 1);
    let last = told(vec![log.clone(), later(&log, 20, 1.0)], Vec::new());
    assert!(last.status == Status::Active && last.root_cause.is_some(), "{last:?}");
}

#[test]
fn another_refuter_in_the_place_of_one_unnames_it() {
    let (log, packets) = (of_web(SignalKind::LogErrors, 1), of_web(SignalKind::NetRetransmits, 20));
    let last = told(vec![log.clone(), ended(&log, 20), packets], Vec::new());
    assert_eq!(last.hypotheses[0].refuted_by.len(), 1, "as many as before: {last:?}");
    assert!(last.status == Status::NotProvable && last.root_cause.is_none(), "{last:?}");
}
