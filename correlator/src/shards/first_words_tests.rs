//! First words: what they say, and that they change nothing.

use std::sync::Arc;

use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, Signal, SignalKind, UnifiedEvent, UnixNanos,
    payload,
};

use super::first_words::{LOOKS_PER_S_MAX, WORDS_PER_S_MAX};
use super::shard_tests::{Sim, cgroup, event, exit, oom, refused, seconds};
use super::{Budget, Cursor};

impl Sim {
    /// As [`Self::feed`], each read at the time it happened; gives the first words.
    fn feed_live(&mut self, events: &[UnifiedEvent]) -> Vec<Signal> {
        let mut words = Vec::new();
        for event in events {
            words.extend(self.read_at(event, event.timestamp));
            self.advance();
        }
        words
    }

    /// Reads an event at `now`; gives the first words. Event time moves on, but no step is run.
    fn read_at(&mut self, event: &UnifiedEvent, now: UnixNanos) -> Vec<Signal> {
        let bytes = self.encode(event);
        let mut cursor = Cursor { live: Some(now), ..Cursor::new(UnixNanos::MAX) };
        let taken = self.set.take_within(&bytes, None, &mut cursor, &mut Budget::unlimited());
        let taken = taken.expect("a good batch");
        self.watermark.observe(taken.newest);
        taken.first_words
    }
}

fn in_pod() -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: "api".into(),
        pod: "api-1".into(),
        container: "app".into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

#[test]
fn a_kill_is_told_when_it_is_read_and_again_when_its_time_has_passed() {
    let mut sim = Sim::new();
    let words = sim.feed_live(&[oom(&cgroup("/a"), 1.0, 1, 7)]);
    assert!(sim.signals.is_empty(), "no step has been run");
    sim.finish();
    let binding = &sim.signals[0];
    assert_eq!(words.len(), 1);
    let word = &words[0];
    assert_eq!((word.id, word.kind, word.onset), (binding.id, SignalKind::OomKill, seconds(1.0)));
    assert_eq!((&word.evidence, &word.attributes), (&binding.evidence, &binding.attributes));
    assert!(word.revision == 0 && binding.revision > 0);
}

#[test]
fn what_is_not_certain_or_needs_many_is_not_told() {
    let mut sim = Sim::new();
    let pod = in_pod();
    let retransmit = payload::NetworkData { remote_port: 80, ..Default::default() };
    let retransmit = Payload::Network(Box::new(retransmit));
    let events = [
        // The kubelet may start it again; and it may be the victim of a kill.
        exit(&pod, 1.0, 1, 7, 1, 0, true),
        exit(&pod, 1.1, 2, 8, 0, 9, true),
        event(EventKind::NetRetransmit, &pod, seconds(1.2), EventId(3), retransmit),
        UnifiedEvent {
            severity: EventSeverity::Error,
            ..event(EventKind::Log, &pod, seconds(1.3), EventId(4), Payload::Log(Box::default()))
        },
    ];
    assert_eq!(sim.feed_live(&events), []);
    let crash = exit(&pod, 1.4, 5, 9, 0, 11, true);
    assert_eq!(sim.feed_live(&[crash])[0].kind, SignalKind::CrashSignal);
}

#[test]
fn a_deviation_is_told_once_until_it_is_over() {
    let mut sim = Sim::new();
    let kills = |at: f64| -> Vec<UnifiedEvent> {
        (0..30u32)
            .map(|n| oom(&cgroup("/a"), at + 0.1 * f64::from(n), (at as u128) << 8 | u128::from(n), n))
            .collect()
    };
    let told = |sim: &mut Sim, at| sim.feed_live(&kills(at)).len();
    assert_eq!(told(&mut sim, 1.0), 1, "the first of thirty; then it waits, then it is open");
    assert_eq!(told(&mut sim, 8.0), 0, "still open");
    assert_eq!(told(&mut sim, 100.0), 1, "the one before is over");
}

#[test]
fn first_words_change_nothing_of_what_is_said() {
    let mut events = Vec::new();
    for n in 0..400u32 {
        let (at, id) = (f64::from(n) * 0.07, u128::from(n) * 4 + 1);
        let group = cgroup(&format!("/g{}", n % 23));
        // A kill and the victim's exit, in either order.
        let (kill, end) = (oom(&group, at, id, n), exit(&group, at + 0.01, id + 1, n, 0, 9, true));
        events.extend(if n % 3 == 0 { [end, kill] } else { [kill, end] });
        events.push(exit(&group, at, id + 2, 1000 + n, 2, 0, false));
        events.push(refused(&group, at, id + 3, 80 + (n % 5) as u16));
    }
    let (mut with, mut without) = (Sim::new(), Sim::new());
    let words = with.feed_live(&events);
    without.feed(&events);
    with.finish();
    without.finish();
    assert!(words.len() > 100, "{}", words.len());
    // As text: what has no value (NaN) is not equal to itself.
    let said = |sim: &Sim| sim.sections.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>();
    let differing = said(&with).into_iter().zip(said(&without)).find(|(with, without)| with != without);
    assert_eq!((with.sections.len(), differing), (without.sections.len(), None));
    let (with, without) = (with.counters(), without.counters());
    assert_eq!(with.first_words, words.len() as u64);
    assert_eq!((with.events, with.dropped, with.evicted), (without.events, without.dropped, without.evicted));
}

#[test]
fn words_and_looks_are_bounded_by_the_second_and_counted() {
    let mut sim = Sim::new();
    // One lineage, so one shard; a deviation of its own for each port.
    let group = cgroup("/flood");
    let now = seconds(1.0);
    let flood = LOOKS_PER_S_MAX + 44;
    let told: usize = (0..flood)
        .map(|n| sim.read_at(&refused(&group, 1.0, u128::from(n) + 1, n as u16 + 1), now).len())
        .sum();
    assert_eq!(told, WORDS_PER_S_MAX as usize);
    let counted = sim.counters();
    let looked = u64::from(LOOKS_PER_S_MAX - WORDS_PER_S_MAX);
    assert_eq!((counted.unsaid.words, counted.unsaid.looks), (looked, 44));
    let later = refused(&group, 2.0, 9999, 9999);
    assert_eq!(sim.read_at(&later, seconds(2.0)).len(), 1, "another second");
}

#[test]
fn what_is_read_again_is_not_new() {
    let mut sim = Sim::new();
    assert_eq!(sim.read_at(&oom(&cgroup("/a"), 1.0, 1, 7), seconds(60.0)), []);
    assert_eq!(sim.counters().unsaid.old, 1);
}
