//! Head of stage two: one view of deviations whose evidence lies in many shards.
//!
//! Traces are spread over all shards, so each shard sees a part of a service's failures. The parts of one
//! deviation (kind, entity, peer) are united here, step by step, when all shards have passed the step: the result
//! does not depend on which shard was heard first. Shares come from the tallies of all shards.

use std::collections::BTreeMap;

use tapio_schemas::entity::Entity;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Score, Signal, SignalId, SignalKind, SmolStr, UnixNanos};

use crate::edges::{Edges, share};
use crate::services::{ServiceState, Services};
use crate::shards::{Confirm, LINE_STRENGTH, TICK_NS, add_evidence, grid_ceil, hash_parts, stamped};

/// Deviations united at a time; the longest silent are closed first.
const UNITED_MAX: usize = 8192;
/// Unites the parts.
pub struct Uniter {
    watermarks: Vec<UnixNanos>,
    /// Step up to which parts are united.
    step: UnixNanos,
    waiting: BTreeMap<(UnixNanos, SignalId, u32), Signal>,
    open: BTreeMap<Key, United>,
    edges: Edges,
    /// What requests did.
    services: Services,
    /// Deviations closed because there were too many.
    pub evicted: u64,
}

/// Kind, entity, peer, and which fault lines tell of.
type Key = (SignalKind, Entity, Entity, SmolStr);

struct United {
    signal: Signal,
    parts: BTreeMap<SignalId, Part>,
    /// Occurrences of parts that have ended.
    ended_count: u64,
    changed: UnixNanos,
    /// Newest evidence: the end of a part is none.
    evidence_at: UnixNanos,
    /// Strongest of the parts.
    part_strength: Score,
    /// Strength when the counts last knew of it.
    strength: Option<Score>,
}

struct Part {
    revision: u32,
    count: u64,
    ended: bool,
}

impl United {
    /// Lines of one program lie in as many shards as traces do: that they are repeated, or go on, shows here.
    fn strength_of_lines(&self, count: u64) -> Score {
        let (onset, seen) = (self.signal.onset, self.evidence_at);
        let needed = Confirm::needed(self.signal.kind, &self.signal.entity);
        let is_certain = needed.is_none_or(|confirm| confirm.is_met(count, onset, seen, seen));
        Score::clamped(if is_certain { LINE_STRENGTH } else { self.part_strength.get() })
    }
}

impl Uniter {
    /// Knows nothing yet of `cluster`.
    pub fn new(cluster: &str) -> Self {
        Self {
            watermarks: vec![UnixNanos(0); usize::from(SHARD_COUNT)],
            step: UnixNanos(0),
            waiting: BTreeMap::new(),
            open: BTreeMap::new(),
            edges: Edges::default(),
            services: Services::new(cluster),
            evicted: 0,
        }
    }
}

/// True for kinds whose evidence is spread over shards by trace.
pub fn is_spread(kind: SignalKind) -> bool {
    matches!(
        kind,
        SignalKind::SpanErrors
            | SignalKind::SpanTimeouts
            | SignalKind::SpanSlow
            | SignalKind::HttpServerErrors
            | SignalKind::LogErrors
            | SignalKind::LogFault
    )
}

fn key_of(part: &Signal) -> Key {
    let fault = part.attribute("fault").and_then(|fault| fault.as_text());
    let fault = fault.filter(|_| part.kind == SignalKind::LogFault).unwrap_or_default();
    (part.kind, part.entity.subject(), part.peer.clone().unwrap_or_default(), fault.into())
}

