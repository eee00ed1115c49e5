//! What is told of an incident, and when it is told again.

use std::sync::Arc;

use tapio_schemas::finding::{Hypothesis, Status};
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Attribute, EntityRef, EventId, Finding, Score, Signal, SignalId, SignalKind, TraceId};

use super::Incident;
use crate::incidents::tests::{at_second as at, service};
use crate::incidents::{IncidentConfig, IncidentEngine};
use crate::model::Model;

fn engine() -> IncidentEngine {
    IncidentEngine::new(IncidentConfig::default(), Arc::new(Model::builtin().unwrap()))
}

fn signal(kind: SignalKind, entity: &Arc<EntityRef>, onset: u64) -> Signal {
    let signal = Signal::new(kind, Arc::clone(entity), None, at(onset));
    Signal { revision: 1, count: 20, strength: Score::ONE, ..signal }
}

/// A later word on the same deviation.
fn later(signal: &Signal, seen: u64) -> Signal {
    Signal { revision: seen as u32 + 1, last_seen: at(seen), ..signal.clone() }
}

fn told(signals: Vec<Signal>, until: u64) -> Vec<Finding> {
    let mut engine = engine();
    engine.apply(SignalSection { signals, ..SignalSection::default() });
    engine.finish(at(until))
}

#[test]
fn one_more_event_of_the_same_is_no_news() {
    let crash = signal(SignalKind::CrashSignal, &service("api"), 1);
    let again = |seen: u64| {
        let mut again = later(&crash, seen);
        again.evidence = vec![EventId(u128::from(seen))];
        again
    };
    let same = told((1..=60).map(again).collect(), 61);
    assert_eq!(same.len(), 1, "{:?}", same.iter().map(|f| (f.emitted_at, f.revision)).collect::<Vec<_>>());
    // Words that change are told.
    let counted = |seen: u64| Signal { count: 20 + seen, ..again(seen) };
    let more = told((1..=60).map(counted).collect(), 61);
    assert!((3..=8).contains(&more.len()), "{}", more.len());
}

#[test]
fn what_was_told_of_becomes_no_part_of_what_nobody_heard_of() {
    let (api, db) = (service("api"), service("db"));
    let mut engine = engine();
    // Too little to be told of, and older.
    let faint = Signal { strength: Score::clamped(0.2), count: 1, ..signal(SignalKind::MetricShift, &db, 1) };
    let crash = signal(SignalKind::CrashSignal, &api, 20);
    engine.apply(SignalSection { signals: vec![faint.clone(), crash.clone()], ..SignalSection::default() });
    let apart = engine.finish(at(25));
    let known = apart.first().expect("the crash is told of").id;
    assert!(apart.iter().all(|f| f.id == known), "{apart:?}");
    let trace = TraceId(9);
    let joined = [(faint, 26), (crash, 26)].map(|(of, seen)| Signal { trace_id: trace, ..later(&of, seen) });
    engine.apply(SignalSection { signals: joined.into(), ..SignalSection::default() });
    let together = engine.finish(at(28));
    assert!(together.iter().all(|f| f.status != Status::Superseded), "{together:?}");
    let last = together.iter().rfind(|f| f.id == known).expect("it goes on under its name");
    assert_eq!(last.chain.len(), 2, "{last:?}");
}

/// A crash right after another image came.
fn crash_after(change_at: u64) -> (Signal, Signal) {
    let of = EntityRef { cluster: "c".into(), namespace: "shop".into(), ..EntityRef::default() };
    let api = EntityRef { workload_kind: "Deployment".into(), workload: "api".into(), ..of };
    let api = Arc::new(api.sealed());
    let mut change = signal(SignalKind::ImageChanged, &api, change_at);
    change.attributes = vec![Attribute::new("image_old", "api:1"), Attribute::new("image_new", "api:2")];
    (change, signal(SignalKind::CrashSignal, &api, 10))
}

#[test]
fn of_one_moment_the_change_comes_first() {
    for turned in [false, true] {
        let (change, crash) = crash_after(10);
        let both = if turned { vec![crash, change] } else { vec![change, crash] };
        let first = told(both, 20).into_iter().next().expect("told");
        let order: Vec<_> = first.chain.iter().map(|link| link.signal.as_str()).collect();
        assert_eq!(order, ["change.image", "process.crash_signal"]);
    }
}

#[test]
fn what_is_over_needs_nothing_risky() {
    let (change, crash) = crash_after(5);
    let ended = Signal { ended: true, ..later(&crash, 30) };
    let findings = told(vec![change, crash, ended], 60);
    assert!(findings.iter().any(|f| f.status == Status::Active && !f.actions.is_empty()), "{findings:?}");
    let last = findings.last().expect("told");
    assert!(
        last.status == Status::Recovered && last.actions.iter().all(|action| action.risk == "low"),
        "{last:?}"
    );
}

