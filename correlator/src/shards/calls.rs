//! Spans: who calls whom, how often, how long, and what fails.
//!
//! A client span is united with its callee by the server span that is its child in the same trace, which ends before it
//! does; else by the name the client calls it. Traces are spread over all shards, so failures said here are
//! parts that stage two unites (see `unite.rs`), and counts are tallies that it adds up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::payload::SpanKind;
use tapio_schemas::signal::EdgeKind;
use tapio_schemas::{EntityRef, Fact, ShardKey, SignalKind, Tally, UnixNanos};

use super::callees::Callees;
use super::counters::Counters;
use super::episode::Observation;
use super::record::{Failure, SpanRecord, entity_identity, hash_parts};
use super::topology::Topology;
use crate::config::{SignalConfig, nanos};

/// Spans of a shard.
pub struct Calls {
    window_ns: u64,
    edges_max: usize,
    callees: Callees,
    /// Callees by the names that clients call them, and the clients' namespaces.
    names: HashMap<u128, Option<Arc<Node>>>,
    /// By start of the window: counts by edge.
    windows: BTreeMap<u64, HashMap<EdgeId, Counts>>,
    paces: HashMap<EdgeId, Pace>,
}

/// Identities of both ends.
type EdgeId = (u128, u128);

/// A node of the entity graph and its identity.
struct Node {
    entity: Entity,
    id: u128,
}

/// One end of a call.
type End<'a> = (&'a Entity, u128);

/// How long calls of an edge usually take in this shard.
///
/// The bucket follows the median by small steps (frugal streaming: Ma, Muthukrishnan and Sandler, 2013): no
/// histogram, and a sudden slowness does not become usual within some hundred calls.
#[derive(Debug, Clone, Copy)]
struct Pace {
    bucket: f64,
    seen: u32,
}

/// Calls before an edge's pace is trusted.
const PACE_CALLS_MIN: u32 = 30;
/// Step of the median once it is trusted, buckets.
const PACE_STEP: f64 = 0.05;
/// A call this many times slower than usual is slow: 16 buckets are a factor of four.
pub const SLOW_BUCKETS: f64 = 16.0;
/// … and slower by at least this.
pub const SLOW_EXTRA_NS: u64 = 50_000_000;

impl Pace {
    /// Takes a call; the usual duration in ns when the call is slow.
    fn next(&mut self, duration_ns: u64) -> Option<u64> {
        let bucket = f64::from(latency_bucket(duration_ns));
        let trusted = self.seen >= PACE_CALLS_MIN;
        let usual_ns = bucket_ns(self.bucket);
        let slow = trusted
            && bucket >= self.bucket + SLOW_BUCKETS
            && duration_ns >= usual_ns.saturating_add(SLOW_EXTRA_NS);
        let step = if trusted { PACE_STEP } else { 1.0 };
        if bucket > self.bucket {
            self.bucket += step;
        } else if bucket < self.bucket {
            self.bucket -= step;
        }
        self.seen = self.seen.saturating_add(1);
        slow.then_some(usual_ns)
    }
}

/// Duration of a bucket, ns.
pub fn bucket_ns(bucket: f64) -> u64 {
    (bucket / 8.0).exp2() as u64
}

#[derive(Debug, Default)]
struct Counts {
    from: Entity,
    to: Entity,
    calls: u64,
    errors: u64,
    duration_ns: u64,
    /// By bucket, in order.
    latency: Vec<(u16, u32)>,
}

impl Counts {
    fn between(from: &Entity, to: &Entity) -> Self {
        Self { from: from.clone(), to: to.clone(), ..Self::default() }
    }

    fn add(&mut self, span: &SpanRecord, bucket: u16) {
        self.calls += 1;
        self.errors += u64::from(span.failure.is_some());
        self.duration_ns = self.duration_ns.saturating_add(span.duration_ns);
        match self.latency.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.latency[at].1 += 1,
            Err(at) => self.latency.insert(at, (bucket, 1)),
        }
    }
}

impl Calls {
    /// No spans yet.
    pub fn new(config: &SignalConfig) -> Self {
        Self {
            window_ns: nanos(config.tally_window).max(1),
            edges_max: config.edges_max,
            callees: Callees::new(config.open_calls_max),
            names: HashMap::new(),
            windows: BTreeMap::new(),
            paces: HashMap::new(),
        }
    }

