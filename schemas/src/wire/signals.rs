//! Batches of signals, topology facts and tallies: what stage one tells stage two.

use rkyv::rancor::{Error, Strategy};
use rkyv::{Archive, Deserialize, Serialize};

use super::WireError;
use super::context::BatchReader;
use super::frame::{self, Frame, FrameWriter};
use super::header::{FrameKind, Header, SIGNALS_VERSION};
use crate::ids::{ProducerId, UnixNanos};
use crate::service::{CallGapTally, OperationTally, ServiceMeter};
use crate::signal::{Fact, Gap, Signal, Tally};

/// How far a shard is, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ShardMark {
    /// Shard, 0..64.
    pub shard: u16,
    /// Lease epoch of the shard's owner: what a lower one says after a higher one was heard does not count.
    pub epoch: u64,
    /// Event time up to which the shard has said everything it will say.
    pub at: UnixNanos,
}

/// Body of a signal message.
///
/// A section with content is of one shard and of one step of event time: it has one mark, whose time is that step. A section
/// of many marks has no content.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct SignalSection {
    /// Watermarks of shards.
    pub marks: Vec<ShardMark>,
    /// More content of the same shard and step follows in the next message: the mark is not reached yet.
    pub partial: bool,
    /// Deviations.
    pub signals: Vec<Signal>,
    /// Topology: who owns, calls, runs on whom.
    pub facts: Vec<Fact>,
    /// Partial aggregates per entity and call edge.
    pub tallies: Vec<Tally>,
    /// Holes in producers' sequences.
    pub gaps: Vec<Gap>,
    /// What requests did, per operation.
    pub operations: Vec<OperationTally>,
    /// What calls took beyond their servers, per edge.
    pub call_gaps: Vec<CallGapTally>,
    /// Measures of services.
    pub meters: Vec<ServiceMeter>,
}

/// Body of a signal message of version 2: without what requests did.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
struct SignalSectionV2 {
    marks: Vec<ShardMark>,
    partial: bool,
    signals: Vec<Signal>,
    facts: Vec<Fact>,
    tallies: Vec<Tally>,
    gaps: Vec<Gap>,
}

impl From<SignalSectionV2> for SignalSection {
    fn from(old: SignalSectionV2) -> Self {
        let SignalSectionV2 { marks, partial, signals, facts, tallies, gaps } = old;
        Self { marks, partial, signals, facts, tallies, gaps, ..Self::default() }
    }
}

/// Body of a signal message of version 1: marks without epochs.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
struct SignalSectionV1 {
    watermarks: Vec<(u16, UnixNanos)>,
    signals: Vec<Signal>,
    facts: Vec<Fact>,
    tallies: Vec<Tally>,
    gaps: Vec<Gap>,
}

impl SignalSectionV1 {
    fn upgraded(self, epoch: u64) -> SignalSection {
        let marks = self.watermarks.into_iter().map(|(shard, at)| ShardMark { shard, epoch, at }).collect();
        let Self { signals, facts, tallies, gaps, .. } = self;
        SignalSection { marks, signals, facts, tallies, gaps, ..SignalSection::default() }
    }
}

impl SignalSection {
    /// True when there is nothing but marks.
    pub fn is_heartbeat(&self) -> bool {
        self.items() == 0
    }

    /// Number of things said, marks left out.
    pub fn items(&self) -> usize {
        let Self { marks: _, partial: _, signals, facts, tallies, gaps, operations, call_gaps, meters } =
            self;
        [
            signals.len(),
            facts.len(),
            tallies.len(),
            gaps.len(),
            operations.len(),
            call_gaps.len(),
            meters.len(),
        ]
        .iter()
        .sum()
    }
}

/// Writes one signal message. `sequence` counts the producer's messages.
pub fn encode_signals(
    producer: ProducerId,
    epoch: u32,
    sequence: u64,
    section: &SignalSection,
) -> Result<Vec<u8>, WireError> {
    let header = Header {
        version: SIGNALS_VERSION,
        kind: FrameKind::Signals,
        shard: 0,
        count: section.signals.len() as u32,
        producer,
        first_sequence: sequence,
        watermark: UnixNanos(0),
        epoch,
        body_bytes: 0,
        entities_bytes: 0,
        entities: 0,
        strings: 0,
        strings_bytes: 0,
    };
    FrameWriter::default().write(header, section)
}

/// A checked signal message, of any version.
pub struct SignalBatchView<'a> {
    body: Body<'a>,
}

enum Body<'a> {
    V1(Frame<'a, ArchivedSignalSectionV1>),
    V2(Frame<'a, ArchivedSignalSectionV2>),
    V3(Frame<'a, ArchivedSignalSection>),
}

impl<'a> SignalBatchView<'a> {
    /// Checks the bytes once.
    pub fn check(bytes: &'a [u8]) -> Result<Self, WireError> {
        let body = match Header::decode(bytes)?.version {
            1 => Body::V1(frame::check(bytes, FrameKind::Signals)?),
            2 => Body::V2(frame::check(bytes, FrameKind::Signals)?),
            _ => Body::V3(frame::check(bytes, FrameKind::Signals)?),
        };
        Ok(Self { body })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        match &self.body {
            Body::V1(frame) => &frame.header,
            Body::V2(frame) => &frame.header,
            Body::V3(frame) => &frame.header,
        }
    }

    /// Owned copy: stage two keeps signals, and there are hundreds a second, not a million.
    pub fn to_section(&self) -> SignalSection {
        match &self.body {
            Body::V1(frame) => owned::<SignalSectionV1>(frame).upgraded(u64::from(frame.header.epoch)),
            Body::V2(frame) => owned::<SignalSectionV2>(frame).into(),
            Body::V3(frame) => owned(frame),
        }
    }
}

fn owned<T>(frame: &Frame<'_, T::Archived>) -> T
where
    T: Archive + Default,
    for<'r> T::Archived: Deserialize<T, Strategy<BatchReader<'r>, Error>>,
{
    let entities = frame.own_entities();
    let mut reader = BatchReader { strings: frame.strings, entities: &entities };
    rkyv::api::deserialize_using(frame.body, &mut reader).unwrap_or_default()
}
