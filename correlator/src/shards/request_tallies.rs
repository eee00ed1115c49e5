//! Counts of requests by window: what stage two adds up over all shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::HashMap;
use tapio_schemas::service::Histogram;
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{CallGapTally, EventId, OperationTally, Shape, Step, UnixNanos};

use super::calls::latency_bucket;
use super::counters::Counters;
use super::entities::Known;
use super::texts::{TextId, Texts};

/// Operations, and edges with operations, counted per shard and window; further ones are counted and left out.
const OPERATIONS_MAX: usize = 4096;
/// Shapes kept per operation and window; requests of further ones are `unshaped`.
const SHAPES_MAX: usize = 64;
/// Shapes kept per shard and window over all operations; beyond, requests of further ones are `unshaped` too.
const SHAPES_OF_WINDOW_MAX: usize = 4096;
/// Steps in one tally: a message holds at least one. What has more is told in several.
const STEPS_PER_TALLY_MAX: usize = 512;

/// Windows that have not ended.
pub struct RequestTallies {
    window_ns: u64,
    windows: BTreeMap<u64, Window>,
    /// Time in which events were lost; the last such stretch.
    doubted: (UnixNanos, UnixNanos),
}

#[derive(Default)]
struct Window {
    operations: HashMap<(u128, TextId), Operation>,
    gaps: HashMap<(u128, u128, TextId), Gap>,
    shapes: usize,
}

struct Operation {
    of: Arc<Known>,
    requests: u64,
    own_time: Histogram,
    shapes: Vec<Counted>,
    unshaped: u64,
    /// Longest duration, and whose it was.
    slowest: (u64, EventId),
}

struct Counted {
    id: u64,
    count: u32,
    steps: Vec<TextId>,
    inner: Vec<u64>,
    evidence: EventId,
}

struct Gap {
    from: Arc<Known>,
    to: Arc<Known>,
    gap: Histogram,
    largest: (u64, EventId),
}

/// A request that a service has answered.
pub struct Request<'a> {
    /// When it is counted.
    pub at: UnixNanos,
    /// Its entry span.
    pub id: EventId,
    /// Who answered.
    pub of: &'a Arc<Known>,
    /// What was asked for.
    pub operation: TextId,
    /// Duration of the entry span, ns.
    pub duration_ns: u64,
    /// Time spent in the service itself, ns.
    pub own_ns: u64,
    /// Sorted.
    pub steps: &'a [TextId],
    /// Sorted.
    pub inner: &'a [u64],
    /// Its steps are not all known.
    pub is_partial: bool,
}

impl Request<'_> {
    /// Identity of the way it went.
    pub fn shape(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
        // The number of an operation knows its service.
        hash.update(&self.operation.to_le_bytes());
        hash.update(&(self.steps.len() as u32).to_le_bytes());
        for part in self.steps.iter().chain(self.inner) {
            hash.update(&part.to_le_bytes());
        }
        hash.digest()
    }
}

/// A call of which both ends are known.
pub struct TwoEnds<'a> {
    /// When it is counted.
    pub at: UnixNanos,
    /// The client span.
    pub id: EventId,
    /// Caller.
    pub from: &'a Arc<Known>,
    /// Callee.
    pub to: &'a Arc<Known>,
    /// What was called.
    pub operation: TextId,
    /// What the client waited beyond what its server took, ns.
    pub gap_ns: u64,
}

impl RequestTallies {
    /// No windows yet.
    pub fn new(window_ns: u64) -> Self {
        Self { window_ns: window_ns.max(1), windows: BTreeMap::new(), doubted: Default::default() }
    }

    /// Counts a request; the identity of its shape.
    pub fn request(&mut self, request: &Request<'_>, counters: &mut Counters) -> u64 {
        let shape = request.shape();
        let Window { operations, shapes, .. } = self.window(request.at);
        let key = (request.of.tenant_id, request.operation);
        if operations.len() >= OPERATIONS_MAX && !operations.contains_key(&key) {
            counters.evicted.operations += 1;
            return shape;
        }
        let operation = operations.entry(key).or_insert_with(|| Operation {
            of: Arc::clone(request.of),
            requests: 0,
            own_time: Vec::new(),
            shapes: Vec::new(),
            unshaped: 0,
            slowest: (0, EventId(0)),
        });
        operation.requests += 1;
        add(&mut operation.own_time, latency_bucket(request.own_ns));
        slower(&mut operation.slowest, request.duration_ns, request.id);
        if request.is_partial {
            operation.unshaped += 1;
            return shape;
        }
        match operation.shapes.iter().position(|known| known.id == shape) {
            Some(at) => operation.shapes[at].count += 1,
            None if operation.shapes.len() >= SHAPES_MAX || *shapes >= SHAPES_OF_WINDOW_MAX => {
                operation.unshaped += 1;
                counters.evicted.shapes += 1;
            }
            None => {
                *shapes += 1;
                operation.shapes.push(Counted {
                    id: shape,
                    count: 1,
                    steps: request.steps.to_vec(),
                    inner: request.inner.to_vec(),
                    evidence: request.id,
                });
            }
        }
        shape
    }

