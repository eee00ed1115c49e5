//! Inference by numbers worked out by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use tapio_schemas::finding::Status;
use tapio_schemas::learning::PriorHistory;
use tapio_schemas::signal::Forecast;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{EntityRef, Finding, Score, Signal, SignalKind, TraceId, UnixNanos};

use super::{IncidentConfig, IncidentEngine};
use crate::model::Model;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_767_225_600 * SECOND;

fn after(seconds: u64) -> UnixNanos {
    UnixNanos(START + seconds * SECOND)
}

fn cgroup(path: &str) -> Arc<EntityRef> {
    let own = EntityRef { cluster: "c".into(), node: "n1".into(), cgroup: path.into(), ..Default::default() };
    Arc::new(own.sealed())
}

fn signal(kind: SignalKind, path: &str, onset: u64) -> Signal {
    Signal { revision: 1, ..Signal::new(kind, cgroup(path), None, after(onset)) }
}

fn last(model: Model, signals: Vec<Signal>, at: u64) -> Finding {
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(model));
    engine.apply(SignalSection { signals, ..SignalSection::default() });
    engine.finish(after(at)).pop().expect("a finding")
}

fn close(found: Score, expected: f64) {
    assert!((found.get() - expected).abs() < 1e-6, "{found:?} instead of {expected}");
}

#[test]
fn one_cause_and_one_signal_by_hand() {
    let finding = last(Model::builtin().unwrap(), vec![signal(SignalKind::CrashSignal, "/a", 1)], 5);
    // Prior 0.15; the signal shows with 0.95 given the cause and 0.005 by itself.
    let with_cause = 0.15 / 0.85 * (1.0 - 0.995 * 0.05);
    let posterior = with_cause / (with_cause + 0.005);
    close(finding.hypotheses[0].probability, posterior);
    close(finding.confidence, posterior * (1.0 - 0.55 * (-1.1f64 * 1.3).exp()));
}

#[test]
fn a_second_cause_is_explained_away() {
    let kill = signal(SignalKind::OomKill, "/a", 60);
    let alone = last(Model::builtin().unwrap(), vec![kill.clone()], 65);
    assert_eq!(alone.root_cause.as_ref().unwrap().cause, "memory.limit_exceeded");
    let growth = Signal { last_seen: after(59), ..signal(SignalKind::MemoryGrowth, "/a", 1) };
    let both = last(Model::builtin().unwrap(), vec![growth, kill], 65);
    assert_eq!(both.root_cause.as_ref().unwrap().cause, "memory.leak");
    let limit = both.hypotheses.iter().find(|h| h.cause == "memory.limit_exceeded").unwrap();
    assert!(limit.probability.get() < 0.05 && alone.hypotheses[0].probability.get() > 0.9);
}

#[test]
fn two_causes_that_explain_the_same_are_not_provable() {
    let text = include_str!("../../patterns/code.crash_signal.yaml");
    let twin = text.replace("code.crash_signal", "code.crash_twin");
    let model = Model::parse([("one.yaml", text), ("two.yaml", twin.as_str())]).unwrap();
    let finding = last(model, vec![signal(SignalKind::CrashSignal, "/a", 1)], 5);
    assert_eq!(finding.status, Status::NotProvable);
    assert!(finding.root_cause.is_none());
    assert_eq!(finding.hypotheses.len(), 2);
    assert_eq!(finding.hypotheses[0].probability, finding.hypotheses[1].probability);
    assert!(finding.story.contains("does not single out"), "{}", finding.story);
}

/// The verdict on a crash at `seconds` by two causes that explain it alike, the first one a little more probable.
fn look_alikes(priors: &Arc<PriorHistory>, seconds: u64) -> Vec<String> {
    let text = include_str!("../../patterns/code.crash_signal.yaml");
    let near = text.replace("code.crash_signal", "code.crash_twin").replace("prior: 0.15", "prior: 0.12");
    assert_ne!(near, text.replace("code.crash_signal", "code.crash_twin"), "another prior");
    let model = Model::parse([("one.yaml", text), ("two.yaml", near.as_str())]).unwrap();
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(model));
    engine.set_priors(Arc::clone(priors));
    let signals = vec![signal(SignalKind::CrashSignal, "/a", seconds)];
    engine.apply(SignalSection { signals, ..SignalSection::default() });
    let finding = engine.finish(after(seconds + 4)).pop().expect("a finding");
    finding.hypotheses.iter().map(|h| h.cause.to_string()).collect()
}

#[test]
fn what_was_learnt_turns_near_causes_around_from_its_event_time_until_it_is_forgotten() {
    let mut priors = PriorHistory::default();
    priors.add(after(100), [("code.crash_signal".into(), 1.0 / 3.0), ("code.crash_twin".into(), 2.0)].into());
    priors.add(after(200), BTreeMap::new());
    let priors = Arc::new(priors);
    let (first, twin) = ("code.crash_signal", "code.crash_twin");
    assert_eq!(look_alikes(&Arc::default(), 150), [first, twin], "as the model has it");
    assert_eq!(look_alikes(&priors, 50), [first, twin], "before it was learnt");
    assert_eq!(look_alikes(&priors, 150), [twin, first]);
    assert_eq!(look_alikes(&priors, 250), [first, twin], "forgotten");
}

#[test]
fn a_symptom_that_should_have_come_counts_only_when_it_would_have_been_seen() {
    let mut growth = Signal { last_seen: after(100), ..signal(SignalKind::MemoryGrowth, "/a", 1) };
    let (at, earliest, latest) = (after(60), after(56), after(64));
    growth.forecast =
        Some(Forecast { scenario: "oom_kill".into(), probability: Score::ONE, at, earliest, latest });
    let leak = |finding: &Finding| {
        finding.hypotheses.iter().find(|h| h.cause == "memory.leak").cloned().expect("a leak is weighed")
    };
    let blind = leak(&last(Model::builtin().unwrap(), vec![growth.clone()], 105));
    assert!(blind.missing.is_empty(), "nobody watches the kernel there");
    // A kernel event from the same machine shows that a kill would have been seen.
    let mut crash = signal(SignalKind::CrashSignal, "/elsewhere", 2);
    crash.pid = 7;
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::new(Model::builtin().unwrap()));
    engine.apply(SignalSection { signals: vec![growth, crash], ..SignalSection::default() });
    let findings = engine.finish(after(105));
    let watched =
        findings.iter().rfind(|f| f.hypotheses[0].cause == "memory.leak").expect("the leak is told");
    let watched = leak(watched);
    assert_eq!(watched.missing, ["memory.oom_kill was expected and not seen"]);
    assert!(watched.probability < blind.probability, "{watched:?} {blind:?}");
}

#[test]
fn more_candidates_than_are_weighed_exactly_still_give_a_verdict() {
    let signals: Vec<Signal> = (0..24)
        .map(|n| {
            let mut crash = signal(SignalKind::CrashSignal, &format!("/{n}"), 1 + n);
            crash.trace_id = TraceId(1);
            crash.strength = Score::clamped(if n == 9 { 1.0 } else { 0.2 });
            crash
        })
        .collect();
    let finding = last(Model::builtin().unwrap(), signals, 60);
    assert_eq!(finding.chain.len(), 24);
    assert_eq!(finding.hypotheses[0].entity.name, "/9");
    assert!(finding.hypotheses.len() <= 6);
}
