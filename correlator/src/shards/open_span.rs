//! A span under way, and what is known of its request so far.

use std::sync::Arc;

use tapio_schemas::payload::SpanKind;
use tapio_schemas::{EventId, SpanId, TraceId};

use super::entities::Known;
use super::record::SpanRecord;
use super::texts::TextId;

/// End of a list.
pub const NONE: u32 = u32::MAX;

/// Trace and span.
pub type Key = (TraceId, SpanId);

/// How far a span is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its place is free.
    Free,
    /// Its grace is not over.
    Open,
    /// It is being put together.
    Closing,
    /// It is put together, and waits for its parent.
    Closed,
}

/// A span under way.
pub struct Node {
    /// Trace and span.
    pub key: Key,
    /// Who made it.
    pub of: Arc<Known>,
    /// Event.
    pub id: EventId,
    /// Name.
    pub operation: TextId,
    /// Number of it as a call that failed.
    pub failed_call: Option<TextId>,
    /// Kind.
    pub kind: SpanKind,
    /// Start, ns.
    pub start: u64,
    /// End, ns.
    pub end: u64,
    /// It is no root.
    pub has_parent: bool,
    /// Nobody else holds it.
    pub is_detached: bool,
    /// It is counted as a request.
    pub is_counted: bool,
    /// Some of its children, or of those of its spans below, were left out: its way is not known.
    pub is_partial: bool,
    /// How far it is.
    pub state: State,
    /// A place is used again: what points to an earlier use is void.
    pub generation: u32,
    /// The next child of its parent.
    pub next: u32,
    /// Its first child.
    pub first_child: u32,
    /// Its first log line.
    pub first_line: u32,
    /// Time that the service spent itself, in it and in its spans below, ns.
    pub own_ns: u64,
    /// Shape of the request that it is the entry of.
    pub shape: u64,
    /// Steps of the request so far.
    pub steps: Vec<TextId>,
    /// Shapes of the requests to others so far.
    pub inner: Vec<u64>,
}

impl Node {
    /// A span that came.
    pub fn new(span: &SpanRecord, has_parent: bool, generation: u32) -> Self {
        Self {
            key: (span.trace, span.span),
            of: Arc::clone(&span.of),
            id: span.id,
            operation: span.operation,
            failed_call: span.failed_call,
            kind: span.kind,
            start: span.at.0.saturating_sub(span.duration_ns),
            end: span.at.0,
            has_parent,
            is_detached: !has_parent,
            is_counted: false,
            is_partial: false,
            state: State::Open,
            generation,
            next: NONE,
            first_child: NONE,
            first_line: NONE,
            own_ns: 0,
            shape: 0,
            steps: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// Duration, ns.
    pub fn duration_ns(&self) -> u64 {
        self.end - self.start
    }

    /// Server and consumer spans, and roots. A span of another kind whose parent is another service's is found when its
    /// parent is closed.
    pub fn is_entry(&self) -> bool {
        matches!(self.kind, SpanKind::Server | SpanKind::Consumer) || !self.has_parent
    }
}