    /// Takes a span in its order of time. What failed is returned as evidence.
    pub fn take(
        &mut self,
        step: UnixNanos,
        span: &SpanRecord,
        topology: &mut Topology,
        facts: &mut Vec<Fact>,
        counters: &mut Counters,
    ) -> Option<Observation> {
        let own = (&span.of.tenant, span.of.tenant_id);
        match span.kind {
            SpanKind::Client | SpanKind::Producer => {
                let named = self.callee_named(&span.peer, &span.of.entity.namespace);
                let named = named.as_deref().map(|node| (&node.entity, node.id));
                let child = self.callees.take(&(span.trace, span.span));
                let child = child.as_deref().map(|known| (&known.tenant, known.tenant_id));
                if let (Some(child), Some(named)) = (child, named)
                    && named.0.kind == kinds::SERVICE
                {
                    topology.edge_of(step, EdgeKind::SameAs, named, child, facts);
                }
                let callee = child.or(named);
                let mut slow = None;
                if let Some(to) = callee {
                    topology.edge_of(step, EdgeKind::Calls, own, to, facts);
                    slow = self.tally(span, own, to, counters);
                }
                let callee = || callee.map(|(entity, _)| entity.clone());
                match &span.failure {
                    Some(failure) => Some(failed_call(span, failure, callee())),
                    None => slow.map(|usual_ns| slow_call(span, usual_ns, callee())),
                }
            }
            SpanKind::Server | SpanKind::Consumer => {
                if span.parent.0 != 0 {
                    self.callees.remember(span.at, (span.trace, span.parent), &span.of, counters);
                }
                let slow = self.tally(span, own, own, counters);
                match &span.failure {
                    Some(failure) => Some(failed_request(span, failure)),
                    None => slow.map(|usual_ns| slow_call(span, usual_ns, None)),
                }
            }
            // An internal span's failure shows in the server span around it; only a root has none.
            SpanKind::Internal | SpanKind::Unspecified if span.parent.0 == 0 => {
                span.failure.as_ref().map(|failure| failed_request(span, failure))
            }
            SpanKind::Internal | SpanKind::Unspecified => None,
        }
    }

    /// End of the earliest window that is still counted.
    pub fn due(&self) -> Option<UnixNanos> {
        self.windows.keys().next().map(|start| UnixNanos(start + self.window_ns))
    }

    /// Tells the windows that have ended.
    pub fn tell(&mut self, step: UnixNanos, out: &mut Vec<Tally>) {
        while let Some(entry) = self.windows.first_entry() {
            let start = *entry.key();
            if start + self.window_ns > step.0 {
                break;
            }
            let first = out.len();
            out.extend(entry.remove().into_values().map(|counts| Tally {
                window_start: UnixNanos(start),
                window_ns: self.window_ns,
                from: counts.from,
                to: counts.to,
                calls: counts.calls,
                errors: counts.errors,
                duration_ns_sum: counts.duration_ns,
                latency: counts.latency,
            }));
            out[first..].sort_unstable_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
        }
    }

    /// Whom a client in this namespace means by this name.
    fn callee_named(&mut self, peer: &str, namespace: &str) -> Option<Arc<Node>> {
        if peer.is_empty() {
            return None;
        }
        if self.names.len() >= self.edges_max {
            // Those still in use are worked out again.
            self.names.clear();
        }
        let name = self.names.entry(hash_parts(&[peer, namespace])).or_insert_with(|| {
            let entity = callee_by_name(peer, namespace)?;
            Some(Arc::new(Node { id: entity_identity(&entity), entity }))
        });
        name.clone()
    }

    /// Counts a call; the usual duration when it was slow.
    fn tally(
        &mut self,
        span: &SpanRecord,
        from: End<'_>,
        to: End<'_>,
        counters: &mut Counters,
    ) -> Option<u64> {
        // Windows are open on the left, as steps are, so that a window ends exactly with a step.
        let start = span.at.0.saturating_sub(1) / self.window_ns * self.window_ns;
        let edges = self.windows.entry(start).or_default();
        let edge = (from.1, to.1);
        if edges.len() >= self.edges_max && !edges.contains_key(&edge) {
            counters.evicted.edges += 1;
            return None;
        }
        if self.paces.len() >= self.edges_max && !self.paces.contains_key(&edge) {
            // What is usual is learnt again within some calls.
            counters.evicted.edges += self.paces.len() as u64;
            self.paces.clear();
        }
        let bucket = latency_bucket(span.duration_ns);
        edges.entry(edge).or_insert_with(|| Counts::between(from.0, to.0)).add(span, bucket);
        let pace = self.paces.entry(edge).or_insert(Pace { bucket: f64::from(bucket), seen: 0 });
        pace.next(span.duration_ns)
    }
}

/// Bucket of a latency: floor(8·log2(ns)), eight buckets per doubling.
pub fn latency_bucket(duration_ns: u64) -> u16 {
    if duration_ns == 0 { 0 } else { (8.0 * (duration_ns as f64).log2()) as u16 }
}

