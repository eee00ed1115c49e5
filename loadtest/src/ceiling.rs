//! What NATS does with the same bytes in the same messages when nothing else is in the way: async-nats alone.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;
use futures::StreamExt;

use crate::error::LoadError;
use crate::rig::stack;

const STREAM: &str = "LOADTEST_CEILING";
const SUBJECT: &str = "loadtest.ceiling";
/// Messages sent and not yet acknowledged, as the load's own publisher has.
pub const WINDOW: usize = 256;
/// Messages asked for at a time, as the correlator does.
const PULL: usize = 256;
/// What the stream keeps; the reader is never so far behind.
const STREAM_BYTES_MAX: i64 = 1 << 30;
/// A reader that gets nothing for so long has lost something.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ceiling {
    /// Payload bytes per second that went in, were acknowledged and came out.
    pub bytes_per_s: f64,
    /// Messages per second.
    pub messages_per_s: f64,
}

/// Bytes per second over several measurements; zero when there are none.
pub fn mean(measured: &[Ceiling]) -> f64 {
    if measured.is_empty() {
        return 0.0;
    }
    measured.iter().map(|c| c.bytes_per_s).sum::<f64>() / measured.len() as f64
}

/// Publishes for `length` and reads everything back at the same time, on a server of its own in `dir`, so that what it
/// costs is not counted with the load. `None` without a length.
///
/// # Errors
/// [`LoadError::Ceiling`], and when the server does not start.
pub async fn measure(dir: &Path, messages: &[Bytes], length: Duration) -> Result<Option<Ceiling>, LoadError> {
    if length.is_zero() {
        return Ok(None);
    }
    let dir = dir.join("ceiling");
    let server = stack::server(&dir).await?;
    let measured = of_server(&server.url(), messages, length).await;
    drop(server);
    // Gigabytes, even of a run whose directory is kept.
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("cannot remove {}: {error}", dir.display());
    }
    measured.map(Some)
}

async fn of_server(url: &str, messages: &[Bytes], length: Duration) -> Result<Ceiling, LoadError> {
    let writer = async_nats::connect(url).await.map_err(failed)?;
    let reader = async_nats::connect(url).await.map_err(failed)?;
    let (writer, reader) = (async_nats::jetstream::new(writer), async_nats::jetstream::new(reader));
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{SUBJECT}.>")],
        max_bytes: STREAM_BYTES_MAX,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        ..Config::default()
    };
    writer.create_stream(config).await.map_err(failed)?;
    pass(&writer, &reader, messages, length).await
}

async fn pass(
    writer: &async_nats::jetstream::Context,
    reader: &async_nats::jetstream::Context,
    messages: &[Bytes],
    length: Duration,
) -> Result<Ceiling, LoadError> {
    let (told, count) = tokio::sync::oneshot::channel();
    let consumer = tokio::spawn(consume(reader.clone(), count));
    let started = Instant::now();
    let mut waiting = VecDeque::with_capacity(WINDOW);
    let (mut sent, mut bytes) = (0u64, 0u64);
    for payload in messages.iter().cycle() {
        if started.elapsed() >= length {
            break;
        }
        // As many subjects as the load has.
        let subject = format!("{SUBJECT}.{}", sent % 64);
        waiting.push_back(writer.publish(subject, payload.clone()).await.map_err(failed)?);
        (sent, bytes) = (sent + 1, bytes + payload.len() as u64);
        if waiting.len() >= WINDOW
            && let Some(ack) = waiting.pop_front()
        {
            ack.await.map_err(failed)?;
        }
    }
    for ack in waiting {
        ack.await.map_err(failed)?;
    }
    // A reader that is gone says so itself.
    let _ = told.send(sent);
    let read = consumer.await.map_err(failed)??;
    let seconds = started.elapsed().as_secs_f64();
    if read < sent {
        return Err(LoadError::Ceiling(format!("{read} of {sent} messages came back")));
    }
    Ok(Ceiling { bytes_per_s: bytes as f64 / seconds, messages_per_s: sent as f64 / seconds })
}

async fn consume(
    reader: async_nats::jetstream::Context,
    mut count: tokio::sync::oneshot::Receiver<u64>,
) -> Result<u64, LoadError> {
    let stream = reader.get_stream(STREAM).await.map_err(failed)?;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(failed)?;
    let mut messages = consumer.stream().max_messages_per_batch(PULL).messages().await.map_err(failed)?;
    let (mut read, mut wanted) = (0u64, None);
    while wanted.is_none_or(|wanted| read < wanted) {
        tokio::select! {
            told = &mut count, if wanted.is_none() => wanted = Some(told.unwrap_or(0)),
            message = tokio::time::timeout(PATIENCE, messages.next()) => match message {
                Ok(Some(message)) => {
                    message.map_err(failed)?;
                    read += 1;
                }
                Ok(None) | Err(_) => break,
            },
        }
    }
    Ok(read)
}

fn failed(error: impl std::fmt::Display) -> LoadError {
    LoadError::Ceiling(error.to_string())
}

/// How the messages of the event stream spread over its subjects, as the server tells it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subjects {
    /// Subjects with messages.
    pub used: usize,
    /// Messages of the fullest.
    pub most: usize,
    /// Messages of the emptiest.
    pub least: usize,
}

impl std::fmt::Display for Subjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ratio = self.most as f64 / self.least.max(1) as f64;
        write!(f, "{} in use, {}..{} messages, max/min {ratio:.2}", self.used, self.least, self.most)
    }
}

/// Asks the server for the messages per subject of the event stream.
///
/// # Errors
/// [`LoadError::Ceiling`].
pub async fn subjects(url: &str) -> Result<Subjects, LoadError> {
    use tapio_schemas::names::{STREAM_EVENTS, SUBJECTS_EVENTS};
    let client = async_nats::connect(url).await.map_err(failed)?;
    let stream = async_nats::jetstream::new(client).get_stream(STREAM_EVENTS).await.map_err(failed)?;
    let mut infos = stream.info_with_subjects(SUBJECTS_EVENTS).await.map_err(failed)?;
    let mut counts = Vec::new();
    while let Some(info) = infos.next().await {
        counts.push(info.map_err(failed)?.1);
    }
    let (most, least) = (counts.iter().max().copied(), counts.iter().min().copied());
    Ok(Subjects { used: counts.len(), most: most.unwrap_or(0), least: least.unwrap_or(0) })
}
