//! Requests: spans become counts of what a service did for each request, and on which way it went.
//!
//! A span waits for a short while after its end ([`Grace`]) and is then closed: its children, which ended before it, and its
//! log lines are put together with it. What is counted of a request is the time that the service spent itself (durations without
//! the union of their children, over all spans of the service), the set of its steps (spans within, calls to others, log
//! templates) and, between the two ends of a call, the gap.
//!
//! Start times of two services are never compared to find who waits for whom: clocks differ. A gap is the
//! difference of two durations.

use std::collections::VecDeque;

use foldhash::{HashMap, HashMapExt};
use tapio_schemas::payload::SpanKind;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{EventId, UnixNanos};

use super::counters::Counters;
use super::grace::Grace;
use super::open_span::{Key, NONE, Node, State};
use super::record::{LineRecord, SpanRecord};
use super::request_tallies::{Request, RequestTallies, TwoEnds};
use super::texts::{TextId, Texts};

/// Children and lines wait so long for their span.
const WAIT_NS: u64 = 60_000_000_000;
/// What has waited so long for its span has lost it: its trace was sampled out, or its sender does not tell all.
const ORPHAN_NS: u64 = 15_000_000_000;
/// A request that began no longer than this before the first span heard of counts as whole: that span may be its own.
const SHORT_NS: u64 = 1_000_000_000;
/// Requests that end so long after a loss may miss some of their spans.
const DOUBT_NS: u64 = 5_000_000_000;
/// Event time between two looks for what waits in vain.
const SWEEP_NS: u64 = 5_000_000_000;
/// Spans under way per shard; those that wait longest for their parent are forgotten.
const OPEN_MAX: usize = 16_384;
/// Log lines under way per shard; further ones are left out.
const LINES_MAX: usize = 16_384;
/// Children of one span. Further ones count for themselves, and the way of their parent's request is not known.
const CHILDREN_MAX: u32 = 1024;
/// Steps of a request; further ones are left out.
const STEPS_MAX: usize = 64;
/// Shapes of requests to others within a request; further ones are left out.
const INNER_MAX: usize = 32;
/// Sets that are kept to be used again: so many, each no larger than this.
const SPARE_MAX: usize = 4096;
const SPARE_CAPACITY_MAX: usize = 64;

/// All requests under way in a shard.
pub struct Requests {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// What waits for a span, by that span.
    families: HashMap<Key, Family>,
    /// Spans in the order in which they are closed.
    closing: VecDeque<(UnixNanos, u32, u32)>,
    lines: Vec<Line>,
    free_lines: Vec<u32>,
    ran: UnixNanos,
    /// End of the first span heard of. A request that was long under way may miss what ended before.
    since: Option<UnixNanos>,
    /// How long spans are waited with.
    pub grace: Grace,
    /// Step at which room was looked for in vain.
    searched: Option<UnixNanos>,
    swept: UnixNanos,
    tallies: RequestTallies,
    /// Used again: spans that are closed together, children's intervals, sets.
    order: Vec<u32>,
    intervals: Vec<(u64, u64)>,
    spare: Vec<Vec<u64>>,
    ages: Vec<(UnixNanos, Key)>,
}

struct Family {
    since: UnixNanos,
    children: u32,
    first_child: u32,
    first_line: u32,
}

struct Line {
    template: TextId,
    next: u32,
}

