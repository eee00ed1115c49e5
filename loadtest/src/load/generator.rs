//! An endless source of batches of a healthy cluster; the same seed gives the same events.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tapio_runtime::bus::{Headers, Outgoing};
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{Packer, WireError};
use tapio_schemas::{ProducerId, UnixNanos};

use super::random::Random;
use super::shapes::Shaper;
use super::template::{Stamp, Template};
use super::traces::Traces;
use super::world::World;

/// Templates per shard, each about five of its pods: few enough to be made in a second.
const TEMPLATES: usize = 6;
/// Events in the batches from which the size of an event is learned.
const PROBE_EVENTS: usize = 400;
/// Events of a shard that together have the whole mix: spans come eight at a time.
const MIX_EVENTS: usize = 1_600;
/// Most events in a batch, as the node agent's `batch.events`.
pub const BATCH_EVENTS_MAX: usize = 4096;
/// Size of a full batch before it is packed, as the node agent's `batch.bytes`; some 64 KiB when packed.
pub const BATCH_BYTES: usize = 256 << 10;

/// A batch ready to publish.
#[derive(Debug)]
pub struct Encoded {
    /// Shard it belongs to.
    pub shard: u16,
    /// Events inside.
    pub events: u64,
    /// De-duplication id, as the node agent names its batches.
    pub msg_id: String,
    /// Message, packed as node agents pack it.
    pub bytes: Vec<u8>,
}

impl Encoded {
    /// As a message for the bus, on the subject of its shard.
    pub fn into_outgoing(self, subject: &str) -> Outgoing {
        Outgoing {
            subject: subject.to_owned(),
            msg_id: Some(self.msg_id),
            headers: Headers::new(),
            payload: Bytes::from(self.bytes),
        }
    }
}

/// How the load is cut into batches.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Node agents that publish.
    pub producers: usize,
    /// Events per batch; `None`: as many as fit into [`BATCH_BYTES`].
    pub events: Option<usize>,
    /// Traces that are open at a time.
    pub live: usize,
}

/// Encoded batches of all shards, made once.
#[derive(Clone)]
pub struct Templates {
    seed: u64,
    producers: usize,
    live: usize,
    by_shard: Arc<Vec<Vec<Template>>>,
}

/// Stamps templates.
pub struct Generator {
    templates: Arc<Vec<Vec<Template>>>,
    traces: Traces,
    random: Random,
    packer: Packer,
    producers: usize,
    first_producer: u64,
    epoch: u32,
    /// Next event number of each producer in each shard.
    lanes: HashMap<(u64, u16), u64>,
    /// Batches made of each shard.
    turns: Vec<u64>,
    /// Time of the newest event of each shard.
    newest: Vec<UnixNanos>,
}

impl Templates {
    /// The same seed gives the same templates.
    ///
    /// # Errors
    /// [`WireError`] when one cannot be encoded.
    pub fn new(world: &World, seed: u64, cut: Cut) -> Result<Self, WireError> {
        let random = Random::new(seed).fork(3);
        let events = match cut.events {
            Some(events) => events.clamp(1, BATCH_EVENTS_MAX),
            None => full_batch(world, &random)?,
        };
        // Small batches are more templates, so that together they still have the whole mix.
        let count = TEMPLATES * (MIX_EVENTS / (TEMPLATES * events)).max(1);
        let of = |shard| of_shard(world, shard, events, count, &random);
        let by_shard = Arc::new((0..SHARD_COUNT).map(of).collect::<Result<_, _>>()?);
        Ok(Self { seed, producers: cut.producers.max(1), live: cut.live, by_shard })
    }

    /// Paths that are taken in each shard, each once.
    fn paths(&self) -> Vec<Vec<usize>> {
        let of = |templates: &Vec<Template>| {
            let taken: BTreeSet<usize> = templates.iter().flat_map(Template::paths).collect();
            taken.into_iter().collect()
        };
        self.by_shard.iter().map(of).collect()
    }
}

