//! Which calls are made again because they failed, from the counts of windows.

use tapio_schemas::service::{CallGapTally, OperationTally};

use super::*;

fn service(name: &str) -> Entity {
    Entity::namespaced("Service", "shop", name)
}

fn window(s: u64) -> Window {
    Window::new(UnixNanos((1_700_000_040 + s) * SECOND_NS))
}

fn add(window: &mut Window, from: &str, to: &str, count: u64, failed: u64) {
    assert!(window.add_calls(&service(from), &service(to), Calls { count, failed }));
}

/// What is known after windows up to second `until`, each filled by its second.
fn heard(until: u64, fill: impl Fn(u64, &mut Window)) -> Retries {
    let mut retries = Retries::default();
    for s in (0..until).step_by(5) {
        let mut window = window(s);
        fill(s, &mut window);
        retries.resolve(&mut window);
        retries.observe(&window);
        retries.learn(&window, window.start);
    }
    retries
}

/// Two minutes in which each of ten requests calls once, then half a minute of `then`.
fn seen(then: impl Fn(&mut Window)) -> Retries {
    heard(150, |s, window| {
        if s >= 120 {
            return then(window);
        }
        for (from, to) in [("api", "api"), ("api", "db"), ("db", "db")] {
            add(window, from, to, 10, 0);
        }
    })
}

fn evidence(retries: &Retries) -> f64 {
    let edge = &retries.edges[&(service("api"), service("db"))];
    edge.cusum.evidence(edge.cusum.last())
}

#[test]
fn calls_are_repeated_when_there_are_more_per_request_and_they_fail() {
    let storm = seen(|window| {
        add(window, "api", "api", 10, 10);
        add(window, "api", "db", 40, 40);
        add(window, "db", "db", 15, 0);
    });
    assert!(evidence(&storm) > 8.0, "{}", evidence(&storm));
    let said = storm.edges[&(service("api"), service("db"))].seen;
    assert_eq!((said.usual, said.now, said.failed), (1.0, 4.0, 1.0));
    assert_eq!((said.load, said.asked, said.answered), (Some(1.0), Some(4.0), Some(1.5)));
    let more_load = seen(|window| {
        add(window, "api", "api", 40, 30);
        add(window, "api", "db", 40, 30);
    });
    assert_eq!(evidence(&more_load), 0.0, "four times the load, and three of four fail");
    let other_code = seen(|window| {
        add(window, "api", "api", 10, 0);
        add(window, "api", "db", 40, 1);
    });
    assert_eq!(evidence(&other_code), 0.0, "it calls more often, and not because it failed");
}

#[test]
fn whoever_is_called_by_a_name_is_who_answers_under_it() {
    // A call that times out ends before the callee says whose it was: only its name is known.
    let named = |window: &mut Window| {
        assert!(window.add_same(&service("db.internal"), &service("db")));
        add(window, "api", "api", 10, 10);
        add(window, "api", "db.internal", 40, 40);
    };
    assert!(evidence(&seen(named)) > 8.0);
}

#[test]
fn a_window_in_which_nobody_asks_a_service_says_nothing_of_it() {
    // Requests come every fifteen seconds, and so does what is usual.
    let rare = heard(390, |s, window| {
        if s % 15 == 0 {
            let (calls, failed) = if s < 300 { (10, 0) } else { (40, 40) };
            add(window, "api", "api", 10, failed / 4);
            add(window, "api", "db", calls, failed);
            add(window, "db", "db", 10, 0);
        }
    });
    let said = rare.edges[&(service("api"), service("db"))].seen;
    assert_eq!((said.load, said.asked, said.answered), (Some(1.0), Some(4.0), Some(1.0)));
    // One that is asked and does not answer is there all the same.
    let dead = seen(|window| {
        add(window, "api", "api", 10, 10);
        add(window, "api", "db", 40, 40);
    });
    assert_eq!(dead.edges[&(service("api"), service("db"))].seen.answered, Some(0.0));
}