/// The thing a client means by a name: a service, or an address outside of what we know.
///
/// Ports and the cluster's domain are left out: `db.shop.svc.cluster.local:5432` is the service `db` in `shop`.
pub fn callee_by_name(peer: &str, namespace: &str) -> Option<Entity> {
    if peer.is_empty() {
        return None;
    }
    if peer.parse::<IpAddr>().is_ok() || peer.parse::<std::net::SocketAddr>().is_ok() {
        return Some(Entity::new(kinds::EXTERNAL, "", peer, ""));
    }
    let host = match peer.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => peer,
    };
    let mut labels = host.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(name), None, _) => Some(Entity::namespaced(kinds::SERVICE, namespace, name)),
        (Some(name), Some(ns), None | Some("svc")) => Some(Entity::namespaced(kinds::SERVICE, ns, name)),
        _ => Some(Entity::new(kinds::EXTERNAL, "", host, "")),
    }
}

/// The service or workload a span's entity belongs to, without the pod: what fails is the service.
fn service_of(entity: &Arc<EntityRef>) -> Arc<EntityRef> {
    if entity.workload.is_empty() && entity.service.is_empty() {
        return Arc::clone(entity);
    }
    Arc::new(
        EntityRef {
            cluster: entity.cluster.clone(),
            namespace: entity.namespace.clone(),
            workload_kind: entity.workload_kind.clone(),
            workload: entity.workload.clone(),
            service: entity.service.clone(),
            ..EntityRef::default()
        }
        .sealed(),
    )
}

fn failed_call(span: &SpanRecord, failure: &Failure, callee: Option<Entity>) -> Observation {
    let kind = if failure.timeout { SignalKind::SpanTimeouts } else { SignalKind::SpanErrors };
    let mut seen = failed(kind, span, failure);
    seen.peer = callee;
    seen.with("peer", span.peer.as_str())
}

fn slow_call(span: &SpanRecord, usual_ns: u64, callee: Option<Entity>) -> Observation {
    let mut seen = Observation::new(SignalKind::SpanSlow, &service_of(&span.of.entity), span.at, span.id);
    if span.trace.0 != 0 {
        seen.key = ShardKey::trace(span.trace.0);
    }
    seen.peer = callee;
    seen.strength = 0.4;
    seen.with("duration_ms", span.duration_ns as f64 / 1e6)
        .with("usual_ms", usual_ns as f64 / 1e6)
        .with("peer", span.peer.as_str())
        .with("service", span.of.entity.service.as_str())
}

fn failed_request(span: &SpanRecord, failure: &Failure) -> Observation {
    let kind = if span.http_status >= 500 { SignalKind::HttpServerErrors } else { SignalKind::SpanErrors };
    failed(kind, span, failure).with(
        "entry_point",
        tapio_schemas::AttributeValue::Bool(span.parent.0 == 0 && span.kind == SpanKind::Server),
    )
}

fn failed(kind: SignalKind, span: &SpanRecord, failure: &Failure) -> Observation {
    let mut seen = Observation::new(kind, &service_of(&span.of.entity), span.at, span.id);
    if span.trace.0 != 0 {
        seen.key = ShardKey::trace(span.trace.0);
    }
    // How much one failure means depends on how many calls there were; `unite.rs` knows them all.
    seen.strength = 0.5;
    seen.with("operation", failure.operation.as_str())
        .with("error_type", failure.error_type.as_str())
        .with("message", failure.message.as_str())
        .with("http_status", i64::from(span.http_status))
        .with("duration_ms", span.duration_ns as f64 / 1e6)
        .with("service", span.of.entity.service.as_str())
        .with("timeout", tapio_schemas::AttributeValue::Bool(failure.timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_name_their_callees_in_many_ways() {
        let of = |peer| callee_by_name(peer, "shop").unwrap();
        let db = Entity::namespaced(kinds::SERVICE, "shop", "db");
        for name in ["db", "db:5432", "db.shop", "db.shop.svc", "db.shop.svc.cluster.local:5432"] {
            assert_eq!(of(name), db, "{name}");
        }
        assert_eq!(of("10.1.2.3:80").kind, kinds::EXTERNAL);
        assert_eq!(of("api.example.com").kind, kinds::EXTERNAL);
        assert!(callee_by_name("", "shop").is_none());
    }

    #[test]
    fn slow_is_what_is_far_beyond_usual_and_stays_so_for_a_while() {
        let mut pace = Pace { bucket: f64::from(latency_bucket(20_000_000)), seen: 0 };
        for i in 0..200u64 {
            assert_eq!(pace.next(15_000_000 + i % 10 * 1_000_000), None);
        }
        assert!(pace.next(60_000_000).is_none(), "three times slower");
        let told = (0..100).filter(|_| pace.next(400_000_000).is_some()).count();
        assert_eq!(told, 100);
        let mut tiny = Pace { bucket: f64::from(latency_bucket(10_000)), seen: 99 };
        assert!(tiny.next(1_000_000).is_none(), "a hundred times slower, and a millisecond");
    }

    #[test]
    fn latency_buckets_are_eight_per_doubling() {
        assert_eq!(latency_bucket(1 << 20), 160);
        assert_eq!(latency_bucket(1 << 21), 168);
        assert_eq!(latency_bucket(0), 0);
    }
}
