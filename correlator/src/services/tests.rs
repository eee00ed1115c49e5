use proptest::prelude::*;
use tapio_schemas::service::{CallGapTally, OperationTally, ServiceMeter, Shape, Step, StepKind};
use tapio_schemas::{EventId, ProducerId, SignalKind};

use super::*;

/// A whole minute.
const START: u64 = 1_700_000_040;

fn service(name: &str) -> Entity {
    Entity::namespaced("Service", "shop", name)
}

fn at(s: u64) -> UnixNanos {
    UnixNanos((START + s) * SECOND_NS)
}

fn bucket(ms: f64) -> u16 {
    (8.0 * (ms * 1e6).log2()) as u16
}

/// Requests of one operation in the window that starts at `s`: own time and steps.
fn requests(s: u64, name: &str, own_ms: f64, steps: &[(StepKind, &str)], count: u32) -> OperationTally {
    let steps: Vec<Step> =
        steps.iter().map(|(kind, n)| Step { kind: *kind, service: "".into(), name: (*n).into() }).collect();
    let id =
        steps.iter().fold(u64::from(name.as_bytes()[0]), |id, s| id.wrapping_mul(31) ^ shapes::step_id(s));
    OperationTally {
        window_start: at(s),
        window_ns: STEP_NS,
        service: service(name),
        operation: "GET /".into(),
        requests: u64::from(count),
        own_time: vec![(bucket(own_ms), count)],
        shapes: vec![Shape { id, count, steps, inner: Vec::new(), evidence: EventId(u128::from(s) + 1) }],
        unshaped: 0,
        evidence: EventId(u128::from(s) + 1),
    }
}

fn gap(s: u64, from: &str, to: &str, ms: f64, count: u32) -> CallGapTally {
    CallGapTally {
        window_start: at(s),
        window_ns: STEP_NS,
        from: service(from),
        to: service(to),
        operation: "GET /".into(),
        gap: vec![(bucket(ms), count)],
        evidence: EventId(u128::from(s) + 1),
    }
}

/// So many events were lost in the second from `s` on.
fn gap_at(s: u64, lost: u64) -> Gap {
    Gap {
        producer: ProducerId(1),
        source: "kernel".into(),
        node: "n1".into(),
        lost,
        from: at(s),
        to: at(s + 1),
        reason: "ring_full".into(),
    }
}

const USUAL: [(StepKind, &str); 2] = [(StepKind::Log, "begin"), (StepKind::Log, "found *")];

#[test]
fn what_is_missing_because_a_call_failed_is_not_the_callers_doing() {
    let told = |last: (StepKind, &'static str)| {
        let steps = [(StepKind::Log, "begin"), last];
        let all = recording(|s, section| section.operations.push(requests(s, "api", 4.0, &steps, 4)));
        said(&mut Services::new("c"), all)
    };
    let shapes = |all: &[Signal]| all.iter().filter(|s| s.kind == SignalKind::TraceShape).count();
    assert_eq!(shapes(&told((StepKind::FailedCall, "GET db"))), 0);
    assert!(shapes(&told((StepKind::ErrorLog, "boom"))) > 0);
}

/// Two minutes of normal traffic, then half a minute of what `faulty` makes of it.
fn recording(faulty: impl Fn(u64, &mut SignalSection)) -> Vec<(u64, SignalSection)> {
    let mut all = Vec::new();
    for s in (0..150).step_by(5) {
        let mut section = SignalSection::default();
        if s < 120 {
            section.operations.push(requests(s, "api", 4.0, &USUAL, 4));
            section.call_gaps.push(gap(s, "web", "api", 1.0, 4));
        } else {
            faulty(s, &mut section);
        }
        all.push((s, section));
    }
    all
}

fn said(services: &mut Services, recording: Vec<(u64, SignalSection)>) -> Vec<Signal> {
    let mut out = Vec::new();
    for (s, mut section) in recording {
        services.apply(&mut section);
        assert!(section.is_heartbeat(), "all of it is taken");
        while let Some(step) = services.next_step().filter(|step| *step <= at(s + 5)) {
            services.run(step, &mut out);
        }
    }
    out
}

fn last_of(said: &[Signal], kind: SignalKind) -> Option<&Signal> {
    said.iter().rev().find(|s| s.kind == kind)
}

