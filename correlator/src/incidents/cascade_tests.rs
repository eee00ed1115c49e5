use std::sync::Arc;

use tapio_schemas::finding::Prediction;
use tapio_schemas::signal::EdgeKind;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Attribute, Fact, Finding, Tally};

use super::super::{IncidentConfig, IncidentEngine};
use super::*;
use crate::incidents::tests::{SECOND, at_second as at, service};
use crate::model::Model;

/// Calls of each five seconds: of `from`, of which so many go to `to`.
fn calls(edges: &[(&str, &str, u64)]) -> SignalSection {
    let mut section = SignalSection::default();
    for (from, to, calls) in edges {
        let (from, to) = (service(from).owner(), service(to).owner());
        if from != to {
            let (from, to) = (from.clone(), to.clone());
            section.facts.push(Fact { at: at(0), edge: EdgeKind::Calls, from, to, gone: false });
        }
        for window in 0..40 {
            section.tallies.push(Tally {
                window_start: at(window * 5),
                window_ns: 5 * SECOND,
                from: from.clone(),
                to: to.clone(),
                calls: *calls,
                errors: 0,
                duration_ns_sum: 0,
                latency: Vec::new(),
            });
        }
    }
    section
}

fn signal(kind: SignalKind, name: &str, onset: u64, seen: u64) -> Signal {
    let mut signal = Signal::new(kind, service(name), None, at(onset));
    (signal.revision, signal.count, signal.last_seen) = (seen as u32 + 1, 20, at(seen));
    signal
}

/// A leak in `db` that ends in kills.
fn leak() -> Vec<Signal> {
    let mut growth = signal(SignalKind::MemoryGrowth, "db", 60, 119);
    growth.attributes = vec![Attribute::new("start_bytes", 1e6), Attribute::new("usage_bytes", 60e6)];
    let kills = (120..200).step_by(10).map(|seen| signal(SignalKind::OomKill, "db", 120, seen));
    std::iter::once(growth).chain(kills).collect()
}

fn failing(name: &str, callee: &str, onset: u64) -> Vec<Signal> {
    let words = (onset..200).step_by(10);
    let words = words.map(|seen| {
        let mut failing = signal(SignalKind::SpanErrors, name, onset, seen);
        failing.peer = Some(service(callee).owner());
        let id =
            Signal::new(failing.kind, Arc::clone(&failing.entity), failing.peer.clone(), failing.onset).id;
        Signal { id, ..failing }
    });
    words.collect()
}

fn run(sections: Vec<SignalSection>, until: u64) -> Vec<Finding> {
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(Model::builtin().unwrap()));
    sections.into_iter().for_each(|section| engine.apply(section));
    engine.finish(at(until))
}

fn said(signals: Vec<Signal>) -> SignalSection {
    SignalSection { signals, ..SignalSection::default() }
}

/// Every service answers a hundred requests, half of the edge's need the web.
const SHOP: [(&str, &str, u64); 7] = [
    ("edge", "edge", 100),
    ("edge", "web", 50),
    ("web", "web", 100),
    ("web", "api", 100),
    ("api", "api", 100),
    ("api", "db", 100),
    ("other", "edge", 0),
];

fn of(finding: &Finding) -> Vec<(String, f64, String)> {
    let short = |p: &Prediction| {
        let name = p.entity.as_ref().map(|e| e.name.to_string()).unwrap_or_default();
        (name, p.probability.get(), p.outcome.as_ref().map(ToString::to_string).unwrap_or_default())
    };
    finding.predictions.iter().map(short).collect()
}

