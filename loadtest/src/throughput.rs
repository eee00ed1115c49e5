//! How fast batches go through JetStream, and what NATS alone does with the same bytes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tapio_runtime::bus::{Bus, BusError, Headers, OrderedConfig, Outgoing, StartAt};
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::names::{STREAM_EVENTS, events_subject};
use tapio_schemas::wire::{EventBatchView, WireError};
use tapio_schemas::{ProducerId, UnixNanos};

use crate::generator::{Encoded, Generator};

/// Cluster of load batches.
const CLUSTER: &str = "loadtest";
/// Messages sent and not yet acknowledged.
const WINDOW: usize = 256;
/// A reader that gets nothing for so long has lost something.
const PATIENCE: Duration = Duration::from_secs(30);
/// Distinct messages; published over and over, so that making them is not what is measured.
const DISTINCT_BATCHES: usize = 512;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// NATS.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A batch did not encode or came back broken.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Less came out than went in.
    #[error("{read} of {published} events came back within {PATIENCE:?}: {missing} are missing")]
    Lost {
        /// Went in.
        published: u64,
        /// Came out.
        read: u64,
        /// The difference.
        missing: u64,
    },
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Events that went in and came out.
    pub events: u64,
    /// Publish until the last acknowledgement.
    pub published_per_s: f64,
    /// Publish, store, read back, check and touch each event.
    pub processed_per_s: f64,
    /// Wire bytes per event.
    pub bytes_per_event: f64,
    /// The same messages published and read back without looking inside.
    pub ceiling_bytes_per_s: f64,
    /// Share of the ceiling.
    pub ratio: f64,
}

/// Publishes `events` events (rounded up to batches) and reads them back; then the ceiling.
///
/// # Errors
/// [`LoadError`]; less read than published is an error, not a figure.
pub async fn run(bus: &Bus, events: u64, start: UnixNanos) -> Result<Report, LoadError> {
    let mut generator = Generator::new(CLUSTER, ProducerId(1), start);
    let mut batches = Vec::with_capacity(DISTINCT_BATCHES);
    for _ in 0..DISTINCT_BATCHES {
        batches.push(generator.next_batch()?);
    }
    let checked = pass(bus, &batches, events, true).await?;
    let raw = pass(bus, &batches, events, false).await?;
    let bytes_per_event = checked.bytes as f64 / checked.events as f64;
    Ok(Report {
        events: checked.events,
        published_per_s: checked.events as f64 / checked.publish.as_secs_f64(),
        processed_per_s: checked.events as f64 / checked.total.as_secs_f64(),
        bytes_per_event,
        ceiling_bytes_per_s: raw.bytes as f64 / raw.total.as_secs_f64(),
        ratio: raw.total.as_secs_f64() / checked.total.as_secs_f64(),
    })
}

struct Pass {
    events: u64,
    bytes: u64,
    publish: Duration,
    total: Duration,
}

async fn pass(bus: &Bus, batches: &[Encoded], events: u64, look: bool) -> Result<Pass, LoadError> {
    let first = bus.stream_state(STREAM_EVENTS).await?.last_sequence + 1;
    let started = Instant::now();
    let reader = tokio::spawn(read(bus.clone(), first, events, look));
    let (bytes, publish) = publish(bus, batches, events).await?;
    let read = reader.await.expect("the reader does not panic")?;
    let published = events.div_ceil(batches[0].events) * batches[0].events;
    if read < published {
        return Err(LoadError::Lost { published, read, missing: published - read });
    }
    Ok(Pass { events: read, bytes, publish, total: started.elapsed() })
}

async fn publish(bus: &Bus, batches: &[Encoded], events: u64) -> Result<(u64, Duration), LoadError> {
    let started = Instant::now();
    let (mut publisher, mut reports) = bus.publisher(WINDOW, Shutdown::new());
    let acknowledged = tokio::spawn(async move {
        while let Some(report) = reports.next().await {
            report.result?;
        }
        Ok::<(), BusError>(())
    });
    let payloads: Vec<(String, Bytes, u64)> = batches
        .iter()
        .map(|b| (events_subject(CLUSTER, b.shard), Bytes::from(b.bytes.clone()), b.events))
        .collect();
    let (mut sent, mut bytes) = (0, 0);
    for (subject, payload, count) in payloads.iter().cycle() {
        if sent >= events {
            break;
        }
        let (subject, payload) = (subject.clone(), payload.clone());
        bytes += payload.len() as u64;
        sent += count;
        publisher.submit(Outgoing { subject, msg_id: None, headers: Headers::new(), payload }).await?;
    }
    drop(publisher);
    acknowledged.await.expect("the report reader does not panic")?;
    Ok((bytes, started.elapsed()))
}

/// Reads until `events` have come; with `look` each batch is checked and each event touched.
async fn read(bus: Bus, first: u64, events: u64, look: bool) -> Result<u64, LoadError> {
    let mut config = OrderedConfig::new(STREAM_EVENTS);
    config.start = StartAt::Sequence(first);
    let mut consumer = bus.ordered_consumer(config).await?;
    let mut read = 0;
    while read < events {
        let messages = consumer.next_batch(256, PATIENCE).await?;
        if messages.is_empty() {
            return Ok(read);
        }
        for message in messages {
            read += if look { touch(&message.payload)? } else { crate::generator::BATCH_EVENTS as u64 };
        }
    }
    Ok(read)
}

fn touch(payload: &[u8]) -> Result<u64, WireError> {
    let view = EventBatchView::check(payload)?;
    let touched = view.iter().fold(0u64, |sum, event| sum ^ event.timestamp().0 ^ event.key().id as u64);
    std::hint::black_box(touched);
    Ok(view.len() as u64)
}