#[test]
fn slow_requests_are_told_with_usual_and_present_time_and_normal_ones_are_not() {
    let mut services = Services::new("c");
    let all = said(
        &mut services,
        recording(|s, section| {
            section.operations.push(requests(s, "api", 200.0, &USUAL, 4));
            section.call_gaps.push(gap(s, "web", "api", 1.0, 4));
        }),
    );
    let own = last_of(&all, SignalKind::OwnTime).expect("own time is told");
    assert_eq!(own.entity.owner(), service("api"));
    assert!(own.strength.get() > 0.9 && own.onset == at(120), "{own:?}");
    assert!((3.0..5.0).contains(&own.baseline) && (180.0..220.0).contains(&own.observed), "{own:?}");
    assert!(last_of(&all, SignalKind::NetworkGap).is_none());
    assert!(last_of(&all, SignalKind::TraceShape).is_none());
}

#[test]
fn what_was_under_way_when_listening_began_and_what_was_not_seen_for_long_is_no_reference() {
    // What a request did before anyone listened is not known, nor what those do that take longer.
    for (from, until) in [(0, 10), (40, 150)] {
        let section = |s| {
            let mut operations = vec![requests(s, "api", 4.0, &USUAL, 400)];
            if (from..until).contains(&s) {
                operations.push(requests(s, "api", 4.0, &USUAL[..1], 400));
            }
            (s, SignalSection { operations, ..SignalSection::default() })
        };
        let all = said(&mut Services::new("c"), (0..150).step_by(5).map(section).collect());
        assert!(last_of(&all, SignalKind::TraceShape).is_none(), "{from}");
    }
}

#[test]
fn requests_without_a_line_are_a_kind_of_their_own_from_the_first_window_on() {
    const CALLS: [(StepKind, &str); 2] = [(StepKind::Call, "GET /cart"), (StepKind::Call, "GET /users")];
    let line = (StepKind::Log, "begin");
    // Two branches, each with and without a line, under identities in every order.
    for turn in 0..4u64 {
        let mut all = Vec::new();
        for s in (0..150).step_by(5) {
            let mut section = SignalSection::default();
            for (number, way) in [vec![line, CALLS[0]], vec![CALLS[0]], vec![line, CALLS[1]], vec![CALLS[1]]]
                .iter()
                .enumerate()
            {
                let mut tally = requests(s, "api", 4.0, way, 300);
                tally.shapes[0].id = (number as u64 + turn) % 4;
                section.operations.push(tally);
            }
            all.push((s, section));
        }
        let told = said(&mut Services::new("c"), all);
        assert!(last_of(&told, SignalKind::TraceShape).is_none(), "turn {turn}: {told:?}");
    }
}

#[test]
fn a_gap_is_told_of_its_edge() {
    let mut services = Services::new("c");
    let all = said(
        &mut services,
        recording(|s, section| {
            section.operations.push(requests(s, "api", 4.0, &USUAL, 4));
            section.call_gaps.push(gap(s, "web", "api", 300.0, 4));
        }),
    );
    let gap = last_of(&all, SignalKind::NetworkGap).expect("the gap is told");
    assert_eq!((gap.entity.owner(), gap.peer.clone()), (service("web"), Some(service("api"))));
    assert!(last_of(&all, SignalKind::OwnTime).is_none());
    let states = services.take_states();
    let api = states.iter().rev().find(|s| s.service == service("api")).unwrap();
    assert_eq!((api.edges, api.edges_slow), (1, 1));
}

#[test]
fn an_edge_that_was_normal_speaks_for_its_ends_as_long_as_one_that_was_slow_against_them() {
    let mut services = Services::new("c");
    let mut all = recording(|s, section| {
        section.call_gaps.push(gap(s, "web", "api", 300.0, 4));
        section.call_gaps.push(gap(s, "web", "cart", 1.0, 4));
    });
    for (s, section) in &mut all {
        if *s < 120 {
            section.call_gaps.push(gap(*s, "web", "cart", 1.0, 4));
        }
    }
    // Then nobody calls for two minutes.
    all.push((270, SignalSection::default()));
    let told = said(&mut services, all);
    assert!(!last_of(&told, SignalKind::NetworkGap).expect("the gap is told").ended);
    let states = services.take_states();
    let web = states.iter().rev().find(|s| s.service == service("web")).unwrap();
    assert_eq!((web.edges, web.edges_slow), (2, 1));
}

