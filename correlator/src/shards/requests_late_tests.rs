//! Requests of which something got lost, came late, or was over before anyone listened.

use tapio_schemas::payload::SpanKind;
use tapio_schemas::{OperationTally, UnifiedEvent, UnixNanos};

use super::budget::Cursor;
use super::requests_tests::{Span, by_time, evicted, feed_together, request, spanned, told};
use super::shard::GivenUp;
use super::shard_tests::{Sim, seconds};

#[test]
fn what_was_lost_is_no_step_that_was_left_out() {
    let mut sim = Sim::new();
    sim.feed(&by_time(request(9, 100.0)));
    let broken = by_time(request(9, 2000.0));
    let given_up = sim.encode(&broken[0]);
    sim.set.give_up(&given_up, None, &Cursor::new(UnixNanos::MAX), GivenUp::BatchTime).expect("a good batch");
    sim.feed(&broken[1..]);
    sim.feed(&by_time(request(9, 30_000.0)));
    sim.finish();
    let told: Vec<&OperationTally> = sim.sections.iter().flat_map(|s| &s.operations).collect();
    assert_eq!(told.len(), 2, "only the window in which nothing was lost: {told:?}");
    assert!(told.iter().all(|tally| tally.window_start >= seconds(25.0)), "{told:?}");
    assert!(evicted(&mut sim, "doubted") > 0);
}

/// The cart sends its spans and lines every five seconds, the web at once: after the first batch nothing is missed.
#[test]
fn who_sends_every_five_seconds_is_waited_for() {
    const BEAT_MS: u64 = 5_000;
    let mut events: Vec<(u64, UnifiedEvent)> = (0..2_000u32)
        .flat_map(|i| request(u128::from(i) + 5, 100.0 + f64::from(i) * 211.0))
        .map(|event| {
            let ended = event.timestamp.since(seconds(0.0)) / 1_000_000;
            let is_batched = event.entity.service == "cart";
            (if is_batched { ended.next_multiple_of(BEAT_MS) } else { ended }, event)
        })
        .collect();
    events.sort_by_key(|(delivered, event)| (*delivered, event.timestamp, event.id));
    let mut sim = Sim::new();
    for (_, event) in &events {
        feed_together(&mut sim, std::slice::from_ref(event));
    }
    sim.finish();
    let told: Vec<&OperationTally> = sim.sections.iter().flat_map(|s| &s.operations).collect();
    let web = told.iter().filter(|tally| tally.service.name == "web");
    let shapes: Vec<_> = web.flat_map(|tally| &tally.shapes).collect();
    let whole: u32 = shapes.iter().filter(|shape| !shape.inner.is_empty()).map(|shape| shape.count).sum();
    let all: u32 = shapes.iter().map(|shape| shape.count).sum();
    assert_eq!(whole, all, "a request without its call: {shapes:?}");
    // Requests are of all shards by their trace: each begins to wait with its own first late span.
    assert!(all > 1_600, "{all} of 2000 requests are told, {} doubted", evicted(&mut sim, "doubted"));
}

#[test]
fn the_way_of_a_request_that_began_before_anyone_listened_is_not_known() {
    let span = |n: u128, from, to| {
        spanned(Span { service: "web", name: "x", kind: SpanKind::Server, ids: (9, n as u64, 0), from, to })
    };
    let (told, _) = told(&[span(1, 9_900.0, 10_000.0), span(2, 0.0, 12_000.0), span(3, 11_000.0, 12_500.0)]);
    let counts: Vec<(u64, u64)> = told.operations.iter().map(|t| (t.requests, t.unshaped)).collect();
    assert_eq!(counts, [(3, 1)]);
}

/// So many spans a second that there is no room to wait for one who comes ten seconds late: the others are told all the same.
#[test]
fn one_who_is_late_does_not_make_a_busy_shard_blind() {
    const TRACE: u128 = 77;
    let server = |n: u64, at: f64| {
        spanned(Span {
            service: "web",
            name: "x",
            kind: SpanKind::Server,
            ids: (TRACE, n, 0),
            from: at - 5.0,
            to: at,
        })
    };
    let mut sim = Sim::new();
    for n in 0..120_000u64 {
        let at = 1_000.0 + n as f64 / 4.0;
        feed_together(&mut sim, &[server(n + 10, at)]);
        if n == 40_000 {
            let late = Span {
                service: "cart",
                name: "y",
                kind: SpanKind::Server,
                ids: (TRACE, 5, 4),
                from: at - 9_010.0,
                to: at - 9_000.0,
            };
            feed_together(&mut sim, &[spanned(late)]);
        }
    }
    sim.finish();
    let told = sim.sections.iter().flat_map(|s| &s.operations).filter(|tally| tally.service.name == "web");
    let requests: u64 = told.map(|tally| tally.requests).sum();
    assert!(requests > 60_000, "{requests} of 120,000 requests are told");
}
