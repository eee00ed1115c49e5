//! Head of stage two: one view of deviations whose evidence lies in many shards.
//!
//! Traces are spread over all shards, so each shard sees a part of a service's failures. The parts of one
//! deviation (kind, entity, peer) are united here, step by step, when all shards have passed the step: the result
//! does not depend on which shard was heard first. Shares come from the tallies of all shards.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tapio_schemas::entity::Entity;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Score, Signal, SignalId, SignalKind, Tally, UnixNanos};

use crate::shards::{TICK_NS, add_evidence, grid_ceil, stamped};

/// Deviations united at a time; the longest silent are closed first.
const UNITED_MAX: usize = 8192;
/// Call edges whose counts are kept; the longest silent are forgotten.
const EDGES_MAX: usize = 65_536;
/// Tally windows kept per edge.
const WINDOWS_KEPT: usize = 6;
/// Windows that count as "now".
const WINDOWS_RECENT: usize = 3;
/// The baseline forgets half of its calls when it has this many.
const BASELINE_CALLS_MAX: u64 = 1_000_000;

/// Unites the parts.
pub struct Uniter {
    watermarks: Vec<UnixNanos>,
    /// Step up to which parts are united.
    step: UnixNanos,
    waiting: BTreeMap<(UnixNanos, SignalId, u32), Signal>,
    waiting_tallies: BTreeMap<UnixNanos, Vec<Tally>>,
    open: BTreeMap<Key, United>,
    edges: HashMap<(Entity, Entity), Edge>,
    /// Deviations closed because there were too many.
    pub evicted: u64,
}

type Key = (SignalKind, Entity, Entity);

struct United {
    signal: Signal,
    parts: BTreeMap<SignalId, Part>,
    /// Occurrences of parts that have ended.
    ended_count: u64,
    changed: UnixNanos,
}

struct Part {
    revision: u32,
    count: u64,
    ended: bool,
}

#[derive(Default)]
struct Edge {
    windows: VecDeque<(UnixNanos, u64, u64)>,
    base_calls: u64,
    base_errors: u64,
}

impl Default for Uniter {
    fn default() -> Self {
        Self {
            watermarks: vec![UnixNanos(0); usize::from(SHARD_COUNT)],
            step: UnixNanos(0),
            waiting: BTreeMap::new(),
            waiting_tallies: BTreeMap::new(),
            open: BTreeMap::new(),
            edges: HashMap::new(),
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
    )
}

impl Uniter {
    /// Takes a section of any shards; returns what stage two may know now.
    pub fn apply(&mut self, mut section: SignalSection) -> SignalSection {
        for (shard, at) in &section.watermarks {
            if let Some(known) = self.watermarks.get_mut(usize::from(*shard)) {
                *known = (*known).max(*at);
            }
        }
        let (parts, whole): (Vec<Signal>, Vec<Signal>) =
            section.signals.into_iter().partition(|s| is_spread(s.kind));
        section.signals = whole;
        for part in parts {
            self.waiting.insert((part.last_seen, part.id, part.revision), part);
        }
        for tally in &section.tallies {
            let end = tally.window_start.plus(tally.window_ns);
            self.waiting_tallies.entry(end).or_default().push(tally.clone());
        }
        let all_passed = self.watermarks.iter().min().copied().unwrap_or_default();
        while let Some(step) = self.next_step(all_passed) {
            self.run(step, &mut section.signals);
        }
        self.step = self.step.max(all_passed);
        section
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
        self.open.values().map(|u| u.signal.onset).min().unwrap_or(self.step).min(self.step)
    }

    fn next_step(&self, target: UnixNanos) -> Option<UnixNanos> {
        let part = self.waiting.first_key_value().map(|((at, _, _), _)| *at);
        let tally = self.waiting_tallies.first_key_value().map(|(at, _)| *at);
        let step = grid_ceil(part.into_iter().chain(tally).min()?).max(self.step.plus(1));
        (step <= target).then_some(step)
    }