    /// Counts what a call took between its ends.
    pub fn call(&mut self, call: &TwoEnds<'_>, counters: &mut Counters) {
        let gaps = &mut self.window(call.at).gaps;
        let key = (call.from.tenant_id, call.to.tenant_id, call.operation);
        if gaps.len() >= OPERATIONS_MAX && !gaps.contains_key(&key) {
            counters.evicted.operations += 1;
            return;
        }
        let edge = gaps.entry(key).or_insert_with(|| Gap {
            from: Arc::clone(call.from),
            to: Arc::clone(call.to),
            gap: Vec::new(),
            largest: (0, EventId(0)),
        });
        add(&mut edge.gap, latency_bucket(call.gap_ns));
        slower(&mut edge.largest, call.gap_ns, call.id);
    }

    /// End of the earliest window.
    pub fn due(&self) -> Option<UnixNanos> {
        self.windows.keys().next().map(|start| UnixNanos(start + self.window_ns))
    }

    /// Windows that touch the time after `from`, up to `until`, are not told. Of several losses in time that is not told yet,
    /// everything between them is doubted too.
    pub fn doubt(&mut self, from: UnixNanos, until: UnixNanos) {
        let open = self.windows.keys().next().is_some_and(|start| self.doubted.1.0 >= *start);
        self.doubted =
            if open { (self.doubted.0.min(from), self.doubted.1.max(until)) } else { (from, until) };
    }

    /// Tells the windows that have ended.
    pub fn tell(&mut self, step: UnixNanos, texts: &Texts, out: &mut SignalSection, counters: &mut Counters) {
        while let Some(entry) = self.windows.first_entry() {
            let start = *entry.key();
            if start + self.window_ns > step.0 {
                break;
            }
            let window = entry.remove();
            if start + self.window_ns > self.doubted.0.0 && start < self.doubted.1.0 {
                let requests = window.operations.values().map(|operation| operation.requests);
                counters.evicted.doubted += requests.sum::<u64>();
                continue;
            }
            let (first, first_gap) = (out.operations.len(), out.call_gaps.len());
            for ((_, id), operation) in window.operations {
                self.tell_operation(start, id, operation, texts, &mut out.operations);
            }
            for ((_, _, id), edge) in window.gaps {
                out.call_gaps.push(CallGapTally {
                    window_start: UnixNanos(start),
                    window_ns: self.window_ns,
                    from: edge.from.tenant.clone(),
                    to: edge.to.tenant.clone(),
                    operation: texts.name(id),
                    gap: edge.gap,
                    evidence: edge.largest.1,
                });
            }
            // Stable: the parts of one operation stay in their order.
            out.operations[first..]
                .sort_by(|a, b| (&a.service, &a.operation).cmp(&(&b.service, &b.operation)));
            out.call_gaps[first_gap..]
                .sort_by(|a, b| (&a.from, &a.to, &a.operation).cmp(&(&b.from, &b.to, &b.operation)));
        }
    }

    fn tell_operation(
        &self,
        start: u64,
        id: TextId,
        operation: Operation,
        texts: &Texts,
        out: &mut Vec<OperationTally>,
    ) {
        let mut tally = OperationTally {
            window_start: UnixNanos(start),
            window_ns: self.window_ns,
            service: operation.of.tenant.clone(),
            operation: texts.name(id),
            requests: operation.requests,
            own_time: operation.own_time,
            shapes: Vec::new(),
            unshaped: operation.unshaped,
            evidence: operation.slowest.1,
        };
        let mut room = STEPS_PER_TALLY_MAX;
        for counted in operation.shapes {
            let cost = counted.steps.len() + counted.inner.len();
            if cost > room && !tally.shapes.is_empty() {
                let rest = OperationTally {
                    requests: 0,
                    unshaped: 0,
                    own_time: Vec::new(),
                    shapes: Vec::new(),
                    ..tally.clone()
                };
                out.push(std::mem::replace(&mut tally, rest));
                room = STEPS_PER_TALLY_MAX;
            }
            room = room.saturating_sub(cost);
            let mut steps: Vec<Step> = counted.steps.iter().filter_map(|id| texts.step(*id)).collect();
            steps.sort_unstable();
            tally.shapes.push(Shape {
                id: counted.id,
                count: counted.count,
                steps,
                inner: counted.inner,
                evidence: counted.evidence,
            });
        }
        out.push(tally);
    }

    /// Windows are open on the left, as steps are, so that a window ends exactly with a step.
    fn window(&mut self, at: UnixNanos) -> &mut Window {
        self.windows.entry(at.0.saturating_sub(1) / self.window_ns * self.window_ns).or_default()
    }
}

fn add(histogram: &mut Histogram, bucket: u16) {
    match histogram.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
        Ok(at) => histogram[at].1 += 1,
        Err(at) => histogram.insert(at, (bucket, 1)),
    }
}

fn slower(slowest: &mut (u64, EventId), ns: u64, id: EventId) {
    if slowest.1.0 == 0 || ns > slowest.0 || (ns == slowest.0 && id < slowest.1) {
        *slowest = (ns, id);
    }
}
