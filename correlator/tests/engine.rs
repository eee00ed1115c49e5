//! Both stages in one process: what they find is a function of the events, not of their order of arrival.

mod common;

use std::sync::Arc;

use common::{crash, leaking};
use proptest::prelude::*;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::Engine;
use tapio_correlator::model::Model;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{Finding, ProducerId, UnifiedEvent, UnixNanos};

/// 2023-11-14, a fixed moment.
const NOW: u64 = 1_700_000_000_000_000_000;

fn engine() -> Engine {
    let model = Arc::new(Model::builtin().expect("the built-in model loads"));
    Engine::new("test", CorrelatorConfig::default(), model)
}

/// Feeds events one by one in this order, and returns every finding as JSON.
fn replay(events: &[UnifiedEvent]) -> Vec<String> {
    let mut engine = engine();
    let mut batches: Vec<EventBatch> = (0..64).map(|s| EventBatch::new(ProducerId(1), 0, s)).collect();
    let mut found: Vec<Finding> = Vec::new();
    for event in events {
        let batch = &mut batches[usize::from(event.key().shard())];
        batch.push(event.clone());
        let bytes = batch.finish(UnixNanos(0)).expect("a batch");
        engine.push_batch(&bytes).expect("taken");
        found.extend(engine.drain());
    }
    found.extend(engine.finish());
    found.iter().map(|f| serde_json::to_string(f).expect("JSON")).collect()
}

fn scene() -> Vec<UnifiedEvent> {
    let mut events = leaking(NOW);
    events.push(crash(NOW - 20_000_000_000));
    events.sort_by_key(|e| (e.timestamp, e.id));
    events
}

#[test]
fn the_leak_is_foretold_before_the_kill_and_the_kill_lies_in_the_interval() {
    let events = scene();
    let killed_at = events.iter().find(|e| e.kind == tapio_schemas::EventKind::OomKill).unwrap().timestamp;
    let findings: Vec<Finding> =
        replay(&events).iter().map(|json| serde_json::from_str(json).unwrap()).collect();
    let first = findings
        .iter()
        .find(|f| f.root_cause.as_ref().is_some_and(|r| r.cause == "memory.leak") && f.prediction.is_some())
        .expect("a prediction");
    assert!(first.emitted_at < killed_at.minus(20_000_000_000), "at {} of {killed_at}", first.emitted_at);
    let (earliest, latest) = first.prediction.as_ref().unwrap().interval;
    assert!(earliest <= killed_at && killed_at <= latest, "{killed_at} not in {earliest}..{latest}");
    assert!(latest.since(earliest) < killed_at.since(first.emitted_at), "an interval that says nothing");
    assert!(first.confidence.get() > 0.7, "{:?}", first.confidence);
    let incident: Vec<&Finding> = findings.iter().filter(|f| f.id == first.id).collect();
    assert!(incident.iter().any(|f| f.chain.iter().any(|l| l.signal == "memory.oom_kill")));
    assert!(incident.windows(2).all(|w| w[0].revision < w[1].revision));
}

#[test]
fn a_second_replay_says_the_same() {
    let events = scene();
    let once = replay(&events);
    assert!(once.len() >= 3, "{once:#?}");
    assert_eq!(once, replay(&events));
}

#[test]
fn an_agent_that_is_minutes_behind_is_heard_all_the_same() {
    let mut events: Vec<UnifiedEvent> = leaking(NOW);
    events.sort_by_key(|e| (e.timestamp, e.id));
    let (first, newest) = (events[0].timestamp, events[events.len() - 1].timestamp);
    let again = |second: u64, id: u128| {
        let mut crash = crash(first.0 + second * 1_000_000_000);
        crash.id = tapio_schemas::EventId(9000 + id);
        crash
    };
    let crashes = [again(5, 1), again(6, 2), again(7, 3)];
    let newest = newest.plus(1_200_000_000_000);
    // Something in the same shard that is not behind, and goes on after the crashes.
    let calm = |id: u128, at: UnixNanos| {
        let mut calm = crash(at.0);
        (calm.kind, calm.id) = (tapio_schemas::EventKind::ProcessExec, tapio_schemas::EventId(id));
        calm
    };
    events.push(calm(8001, newest));
    let crash_of = |found: &[String]| found.iter().any(|f| f.contains("\"cause\":\"code.crash_signal\""));
    assert!(!crash_of(&replay(&events)));
    events.extend(crashes);
    events.push(calm(8002, newest.plus(5_000_000_000)));
    let found = replay(&events);
    assert!(crash_of(&found), "{found:#?}");
}

#[test]
fn garbage_is_an_error_and_the_engine_goes_on() {
    let mut engine = engine();
    assert!(engine.push_batch(b"garbage").is_err());
    assert!(engine.push_batch(&[]).is_err());
    assert!(engine.finish().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Any order of arrival within the lateness gives the same findings to the byte.
    #[test]
    fn findings_do_not_depend_on_the_order_of_arrival(
        jitter in prop::collection::vec(0u64..499_000_000, 97),
    ) {
        static IN_ORDER: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| replay(&scene()));
        let events = scene();
        let mut arrived: Vec<(u64, &UnifiedEvent)> =
            events.iter().enumerate().map(|(i, e)| (e.timestamp.0 + jitter[i % jitter.len()], e)).collect();
        arrived.sort_by_key(|(at, e)| (*at, std::cmp::Reverse(e.id)));
        let arrived: Vec<UnifiedEvent> = arrived.into_iter().map(|(_, e)| e.clone()).collect();
        prop_assert_eq!(&*IN_ORDER, &replay(&arrived));
    }
}