    fn run(&mut self, step: UnixNanos, out: &mut Vec<Signal>) {
        while let Some(entry) = self.waiting_tallies.first_entry() {
            if *entry.key() > step {
                break;
            }
            entry.remove().into_iter().for_each(|tally| self.count(&tally));
        }
        let mut touched: Vec<Key> = Vec::new();
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > step {
                break;
            }
            let part = entry.remove();
            let key = (part.kind, part.entity.subject(), part.peer.clone().unwrap_or_default());
            if self.unite(&key, part) && !touched.contains(&key) {
                touched.push(key);
            }
        }
        touched.sort();
        for key in touched {
            self.say(&key, step, out);
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
                let signal = Signal {
                    group: part.group,
                    trace_id: part.trace_id,
                    pid: part.pid,
                    attributes: part.attributes.clone(),
                    ..fresh
                };
                let changed = part.last_seen;
                self.open.entry(key.clone()).or_insert(United {
                    signal,
                    parts: BTreeMap::new(),
                    ended_count: 0,
                    changed,
                })
            }
        };
        let known = shared.parts.get(&part.id);
        if known.is_some_and(|p| p.revision >= part.revision) {
            return false;
        }
        shared.changed = shared.changed.max(part.last_seen);
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
        share(&mut signal, self.edges.get(&(from, to)));
        let seen = if united.changed.plus(TICK_NS) > step { united.changed.min(step) } else { step };
        out.push(stamped(signal, if ended { step } else { seen }));
        if ended {
            self.open.remove(key);
        }
    }

    fn count(&mut self, tally: &Tally) {
        if self.edges.len() >= EDGES_MAX {
            let newest = |edge: &Edge| edge.windows.back().map_or(UnixNanos(0), |w| w.0);
            let horizon = tally.window_start.minus(tally.window_ns.saturating_mul(WINDOWS_KEPT as u64));
            self.edges.retain(|_, edge| newest(edge) >= horizon);
        }
        let edge = self.edges.entry((tally.from.clone(), tally.to.clone())).or_default();
        match edge.windows.iter_mut().find(|w| w.0 == tally.window_start) {
            Some(window) => {
                window.1 += tally.calls;
                window.2 += tally.errors;
            }
            None => edge.windows.push_back((tally.window_start, tally.calls, tally.errors)),
        }
        if edge.windows.len() > WINDOWS_KEPT
            && let Some((_, calls, errors)) = edge.windows.pop_front()
        {
            edge.base_calls += calls;
            edge.base_errors += errors;
            if edge.base_calls > BASELINE_CALLS_MAX {
                edge.base_calls /= 2;
                edge.base_errors /= 2;
            }
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

/// Sets baseline, observed share and strength from the counts of all shards.
///
/// The strength is the share of failed calls, with one successful call added for what was not seen. A share that
/// chance explains from the baseline (three Poisson deviations) is worth a tenth of that.
fn share(signal: &mut Signal, edge: Option<&Edge>) {
    signal.unit = "1".into();
    let recent = edge.map_or((0, 0), |edge| {
        edge.windows.iter().rev().take(WINDOWS_RECENT).fold((0, 0), |(c, e), w| (c + w.1, e + w.2))
    });
    let count = signal.count as f64;
    if recent.0 == 0 {
        signal.observed = f64::NAN;
        signal.strength = Score::clamped(count / (count + 1.0));
        return;
    }
    let (calls, errors) = (recent.0 as f64, recent.1 as f64);
    signal.observed = errors / calls;
    let mut strength = errors / (calls + 1.0);
    if errors / calls >= 0.05 {
        strength = strength.max(0.5);
    }
    if let Some(edge) = edge.filter(|e| e.base_calls > 0) {
        signal.baseline = edge.base_errors as f64 / edge.base_calls as f64;
        let expected = signal.baseline * calls;
        if errors <= expected + 3.0 * expected.sqrt() {
            strength *= 0.1;
        }
    }
    signal.strength = Score::clamped(strength);
    signal.attributes.retain(|a| a.key != "calls" && a.key != "errors");
    signal.attributes.push(tapio_schemas::Attribute::new("calls", recent.0 as i64));
    signal.attributes.push(tapio_schemas::Attribute::new("errors", recent.1 as i64));
}