#[test]
fn callers_are_foretold_with_their_shares_and_scored_when_they_suffer() {
    let mut signals = leak();
    // Told, and ten seconds later felt by the first caller, later by the next.
    signals.extend(failing("api", "db", 131));
    signals.extend(failing("web", "api", 143));
    let findings = run(vec![calls(&SHOP), said(signals)], 199);
    let first = findings.iter().find(|f| !f.predictions.is_empty()).expect("callers are foretold");
    assert_eq!(first.root_cause.as_ref().map(|r| r.cause.as_str()), Some("memory.leak"));
    let told = of(first);
    let names: Vec<&str> = told.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["api", "web", "edge"], "{told:?}");
    assert!(told[0].1 > told[1].1 && told[1].1 > told[2].1, "{told:?}");
    // Half of the edge's requests: over three calls of 0.7 each.
    assert!(told[2].1 <= 0.5 * 0.343 + 0.01, "{told:?}");
    assert!(
        first.story.contains("May suffer next: service shop/api, 100 % of whose requests need"),
        "{}",
        first.story
    );
    let p = &first.predictions[0];
    assert!(p.interval.0 <= p.at && p.at <= p.interval.1 && p.interval.0 >= first.emitted_at, "{p:?}");
    let last = findings.iter().rev().find(|f| f.id == first.id).expect("the last revision");
    let ended = of(last);
    assert_eq!((ended[0].2.as_str(), ended[1].2.as_str()), ("hit", "hit"), "{ended:?}");
    assert_eq!(last.predictions[0].interval, p.interval, "what was told is what is scored");
}

#[test]
fn who_suffers_already_or_needs_it_for_little_is_not_foretold() {
    let mut signals = leak();
    signals.extend(failing("api", "db", 118));
    let edges = [("api", "api", 100), ("api", "db", 100), ("web", "web", 1000), ("web", "api", 20)];
    let findings = run(vec![calls(&edges), said(signals)], 199);
    assert!(!findings.is_empty());
    let told: Vec<_> = findings.iter().flat_map(of).collect();
    assert_eq!(told, [], "{told:?}");
}

#[test]
fn a_caller_that_withstands_is_missed_and_an_end_before_its_time_proves_nothing() {
    let edges = [("api", "api", 100), ("api", "db", 100)];
    let mut signals = leak();
    signals.extend((200..400).step_by(10).map(|seen| signal(SignalKind::OomKill, "db", 120, seen)));
    let findings = run(vec![calls(&edges), said(signals)], 399);
    assert_eq!(of(findings.last().unwrap())[0].2, "miss", "{:?}", of(findings.last().unwrap()));
    let mut ends = leak();
    ends.truncate(2);
    let ended = |signal: &Signal| Signal { ended: true, revision: 900, last_seen: at(130), ..signal.clone() };
    let over: Vec<Signal> = ends.iter().map(ended).collect();
    let findings = run(vec![calls(&edges), said([ends, over].concat())], 399);
    assert_eq!(of(findings.last().unwrap())[0].2, "not_due", "{:?}", of(findings.last().unwrap()));
}

#[test]
fn outcomes_move_the_odds_and_the_order_of_arrival_changes_nothing() {
    let with = |factor: f64, backwards: bool| {
        let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(Model::builtin().unwrap()));
        let mut history = tapio_schemas::learning::PriorHistory::default();
        history.add(at(0), [("prediction.cascade_call".into(), factor)].into());
        engine.set_priors(Arc::new(history));
        let mut sections: Vec<SignalSection> = SHOP.iter().map(|edge| calls(&[*edge])).collect();
        sections.push(said(leak()));
        if backwards {
            sections.reverse();
        }
        sections.into_iter().for_each(|section| engine.apply(section));
        engine.finish(at(199))
    };
    let first = |findings: &[Finding]| findings.iter().map(of).find(|told| !told.is_empty()).expect("told");
    let (rare, often) = (first(&with(0.25, false)), first(&with(4.0, false)));
    assert!(rare[0].1 < 0.45 && often[0].1 > 0.85, "{rare:?} {often:?}");
    assert_eq!(with(1.0, false), with(1.0, true));
}

#[test]
fn delays_that_were_seen_make_the_interval_narrower() {
    let none = Delay::new(&[], 5 * SECOND);
    let some = Delay::new(&[2.0, 3.0, 2.5, 2.0, 3.0], 5 * SECOND);
    assert!((none.left(0.0, 0.05)..none.left(0.0, 0.95)).contains(&15.0));
    assert!(some.left(0.0, 0.95) < 0.5 * none.left(0.0, 0.95), "{some:?} {none:?}");
    assert!(none.left(60.0, 0.5) > none.left(0.0, 0.5), "what has lasted lasts longer");
    assert!(none.survives(0.0) == 1.0 && none.survives(600.0) < 0.01);
}
