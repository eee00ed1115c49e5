//! The service model of stage two: what services usually do, and signals when they do something else.
//!
//! Stage one counts what requests did, per shard and window ([`tapio_schemas::service`]). Here the counts of all shards
//! are added up, window by window, once every shard has passed it, so nothing depends on the number of shards or on who
//! was heard first. Each detector compares a window with a reference that it learnt earlier and adds the result to a
//! CUSUM (`cusum`); what the sums say is told as signals (`book`) and enters the ordinary inference.
//!
//! A window is learnt only `HOLD_NS` later, and not at all where a sum says by then that it may have been part of what
//! is wrong. A cold reference says nothing.

mod book;
mod cusum;
mod durations;
mod flows;
mod levels;
mod loss;
mod meters;
mod odd;
mod retries;
mod say;
mod shapes;
mod state;
#[cfg(test)]
mod tests;
mod ways;
mod window;

use std::collections::{BTreeMap, VecDeque};

use smol_str::SmolStr;
use tapio_schemas::service::Measure;
use tapio_schemas::signal::EdgeKind;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Entity, Fact, Gap, Signal, Tally, UnixNanos};

pub use state::ServiceState;

use book::Book;
use durations::Watch;
use flows::Flows;
use meters::Meters;
use retries::Retries;
use ways::Ways;
use window::{Calls, Window};

const SECOND_NS: u64 = 1_000_000_000;
/// Grid of event time on which the model steps.
pub const STEP_NS: u64 = 5 * SECOND_NS;
/// A window waits so long before it is learnt.
const HOLD_NS: u64 = 45 * SECOND_NS;
/// Steps go on without anything new for so long, so that what is open can end.
const IDLE_NS: u64 = 120 * SECOND_NS;
/// Series of which nothing is heard for so long are forgotten.
const SILENT_NS: u64 = 3600 * SECOND_NS;
/// Operations whose own time has a reference.
const OWN_LEVELS_MAX: usize = 8192;
/// Edges and operations whose gap has a reference.
const GAP_LEVELS_MAX: usize = 16_384;
/// A loss that lasts longer casts doubt on the end of its time only: what is before has been judged.
const DOUBT_MAX_NS: u64 = 600 * SECOND_NS;
/// Windows that wait to be learnt; the oldest are dropped and counted.
const HELD_MAX: usize = 64;
/// Windows that wait until all shards have passed them, 15 min: what a restart reads again. Tallies of further ones are
/// refused and counted.
const WAITING_MAX: usize = 192;

/// The model.
#[derive(Debug)]
pub struct Services {
    cluster: SmolStr,
    /// By end.
    waiting: BTreeMap<UnixNanos, Window>,
    held: VecDeque<Window>,
    step: UnixNanos,
    newest: UnixNanos,
    own: Watch<Entity>,
    gaps: Watch<(Entity, Entity)>,
    ways: Ways,
    meters: Meters,
    flows: Flows,
    retries: Retries,
    book: Book,
    states: state::States,
    refused: u64,
    dropped: u64,
    /// Windows whose requests were not judged, because events of their time were lost.
    doubtful: u64,
}

