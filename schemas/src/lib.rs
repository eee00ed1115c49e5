//! Tapio's data: events, signals, findings, ids, the wire format and the names of subjects.
//!
//! No async runtime, no NATS, no actors: anything that speaks with Tapio can depend on this crate alone.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod attribute;
pub mod entity;
pub mod event;
pub mod finding;
pub mod ids;
pub mod kind;
pub mod learning;
pub mod names;
pub mod payload;
pub mod proto;
pub mod service;
pub mod shard;
pub mod signal;
pub mod status;
pub mod trouble;
pub mod vocabulary;
pub mod wire;

pub use attribute::{Attribute, AttributeValue};
pub use entity::{Entity, EntityRef};
pub use event::{CorrelationContext, ImpactContext, SemanticContext, TraceContext, UnifiedEvent};
pub use finding::{Finding, Severity};
pub use ids::{EventId, FindingId, GroupId, ProducerId, Score, SignalId, SpanId, TraceId, UnixNanos};
pub use kind::{Category, EventKind, EventSeverity, Source};
pub use payload::Payload;
pub use service::{CallGapTally, Measure, OperationTally, ServiceMeter, Shape, Step, StepKind};
pub use shard::{ShardKey, shard};
pub use signal::{Fact, Gap, Signal, SignalKind, Tally};
pub use smol_str::SmolStr;
