use tapio_schemas::learning::{Actual, FEEDBACK_SCHEMA, Stated};
use tapio_schemas::{Entity, Score};

use super::*;

const HOUR: u64 = 3_600_000_000_000;

fn said(number: u64, judgement: Judgement, actual: Option<&str>) -> Feedback {
    let entity = Entity::namespaced("Deployment", "shop", "api");
    Feedback {
        schema: FEEDBACK_SCHEMA.into(),
        finding: FindingId(u128::from(number)),
        revision: 1,
        cluster: "prod".into(),
        at: UnixNanos(number * HOUR),
        judgement,
        named: Some(Stated { cause: "net.a".into(), entity, probability: Score::clamped(0.75) }),
        actual: actual.map(|cause| Actual {
            cause: Some(cause.into()),
            entity: None,
            probability: Score::clamped(0.25),
        }),
        fix: String::new(),
        note: String::new(),
    }
}

fn never(_: &str, _: &str) -> UnixNanos {
    UnixNanos(0)
}

fn of<'a>(learnt: &'a [LearntCause], cause: &str) -> &'a LearntCause {
    learnt.iter().find(|learnt| learnt.cause == cause).expect(cause)
}

fn many(count: u64, judgement: Judgement) -> Vec<Feedback> {
    (1..=count).map(|n| said(n, judgement, None)).collect()
}

#[test]
fn two_wrongs_and_what_it_was_turn_near_odds_around() {
    let wrong = [said(1, Judgement::Wrong, Some("net.b")), said(2, Judgement::Wrong, Some("net.b"))];
    let learnt = learn(&wrong, &[], &never);
    let (a, b) = (of(&learnt, "net.a"), of(&learnt, "net.b"));
    assert_eq!((a.right, a.wrong, b.right, b.wrong), (0.0, 2.0, 2.0, 0.0));
    assert!((a.factor - 1.0 / 3.0).abs() < 0.01 && b.factor > 2.0, "{a:?} {b:?}");
    assert!(a.interval.0 < a.mean && a.mean < a.interval.1);
}

#[test]
fn a_cause_that_is_right_as_often_as_stated_keeps_its_prior() {
    let mut outcomes = many(3, Judgement::Right);
    outcomes.push(said(4, Judgement::Wrong, None));
    let learnt = learn(&outcomes, &[], &never);
    assert!((of(&learnt, "net.a").factor - 1.0).abs() < 0.01, "{learnt:?}");
}

#[test]
fn a_thousand_clicks_do_not_hide_what_comes_after_them() {
    let mut outcomes = many(1000, Judgement::Right);
    let sure = of(&learn(&outcomes, &[], &never), "net.a").clone();
    assert!(sure.factor <= 4.0 && sure.mean < 0.97, "{sure:?}");
    outcomes.extend((1001..=1010).map(|n| said(n, Judgement::Wrong, None)));
    let turned = of(&learn(&outcomes, &[], &never), "net.a").clone();
    assert!(turned.factor < 0.6, "{turned:?}");
}

#[test]
fn the_order_of_outcomes_is_nothing_and_their_age_is_something() {
    let mut outcomes = many(10, Judgement::Right);
    outcomes.extend((11..=15).map(|n| said(n, Judgement::Wrong, None)));
    let learnt = learn(&outcomes, &[], &never);
    outcomes.reverse();
    assert_eq!(learn(&outcomes, &[], &never), learnt);
    let old = [said(1, Judgement::Wrong, None), said(1 + 10_000, Judgement::Right, None)];
    let near = [said(1, Judgement::Wrong, None), said(2, Judgement::Right, None)];
    let factor = |outcomes: &[Feedback]| of(&learn(outcomes, &[], &never), "net.a").factor;
    assert!(factor(&old) > factor(&near), "{} {}", factor(&old), factor(&near));
}

#[test]
fn what_was_forgotten_does_not_count() {
    let outcomes = many(3, Judgement::Wrong);
    let forgotten = |_: &str, cause: &str| UnixNanos(if cause == "net.a" { 2 * HOUR } else { 0 });
    let learnt = learn(&outcomes, &[], &forgotten);
    assert_eq!(of(&learnt, "net.a").wrong, 1.0);
    assert!(learn(&outcomes, &[], &|_, _| UnixNanos(9 * HOUR)).is_empty());
}

#[test]
fn the_right_cause_elsewhere_is_right_and_predictions_count_half() {
    let elsewhere = [said(1, Judgement::Wrong, Some("net.a"))];
    assert_eq!(of(&learn(&elsewhere, &[], &never), "net.a").right, 1.0);
    let scored = Scored {
        finding: FindingId(1),
        cluster: "prod".into(),
        cause: "net.a".into(),
        stated: 0.75,
        at: UnixNanos(1),
        came: false,
        of: None,
    };
    let learnt = learn(&[], &[scored], &never);
    assert_eq!((of(&learnt, "net.a").right, of(&learnt, "net.a").wrong), (0.0, 0.5));
}

#[test]
fn what_is_foretold_elsewhere_says_something_of_its_scenario_and_each_entity_counts() {
    let foretold = |name: &str, scenario: &str, outcome: &str| tapio_schemas::finding::Prediction {
        entity: Some(Entity::namespaced("Service", "shop", name)),
        scenario: scenario.into(),
        probability: Score::clamped(0.5),
        at: UnixNanos(2),
        interval: (UnixNanos(1), UnixNanos(3)),
        outcome: Some(outcome.into()),
    };
    let mut finding: Finding = serde_json::from_value(serde_json::json!({
        "schema": "tapio.finding/v1", "id": FindingId(7), "revision": 1, "status": "active", "cluster": "prod",
        "severity": "error", "title": "t", "story": "s", "opened_at": UnixNanos(1), "first_bad_at": UnixNanos(1),
        "updated_at": UnixNanos(1), "emitted_at": UnixNanos(1), "confidence": 0.9, "root_cause": null,
        "hypotheses": [], "chain": [], "impact": {"business_impact": 0.0, "customer_facing": false,
        "slo_impact": false, "cascade_risk": 0.0, "requests_affected": 0.0, "callers": []}, "actions": [],
        "semantic_group": {"id": tapio_schemas::GroupId(0), "type": "", "intent": ""},
        "freshness": {"watermark": UnixNanos(1), "gaps": []}
    }))
    .expect("a finding");
    finding.predictions = vec![
        foretold("web", "cascade_call", "hit"),
        foretold("edge", "cascade_call", "miss"),
        foretold("job", "cascade_call", "not_due"),
        foretold("web", "error_budget_used_up", "not_due"),
        foretold("edge", "error_budget_used_up", "pending"),
    ];
    let scored = Scored::all(&finding, UnixNanos(5));
    let learnt = learn(&[], &scored, &never);
    let cascade = of(&learnt, "prediction.cascade_call");
    assert_eq!((cascade.right, cascade.wrong), (1.0, 1.0), "whose fault went away says nothing");
    let budget = of(&learnt, "prediction.error_budget_used_up");
    assert_eq!((budget.right, budget.wrong), (0.0, 1.0), "errors that stop were part of the probability");
    assert!(budget.factor < 1.0, "{budget:?}");
}
