//! What requests did, counted: partial aggregates of a shard that stage two adds up, because the traces of one service
//! live in all shards.

use rkyv::{Archive, Deserialize, Serialize};
use smol_str::SmolStr;

use crate::entity::Entity;
use crate::ids::{EventId, UnixNanos};
use crate::vocabulary::vocabulary;
use crate::wire::Interned;

/// Log-scaled histogram: (bucket, count) in the order of buckets, bucket = floor(8·log2(ns)).
pub type Histogram = Vec<(u16, u32)>;

/// What the requests of one operation of a service did in one window, as one shard saw them.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct OperationTally {
    /// Start of the window.
    pub window_start: UnixNanos,
    /// Length of the window, ns.
    pub window_ns: u64,
    /// Node of the entity graph that answers for the spans: workload or service.
    pub service: Entity,
    /// Name of the span with which the service was entered.
    #[rkyv(with = Interned)]
    pub operation: SmolStr,
    /// Requests.
    pub requests: u64,
    /// Time that each request spent in the service itself, its callees left out.
    pub own_time: Histogram,
    /// The ways in which requests went.
    pub shapes: Vec<Shape>,
    /// Requests whose way found no room in `shapes`.
    pub unshaped: u64,
    /// A span of it, the slowest of the window.
    pub evidence: EventId,
}

/// A way in which requests of an operation went: what was called and what was logged, as a set.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Shape {
    /// Identity: service, operation, steps and inner shapes.
    pub id: u64,
    /// Requests that went so.
    pub count: u32,
    /// Steps, sorted.
    pub steps: Vec<Step>,
    /// Shapes of the requests to other services that were part of it, sorted.
    pub inner: Vec<u64>,
    /// A span that went so.
    pub evidence: EventId,
}

/// One thing that happened in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub kind: StepKind,
    /// Of a call: name of the service called.
    #[rkyv(with = Interned)]
    pub service: SmolStr,
    /// Operation, or template of the log line.
    #[rkyv(with = Interned)]
    pub name: SmolStr,
}

vocabulary! {
    /// Kind of a step.
    #[derive(Default)]
    pub enum StepKind: u8 {
        #[default]
        Call = 1 => "call",
        Log = 2 => "log",
        ErrorLog = 3 => "error_log",
        FailedCall = 4 => "failed_call",
    }
}

/// Time between the two ends of the calls on one edge, in one window: what a client waited beyond what its server took.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct CallGapTally {
    /// Start of the window.
    pub window_start: UnixNanos,
    /// Length of the window, ns.
    pub window_ns: u64,
    /// Caller.
    pub from: Entity,
    /// Callee.
    pub to: Entity,
    /// Operation of the callee.
    #[rkyv(with = Interned)]
    pub operation: SmolStr,
    /// Differences.
    pub gap: Histogram,
    /// The client span with the largest one.
    pub evidence: EventId,
}

/// A measure of a service or of its pods, the last of a window.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct ServiceMeter {
    /// Event time.
    pub at: UnixNanos,
    /// Node of the entity graph that answers for it.
    pub service: Entity,
    /// Pod, when it is of one.
    #[rkyv(with = Interned)]
    pub pod: SmolStr,
    /// What is measured.
    pub measure: Measure,
    /// Tells series of one measure apart (the side of a call, the name of a system call).
    #[rkyv(with = Interned)]
    pub label: SmolStr,
    /// Value in the measure's unit.
    pub value: f64,
    /// Event.
    pub evidence: EventId,
}

vocabulary! {
    /// Measures that stage two compares over services.
    #[derive(Default)]
    pub enum Measure: u8 {
        #[default]
        CpuShare = 1 => "cpu_share",
        MemoryShare = 2 => "memory_share",
        LatencySeconds = 3 => "latency_s",
        RequestsPerSecond = 4 => "requests_per_s",
        SuccessShare = 5 => "success_share",
        SystemCalls = 6 => "system_calls",
        CpuCores = 7 => "cpu_cores",
        MemoryBytes = 8 => "memory_bytes",
    }
}
