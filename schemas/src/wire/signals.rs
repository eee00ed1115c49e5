//! Batches of signals, topology facts and tallies: what stage one tells stage two.

use rkyv::rancor::Error;
use rkyv::{Archive, Deserialize, Serialize};

use super::WireError;
use super::context::BatchReader;
use super::frame::{self, Frame, FrameWriter};
use super::header::{FrameKind, Header, SCHEMA_VERSION};
use crate::ids::{ProducerId, UnixNanos};
use crate::signal::{Fact, Gap, Signal, Tally};

/// Body of a signal message.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct SignalSection {
    /// Shard watermarks: event time up to which the shard has said everything it will say.
    pub watermarks: Vec<(u16, UnixNanos)>,
    /// Deviations.
    pub signals: Vec<Signal>,
    /// Topology: who owns, calls, runs on whom.
    pub facts: Vec<Fact>,
    /// Partial aggregates per entity and call edge.
    pub tallies: Vec<Tally>,
    /// Holes in producers' sequences.
    pub gaps: Vec<Gap>,
}

impl SignalSection {
    /// True when there is nothing but watermarks.
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
        version: SCHEMA_VERSION,
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

/// A checked signal message.
pub struct SignalBatchView<'a> {
    frame: Frame<'a, ArchivedSignalSection>,
}

impl<'a> SignalBatchView<'a> {
    /// Checks the bytes once.
    pub fn check(bytes: &'a [u8]) -> Result<Self, WireError> {
        Ok(Self { frame: frame::check(bytes, FrameKind::Signals)? })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.frame.header
    }

    /// Owned copy: stage two keeps signals, and there are hundreds a second, not a million.
    pub fn to_section(&self) -> SignalSection {
        let entities = self.frame.own_entities();
        let mut reader = BatchReader { strings: self.frame.strings, entities: &entities };
        let owned: Result<SignalSection, Error> = rkyv::api::deserialize_using(self.frame.body, &mut reader);
        owned.unwrap_or_default()
    }
}
