//! Rules of scoring, each with a right answer and one that is not.

use super::*;
use crate::accuracy::label::{Label, Verdict};
use crate::accuracy::matching::Wanted;

fn label() -> Label {
    let root = Root { entity: Wanted::Service("cart".into()), categories: ["cpu".to_owned()].into() };
    Label {
        case: "c".into(),
        system: "shop".into(),
        kind: "cpu_contention".into(),
        roots: vec![root],
        verdict: Verdict::Active,
        window: Some((880.0, 1360.0)),
        start: Some(1000.0),
        onset_is_exact: true,
    }
}

/// A finding made `at` seconds after 1970 of (service, cause, probability) hypotheses.
fn finding(id: &str, at: u64, status: &str, weighed: &[(&str, &str, f64)]) -> Revision {
    let entity = |name: &str| serde_json::json!({"kind": "Service", "name": name});
    let hypotheses: Vec<_> = weighed
        .iter()
        .map(|(name, cause, p)| serde_json::json!({"entity": entity(name), "cause": cause, "probability": p}))
        .collect();
    let (name, cause, confidence) = weighed[0];
    let value = serde_json::json!({"id": id, "status": status, "confidence": confidence, "emitted_at": at * 1_000_000_000,
        "root_cause": {"entity": entity(name), "cause": cause}, "hypotheses": hypotheses});
    serde_json::from_value(value).unwrap()
}

fn asked(revisions: &[Revision]) -> Score {
    match score(&label(), revisions) {
        Outcome::Asked(score) => score,
        Outcome::Spare(_) => panic!("the label asks for a cause"),
    }
}

#[test]
fn the_surest_open_finding_is_the_answer() {
    let wrong = finding("a", 1010, "active", &[("pay", "cpu.contention", 0.6)]);
    let right = finding("b", 1020, "active", &[("cart", "cpu.contention", 0.8)]);
    let surer_but_over = finding("c", 1030, "recovered", &[("pay", "cpu.contention", 0.99)]);
    let score = asked(&[wrong, right, surer_but_over]);
    assert_eq!((score.both, score.entity, score.category), ([1.0; 3], [1.0; 3], 1.0));
    assert_eq!((score.confidence, score.seconds, score.false_findings), (0.8, Some(20.0), 0));
}

#[test]
fn the_last_revision_within_the_window_counts() {
    let early = finding("a", 800, "active", &[("cart", "cpu.contention", 0.9)]);
    let late = finding("a", 1400, "active", &[("cart", "cpu.contention", 0.9)]);
    assert_eq!(
        asked(&[early.clone(), late.clone()]),
        Score::default(),
        "outside of the window there is no answer"
    );
    let before = finding("a", 900, "active", &[("cart", "cpu.contention", 0.9)]);
    let changed = finding("a", 950, "active", &[("pay", "cpu.contention", 0.9)]);
    let score = asked(&[early, before, changed, late]);
    assert_eq!((score.both[0], score.false_findings), (0.0, 1), "it changed its mind for the worse");
    assert_eq!(score.seconds, Some(0.0), "it was right before the labelled start");
}

#[test]
fn equal_probabilities_share_their_rank() {
    let tied = [("pay", "cpu.contention", 0.3), ("cart", "cpu.contention", 0.3), ("ship", "code.bug", 0.3)];
    let score = asked(&[finding("a", 1010, "active", &tied)]);
    assert!((score.entity[0] - 1.0 / 3.0).abs() < 1e-12 && score.entity[1] == 1.0);
    assert!((score.category - 2.0 / 3.0).abs() < 1e-12, "two of the three are of the category");
    let five: Vec<_> = ["a", "b", "c", "d"].map(|name| (name, "cpu.contention", 0.2)).into();
    let five: Vec<_> =
        five.into_iter().chain([("cart", "cpu.contention", 0.2), ("top", "code.bug", 0.5)]).collect();
    let score = asked(&[finding("a", 1010, "active", &five)]);
    assert_eq!(score.both[0], 0.0);
    assert!((score.both[1] - 0.4).abs() < 1e-12, "two places of five are left below the first");
    assert!((score.both[2] - 0.8).abs() < 1e-12);
}

#[test]
fn the_right_service_with_the_wrong_category_is_half_the_answer() {
    let weighed = [("cart", "network.delay", 0.9), ("cart", "cpu.contention", 0.1)];
    let score = asked(&[finding("a", 1010, "active", &weighed)]);
    assert_eq!((score.entity[0], score.category, score.both), (1.0, 0.0, [0.0, 1.0, 1.0]));
    assert_eq!(score.seconds, None);
}

#[test]
fn two_causes_need_two_answers() {
    let mut label = label();
    let second = Root { entity: Wanted::Service("pay".into()), categories: ["code".to_owned()].into() };
    label.roots.push(second);
    let one = finding("a", 1010, "active", &[("cart", "cpu.contention", 0.9)]);
    let other = finding("b", 1010, "active", &[("pay", "code.bug", 0.5)]);
    let Outcome::Asked(whole) = score(&label, &[one.clone(), other]) else { panic!() };
    let Outcome::Asked(half) = score(&label, &[one]) else { panic!() };
    assert_eq!((whole.both[0], half.both[0]), (1.0, 0.0));
}

#[test]
fn what_is_healthy_must_not_be_blamed_with_confidence() {
    let label = Label { verdict: Verdict::Negative, roots: Vec::new(), window: None, ..label() };
    let blamed = |status, confidence| {
        let outcome = score(&label, &[finding("a", 10, status, &[("cart", "cpu.contention", confidence)])]);
        let Outcome::Spare(spared) = outcome else { panic!("nothing is asked for") };
        spared.blamed.len()
    };
    assert_eq!((blamed("active", 0.9), blamed("active", 0.7), blamed("recovered", 0.9)), (1, 0, 0));
}
