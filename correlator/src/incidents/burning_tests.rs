use std::sync::Arc;

use tapio_runtime::config::HumanDuration;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Fact, Signal, SignalKind, Tally};

use super::super::{IncidentConfig, IncidentEngine};
use super::*;
use crate::incidents::tests::{SECOND, at_second as at, service};
use crate::model::Model;
use crate::slo::SloConfig;
use tapio_schemas::signal::EdgeKind;

/// Requests to a service, twenty per five seconds, of which so many fail.
fn requests(name: &str, seconds: std::ops::Range<u64>, errors: u64) -> SignalSection {
    let windows = seconds.step_by(5).map(|second| Tally {
        window_start: at(second),
        window_ns: 5 * SECOND,
        from: service(name).owner(),
        to: service(name).owner(),
        calls: 20,
        errors,
        duration_ns_sum: 0,
        latency: Vec::new(),
    });
    SignalSection { tallies: windows.collect(), ..SignalSection::default() }
}

/// 99 % within a day: with a fifth of the requests failing it lasts 72 minutes.
fn engine() -> IncidentEngine {
    let window = HumanDuration::from_secs(86_400);
    let slo = SloConfig { objective: 0.99, window, own_findings: true, ..SloConfig::default() };
    let model = Arc::new(Model::builtin().unwrap());
    IncidentEngine::new(IncidentConfig::default(), model).with_budgets("c", slo)
}

fn outcome(finding: &Finding) -> Option<&str> {
    finding.predictions.first()?.outcome.as_deref()
}

#[test]
fn a_burn_that_nothing_explains_is_a_finding_of_its_own_until_it_is_over() {
    let mut engine = engine();
    engine.apply(requests("web", 0..600, 0));
    engine.apply(requests("web", 600..3600, 4));
    engine.apply(requests("web", 3600..4800, 0));
    let findings = engine.finish(at(4800));
    let (first, last) = (findings.first().expect("told"), findings.last().expect("told"));
    assert_eq!((first.status, last.status), (Status::Active, Status::Recovered));
    assert_eq!(first.root_cause.as_ref().map(|root| root.cause.as_str()), Some(CAUSE));
    assert!(
        first.emitted_at >= at(2400),
        "it waits for a finding that explains the errors: {}",
        first.emitted_at
    );
    assert!(
        first.story.contains("99 % in 24.0 h") && first.story.contains("nothing is left of it at"),
        "{}",
        first.story
    );
    assert_eq!((outcome(first), outcome(last)), (Some("pending"), Some("not_due")), "the errors stopped");
    assert!(last.emitted_at < at(4000), "soon after they stopped: {}", last.emitted_at);
    let revisions: Vec<u32> = findings.iter().map(|f| f.revision).collect();
    assert_eq!(revisions, (1..=findings.len() as u32).collect::<Vec<_>>());
    assert!(engine.budgets.followed() == 1 && engine.burning.is_empty(), "it is forgotten in the end");
}

#[test]
fn the_forecast_holds_when_the_budget_is_used_up() {
    let mut engine = engine();
    engine.apply(requests("web", 0..600, 0));
    engine.apply(requests("web", 600..6000, 4));
    let findings = engine.finish(at(6000));
    let last = findings.last().expect("told");
    assert_eq!((last.status, outcome(last)), (Status::Active, Some("hit")), "{last:?}");
    assert!(last.story.contains("is used up since"), "{}", last.story);
    assert_eq!(last.severity, Severity::Error);
}

#[test]
fn a_finding_nearby_takes_it_over_and_tells_of_the_budget_when_it_is_of_the_same_errors() {
    let run = |callee: &str| {
        let mut engine = engine();
        // Told again once in a while, as topology is.
        let calls = (0..5000).step_by(300).map(|second| Fact {
            at: at(second),
            edge: EdgeKind::Calls,
            from: service("web").owner(),
            to: service("db").owner(),
            gone: false,
        });
        engine.apply(SignalSection { facts: calls.collect(), ..SignalSection::default() });
        engine.apply(requests("web", 0..600, 0));
        engine.apply(requests("web", 600..5000, 4));
        let kills = (3600..5000).step_by(10).map(|second| {
            let mut kill = Signal::new(SignalKind::OomKill, service(callee), None, at(3600));
            (kill.revision, kill.last_seen, kill.count) = (second as u32, at(second), 20);
            kill
        });
        engine.apply(SignalSection { signals: kills.collect(), ..SignalSection::default() });
        engine.finish(at(5000))
    };
    let near = run("db");
    let own: Vec<&Finding> =
        near.iter().filter(|f| f.root_cause.as_ref().is_some_and(|r| r.cause == CAUSE)).collect();
    let last = own.last().expect("told before");
    assert_eq!(last.status, Status::Superseded, "what it needs is broken");
    assert_eq!(last.superseded_by, near.last().map(|f| f.id));
    let far = run("elsewhere");
    let still =
        far.iter().rev().find(|f| f.root_cause.as_ref().is_some_and(|r| r.cause == CAUSE)).expect("told");
    assert_eq!(still.status, Status::Active, "what is far away explains nothing");
    let same = run("web");
    let is_of_errors = |f: &&Finding| f.root_cause.as_ref().is_some_and(|r| r.cause != CAUSE);
    let of_errors = same.iter().find(|f| is_of_errors(f) && !f.predictions.is_empty()).expect("told");
    assert_eq!(outcome(of_errors), Some("pending"), "{of_errors:?}");
    assert_eq!(
        same.iter().rfind(is_of_errors).and_then(outcome),
        Some("hit"),
        "it is used up after 72 minutes"
    );
    assert!(
        of_errors.impact.slo_impact && of_errors.story.contains("If the errors go on"),
        "{}",
        of_errors.story
    );
}

#[test]
fn objectives_that_are_met_say_nothing_and_order_does_not_matter() {
    let mut calm = engine();
    calm.apply(requests("web", 0..3600, 0));
    assert!(calm.finish(at(3600)).is_empty());
    let run = |backwards: bool| {
        let mut engine = engine();
        let mut sections: Vec<SignalSection> = ["web", "api", "db"]
            .iter()
            .flat_map(|name| [requests(name, 0..600, 0), requests(name, 600..3000, 4)])
            .collect();
        if backwards {
            sections.reverse();
        }
        sections.into_iter().for_each(|section| engine.apply(section));
        engine.finish(at(3000))
    };
    let found = run(false);
    assert!(found.len() >= 3, "{}", found.len());
    assert_eq!(found, run(true));
}
