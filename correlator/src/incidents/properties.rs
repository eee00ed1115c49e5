//! What must hold for any input.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use tapio_runtime::config::HumanDuration;
use tapio_schemas::signal::{EdgeKind, Fact};
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Entity, EntityRef, Finding, GroupId, Score, Signal, SignalKind, TraceId, UnixNanos};

use super::{IncidentConfig, IncidentEngine};
use crate::model::Model;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_767_225_600 * SECOND;
const ENTITIES: u8 = 5;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| Arc::new(Model::builtin().unwrap()));

fn entity(number: u8) -> Arc<EntityRef> {
    let name = format!("s{number}");
    let own = match number {
        0 => EntityRef { cgroup: format!("/{name}").into(), node: "n1".into(), ..Default::default() },
        1 => EntityRef { unit: format!("{name}.service").into(), node: "n1".into(), ..Default::default() },
        2 => EntityRef { namespace: "a".into(), service: name.into(), ..Default::default() },
        _ => EntityRef {
            namespace: "a".into(),
            workload_kind: "Deployment".into(),
            workload: name.as_str().into(),
            pod: format!("{name}-1").into(),
            container: "main".into(),
            node: "n2".into(),
            ..Default::default()
        },
    };
    Arc::new(EntityRef { cluster: "c".into(), ..own }.sealed())
}

prop_compose! {
    fn any_signal()(
        kind in 0..SignalKind::ALL.len(),
        on in 0..ENTITIES,
        peer in proptest::option::of(0..ENTITIES),
        onset in 0u64..60,
        lasts in 0u64..60,
        strength in 0.05f64..1.0,
        count in 1u64..50,
        trace in 0u128..3,
        group in 0u128..3,
        ended: bool,
    ) -> Signal {
        let onset = UnixNanos(START + onset * SECOND);
        let peer = peer.map(|p| entity(p).owner());
        let mut signal = Signal::new(SignalKind::ALL[kind], entity(on), peer, onset);
        signal.last_seen = onset.plus(lasts * SECOND);
        signal.revision = lasts as u32 + 1;
        signal.strength = Score::clamped(strength);
        (signal.count, signal.ended) = (count, ended);
        (signal.trace_id, signal.group) = (TraceId(trace), GroupId(group));
        signal
    }
}

fn any_call() -> impl Strategy<Value = Fact> {
    (0..ENTITIES, 0..ENTITIES).prop_map(|(from, to)| Fact {
        at: UnixNanos(START),
        edge: EdgeKind::Calls,
        from: entity(from).owner(),
        to: entity(to).owner(),
        gone: false,
    })
}

fn findings(sections: Vec<SignalSection>) -> Vec<Finding> {
    let config = IncidentConfig {
        stale: HumanDuration::from_secs(60),
        reopen: HumanDuration::from_secs(30),
        ..IncidentConfig::default()
    };
    let mut engine = IncidentEngine::new(config, Arc::clone(&MODEL));
    sections.into_iter().for_each(|section| engine.apply(section));
    let mut found = engine.finish(UnixNanos(START + 130 * SECOND));
    found.extend(engine.finish(UnixNanos(START + 300 * SECOND)));
    assert_eq!((engine.open_incidents(), engine.counters().late), (0, 0), "everything closes in the end");
    found
}

fn check(found: &[Finding]) {
    let mut revisions = BTreeMap::new();
    for finding in found {
        let last = revisions.entry(finding.id).or_insert(0);
        assert_eq!(finding.revision, *last + 1, "revisions are consecutive");
        *last = finding.revision;
        assert!(finding.confidence.get() <= 0.98 && !finding.chain.is_empty());
        assert!(finding.chain.is_sorted_by_key(|link| link.at));
        assert!(!finding.title.contains('{') && !finding.story.contains('{'), "{}", finding.story);
        if let Some(root) = &finding.root_cause {
            assert!(MODEL.pattern(&root.cause).is_some() && root.entity != Entity::default());
            assert!(!root.evidence.is_empty());
            assert!(
                finding.hypotheses[1..].iter().all(|h| !h.refuted_by.is_empty()),
                "{:?}",
                finding.hypotheses
            );
        }
        let json = serde_json::to_string(finding).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&json).unwrap().id, finding.id);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_signals_give_sound_findings_in_any_order(
        signals in proptest::collection::vec(any_signal(), 1..25),
        facts in proptest::collection::vec(any_call(), 0..6),
    ) {
        let whole = SignalSection { signals: signals.clone(), facts: facts.clone(), ..Default::default() };
        let forwards = findings(vec![whole]);
        check(&forwards);
        let mut pieces: Vec<SignalSection> =
            signals.into_iter().map(|s| SignalSection { signals: vec![s], ..Default::default() }).collect();
        pieces.reverse();
        pieces.push(SignalSection { facts, ..Default::default() });
        prop_assert_eq!(forwards, findings(pieces));
    }
}

#[test]
fn a_lone_faint_signal_never_makes_a_finding_that_is_kept() {
    for kind in SignalKind::ALL {
        for number in 0..ENTITIES {
            let mut faint = Signal::new(*kind, entity(number), Some(entity(2).owner()), UnixNanos(START));
            faint.revision = 1;
            faint.strength = Score::clamped(0.4);
            let found = findings(vec![SignalSection { signals: vec![faint], ..Default::default() }]);
            assert!(found.iter().all(|f| f.confidence.get() <= 0.7), "{kind} {:?}", found[0].confidence);
        }
    }
}