#[test]
fn a_missing_step_is_told_with_what_it_followed() {
    let mut services = Services::new("c");
    let all = said(
        &mut services,
        recording(|s, section| section.operations.push(requests(s, "api", 4.0, &USUAL[..1], 4))),
    );
    let shape = last_of(&all, SignalKind::TraceShape).expect("the way is told");
    let missing = shape.attribute("missing").and_then(|v| v.as_text());
    assert_eq!(missing, Some("the log line `found *`"));
    assert!(shape.strength.get() > 0.9);
}

#[test]
fn the_deepest_odd_service_is_told_and_its_callers_are_not() {
    let call = [(StepKind::Call, "GET /api")];
    let mut services = Services::new("c");
    let web = |s: u64, inner: u64, steps: &[(StepKind, &str)]| {
        let mut tally = requests(s, "web", 2.0, steps, 4);
        tally.shapes[0].inner = vec![inner];
        tally.shapes[0].id ^= inner;
        tally
    };
    let mut all = recording(|s, section| {
        let api = requests(s, "api", 4.0, &USUAL[..1], 4);
        let ended = [(StepKind::Call, "GET /api"), (StepKind::ErrorLog, "api failed")];
        section.operations.push(web(s, api.shapes[0].id, &ended));
        section.operations.push(api);
    });
    for (s, section) in all.iter_mut().filter(|(s, _)| *s < 120) {
        let inner = section.operations[0].shapes[0].id;
        section.operations.push(web(*s, inner, &call));
    }
    let all = said(&mut services, all);
    let odd: Vec<_> = all.iter().filter(|s| s.kind == SignalKind::TraceShape).collect();
    assert!(!odd.is_empty());
    assert!(odd.iter().all(|s| s.entity.owner() == service("api")), "{odd:?}");
}

#[test]
fn requests_of_a_time_in_which_many_events_were_lost_are_not_judged() {
    let heard = |lost: u64| {
        let mut services = Services::new("c");
        let mut all = recording(|s, section| {
            section.operations.push(requests(s, "api", 4.0, &USUAL[..1], 400));
        });
        for (s, section) in all.iter_mut().filter(|(s, _)| *s >= 120) {
            section.gaps.push(gap_at(*s, lost));
        }
        let mut out = Vec::new();
        for (s, mut section) in all {
            services.apply(&mut section);
            while let Some(step) = services.next_step().filter(|step| *step <= at(s + 5)) {
                services.run(step, &mut out);
            }
        }
        last_of(&out, SignalKind::TraceShape).is_some()
    };
    assert!(heard(1), "one event lost among hundreds of requests hides nothing");
    assert!(!heard(100));
}

#[test]
fn what_a_storm_of_retries_is_told_with_does_not_depend_on_what_got_lost_amid_it() {
    let told = |lost: bool| {
        let (mut services, mut out) = (Services::new("c"), Vec::new());
        for s in (0..300).step_by(5) {
            let [asked, calls, answered] =
                if s < 120 { [(10, 0), (10, 0), (10, 0)] } else { [(10, 10), (40, 40), (15, 0)] };
            for (from, to, (calls, errors)) in
                [("api", "api", asked), ("api", "db", calls), ("db", "db", answered)]
            {
                services.count(&Tally {
                    window_start: at(s),
                    window_ns: STEP_NS,
                    from: service(from),
                    to: service(to),
                    calls,
                    errors,
                    duration_ns_sum: 0,
                    latency: Vec::new(),
                });
            }
            if lost && s >= 150 && s % 30 == 0 {
                services.apply(&mut SignalSection { gaps: vec![gap_at(s, 1)], ..SignalSection::default() });
            }
            while let Some(step) = services.next_step().filter(|step| *step <= at(s)) {
                services.run(step, &mut out);
            }
        }
        let doubtful = services.losses().into_iter().find(|(what, _)| *what == "service_doubtful");
        assert_eq!(doubtful.is_some_and(|(_, count)| count > 0), lost);
        let times = |key: &str| {
            let late = out.iter().filter(|s| s.kind == SignalKind::CallsRepeated && s.last_seen > at(160));
            late.filter_map(|s| s.attribute(key)?.as_f64()).collect::<Vec<f64>>()
        };
        (times("load_times"), times("asked_times"), times("answered_times"))
    };
    for (load, asked, answered) in [told(false), told(true)] {
        assert!(load.len() > 2, "{load:?}");
        assert!(load.iter().all(|times| *times == 1.0), "{load:?}");
        assert!(asked.iter().all(|times| *times == 4.0), "{asked:?}");
        assert!(answered.iter().all(|times| *times == 1.5), "{answered:?}");
    }
}

