//! Reads the insights stream at the start for the findings that are open and not on disk.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tapio_runtime::bus::{Bus, BusError, ConnectionState, Message, OrderedConfig, StartAt};
use tapio_schemas::finding::{FINDING_SCHEMA, Status};
use tapio_schemas::{FindingId, Score, SmolStr, names};

use crate::cell::StoreCell;
use crate::consumer::FINDING_BYTES_MAX;
use crate::open::{OpenFindings, is_open_and_unsure};
use crate::store::{Incoming, StoreError, StoredFinding};

/// Findings taken from the stream at a time.
const READ_FINDINGS: usize = 256;
/// Longest wait for the next ones.
const READ_WAIT: Duration = Duration::from_secs(1);
/// Empty reads in a row after which the stream counts as read: its end may have expired meanwhile.
const EMPTY_READS: u32 = 3;

/// What decides whether a finding is held, without the rest of the document.
#[derive(Deserialize)]
struct Head {
    schema: SmolStr,
    id: FindingId,
    revision: u32,
    status: Status,
    confidence: Score,
}

/// Why the open findings are not known.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The stream cannot be read.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The disk cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads from the beginning to what is the end now; what comes later comes through the consumer.
///
/// # Errors
/// [`RebuildError`].
pub async fn rebuild(bus: &Bus, cell: &StoreCell, open: &OpenFindings) -> Result<(), RebuildError> {
    let end = bus.stream_state(names::STREAM_INSIGHTS).await?;
    if end.messages == 0 {
        return Ok(());
    }
    let config = OrderedConfig {
        start: StartAt::Beginning,
        batch: READ_FINDINGS,
        ..OrderedConfig::new(names::STREAM_INSIGHTS)
    };
    let mut stream = bus.ordered_consumer(config).await?;
    let (mut empty, mut read) = (0, 0_u64);
    'stream: while empty < EMPTY_READS {
        let messages = stream.next_batch(READ_FINDINGS, READ_WAIT).await?;
        if messages.is_empty() && bus.state() == ConnectionState::Connected {
            empty += 1;
            continue;
        }
        empty = 0;
        for message in messages {
            take(&message, cell, open)?;
            read += 1;
            if message.sequence >= end.last_sequence || message.pending == 0 {
                break 'stream;
            }
        }
    }
    tracing::info!(read, open = open.len(), "open findings are known again");
    Ok(())
}

fn take(message: &Message, cell: &StoreCell, open: &OpenFindings) -> Result<(), StoreError> {
    // What is not a finding gets its dead letter from the consumer.
    let Ok(head) = serde_json::from_slice::<Head>(&message.payload) else { return Ok(()) };
    if head.schema != FINDING_SCHEMA || message.payload.len() > FINDING_BYTES_MAX {
        return Ok(());
    }
    if !is_open_and_unsure(head.status, head.confidence) {
        open.settle(head.id, head.revision);
        return Ok(());
    }
    if let Some(latest) = cell.get()?.latest_revision(head.id)?.filter(|latest| *latest >= head.revision) {
        open.settle(head.id, latest);
        return Ok(());
    }
    if let Ok(Incoming { finding, json }) = Incoming::parse(message.payload.clone()) {
        open.observe(&Arc::new(StoredFinding { finding, json, stored_at: cell.now() }));
    }
    Ok(())
}