impl Uniter {
    /// Takes a section of any shards; returns what stage two may know now.
    pub fn apply(&mut self, mut section: SignalSection) -> SignalSection {
        for mark in section.marks.iter().filter(|_| !section.partial) {
            if let Some(known) = self.watermarks.get_mut(usize::from(mark.shard)) {
                *known = (*known).max(mark.at);
            }
        }
        let (parts, whole): (Vec<Signal>, Vec<Signal>) =
            section.signals.into_iter().partition(|s| is_spread(s.kind));
        section.signals = whole;
        for part in parts {
            self.waiting.insert((part.last_seen, part.id, part.revision), part);
        }
        for tally in std::mem::take(&mut section.tallies) {
            self.services.count(&tally);
            self.edges.wait(tally);
        }
        section.facts.iter().for_each(|fact| self.services.hear(fact));
        self.services.apply(&mut section);
        let all_passed = self.watermarks.iter().min().copied().unwrap_or_default();
        while let Some(step) = self.services.next_step().filter(|step| *step <= all_passed) {
            self.services.run(step, &mut section.signals);
        }
        while let Some(step) = self.next_step(all_passed) {
            self.run(step, &mut section);
        }
        self.step = self.step.max(all_passed);
        section
    }

    /// What has changed about the state of services since it was last taken.
    pub fn take_states(&mut self) -> Vec<ServiceState> {
        self.services.take_states()
    }

    /// Counts of edges for which there was no room.
    pub fn tallies_refused(&self) -> u64 {
        self.edges.refused
    }

    /// What the service model refused or forgot so far, by reason.
    pub fn losses(&self) -> [(&'static str, u64); 7] {
        self.services.losses()
    }

    /// Event time that any shard has passed: no revision heard is newer.
    pub fn newest(&self) -> UnixNanos {
        self.watermarks.iter().max().copied().unwrap_or_default()
    }

    /// Event time that all shards have passed.
    pub fn watermark(&self) -> UnixNanos {
        self.watermarks.iter().min().copied().unwrap_or_default()
    }

    /// Oldest event time that open deviations need.
    pub fn low_water(&self) -> UnixNanos {
        let open = self.open.values().map(|u| u.signal.onset);
        open.chain(self.services.low_water()).min().unwrap_or(self.step).min(self.step)
    }

    fn next_step(&self, target: UnixNanos) -> Option<UnixNanos> {
        let part = self.waiting.first_key_value().map(|((at, _, _), _)| *at);
        let tally = self.edges.next();
        let step = grid_ceil(part.into_iter().chain(tally).min()?).max(self.step.plus(1));
        (step <= target).then_some(step)
    }

    fn run(&mut self, step: UnixNanos, out: &mut SignalSection) {
        self.edges.count_until(step, &mut out.tallies);
        let mut touched: Vec<Key> = Vec::new();
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > step {
                break;
            }
            let part = entry.remove();
            let key = key_of(&part);
            if self.unite(&key, part) && !touched.contains(&key) {
                touched.push(key);
            }
        }
        touched.sort();
        for key in touched {
            self.say(&key, step, &mut out.signals);
        }
        self.step = step;
        self.make_room();
    }

    /// False when the part says nothing new.
    fn unite(&mut self, key: &Key, part: Signal) -> bool {
        let shared = match self.open.get_mut(key) {
            Some(united) => united,
            None if part.ended => return false,
            None => {
                let fresh = Signal::new(part.kind, part.entity.clone(), part.peer.clone(), part.onset);
                let topic = if key.3.is_empty() { 0 } else { hash_parts(&[&key.3]) as u64 };
                let signal = Signal {
                    group: part.group,
                    trace_id: part.trace_id,
                    pid: part.pid,
                    attributes: part.attributes.clone(),
                    ..fresh.of_topic(topic)
                };
                let changed = part.last_seen;
                self.open.entry(key.clone()).or_insert(United {
                    signal,
                    parts: BTreeMap::new(),
                    ended_count: 0,
                    changed,
                    evidence_at: UnixNanos(0),
                    part_strength: Score::ZERO,
                    strength: None,
                })
            }
        };
        let known = shared.parts.get(&part.id);
        if known.is_some_and(|p| p.revision >= part.revision) {
            return false;
        }
        shared.changed = shared.changed.max(part.last_seen);
        if !part.ended {
            shared.evidence_at = shared.evidence_at.max(part.last_seen);
        }
        if part.strength > shared.part_strength {
            shared.part_strength = part.strength;
        }
        for event in &part.evidence {
            add_evidence(&mut shared.signal.evidence, *event);
        }
        for attribute in part.attributes {
            if !shared.signal.attributes.iter().any(|a| a.key == attribute.key) {
                shared.signal.attributes.push(attribute);
            }
        }
        shared.parts.insert(part.id, Part { revision: part.revision, count: part.count, ended: part.ended });
        true
    }