#[test]
fn a_callee_that_is_rarely_called_may_fail() {
    // Of six hundred requests in five minutes some call, in so many of the minutes; then one call in each window fails.
    let rare = |every_s: u64, calls: u64| {
        let heard = heard(630, |s, window| {
            add(window, "api", "api", 10, 0);
            if s >= 600 {
                add(window, "api", "db", calls, calls);
            } else if s % every_s == 0 {
                add(window, "api", "db", 1, 0);
            }
        });
        evidence(&heard)
    };
    assert_eq!(rare(180, 1), 0.0, "silent in most of its minutes: what is usual is not known");
    assert_eq!(rare(60, 1), 0.0, "one call where a tenth of one is usual");
    assert!(rare(60, 8) > 8.0, "{}", rare(60, 8));
}

#[test]
fn who_answers_under_a_name_may_change_and_a_service_stays_itself() {
    let mut retries = Retries::default();
    let mut called = |s: u64, said: &[(&str, &str)]| {
        let mut window = window(s);
        for (name, is) in said {
            assert!(window.add_same(&service(name), &service(is)));
        }
        add(&mut window, "api", "db.internal", 3, 0);
        add(&mut window, "db", "db", 3, 0);
        retries.resolve(&mut window);
        let names = window.calls.keys().map(|(from, to)| format!("{} {}", from.name, to.name));
        names.collect::<Vec<_>>()
    };
    assert_eq!(called(0, &[("db.internal", "db")]), ["api db", "db db"]);
    assert_eq!(called(300, &[("db.internal", "db-0")]), ["api db", "db db"], "two answer: the first stays");
    assert_eq!(called(600, &[("db.internal", "db"), ("db.internal", "db-0")]), ["api db", "db db"]);
    assert_eq!(called(900, &[("db.internal", "db-0")]), ["api db", "db db"]);
    assert_eq!(called(1300, &[("db.internal", "db-0")]), ["api db-0", "db db"], "nobody says db any more");
    assert_eq!(called(1305, &[("db", "db-0")]), ["api db-0", "db db"]);
    let mut window = window(1310);
    assert!(window.add_same(&service("me"), &service("db")));
    add(&mut window, "db", "db", 3, 0);
    add(&mut window, "db", "me", 2, 0);
    retries.resolve(&mut window);
    assert_eq!(
        window.calls[&(service("db"), service("db"))].count,
        3,
        "what it asks itself is asked by name"
    );
}

#[test]
fn what_shows_repeated_calls_is_a_call_of_that_edge() {
    let gap = |window: &mut Window, to: &str, operation: &str, bucket: u16, evidence: u128| {
        assert!(window.add_gaps(CallGapTally {
            from: service("api"),
            to: service(to),
            operation: operation.into(),
            gap: vec![(bucket, 1)],
            evidence: EventId(evidence),
            ..CallGapTally::default()
        }));
    };
    let storm = |window: &mut Window| {
        add(window, "api", "api", 10, 10);
        add(window, "api", "db", 40, 40);
        let asked = OperationTally {
            service: service("api"),
            operation: "GET /about".into(),
            own_time: vec![(200, 1)],
            evidence: EventId(1),
            ..OperationTally::default()
        };
        assert!(window.add_requests(asked));
        gap(window, "cart", "GET /cart", 300, 2);
    };
    let events = |seen: Retries| seen.edges[&(service("api"), service("db"))].events.clone();
    assert_eq!(events(seen(storm)), [], "of its calls nobody saw both ends");
    let slowest = seen(|window| {
        storm(window);
        gap(window, "db", "INSERT", 100, 3);
        gap(window, "db", "SELECT", 200, 4);
        gap(window, "db", "UPDATE", 150, 5);
    });
    assert_eq!(events(slowest), [EventId(4)]);
}

#[test]
fn what_is_known_has_a_bound() {
    let mut retries = Retries::default();
    for s in 0..3 {
        let mut window = window(5 * s);
        for number in 0..EDGES_MAX {
            add(&mut window, "api", &format!("s{s}-{number}"), 1, 0);
        }
        retries.observe(&window);
        retries.learn(&window, window.start);
    }
    assert!(retries.edges.len() <= EDGES_MAX && retries.evicted >= 2 * EDGES_MAX as u64);
}