#[test]
fn what_is_usual_is_told_by_who_knows_it() {
    let api = service("api");
    let (usual, now) = (0.07, 1.02);
    let known = Signal { baseline: usual, observed: now, ..signal(SignalKind::CpuSaturated, &api, 1) };
    let raised = Signal { baseline: usual, observed: now, ..signal(SignalKind::CpuRaised, &api, 1) };
    let pod = Arc::new(EntityRef { pod: "api-1".into(), ..(*api).clone() }.sealed());
    let level = Signal { observed: 0.95, ..signal(SignalKind::CpuSaturated, &pod, 20) };
    let findings = told(vec![known, raised, later(&level, 25)], 30);
    let last = findings.last().expect("told");
    assert_eq!(last.chain.len(), 3, "{last:?}");
    assert!(last.title.ends_with("it uses 102 % of what it may, usual are 7 %"), "{}", last.title);
    // That requests are slow is told only of requests that were.
    assert!(!last.story.contains("stays slow"), "{}", last.story);
}

#[test]
fn what_is_over_says_so_also_when_its_cause_was_never_known() {
    let api = service("api");
    let not_ready = signal(SignalKind::PodNotReady, &api, 1);
    let ended = Signal { ended: true, ..later(&not_ready, 30) };
    let findings = told(vec![later(&not_ready, 20), ended], 60);
    let last = findings.last().expect("told");
    assert!(last.status == Status::Recovered && last.root_cause.is_none(), "{last:?}");
    assert!(last.story.ends_with("It is over as of 00:00:30."), "{}", last.story);
    assert!(findings.iter().filter(|f| f.status != Status::Recovered).all(|f| !f.story.contains("over")));
}

/// Time after which figures that have drifted are told, ns.
const REFRESH_NS: u64 = 10_000_000_000;

/// An incident, and a finding of it whose explanations are put in.
struct Explained {
    incident: Incident,
    draft: Finding,
}

impl Explained {
    fn new() -> Self {
        let draft = told(vec![later(&signal(SignalKind::CrashSignal, &service("api"), 1), 2)], 5).remove(0);
        let incident = Incident::open("c", SignalId(1), at(1), 0);
        Self { incident, draft }
    }

    /// True when these places with their probabilities make a revision at this second.
    fn is_told(&mut self, second: u64, explanations: &[(&str, f64)]) -> bool {
        let explained = explanations.iter().map(|(place, probability)| Hypothesis {
            entity: service(place).subject(),
            probability: Score::clamped(*probability),
            ..self.draft.hypotheses[0].clone()
        });
        let draft = Finding { hypotheses: explained.collect(), ..self.draft.clone() };
        self.incident.publish(draft, at(second), REFRESH_NS).is_some()
    }
}

#[test]
fn an_explanation_that_moves_around_what_is_probable_is_no_news_at_every_tick() {
    let mut told = Explained::new();
    assert!(told.is_told(1, &[("api", 0.9), ("db", 0.051)]), "the first word");
    for second in 2..60 {
        let db = if second % 2 == 0 { 0.049 } else { 0.051 };
        assert!(!told.is_told(second, &[("api", 0.9), ("db", db)]), "{db} at second {second}");
    }
    assert!(told.is_told(60, &[("api", 0.9), ("db", 0.029)]), "as good as none");
    assert!(!told.is_told(61, &[("api", 0.9), ("db", 0.049)]), "not yet probable again");
    assert!(told.is_told(62, &[("api", 0.9), ("db", 0.05)]), "probable again");
    // What is told for another reason does not make it forget which ones were probable.
    assert!(told.is_told(63, &[("api", 0.9), ("db", 0.04), ("cache", 0.06)]), "a new one");
    assert!(!told.is_told(90, &[("api", 0.9), ("db", 0.051), ("cache", 0.04)]), "both as before");
}

#[test]
fn which_of_two_as_probable_as_before_comes_first_is_no_news_but_for_the_very_first() {
    let mut told = Explained::new();
    assert!(
        told.is_told(1, &[("api", 0.36), ("db", 0.34), ("cache", 0.15), ("queue", 0.14)]),
        "the first word"
    );
    assert!(!told.is_told(20, &[("api", 0.36), ("db", 0.34), ("queue", 0.15), ("cache", 0.14)]), "as before");
    assert!(
        told.is_told(40, &[("db", 0.36), ("api", 0.34), ("queue", 0.15), ("cache", 0.14)]),
        "another first"
    );
    let moved = [("db", 0.36), ("api", 0.3), ("cache", 0.2), ("queue", 0.14)];
    assert!(!told.is_told(41, &moved), "figures wait");
    assert!(told.is_told(60, &moved), "one is more probable than before");
}