#[test]
fn a_cold_reference_says_nothing_and_a_faulty_start_is_unlearnt() {
    let mut services = Services::new("c");
    let mut first = recording(|_, _| {});
    for (s, section) in &mut first {
        let slow = *s < 60;
        section.operations = vec![requests(*s, "api", if slow { 500.0 } else { 4.0 }, &USUAL, 4)];
        section.call_gaps.clear();
    }
    assert!(said(&mut services, first).is_empty(), "it began slow, and became faster: no fault");
    let again: Vec<_> = (150..200u64)
        .step_by(5)
        .map(|s| {
            let operations = vec![requests(s, "api", 500.0, &USUAL, 4)];
            (s, SignalSection { operations, ..SignalSection::default() })
        })
        .collect();
    let all = said(&mut services, again);
    assert!(last_of(&all, SignalKind::OwnTime).is_some_and(|s| s.strength.get() > 0.9));
}

#[test]
fn a_saturated_processor_is_told_at_once_and_ends_with_a_normal_sample() {
    let mut services = Services::new("c");
    let meter = |s: u64, value: f64| ServiceMeter {
        at: at(s),
        service: service("api"),
        pod: "api-1".into(),
        measure: Measure::CpuShare,
        label: "".into(),
        value,
        evidence: EventId(u128::from(s) + 1),
    };
    let all: Vec<_> = (0..900u64)
        .step_by(5)
        .map(|s| {
            let value = if (480..=540).contains(&s) { 0.95 } else { 0.05 };
            let meters = if s % 60 == 0 { vec![meter(s, value)] } else { Vec::new() };
            (s, SignalSection { meters, ..SignalSection::default() })
        })
        .collect();
    let all = said(&mut services, all);
    let of: Vec<&Signal> = all.iter().filter(|s| s.kind == SignalKind::CpuSaturated).collect();
    assert_eq!(of.first().map(|s| s.onset), Some(at(480)));
    assert!(of.last().is_some_and(|s| s.ended && s.last_seen < at(800)), "{of:?}");
    // What is told of it while the evidence goes is how it was, not the calm after it.
    assert!(of.iter().all(|s| s.observed > 0.9 && s.last_seen > at(480)), "{of:?}");
    assert!(of.iter().any(|s| !s.ended && s.last_seen >= at(600)), "{of:?}");
}

#[test]
fn the_calm_between_two_samples_is_no_part_of_what_was_slow() {
    let meter = |s: u64| ServiceMeter {
        at: at(s),
        service: service("api"),
        pod: "api-1".into(),
        measure: Measure::LatencySeconds,
        label: "server".into(),
        value: if (600..1200).contains(&s) { 0.6 } else { 0.005 },
        evidence: EventId(u128::from(s) + 1),
    };
    let all = (0..1500u64).step_by(5).map(|s| {
        let meters = if s % 60 == 0 { vec![meter(s)] } else { Vec::new() };
        (s, SignalSection { meters, ..SignalSection::default() })
    });
    let all = said(&mut Services::new("c"), all.collect());
    let of: Vec<&Signal> = all.iter().filter(|s| s.kind == SignalKind::MetricShift).collect();
    assert!(of.iter().any(|s| s.last_seen >= at(1230)), "it fades for a while: {of:?}");
    assert!(of.iter().all(|s| s.observed > 0.5 && s.baseline < 0.01), "{of:?}");
}

