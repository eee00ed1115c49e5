//! Call edges: what all shards counted of each, how often calls fail or are slow now, and how often they usually do.
//!
//! Counts of one window are added up as they come, and used once all shards have passed it: it does not matter who is
//! heard first.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use tapio_schemas::entity::Entity;
use tapio_schemas::{Score, Signal, SignalKind, Tally, UnixNanos};

use crate::shards::{SLOW_BUCKETS, SLOW_EXTRA_NS, bucket_ns};

/// Call edges whose counts are kept; silent ones make room, and what finds none is refused and counted.
const EDGES_MAX: usize = 65_536;
/// Counts of edges that wait until all shards have passed their window; further ones are refused and counted.
const WAITING_MAX: usize = 131_072;
/// Tally windows kept per edge.
const WINDOWS_KEPT: usize = 6;
/// Windows that count as "now".
const WINDOWS_RECENT: usize = 3;
/// The baseline forgets half of its calls when it has this many.
const BASELINE_CALLS_MAX: f64 = 1_000_000.0;

/// Edges, by caller and callee.
#[derive(Default)]
pub struct Edges {
    /// By end of the window: what shards counted, added up.
    waiting: BTreeMap<UnixNanos, BTreeMap<(Entity, Entity), Tally>>,
    /// How many they are.
    waiting_count: usize,
    known: HashMap<(Entity, Entity), Edge>,
    /// Window in which silent edges were looked for last.
    pruned: UnixNanos,
    /// Counts for which there was no room.
    pub refused: u64,
}

/// Counts of one edge, of all shards.
#[derive(Default)]
pub struct Edge {
    windows: VecDeque<Window>,
    base: Counts,
    /// Usual latency bucket: follows the windows' medians slowly.
    pace: Option<f64>,
}

struct Window {
    start: UnixNanos,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    calls: f64,
    errors: f64,
    slow: f64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.slow += other.slow;
    }

    fn divided(self, by: f64) -> Self {
        Self { calls: self.calls / by, errors: self.errors / by, slow: self.slow / by }
    }

    /// Occurrences to expect among so many calls, when this is what is usual; `None` when nothing is known.
    fn expected(self, kind: SignalKind, calls: f64) -> Option<f64> {
        (self.calls > 0.0).then(|| self.of(kind) / self.calls * calls)
    }

    /// Occurrences of what a kind of signal is about.
    fn of(self, kind: SignalKind) -> f64 {
        if kind == SignalKind::SpanSlow { self.slow } else { self.errors }
    }
}

/// Most occurrences that chance explains where so many are expected: three deviations of a Poisson count.
fn by_chance(expected: f64) -> f64 {
    expected + 3.0 * expected.sqrt()
}

/// Share of the way to the median of all recent calls that the usual latency goes in the time of those calls.
const PACE_FOLLOWS: f64 = 0.05;
/// A share that is never ordinary from the start.
const SHARE_ODD: f64 = 0.05;
/// What is out of the ordinary becomes ordinary this many times slower.
const ODD_DIVISOR: f64 = 16.0;

impl Edge {
    /// Calls of a tally that are far slower than usual.
    fn slow_calls(&mut self, tally: &Tally) -> u64 {
        let half = tally.calls / 2;
        let mut below = 0u64;
        let median = tally.latency.iter().find(|(_, count)| {
            below += u64::from(*count);
            below > half
        });
        let Some(median) = median.map(|(bucket, _)| f64::from(*bucket)) else { return 0 };
        let pace = *self.pace.get_or_insert(median);
        let slow_ns = bucket_ns(pace).saturating_add(SLOW_EXTRA_NS);
        let recent: f64 = self.windows.iter().map(|w| w.counts.calls).sum();
        let calls = tally.calls as f64;
        let weight = calls / (recent + calls).max(1.0);
        self.pace = Some(pace + PACE_FOLLOWS * weight * (median - pace));
        let is_slow = |bucket: f64| bucket >= pace + SLOW_BUCKETS && bucket_ns(bucket) >= slow_ns;
        tally.latency.iter().filter(|(bucket, _)| is_slow(f64::from(*bucket))).map(|l| u64::from(l.1)).sum()
    }
}

impl Edges {
    /// Adds what another shard counted of the same edge and window.
    pub fn wait(&mut self, tally: Tally) {
        let window = self.waiting.entry(tally.window_start.plus(tally.window_ns)).or_default();
        match window.entry((tally.from.clone(), tally.to.clone())) {
            Entry::Occupied(mut known) => add_up(known.get_mut(), &tally),
            Entry::Vacant(_) if self.waiting_count >= WAITING_MAX => self.refused += 1,
            Entry::Vacant(place) => {
                place.insert(tally);
                self.waiting_count += 1;
            }
        }
    }

    /// End of the first window that waits.
    pub fn next(&self) -> Option<UnixNanos> {
        self.waiting.first_key_value().map(|(end, _)| *end)
    }