impl Requests {
    /// None yet.
    pub fn new(window_ns: u64) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            families: HashMap::new(),
            closing: VecDeque::new(),
            lines: Vec::new(),
            free_lines: Vec::new(),
            ran: UnixNanos(0),
            since: None,
            grace: Grace::default(),
            searched: None,
            swept: UnixNanos(0),
            tallies: RequestTallies::new(window_ns),
            order: Vec::new(),
            intervals: Vec::new(),
            spare: Vec::new(),
            ages: Vec::new(),
        }
    }

    /// Takes a span in its order of time.
    pub fn span(&mut self, span: &SpanRecord, counters: &mut Counters) {
        if span.trace.0 == 0 || span.span.0 == 0 {
            return;
        }
        // Within a step no place gets free again: one search is enough.
        if self.nodes.len() >= OPEN_MAX && self.free.is_empty() && self.searched != Some(self.ran) {
            self.make_room(counters, |family| family.children > 0);
            if self.free.is_empty() {
                self.searched = Some(self.ran);
            }
        }
        if self.nodes.len() >= OPEN_MAX && self.free.is_empty() {
            // All of them are within their grace.
            counters.evicted.open_spans += 1;
            self.doubt((span.at, span.at));
            return;
        }
        let has_parent = span.parent.0 != 0 && span.parent != span.span;
        if has_parent && self.grace.see(span.at, self.ran) {
            self.doubt((span.at, self.ran));
        }
        let at = self.place(span, has_parent);
        let close = span.at.plus(self.grace.ns()).max(self.ran.plus(1));
        let close = self.closing.back().map_or(close, |(last, _, _)| close.max(*last));
        let generation = self.node(at).generation;
        self.closing.push_back((close, at, generation));
        if has_parent {
            self.join(at, (span.trace, span.parent), span.at, counters);
        }
    }

    /// Takes a log line that belongs to a span.
    pub fn line(&mut self, line: &LineRecord, counters: &mut Counters) {
        if self.free_lines.is_empty() && self.lines.len() >= LINES_MAX {
            self.make_room(counters, |family| family.first_line != NONE);
        }
        if self.free_lines.is_empty() && self.lines.len() >= LINES_MAX {
            counters.evicted.open_lines += 1;
            self.doubt((line.at, line.at));
            return;
        }
        let family = self.families.entry((line.trace, line.span)).or_insert_with(|| family(line.at));
        let cell = Line { template: line.template, next: family.first_line };
        family.first_line = match self.free_lines.pop() {
            Some(at) => {
                self.lines[at as usize] = cell;
                at
            }
            None => {
                self.lines.push(cell);
                (self.lines.len() - 1) as u32
            }
        };
    }

    /// Closes the spans whose grace is over. Where there is hardly any room, nobody who is late is waited for.
    pub fn run(&mut self, step: UnixNanos, counters: &mut Counters) {
        let (count, was_hurried) = (self.count(), self.grace.is_hurried());
        self.grace.hurry(count > if was_hurried { OPEN_MAX / 2 } else { OPEN_MAX / 4 * 3 });
        while let Some((close, at, generation)) = self.closing.front().copied() {
            let is_over = self.grace.is_hurried() && self.node(at).end + self.grace.ns() <= step.0;
            if close > step && !is_over {
                break;
            }
            self.closing.pop_front();
            let node = self.node(at);
            if node.generation == generation && node.state == State::Open {
                self.close(at, close, counters);
            }
        }
        self.ran = self.ran.max(step);
        if step.since(self.swept) >= SWEEP_NS {
            self.swept = UnixNanos(step.0 - step.0 % SWEEP_NS);
            self.sweep(step.minus(WAIT_NS), counters);
        }
    }

    /// Events of this shard with times `from` to `to` were lost: what is counted of requests of then is not told, because a
    /// step that was not seen is no step that was not done.
    pub fn doubt(&mut self, (from, to): (UnixNanos, UnixNanos)) {
        // They are counted when they are closed.
        self.tallies.doubt(from, to.plus(DOUBT_NS + self.grace.late_ns()));
    }

    /// Tells the windows that have ended.
    pub fn tell(&mut self, step: UnixNanos, texts: &Texts, out: &mut SignalSection, counters: &mut Counters) {
        self.tallies.tell(step, texts, out, counters);
    }

    /// When there is something to do next.
    pub fn due(&self) -> Option<UnixNanos> {
        let closing = self.closing.front().map(|(close, _, _)| *close);
        closing.into_iter().chain(self.tallies.due()).min()
    }

    /// Spans held.
    pub fn count(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    fn place(&mut self, span: &SpanRecord, has_parent: bool) -> u32 {
        let place = self.free.pop();
        let generation = place.map_or(0, |at| self.node(at).generation);
        let mut node = Node::new(span, has_parent, generation);
        node.is_partial = node.start.saturating_add(SHORT_NS) < self.since.get_or_insert(span.at).0;
        match place {
            Some(at) => {
                *self.node_mut(at) = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    fn join(&mut self, at: u32, parent: Key, since: UnixNanos, counters: &mut Counters) {
        let family = self.families.entry(parent).or_insert_with(|| family(since));
        if family.children >= CHILDREN_MAX {
            counters.evicted.children += 1;
            self.node_mut(at).is_detached = true;
            return;
        }
        family.children += 1;
        let next = std::mem::replace(&mut family.first_child, at);
        self.node_mut(at).next = next;
    }

    /// Closes a span, and before it those below it that are still open: by a clock that is ahead they end after it.
    fn close(&mut self, at: u32, now: UnixNanos, counters: &mut Counters) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.push(at);
        self.node_mut(at).state = State::Closing;
        let mut next = 0;
        while let Some(at) = order.get(next).copied() {
            next += 1;
            let key = self.node(at).key;
            let Some(family) = self.families.remove(&key) else { continue };
            let node = self.node_mut(at);
            (node.first_child, node.first_line) = (family.first_child, family.first_line);
            node.is_partial |= family.children >= CHILDREN_MAX;
            let mut child = family.first_child;
            while child != NONE {
                let node = self.node_mut(child);
                if node.state == State::Open {
                    node.state = State::Closing;
                    order.push(child);
                }
                child = node.next;
            }
        }
        // Each was found after its parent: backwards, children come first.
        for at in order.iter().rev() {
            self.reduce(*at, now, counters);
        }
        self.order = order;
    }

    fn reduce(&mut self, at: u32, now: UnixNanos, counters: &mut Counters) {
        let mut steps = self.spare.pop().unwrap_or_default();
        let mut inner = self.spare.pop().unwrap_or_default();
        let mut own_ns = 0u64;
        let mut remote_ns = 0u64;
        let mut is_partial = self.node(at).is_partial;
        // The first to end of those of other services.
        let mut callee: Option<(u64, EventId, u32)> = None;
        self.intervals.clear();
        let (tenant, first) = (self.node(at).of.tenant_id, self.node(at).first_child);
        let mut child = first;
        while child != NONE {
            let next = self.node(child).next;
            if self.node(child).state == State::Closed {
                if self.node(child).of.tenant_id != tenant && !self.node(child).is_counted {
                    self.count_request(child, now, counters);
                }
                let node = &self.nodes[child as usize];
                self.intervals.push((node.start, node.end));
                steps.push(node.operation);
                if node.of.tenant_id == tenant {
                    own_ns = own_ns.saturating_add(node.own_ns);
                    is_partial |= node.is_partial;
                    steps.extend_from_slice(&node.steps);
                    inner.extend_from_slice(&node.inner);
                } else {
                    inner.push(node.shape);
                    remote_ns = remote_ns.saturating_add(node.duration_ns());
                    let this = (node.end, node.id, child);
                    callee = Some(callee.map_or(this, |known| known.min(this)));
                }
            }
            child = next;
        }
        steps.extend(self.node(at).failed_call);
        self.take_lines(at, &mut steps);
        counters.evicted.steps += as_set(&mut steps, STEPS_MAX) + as_set(&mut inner, INNER_MAX);
        let covered_ns = self.covered(at);
        let node = self.node_mut(at);
        let is_call = matches!(node.kind, SpanKind::Client | SpanKind::Producer);
        if !is_call {
            // What a client span waits for is its callee's time, seen or not.
            own_ns = own_ns.saturating_add(node.duration_ns().saturating_sub(covered_ns));
        }
        (node.own_ns, node.steps, node.inner) = (own_ns, steps, inner);
        node.is_partial = is_partial;
        node.state = State::Closed;
        if self.node(at).kind == SpanKind::Client
            && let Some((_, _, callee)) = callee
        {
            let (node, to) = (&self.nodes[at as usize], &self.nodes[callee as usize]);
            let call = TwoEnds {
                at: now,
                id: node.id,
                from: &node.of,
                to: &to.of,
                operation: to.operation,
                gap_ns: node.duration_ns().saturating_sub(remote_ns),
            };
            self.tallies.call(&call, counters);
        }
        if self.node(at).is_entry() {
            self.count_request(at, now, counters);
        }
        self.let_go_children(first);
        if self.node(at).is_detached {
            self.let_go(at);
        }
    }

    fn count_request(&mut self, at: u32, now: UnixNanos, counters: &mut Counters) {
        let node = &self.nodes[at as usize];
        let request = Request {
            at: now,
            id: node.id,
            of: &node.of,
            operation: node.operation,
            duration_ns: node.duration_ns(),
            own_ns: node.own_ns,
            steps: &node.steps,
            inner: &node.inner,
            is_partial: node.is_partial,
        };
        let shape = self.tallies.request(&request, counters);
        let node = self.node_mut(at);
        (node.shape, node.is_counted) = (shape, true);
    }

    fn take_lines(&mut self, at: u32, steps: &mut Vec<TextId>) {
        let mut line = std::mem::replace(&mut self.node_mut(at).first_line, NONE);
        while line != NONE {
            let cell = &self.lines[line as usize];
            steps.push(cell.template);
            self.free_lines.push(line);
            line = cell.next;
        }
    }

    /// Time of a span that its children cover, ns.
    fn covered(&mut self, at: u32) -> u64 {
        let (start, end) = (self.node(at).start, self.node(at).end);
        self.intervals.sort_unstable();
        let (mut covered, mut until) = (0, start);
        for (from, to) in &self.intervals {
            let (from, to) = ((*from).max(until), (*to).min(end));
            if to > from {
                covered += to - from;
                until = to;
            }
        }
        covered
    }

    fn let_go_children(&mut self, first: u32) {
        let mut child = first;
        while child != NONE {
            let node = self.node_mut(child);
            let next = node.next;
            if node.state == State::Closed {
                self.let_go(child);
            } else {
                // A span that is its own ancestor: it goes when it is through.
                node.is_detached = true;
            }
            child = next;
        }
    }

    fn let_go(&mut self, at: u32) {
        let node = self.node_mut(at);
        node.state = State::Free;
        node.generation = node.generation.wrapping_add(1);
        let sets = [std::mem::take(&mut node.steps), std::mem::take(&mut node.inner)];
        for mut set in sets {
            if (1..=SPARE_CAPACITY_MAX).contains(&set.capacity()) && self.spare.len() < SPARE_MAX {
                set.clear();
                self.spare.push(set);
            }
        }
        self.free.push(at);
    }

    /// Forgets what has waited for its span since before `horizon`.
    fn sweep(&mut self, horizon: UnixNanos, counters: &mut Counters) {
        let mut ages = std::mem::take(&mut self.ages);
        ages.clear();
        ages.extend(self.families.iter().filter(|(_, f)| f.since < horizon).map(|(key, f)| (f.since, *key)));
        for (_, key) in &ages {
            counters.evicted.unparented += self.forget(key);
        }
        self.ages = ages;
    }

    /// Forgets the eighth of those families that has waited longest: the search costs as much for one as for many.
    fn make_room(&mut self, counters: &mut Counters, of: impl Fn(&Family) -> bool) {
        let mut ages = std::mem::take(&mut self.ages);
        ages.clear();
        ages.extend(self.families.iter().filter(|(_, f)| of(f)).map(|(key, f)| (f.since, *key)));
        ages.sort_unstable();
        ages.truncate(ages.len().div_ceil(8));
        for (_, key) in &ages {
            counters.evicted.open_spans += self.forget(key);
        }
        if let Some((since, _)) = ages.last().filter(|(since, _)| self.ran.since(*since) < ORPHAN_NS) {
            self.doubt((*since, self.ran));
        }
        self.ages = ages;
    }

    /// Forgets what waits for a span; how much.
    fn forget(&mut self, key: &Key) -> u64 {
        let Some(family) = self.families.remove(key) else { return 0 };
        let mut child = family.first_child;
        while child != NONE {
            let node = self.node_mut(child);
            let next = node.next;
            node.is_detached = true;
            if node.state == State::Closed {
                self.let_go(child);
            }
            child = next;
        }
        let (mut line, mut lines) = (family.first_line, 0);
        while line != NONE {
            self.free_lines.push(line);
            line = self.lines[line as usize].next;
            lines += 1;
        }
        u64::from(family.children) + lines
    }
}

fn family(since: UnixNanos) -> Family {
    Family { since, children: 0, first_child: NONE, first_line: NONE }
}

/// Sorted, each once, at most so many; how many were left out.
fn as_set(values: &mut Vec<u64>, count_max: usize) -> u64 {
    values.sort_unstable();
    values.dedup();
    let over = values.len().saturating_sub(count_max);
    values.truncate(count_max);
    over as u64
}