impl Services {
    /// Knows nothing yet.
    pub fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.into(),
            waiting: BTreeMap::new(),
            held: VecDeque::new(),
            step: UnixNanos(0),
            newest: UnixNanos(0),
            own: Watch::new(OWN_LEVELS_MAX),
            gaps: Watch::new(GAP_LEVELS_MAX),
            ways: Ways::default(),
            meters: Meters::default(),
            flows: Flows::default(),
            retries: Retries::default(),
            book: Book::default(),
            states: state::States::default(),
            refused: 0,
            dropped: 0,
            doubtful: 0,
        }
    }

    /// Takes what shards counted out of a section.
    pub fn apply(&mut self, section: &mut SignalSection) {
        for tally in std::mem::take(&mut section.operations) {
            let end = tally.window_start.plus(tally.window_ns);
            let start = tally.window_start;
            self.add(start, end, |window| window.add_requests(tally));
        }
        for tally in std::mem::take(&mut section.call_gaps) {
            let end = tally.window_start.plus(tally.window_ns);
            let start = tally.window_start;
            self.add(start, end, |window| window.add_gaps(tally));
        }
        for gap in &section.gaps {
            self.doubt(gap);
        }
        for meter in std::mem::take(&mut section.meters) {
            let end = ceil(meter.at.plus(1));
            self.add(end.minus(STEP_NS), end, |window| window.add_meter(meter));
        }
    }

    /// Takes what a shard counted of an edge. Its other readers keep it.
    pub fn count(&mut self, tally: &Tally) {
        let end = tally.window_start.plus(tally.window_ns);
        let calls = Calls { count: tally.calls, failed: tally.errors };
        self.add(tally.window_start, end, |window| window.add_calls(&tally.from, &tally.to, calls));
    }

    /// Takes an edge of the entity graph.
    pub fn hear(&mut self, fact: &Fact) {
        if fact.edge == EdgeKind::SameAs && !fact.gone {
            let end = ceil(fact.at);
            self.add(end.minus(STEP_NS), end, |window| window.add_same(&fact.from, &fact.to));
        }
    }

    /// Events were lost: every window that their requests may be part of knows.
    fn doubt(&mut self, gap: &Gap) {
        let last = ceil(gap.to).plus(STEP_NS);
        let mut end = ceil(gap.from).max(last.minus(DOUBT_MAX_NS));
        while end <= last {
            self.add(end.minus(STEP_NS), end, |window| {
                window.lost = window.lost.saturating_add(gap.lost);
                true
            });
            end = end.plus(STEP_NS);
        }
    }

    fn add(&mut self, start: UnixNanos, end: UnixNanos, add: impl FnOnce(&mut Window) -> bool) {
        // What comes late counts now.
        let end = ceil(end).max(self.step.plus(STEP_NS));
        if !self.waiting.contains_key(&end) && self.waiting.len() >= WAITING_MAX {
            self.refused += 1;
            return;
        }
        let window = self.waiting.entry(end).or_insert_with(|| Window::new(start));
        window.start = window.start.min(start);
        self.refused += u64::from(!add(window));
    }

    /// Next moment at which something may change.
    pub fn next_step(&self) -> Option<UnixNanos> {
        let waiting = self.waiting.first_key_value().map(|(end, _)| *end);
        let is_idle = self.step > self.newest.plus(IDLE_NS) && self.book.is_empty() && self.held.is_empty();
        let next = (!is_idle && self.step.0 > 0).then(|| ceil(self.step.plus(1)));
        waiting.into_iter().chain(next).min()
    }

    /// All shards have passed `step`: compares, learns, tells.
    pub fn run(&mut self, step: UnixNanos, out: &mut Vec<Signal>) {
        self.step = step;
        self.meters.fade(step);
        while let Some(entry) = self.waiting.first_entry().filter(|entry| *entry.key() <= step) {
            self.newest = self.newest.max(*entry.key());
            let mut window = entry.remove();
            self.refused += window.trim();
            if window.is_doubtful() {
                window.requests.clear();
                window.gaps.clear();
                window.calls.clear();
                self.doubtful += 1;
            }
            self.retries.resolve(&mut window);
            self.observe(&window);
            self.held.push_back(window);
        }
        while self.held.len() > HELD_MAX {
            self.held.pop_front();
            self.dropped += 1;
        }
        while let Some(window) = self.held.pop_front_if(|w| w.start.plus(HOLD_NS) <= step) {
            self.learn(&window);
        }
        self.flows.compare(step);
        let deviations = self.deviations();
        self.book.tell(&self.cluster, step, deviations, out);
        self.prune();
        let is_quiet = self.book.is_empty();
        self.states.look(step, is_quiet, &self.gaps.series, self.meters.cpu());
    }

    fn observe(&mut self, window: &Window) {
        for (service, operations) in grouped(&window.requests) {
            let own = operations.iter().map(|(operation, requests)| (*operation, &requests.own));
            self.own.observe(window.start, service, own);
        }
        for (edge, operations) in grouped(&window.gaps) {
            self.gaps.observe(window.start, edge, operations.into_iter());
        }
        self.ways.observe(window);
        self.retries.observe(window);
        let mut meters: Vec<_> = window.meters.iter().collect();
        meters.sort_by_key(|(key, said)| (said.0, *key));
        for ((service, key), said) in meters {
            if key.1 == Measure::RequestsPerSecond {
                self.flows.observe(said.0, service, &key.0, said.1);
            } else {
                self.meters.observe(service, key, *said);
            }
        }
    }

    fn learn(&mut self, window: &Window) {
        for (service, operations) in grouped(&window.requests) {
            let own = operations.iter().map(|(operation, requests)| (*operation, &requests.own));
            self.own.learn(window.start, self.step, service, own);
        }
        for (edge, operations) in grouped(&window.gaps) {
            self.gaps.learn(window.start, self.step, edge, operations.into_iter());
        }
        self.ways.learn(window, self.step);
        self.retries.learn(window, self.step);
    }

    fn prune(&mut self) {
        if self.step.0.is_multiple_of(60 * SECOND_NS) {
            let old = self.step.minus(SILENT_NS);
            self.own.prune(old);
            self.gaps.prune(old);
        }
    }

    /// What has changed about the state of services.
    pub fn take_states(&mut self) -> Vec<ServiceState> {
        self.states.take()
    }

    /// Oldest event time that open signals need.
    pub fn low_water(&self) -> Option<UnixNanos> {
        self.book.oldest().into_iter().chain(self.waiting.values().map(|w| w.start)).min()
    }

    /// What was refused or forgotten, by reason.
    pub fn losses(&self) -> [(&'static str, u64); 7] {
        let evicted = self.own.evicted + self.gaps.evicted + self.ways.evicted + self.meters.evicted;
        let evicted = evicted + self.retries.evicted;
        [
            ("service_refused", self.refused + self.book.refused),
            ("service_unlearnt", self.dropped),
            ("service_evicted", evicted),
            ("service_flows_refused", self.flows.refused),
            ("service_doubtful", self.doubtful),
            ("service_unfollowed", self.ways.unfollowed),
            ("service_unseasoned", self.meters.unseasoned),
        ]
    }
}

fn ceil(at: UnixNanos) -> UnixNanos {
    UnixNanos(at.0.div_ceil(STEP_NS).saturating_mul(STEP_NS))
}

/// Entries by the first part of their key, in order.
fn grouped<K: Ord, V>(entries: &BTreeMap<(K, SmolStr), V>) -> BTreeMap<&K, Vec<(&SmolStr, &V)>> {
    let mut groups: BTreeMap<&K, Vec<(&SmolStr, &V)>> = BTreeMap::new();
    for ((key, name), value) in entries {
        groups.entry(key).or_default().push((name, value));
    }
    groups
}

/// Forgets a sixteenth of a table that is over its limit, the longest silent; returns how many.
fn make_room<K: Ord + Clone, V>(
    table: &mut BTreeMap<K, V>,
    count_max: usize,
    seen: impl Fn(&V) -> UnixNanos,
) -> u64 {
    if table.len() <= count_max {
        return 0;
    }
    let mut all: Vec<(UnixNanos, K)> = table.iter().map(|(k, v)| (seen(v), k.clone())).collect();
    all.sort();
    let surplus = table.len() - count_max + count_max / 16;
    for (_, key) in all.into_iter().take(surplus) {
        table.remove(&key);
    }
    surplus as u64
}
