//! An encoded batch in which only numbers change from one sending to the next.
//!
//! Encoding a batch costs far more than a load generator may take on the machine that it measures. A template is
//! encoded once by the real encoder; a stamp copies it and writes ids, times, trace ids and the header's numbers to the
//! places where the checked view of the template found them.

use tapio_schemas::wire::{EventBatch, EventBatchView, WireError};
use tapio_schemas::{EventId, ProducerId, UnixNanos};

use super::random::Random;
use super::shapes::{Role, Shape};
use super::traces::{Traces, span_id};
use super::world::HOPS;

/// Offsets of the header's numbers: wire law, see `schemas/src/wire/header.rs`.
const PRODUCER_AT: usize = 16;
const FIRST_SEQUENCE_AT: usize = 24;
const EPOCH_AT: usize = 40;

/// Time between an event and its observation, ns.
const OBSERVED_AFTER_NS: u64 = 30_000;

/// Whose batch a stamp is.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Producer.
    pub producer: ProducerId,
    /// Its run.
    pub epoch: u32,
    /// Shard.
    pub shard: u16,
    /// Number of the first event in this producer's lane.
    pub first_sequence: u64,
    /// Times of the events lie after this …
    pub from: UnixNanos,
    /// … up to this.
    pub to: UnixNanos,
}

/// Places of one event in the bytes.
#[derive(Debug, Clone, Copy)]
struct EventAt {
    id: usize,
    timestamp: usize,
    observed: usize,
}

/// Places of an event's trace context; `start` is zero for what is not a span.
#[derive(Debug, Clone, Copy)]
struct TraceAt {
    event: usize,
    role: Role,
    trace: usize,
    span: usize,
    parent: usize,
    start: usize,
    duration_ns: u64,
}

/// A value that moves a little.
#[derive(Debug, Clone, Copy)]
struct ValueAt {
    place: usize,
    level: f64,
}

/// An encoded batch and where its numbers are.
pub struct Template {
    bytes: Vec<u8>,
    events: Vec<EventAt>,
    traces: Vec<TraceAt>,
    values: Vec<ValueAt>,
}

impl Template {
    /// Encodes a batch of one shard.
    ///
    /// # Errors
    /// [`WireError`] when the encoder refuses it.
    pub fn new(shard: u16, shapes: &[Shape]) -> Result<Self, WireError> {
        let mut batch = EventBatch::new(ProducerId(0), 0, shard);
        for shape in shapes {
            batch.push(shape.event.clone());
        }
        let bytes = batch.finish(UnixNanos(0))?;
        let mut template = Self { bytes: Vec::new(), events: vec![], traces: vec![], values: vec![] };
        template.find(&bytes, shapes)?;
        template.bytes = bytes;
        Ok(template)
    }

    /// Events inside.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Paths that its spans take.
    pub fn paths(&self) -> impl Iterator<Item = usize> {
        self.traces.iter().filter_map(|place| match place.role {
            Role::Server(hop) => Some(hop.path),
            _ => None,
        })
    }

    /// Size of the message.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn find(&mut self, bytes: &[u8], shapes: &[Shape]) -> Result<(), WireError> {
        use tapio_schemas::payload::ArchivedPayload as P;
        let view = EventBatchView::check(bytes)?;
        for (at, (seen, shape)) in view.iter().zip(shapes).enumerate() {
            let event = seen.event;
            self.events.push(EventAt {
                id: place(bytes, &event.id),
                timestamp: place(bytes, &event.timestamp),
                observed: place(bytes, &event.observed_at),
            });
            let (start, duration_ns) = match &event.payload {
                P::Span(span) => (place(bytes, &span.start), span.duration_ns.to_native()),
                _ => (0, 0),
            };
            if let (Some(trace), true) = (event.trace.as_ref(), shape.role != Role::None) {
                self.traces.push(TraceAt {
                    event: at,
                    role: shape.role,
                    trace: place(bytes, &trace.trace_id),
                    span: place(bytes, &trace.span_id),
                    parent: place(bytes, &trace.parent_span_id),
                    start,
                    duration_ns,
                });
            }
            if let P::Metric(metric) = &event.payload
                && metric.limit.to_native() > 0.0
            {
                self.values
                    .push(ValueAt { place: place(bytes, &metric.value), level: metric.value.to_native() });
            }
        }
        Ok(())
    }

    /// A copy with the numbers of this sending.
    pub fn stamp(&self, stamp: &Stamp, traces: &mut Traces, random: &mut Random) -> Vec<u8> {
        let mut out = self.bytes.clone();
        write(&mut out, PRODUCER_AT, stamp.producer.0.to_le_bytes());
        write(&mut out, FIRST_SEQUENCE_AT, stamp.first_sequence.to_le_bytes());
        write(&mut out, EPOCH_AT, stamp.epoch.to_le_bytes());
        let step = stamp.to.since(stamp.from) / self.events.len().max(1) as u64;
        // A lane's events are numbered from zero; with the shard before it the number is the producer's own.
        let lane = (u64::from(stamp.shard) << 42) + stamp.first_sequence;
        let mut at = stamp.from;
        for (number, event) in self.events.iter().enumerate() {
            at = at.plus(step);
            let id = EventId::sequenced(at, stamp.producer, lane + number as u64);
            write(&mut out, event.id, id.0.to_le_bytes());
            write(&mut out, event.timestamp, at.0.to_le_bytes());
            write(&mut out, event.observed, at.plus(OBSERVED_AFTER_NS).0.to_le_bytes());
        }
        self.stamp_traces(&mut out, stamp, step, traces);
        for value in &self.values {
            let moved = (value.level * (0.995 + random.unit() / 100.0)).floor();
            write(&mut out, value.place, moved.to_le_bytes());
        }
        out
    }

    fn stamp_traces(&self, out: &mut [u8], stamp: &Stamp, step: u64, traces: &mut Traces) {
        let shard = usize::from(stamp.shard);
        // The callee's span comes first; its caller's is of the same trace.
        let mut of_hop = [None; HOPS];
        for place in &self.traces {
            let (trace, span, parent) = match place.role {
                Role::Server(hop) => {
                    of_hop[hop.number] = traces.advance(shard, hop);
                    (of_hop[hop.number], 2 * hop.number + 1, Some(2 * hop.number))
                }
                Role::Client(hop) => (of_hop[hop.number], 2 * hop.number, (2 * hop.number).checked_sub(1)),
                Role::Log(hop) => (traces.at(shard, hop), 2 * hop.number + 1, None),
                Role::None => continue,
            };
            // A call that no trace has come to yet is of no span that anyone knows.
            let id = |index: usize| trace.map_or(0, |trace| span_id(trace, index));
            write(out, place.span, id(span).to_le_bytes());
            write(out, place.parent, parent.map_or(0, id).to_le_bytes());
            let trace = trace.unwrap_or_else(|| traces.fresh(shard));
            write(out, place.trace, trace.to_le_bytes());
            if place.start > 0 {
                let end = stamp.from.plus(step * (place.event as u64 + 1));
                write(out, place.start, end.minus(place.duration_ns).0.to_le_bytes());
            }
        }
    }
}

/// Where a field of the view lies in the bytes that the view borrows.
fn place<T>(bytes: &[u8], field: &T) -> usize {
    std::ptr::from_ref(field).addr() - bytes.as_ptr().addr()
}

fn write<const N: usize>(out: &mut [u8], at: usize, value: [u8; N]) {
    out[at..at + N].copy_from_slice(&value);
}