    fn say(&mut self, key: &Key, step: UnixNanos, out: &mut Vec<Signal>) {
        let Some(united) = self.open.get_mut(key) else { return };
        let ended = united.parts.values().all(|p| p.ended);
        united.ended_count += united.parts.values().filter(|p| p.ended).map(|p| p.count).sum::<u64>();
        united.parts.retain(|_, p| !p.ended);
        let mut signal = united.signal.clone();
        signal.ended = ended;
        signal.count = united.ended_count + united.parts.values().map(|p| p.count).sum::<u64>();
        let from = signal.entity.owner();
        let to = signal.peer.clone().unwrap_or_else(|| from.clone());
        if key.0 == SignalKind::LogErrors {
            // No count of calls says how much a log line means.
            signal.strength = united.part_strength;
        } else if key.0 == SignalKind::LogFault {
            signal.strength = united.strength_of_lines(signal.count);
        } else {
            share(&mut signal, self.edges.of(from, to), united.strength);
            united.strength = signal.observed.is_finite().then_some(signal.strength).or(united.strength);
        }
        let seen = if united.changed.plus(TICK_NS) > step { united.changed.min(step) } else { step };
        out.push(stamped(signal, if ended { step } else { seen }));
        if ended {
            self.open.remove(key);
        }
    }

