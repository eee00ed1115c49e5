//! The one event format: identity, trace context, meaning, entity, exactly one payload, impact.

use std::sync::Arc;

use rkyv::with::Map;
use rkyv::{Archive, Deserialize, Serialize};
use smol_str::SmolStr;

use crate::entity::EntityRef;
use crate::ids::{EventId, GroupId, Score, SpanId, TraceId, UnixNanos};
use crate::kind::{Category, EventKind, EventSeverity, Source};
use crate::payload::Payload;
use crate::shard::ShardKey;
use crate::wire::{Interned, InternedEntity};

/// An event from any layer.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct UnifiedEvent {
    /// Time-ordered id.
    pub id: EventId,
    /// Event time: when it happened.
    pub timestamp: UnixNanos,
    /// When the collector saw it.
    pub observed_at: UnixNanos,
    /// What happened.
    pub kind: EventKind,
    /// Who saw it.
    pub source: Source,
    /// Order in which it is shed under pressure.
    pub severity: EventSeverity,
    /// `process.pid`; zero when the event is not about one process.
    #[serde(default)]
    pub pid: u32,
    /// What it is about.
    #[rkyv(with = InternedEntity)]
    pub entity: Arc<EntityRef>,
    /// Layer-specific data.
    pub payload: Payload,
    /// W3C trace context, when the event carries one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<TraceContext>>,
    /// What it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semantic: Option<Box<SemanticContext>>,
    /// Why it matters; on enriched events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impact: Option<Box<ImpactContext>>,
    /// What it belongs to; on enriched events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Box<CorrelationContext>>,
}

impl Default for UnifiedEvent {
    fn default() -> Self {
        Self {
            id: EventId::default(),
            timestamp: UnixNanos::default(),
            observed_at: UnixNanos::default(),
            kind: EventKind::Custom,
            source: Source::Tapio,
            severity: EventSeverity::Info,
            pid: 0,
            entity: Arc::default(),
            payload: Payload::Custom(Box::default()),
            trace: None,
            semantic: None,
            impact: None,
            correlation: None,
        }
    }
}

impl UnifiedEvent {
    /// Trace id when the event carries one, else the entity's lineage.
    pub fn key(&self) -> ShardKey {
        match &self.trace {
            Some(trace) if trace.trace_id.0 != 0 => ShardKey::trace(trace.trace_id.0),
            _ => ShardKey::derived(self.entity.lineage),
        }
    }
}

/// W3C trace context.
#[derive(
    Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: TraceId,
    /// Zero when unknown.
    #[serde(default)]
    pub span_id: SpanId,
    /// Zero for a root span.
    #[serde(default)]
    pub parent_span_id: SpanId,
    /// W3C trace flags.
    #[serde(default)]
    pub flags: u8,
}

/// What an event means.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct SemanticContext {
    /// What somebody tried to do or what is going on: `payment-processing`, `oom-kill`.
    #[rkyv(with = Interned)]
    pub intent: SmolStr,
    /// Which concern it touches.
    pub category: Category,
    /// Free tags.
    #[rkyv(with = Map<Interned>)]
    #[serde(default)]
    pub tags: Vec<SmolStr>,
}

/// Why an event matters.
#[derive(
    Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct ImpactContext {
    /// 0 routine … 1 the business stands still.
    pub business_impact: Score,
    /// A customer notices.
    pub customer_facing: bool,
    /// Money is lost.
    pub revenue_impacting: bool,
    /// A service level objective is touched.
    pub slo_impact: bool,
}

/// The thirteen correlation keys of an enriched event.
#[derive(
    Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct CorrelationContext {
    /// Finding or group the event is part of.
    #[rkyv(with = Interned)]
    pub correlation_id: SmolStr,
    /// Confidence of the correlation.
    pub correlation_confidence: Score,
    /// Cause id or pattern.
    #[rkyv(with = Interned)]
    pub correlation_pattern: SmolStr,
    /// Events in the same group.
    pub related_event_count: u32,
    /// Semantic group.
    pub semantic_group_id: GroupId,
    /// What the group is about.
    #[rkyv(with = Interned)]
    pub semantic_intent: SmolStr,
    /// Type of group, such as `memory_pressure_cascade`.
    #[rkyv(with = Interned)]
    pub semantic_type: SmolStr,
    /// Business impact.
    pub impact_business: Score,
    /// Risk that neighbours fail too.
    pub impact_cascade_risk: Score,
    /// Technical severity.
    #[rkyv(with = Interned)]
    pub impact_severity: SmolStr,
    /// What is predicted.
    #[rkyv(with = Interned)]
    pub prediction_scenario: SmolStr,
    /// How probable it is.
    pub prediction_probability: Score,
    /// Related events, at most 16.
    pub related_events: Vec<EventId>,
}