    /// All shards have passed `step`: counts the windows up to it, and hands them on.
    pub fn count_until(&mut self, step: UnixNanos, out: &mut Vec<Tally>) {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| *entry.key() <= step) {
            let window = entry.remove();
            self.waiting_count -= window.len();
            for tally in window.into_values() {
                self.count(&tally);
                out.push(tally);
            }
        }
    }

    /// An edge of which something is known.
    pub fn of(&self, from: Entity, to: Entity) -> Option<&Edge> {
        self.known.get(&(from, to))
    }

    /// Forgets edges without a call in the windows that are kept; once per window, because it looks at all of them.
    fn forget_silent(&mut self, tally: &Tally) {
        if self.pruned >= tally.window_start {
            return;
        }
        self.pruned = tally.window_start;
        let newest = |edge: &Edge| edge.windows.back().map_or(UnixNanos(0), |w| w.start);
        let horizon = tally.window_start.minus(tally.window_ns.saturating_mul(WINDOWS_KEPT as u64));
        self.known.retain(|_, edge| newest(edge) >= horizon);
    }

    fn count(&mut self, tally: &Tally) {
        let key = (tally.from.clone(), tally.to.clone());
        if self.known.len() >= EDGES_MAX && !self.known.contains_key(&key) {
            self.forget_silent(tally);
            if self.known.len() >= EDGES_MAX {
                self.refused += 1;
                return;
            }
        }
        let edge = self.known.entry(key).or_default();
        let slow = edge.slow_calls(tally) as f64;
        let counts = Counts { calls: tally.calls as f64, errors: tally.errors as f64, slow };
        match edge.windows.iter_mut().find(|w| w.start == tally.window_start) {
            Some(window) => window.counts.add(counts),
            None => edge.windows.push_back(Window { start: tally.window_start, counts }),
        }
        if edge.windows.len() > WINDOWS_KEPT
            && let Some(window) = edge.windows.pop_front()
        {
            let odd = [SignalKind::SpanErrors, SignalKind::SpanSlow].into_iter().any(|kind| {
                let usual = edge.base.expected(kind, window.counts.calls).map(by_chance);
                window.counts.of(kind) > usual.unwrap_or(SHARE_ODD * window.counts.calls)
            });
            edge.base.add(if odd { window.counts.divided(ODD_DIVISOR) } else { window.counts });
            if edge.base.calls > BASELINE_CALLS_MAX {
                edge.base = edge.base.divided(2.0);
            }
        }
    }
}

/// One tally of what two shards counted.
fn add_up(known: &mut Tally, more: &Tally) {
    known.calls = known.calls.saturating_add(more.calls);
    known.errors = known.errors.saturating_add(more.errors);
    known.duration_ns_sum = known.duration_ns_sum.saturating_add(more.duration_ns_sum);
    for (bucket, count) in &more.latency {
        match known.latency.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
            Ok(at) => known.latency[at].1 = known.latency[at].1.saturating_add(*count),
            Err(at) => known.latency.insert(at, (*bucket, *count)),
        }
    }
}

/// Sets baseline, observed share and strength from the counts of all shards.
///
/// The strength is the share of failed calls, with one successful call added for what was not seen. A share that
/// chance explains from the baseline is worth a tenth of that. What no count knows of keeps the strength it had, or has
/// that of its number.
pub fn share(signal: &mut Signal, edge: Option<&Edge>, before: Option<Score>) {
    signal.unit = "1".into();
    let mut recent = Counts::default();
    if let Some(edge) = edge {
        edge.windows.iter().rev().take(WINDOWS_RECENT).for_each(|window| recent.add(window.counts));
    }
    let (calls, bad) = (recent.calls, recent.of(signal.kind));
    if bad == 0.0 {
        let count = signal.count as f64;
        signal.strength = before.unwrap_or(Score::clamped(count / (count + 1.0)));
        return;
    }
    signal.observed = bad / calls;
    let mut strength = bad / (calls + 1.0);
    if bad / calls >= SHARE_ODD {
        strength = strength.max(0.5);
    }
    if let Some(expected) = edge.and_then(|e| e.base.expected(signal.kind, calls)) {
        signal.baseline = expected / calls;
        if bad <= by_chance(expected) {
            strength *= 0.1;
        }
    }
    signal.strength = Score::clamped(strength);
    signal.attributes.retain(|a| a.key != "calls" && a.key != "errors");
    signal.attributes.push(tapio_schemas::Attribute::new("calls", recent.calls as i64));
    signal.attributes.push(tapio_schemas::Attribute::new("errors", recent.errors as i64));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(window: u64, calls: u64, bucket: u16) -> Tally {
        Tally {
            window_start: UnixNanos(window * 5_000_000_000),
            window_ns: 5_000_000_000,
            from: Entity::namespaced("Service", "shop", "web"),
            to: Entity::namespaced("Service", "shop", "api"),
            calls,
            errors: calls / 10,
            duration_ns_sum: calls,
            latency: vec![(bucket, calls as u32)],
        }
    }

    #[test]
    fn what_is_usual_does_not_depend_on_which_shard_is_heard_first() {
        // One shard counts more, and slower calls, than the other.
        let parts: Vec<[Tally; 2]> = (0..40).map(|w| [tally(w, 900, 200), tally(w, 1000, 240)]).collect();
        let count = |turned: bool| {
            let (mut edges, mut out) = (Edges::default(), Vec::new());
            for pair in &parts {
                let mut pair = pair.clone();
                if turned {
                    pair.reverse();
                }
                let end = pair[0].window_start.plus(5_000_000_000);
                pair.into_iter().for_each(|tally| edges.wait(tally));
                edges.count_until(end, &mut out);
            }
            assert_eq!(out.len(), 40, "one of each window");
            assert_eq!((out[0].calls, out[0].latency.as_slice()), (1900, &[(200, 900), (240, 1000)][..]));
            let edge = edges.of(parts[0][0].from.clone(), parts[0][0].to.clone()).unwrap();
            (edge.pace, edge.base.calls, edge.base.slow)
        };
        assert_eq!(count(false), count(true));
    }

    #[test]
    fn what_waits_has_a_bound() {
        let mut edges = Edges::default();
        for number in 0..WAITING_MAX + 10 {
            let from = Entity::namespaced("Service", "shop", &format!("s{number}"));
            edges.wait(Tally { from, ..tally(0, 1, 200) });
        }
        edges.wait(Tally { from: Entity::namespaced("Service", "shop", "s0"), ..tally(0, 1, 200) });
        assert_eq!((edges.waiting_count, edges.refused), (WAITING_MAX, 10));
    }
}