    fn make_room(&mut self) {
        while self.open.len() > UNITED_MAX {
            let oldest = self.open.iter().min_by_key(|(_, u)| u.changed).map(|(k, _)| k.clone());
            let Some(key) = oldest else { return };
            self.open.remove(&key);
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tapio_schemas::wire::ShardMark;
    use tapio_schemas::{EntityRef, EventId, Tally};

    fn service(name: &str) -> Arc<EntityRef> {
        let entity = EntityRef {
            cluster: "c".into(),
            namespace: "shop".into(),
            service: name.into(),
            ..EntityRef::default()
        };
        Arc::new(entity.sealed())
    }

    fn part(onset_s: f64, seen_s: f64, count: u64, ended: bool) -> Signal {
        let at = |s: f64| UnixNanos((s * 1e9) as u64);
        let mut signal = Signal::new(SignalKind::HttpServerErrors, service("api"), None, at(onset_s));
        signal.count = count;
        signal.ended = ended;
        signal.evidence = vec![EventId((onset_s * 1000.0) as u128)];
        stamped(signal, at(seen_s))
    }

    fn section(shard: u16, watermark_s: f64, signals: Vec<Signal>) -> SignalSection {
        SignalSection {
            marks: vec![ShardMark { shard, epoch: 0, at: UnixNanos((watermark_s * 1e9) as u64) }],
            signals,
            ..SignalSection::default()
        }
    }

    /// Says the watermark for all other shards.
    fn others(uniter: &mut Uniter, watermark_s: f64) -> Vec<Signal> {
        (2..SHARD_COUNT)
            .flat_map(|shard| uniter.apply(section(shard, watermark_s, Vec::new())).signals)
            .collect()
    }

    fn run(first: u16, second: u16) -> Vec<Signal> {
        let mut uniter = Uniter::new("c");
        let parts = |shard| match shard {
            0 => vec![part(100.10, 100.10, 2, false)],
            _ => vec![part(100.05, 100.05, 3, false), part(100.05, 101.10, 5, false)],
        };
        let mut out = uniter.apply(section(first, 105.0, parts(first))).signals;
        out.extend(uniter.apply(section(second, 105.0, parts(second))).signals);
        assert!(out.is_empty(), "said before all shards had passed");
        out.extend(others(&mut uniter, 105.0));
        let ends = vec![part(100.10, 130.0, 2, true), part(100.05, 131.0, 5, true)];
        out.extend(uniter.apply(section(0, 140.0, ends)).signals);
        out.extend(uniter.apply(section(1, 140.0, Vec::new())).signals);
        out.extend(others(&mut uniter, 140.0));
        out
    }

    #[test]
    fn parts_of_many_shards_are_one_deviation_in_any_order() {
        let said = run(0, 1);
        let text = |all: &[Signal]| all.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>();
        assert_eq!(text(&said), text(&run(1, 0)));
        assert!(said.iter().all(|s| s.id == said[0].id), "one id");
        assert_eq!(said[0].onset, UnixNanos(100_050_000_000));
        assert_eq!(said.iter().map(|s| s.count).collect::<Vec<_>>(), [5, 7, 7, 7]);
        assert_eq!(said.iter().map(|s| s.ended).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!(said[0].evidence.len(), 2);
    }

    #[test]
    fn lines_of_one_program_are_counted_over_all_shards() {
        let line = |shard: u16, seen_s: f64, fault: &str| {
            let mut line = Signal { kind: SignalKind::LogFault, ..part(seen_s, seen_s, 1, false) };
            line = Signal { id: SignalId(u128::from(shard) + 1), strength: Score::clamped(0.3), ..line };
            line.attributes.push(tapio_schemas::Attribute::new("fault", fault));
            section(shard, 200.0, vec![line])
        };
        let strengths = |lines: &[(u16, f64, &str)]| {
            let mut uniter = Uniter::new("c");
            let mut said: Vec<Signal> = lines
                .iter()
                .flat_map(|(shard, s, fault)| uniter.apply(line(*shard, *s, fault)).signals)
                .collect();
            let rest = (0..SHARD_COUNT).flat_map(|shard| uniter.apply(section(shard, 200.0, vec![])).signals);
            said.extend(rest.collect::<Vec<_>>());
            let mut last: BTreeMap<SignalId, f64> = BTreeMap::new();
            last.extend(said.iter().map(|s| (s.id, s.strength.get())));
            last.into_values().collect::<Vec<_>>()
        };
        let (files, disk) = ("files", "no_space");
        assert_eq!(strengths(&[(0, 100.0, files), (7, 101.0, files)]), [0.3], "two lines are a word");
        assert_eq!(strengths(&[(0, 100.0, files), (7, 101.0, files), (9, 102.0, files)]), [0.8]);
        assert_eq!(strengths(&[(0, 100.0, files), (7, 130.0, files)]), [0.8], "half a minute apart");
        assert_eq!(strengths(&[(0, 100.0, files), (7, 101.0, disk), (9, 102.0, disk)]), [0.3, 0.3]);
    }

    #[test]
    fn a_share_that_is_usual_is_weak_and_an_unusual_one_is_strong() {
        let api = service("api").owner();
        let tally = |start_s: u64, errors| Tally {
            window_start: UnixNanos(start_s * 1_000_000_000),
            window_ns: 5_000_000_000,
            from: api.clone(),
            to: api.clone(),
            calls: 1000,
            errors,
            duration_ns_sum: 0,
            latency: vec![(200, 1000)],
        };
        let strength_after = |recent_errors: u64, windows: u64| {
            let mut uniter = Uniter::new("c");
            let mut tallies: Vec<Tally> = (0..16).map(|i| tally(i * 5, 10)).collect();
            tallies.extend((16..16 + windows).map(|i| tally(i * 5, recent_errors)));
            let end = (16 + windows) as f64 * 5.0;
            let mut first = section(0, end + 1.0, vec![part(end + 0.1, end + 0.1, 9, false)]);
            first.tallies = tallies;
            let mut out = uniter.apply(first).signals;
            out.extend(uniter.apply(section(1, end + 1.0, Vec::new())).signals);
            out.extend(others(&mut uniter, end + 1.0));
            assert_eq!(out.len(), 1);
            out[0].strength.get()
        };
        let strength = |recent_errors| strength_after(recent_errors, 3);
        // Half of the calls fail for a minute and more: it does not become usual.
        assert!(strength_after(500, 20) > 0.35, "{}", strength_after(500, 20));
        assert!(strength(11) < 0.01, "{}", strength(11));
        assert!(strength(400) > 0.35, "{}", strength(400));
    }
}