#[test]
fn what_is_over_is_told_so_also_when_nothing_comes_any_more() {
    let mut services = Services::new("c");
    let slow = recording(|s, section| section.operations.push(requests(s, "api", 200.0, &USUAL, 4)));
    let mut all = said(&mut services, slow);
    while let Some(step) = services.next_step().filter(|step| *step <= at(3600)) {
        services.run(step, &mut all);
    }
    assert!(last_of(&all, SignalKind::OwnTime).is_some_and(|s| s.ended));
    assert!(services.next_step().is_none(), "then it rests");
    assert!(services.low_water().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Any split of the counts over shards, in any order, says the same.
    #[test]
    fn neither_the_number_of_shards_nor_their_order_matters(
        cuts in proptest::collection::vec(0u32..=4, 60),
        reversed in any::<bool>(),
    ) {
        let whole = || recording(|s, section| {
            section.operations.push(requests(s, "api", 90.0, &USUAL[..1], 4));
            section.call_gaps.push(gap(s, "web", "api", 40.0, 4));
        });
        let expected = said(&mut Services::new("c"), whole());
        let mut services = Services::new("c");
        let mut out = Vec::new();
        for ((s, section), cut) in whole().into_iter().zip(cuts) {
            let part = |keep: &dyn Fn(u32) -> u32| {
                let mut part = section.clone();
                for tally in &mut part.operations {
                    tally.requests = u64::from(keep(tally.requests as u32));
                    tally.own_time.iter_mut().for_each(|(_, n)| *n = keep(*n));
                    tally.shapes.iter_mut().for_each(|shape| shape.count = keep(shape.count));
                }
                for tally in &mut part.call_gaps {
                    tally.gap.iter_mut().for_each(|(_, n)| *n = keep(*n));
                }
                part
            };
            let mut parts = [part(&|n| n.min(cut)), part(&|n| n - n.min(cut))];
            if reversed {
                parts.reverse();
            }
            parts.iter_mut().for_each(|part| services.apply(part));
            while let Some(step) = services.next_step().filter(|step| *step <= at(s + 5)) {
                services.run(step, &mut out);
            }
        }
        prop_assert!(!expected.is_empty());
        prop_assert_eq!(format!("{expected:?}"), format!("{out:?}"));
    }
}

/// Five minutes of eight operations of which a fifth of all steps get lost, the same ones each time; from 240 s on
/// requests of `api` do what `faulty` says.
fn lossy(faulty: &[(StepKind, &'static str)]) -> Vec<Signal> {
    let usual: [(StepKind, &str); 4] = [
        (StepKind::Log, "begin"),
        (StepKind::Call, "GET db"),
        (StepKind::Log, "found *"),
        (StepKind::Log, "end"),
    ];
    let mut drawn = 0u64;
    let mut comes = || {
        drawn += 1;
        !xxhash_rust::xxh3::xxh3_64(&drawn.to_le_bytes()).is_multiple_of(5)
    };
    let mut all = Vec::new();
    for s in (0..300).step_by(5) {
        let mut section = SignalSection::default();
        for name in ["api", "bank", "cart", "depot", "email", "front", "guide", "hub"] {
            for _ in 0..4 {
                let steps = if s >= 240 && name == "api" { faulty } else { &usual };
                let seen: Vec<_> = steps.iter().copied().filter(|_| comes()).collect();
                section.operations.push(requests(s, name, 4.0, &seen, 1));
            }
        }
        all.push((s, section));
    }
    said(&mut Services::new("c"), all)
}

#[test]
fn where_records_get_lost_a_missing_step_is_no_fault_until_it_never_comes() {
    let usual = [
        (StepKind::Log, "begin"),
        (StepKind::Call, "GET db"),
        (StepKind::Log, "found *"),
        (StepKind::Log, "end"),
    ];
    let shapes = |told: Vec<Signal>| -> Vec<Signal> {
        told.into_iter().filter(|s| s.kind == SignalKind::TraceShape && !s.ended).collect()
    };
    // While hardly anything is known, something faint may be told.
    let blamed = |told: Vec<Signal>| -> Vec<Signal> {
        shapes(told).into_iter().filter(|s| s.strength.get() > 0.5).collect()
    };
    let calm = blamed(lossy(&usual));
    assert!(calm.is_empty(), "{} told, first {:?}", calm.len(), calm.first());
    let broken = blamed(lossy(&usual[..2]));
    assert!(broken.iter().any(|s| s.strength.get() > 0.8), "{broken:?}");
    assert!(broken.iter().all(|s| s.entity.owner() == service("api") && s.onset >= at(235)));
}