impl Generator {
    /// A generator whose first events come after `start`. Its producers are `first_producer`, `first_producer` + 1, …
    pub fn new(templates: &Templates, first_producer: u64, start: UnixNanos) -> Self {
        let random = Random::new(templates.seed).fork(3);
        Self {
            templates: Arc::clone(&templates.by_shard),
            traces: Traces::new(templates.live, &random, &templates.paths()),
            random: random.fork(4),
            packer: Packer::default(),
            producers: templates.producers,
            first_producer,
            epoch: 1,
            lanes: HashMap::new(),
            turns: vec![0; usize::from(SHARD_COUNT)],
            newest: vec![start; usize::from(SHARD_COUNT)],
        }
    }

    /// The next batch of a shard: its events lie between the shard's last batch and `until`.
    pub fn batch(&mut self, shard: u16, until: UnixNanos) -> Encoded {
        let (stamp, events, bytes) = self.next(shard, until);
        Encoded {
            shard,
            events,
            msg_id: format!("{}-{}-{shard}-{}", stamp.producer, self.epoch, stamp.first_sequence),
            bytes: self.packer.pack(bytes),
        }
    }

    /// Passes over a batch that was sent before, and gives the number of its events: what follows is the same as if it had
    /// been made.
    pub fn skip(&mut self, shard: u16, until: UnixNanos) -> u64 {
        self.next(shard, until).1
    }

    fn next(&mut self, shard: u16, until: UnixNanos) -> (Stamp, u64, Vec<u8>) {
        let at = usize::from(shard);
        let turn = self.turns[at];
        self.turns[at] += 1;
        let templates = &self.templates[at];
        let template = &templates[turn as usize % templates.len()];
        let producer = self.first_producer + turn % self.producers as u64;
        let events = template.events() as u64;
        let lane = self.lanes.entry((producer, shard)).or_default();
        let first_sequence = *lane;
        *lane += events;
        let from = self.newest[at];
        let to = until.max(from.plus(events));
        self.newest[at] = to;
        let producer = ProducerId(producer);
        let stamp = Stamp { producer, epoch: self.epoch, shard, first_sequence, from, to };
        let bytes = template.stamp(&stamp, &mut self.traces, &mut self.random);
        (stamp, events, bytes)
    }
}

fn of_shard(
    world: &World,
    shard: u16,
    events: usize,
    count: usize,
    random: &Random,
) -> Result<Vec<Template>, WireError> {
    let mut shaper = Shaper::new(world, usize::from(shard), random);
    let mut shapes = Vec::new();
    (0..count)
        .map(|number| {
            shaper.group(number % TEMPLATES, TEMPLATES);
            while shapes.len() < events {
                shaper.next(&mut shapes);
            }
            Template::new(shard, &std::mem::take(&mut shapes))
        })
        .collect()
}

fn full_batch(world: &World, random: &Random) -> Result<usize, WireError> {
    let probe = of_shard(world, 0, PROBE_EVENTS, 1, random)?;
    let bytes: usize = probe.iter().map(Template::bytes).sum();
    let events: usize = probe.iter().map(Template::events).sum();
    Ok((BATCH_BYTES * events / bytes.max(1)).clamp(1, BATCH_EVENTS_MAX))
}

#[cfg(test)]
mod tests {
    use super::super::traces::{LIVE, SPANS};
    use super::*;
    use std::collections::{HashMap as Map, HashSet};
    use tapio_schemas::payload::{Payload, SpanKind};
    use tapio_schemas::wire::{EventBatchView, Unpacker};
    use tapio_schemas::{EventId, Source, UnifiedEvent};

    const START: UnixNanos = UnixNanos(1_700_000_000_000_000_000);

    fn events(cut: Cut, rounds: usize) -> Vec<UnifiedEvent> {
        let world = World::new("load", 1);
        let mut generator = Generator::new(&Templates::new(&world, 1, cut).unwrap(), 100, START);
        let mut next: Map<(u64, u16), u64> = Map::new();
        let mut all = Vec::new();
        let mut unpacker = Unpacker::default();
        for round in 1..=rounds as u64 {
            for shard in 0..SHARD_COUNT {
                let until = START.plus(round * 10_000_000);
                let batch = generator.batch(shard, until);
                let view = EventBatchView::check(unpacker.unpack(&batch.bytes).unwrap()).unwrap();
                let header = view.header();
                assert_eq!((view.len() as u64, header.shard, header.epoch), (batch.events, shard, 1));
                let expected = next.entry((header.producer.0, shard)).or_default();
                assert_eq!(header.first_sequence, *expected);
                *expected += batch.events;
                assert!(view.iter().all(|e| e.key().shard() == shard && e.timestamp() <= until));
                all.extend(view.to_events());
            }
        }
        all
    }

