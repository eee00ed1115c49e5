//! Batches of signals, topology facts and tallies: what stage one tells stage two.

use rkyv::rancor::Error;
use rkyv::{Archive, Deserialize, Serialize};

use super::WireError;
use super::context::BatchReader;
use super::frame::{self, Frame, FrameWriter};
use super::header::{FrameKind, Header, SIGNALS_VERSION};
use crate::ids::{ProducerId, UnixNanos};
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
        SignalSection { marks, partial: false, signals, facts, tallies, gaps }
    }
}

impl SignalSection {
    /// True when there is nothing but marks.
    pub fn is_heartbeat(&self) -> bool {
        self.signals.is_empty() && self.facts.is_empty() && self.tallies.is_empty() && self.gaps.is_empty()
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
    V2(Frame<'a, ArchivedSignalSection>),
}

impl<'a> SignalBatchView<'a> {
    /// Checks the bytes once.
    pub fn check(bytes: &'a [u8]) -> Result<Self, WireError> {
        let body = match Header::decode(bytes)?.version {
            1 => Body::V1(frame::check(bytes, FrameKind::Signals)?),
            _ => Body::V2(frame::check(bytes, FrameKind::Signals)?),
        };
        Ok(Self { body })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        match &self.body {
            Body::V1(frame) => &frame.header,
            Body::V2(frame) => &frame.header,
        }
    }

    /// Owned copy: stage two keeps signals, and there are hundreds a second, not a million.
    pub fn to_section(&self) -> SignalSection {
        match &self.body {
            Body::V1(frame) => {
                let entities = frame.own_entities();
                let mut reader = BatchReader { strings: frame.strings, entities: &entities };
                let owned: Result<SignalSectionV1, Error> =
                    rkyv::api::deserialize_using(frame.body, &mut reader);
                owned.unwrap_or_default().upgraded(u64::from(frame.header.epoch))
            }
            Body::V2(frame) => {
                let entities = frame.own_entities();
                let mut reader = BatchReader { strings: frame.strings, entities: &entities };
                let owned: Result<SignalSection, Error> =
                    rkyv::api::deserialize_using(frame.body, &mut reader);
                owned.unwrap_or_default()
            }
        }
    }
}
