//! Sections become messages of bounded size.

use tapio_schemas::OperationTally;
use tapio_schemas::wire::SignalSection;

/// Signals, facts, tallies and the like in one message; an operation counts as several.
const SECTION_ITEMS_MAX: usize = 1000;

/// Cuts a section into messages of bounded size. All but the last say that more of the step follows.
pub fn parts(section: SignalSection) -> Vec<SignalSection> {
    let heavy: usize = section.operations.iter().map(weight).sum();
    if section.items() + heavy <= SECTION_ITEMS_MAX {
        return vec![section];
    }
    let mut parts = Vec::new();
    let mut left = section;
    while !left.is_heartbeat() {
        let mut room = SECTION_ITEMS_MAX;
        parts.push(SignalSection {
            marks: left.marks.clone(),
            partial: true,
            facts: cut(&mut left.facts, &mut room),
            signals: cut(&mut left.signals, &mut room),
            tallies: cut(&mut left.tallies, &mut room),
            gaps: cut(&mut left.gaps, &mut room),
            operations: cut_heavy(&mut left.operations, &mut room),
            call_gaps: cut(&mut left.call_gaps, &mut room),
            meters: cut(&mut left.meters, &mut room),
        });
    }
    if let Some(last) = parts.last_mut() {
        last.partial = false;
    }
    parts
}

/// Takes as many from the beginning as there is room for.
fn cut<T>(all: &mut Vec<T>, room: &mut usize) -> Vec<T> {
    let count = all.len().min(*room);
    *room -= count;
    all.drain(..count).collect()
}

/// Items that an operation is as large as: a step with its text takes about a fourth of one.
fn weight(tally: &OperationTally) -> usize {
    1 + tally.shapes.iter().map(|shape| 1 + (shape.steps.len() + shape.inner.len()) / 4).sum::<usize>()
}

/// Takes as many from the beginning as there is room for, and one in any case when nothing else is in the message.
fn cut_heavy(all: &mut Vec<OperationTally>, room: &mut usize) -> Vec<OperationTally> {
    let mut count = 0;
    while let Some(weight) = all.get(count).map(weight)
        && (weight <= *room || *room == SECTION_ITEMS_MAX)
    {
        *room = room.saturating_sub(weight);
        count += 1;
    }
    all.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tapio_schemas::service::{Shape, Step};
    use tapio_schemas::wire::{ShardMark, encode_signals};
    use tapio_schemas::{EntityRef, ProducerId, Signal, SignalKind, UnixNanos};

    #[test]
    fn large_sections_are_cut_and_promise_only_at_the_end() {
        let signals: Vec<Signal> = (0..2500u64)
            .map(|i| Signal::new(SignalKind::OomKill, Arc::new(EntityRef::default()), None, UnixNanos(i)))
            .collect();
        let section = SignalSection {
            marks: vec![ShardMark { shard: 3, epoch: 1, at: UnixNanos(9) }],
            signals: signals.clone(),
            ..SignalSection::default()
        };
        let cut = parts(section);
        assert_eq!(cut.iter().map(|p| p.partial).collect::<Vec<_>>(), [true, true, false]);
        assert!(cut.iter().all(|p| p.marks.len() == 1));
        let ids = |all: Vec<Signal>| all.into_iter().map(|s| s.id).collect::<Vec<_>>();
        assert_eq!(ids(cut.into_iter().flat_map(|p| p.signals).collect()), ids(signals));
    }
    #[test]
    fn messages_with_many_ways_of_requests_stay_small() {
        let name = |i: usize| format!("{i:0>199}").into();
        let steps = |n: usize| (0..64).map(|i| Step { name: name(64 * n + i), ..Step::default() }).collect();
        let shapes =
            |n: usize| (0..8).map(|i| Shape { steps: steps(8 * n + i), ..Shape::default() }).collect();
        let operations: Vec<OperationTally> =
            (0..40).map(|n| OperationTally { shapes: shapes(n), ..OperationTally::default() }).collect();
        let section = SignalSection {
            marks: vec![ShardMark { shard: 3, epoch: 1, at: UnixNanos(9) }],
            operations: operations.clone(),
            ..SignalSection::default()
        };
        let cut = parts(section);
        for part in &cut {
            let bytes = encode_signals(ProducerId(1), 0, 1, part).expect("it fits a message");
            assert!(bytes.len() < 1_000_000, "{} bytes", bytes.len());
        }
        assert_eq!(cut.iter().filter(|part| !part.partial).count(), 1);
        assert_eq!(cut.into_iter().flat_map(|part| part.operations).collect::<Vec<_>>(), operations);
    }
}