    #[test]
    fn every_event_is_in_its_shard_once_and_the_mix_is_kept() {
        let all = events(Cut { producers: 3, events: Some(200), live: LIVE }, 2);
        let ids: HashSet<EventId> = all.iter().map(|e| e.id).collect();
        assert_eq!(ids.len(), all.len(), "ids are unique");
        let share = |of: &dyn Fn(&UnifiedEvent) -> bool| {
            all.iter().filter(|e| of(e)).count() as f64 / all.len() as f64
        };
        let near = |share: f64, wanted: f64| assert!((share - wanted).abs() < 0.012, "{share} for {wanted}");
        near(share(&|e| e.source == Source::Ebpf), 0.70);
        near(share(&|e| matches!(e.payload, Payload::Span(_))), SPANS);
        near(share(&|e| matches!(e.payload, Payload::Log(_) | Payload::Metric(_))), 0.10);
        near(share(&|e| e.source == Source::Kubernetes), 0.05);
    }

    #[test]
    fn small_batches_keep_the_mix_too() {
        let all = events(Cut { producers: 2, events: Some(10), live: LIVE }, 40);
        let spans = all.iter().filter(|e| matches!(e.payload, Payload::Span(_))).count();
        assert!((spans as f64 / all.len() as f64 - SPANS).abs() < 0.01);
    }

    #[test]
    fn what_follows_a_skipped_batch_is_the_same() {
        let world = World::new("load", 1);
        let cut = Cut { producers: 3, events: Some(20), live: LIVE };
        let templates = Templates::new(&world, 1, cut).unwrap();
        let make = || Generator::new(&templates, 100, START);
        let (mut whole, mut resumed) = (make(), make());
        for round in 1..=6u64 {
            let until = START.plus(round * 1_000_000);
            let made = whole.batch(5, until);
            if round < 4 {
                assert_eq!(resumed.skip(5, until), made.events);
            } else {
                let again = resumed.batch(5, until);
                assert_eq!((again.msg_id, again.bytes), (made.msg_id, made.bytes));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let cut = Cut { producers: 3, events: Some(50), live: LIVE };
        assert_eq!(events(cut, 2), events(cut, 2));
    }

    /// At first no trace has come so far as most calls.
    fn is_of_a_trace(event: &UnifiedEvent) -> bool {
        event.trace.as_ref().is_some_and(|trace| trace.span_id.0 != 0)
    }

    #[test]
    fn both_ends_of_a_call_are_in_one_trace_and_name_each_other() {
        let all = events(Cut { producers: 3, events: Some(200), live: LIVE }, 4);
        let spans: Vec<&UnifiedEvent> =
            all.iter().filter(|e| matches!(e.payload, Payload::Span(_)) && is_of_a_trace(e)).collect();
        assert!(spans.len() > 500, "{} spans", spans.len());
        let by_id: Map<u64, &UnifiedEvent> =
            spans.iter().map(|e| (e.trace.as_ref().unwrap().span_id.0, *e)).collect();
        let mut traces: Map<u128, usize> = Map::new();
        for event in &spans {
            let trace = event.trace.as_ref().unwrap();
            *traces.entry(trace.trace_id.0).or_default() += 1;
            let Payload::Span(span) = &event.payload else { unreachable!() };
            assert_eq!(span.start.plus(span.duration_ns), event.timestamp);
            if span.kind == SpanKind::Server {
                let caller = by_id[&trace.parent_span_id.0];
                assert_eq!(caller.trace.as_ref().unwrap().trace_id, trace.trace_id);
            }
        }
        assert!(traces.len() > 200, "{} traces", traces.len());
    }
}
