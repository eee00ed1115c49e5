//! The streams and the bucket, with their limits.

use std::error::Error;
use std::ops::Range;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PeerInfo, StorageType};
use async_nats::jetstream::{self, ErrorCode, kv};
use futures::TryStreamExt;
use tapio_schemas::names;

use super::message::chain;
use super::{Bus, BusError, RETRY_BACKOFF, StreamLimits};
use crate::config::ByteSize;

/// Most bytes the state bucket may take: low-water marks and leases are small.
const STATE_BYTES_MAX: i64 = 64 << 20;
/// Largest value in the state bucket.
const STATE_VALUE_BYTES_MAX: i32 = 1 << 20;

/// How long the word that a key is gone is kept, for those who watch and were away.
pub(super) const STATE_MARKER_AGE: Duration = Duration::from_secs(3_600);

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// Messages.
    pub messages: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Sequence of the oldest message left.
    pub first_sequence: u64,
    /// Sequence of the newest message, 0 when there never was one.
    pub last_sequence: u64,
}

/// One of the streams that hold the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsStream {
    /// Its name.
    pub name: String,
    /// The shards it holds, of every cluster.
    pub shards: Range<u16>,
}

impl EventsStream {
    /// Filters for the events of a cluster in this stream.
    pub fn filters(&self, cluster: &str) -> Vec<String> {
        if self.shards == (0..names::SHARD_COUNT) {
            return vec![names::events_filter(cluster)];
        }
        self.shards.clone().map(|shard| names::events_subject(cluster, shard)).collect()
    }

    /// The subjects the stream takes.
    fn subjects(&self) -> Vec<String> {
        if self.shards == (0..names::SHARD_COUNT) {
            return vec![names::SUBJECTS_EVENTS.to_owned()];
        }
        self.shards.clone().map(names::events_shard_filter).collect()
    }
}

/// Where the copies of a stream are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPlacement {
    /// Name of the server that leads, `None` while there is no leader or the server is alone.
    pub leader: Option<String>,
    /// The other copies.
    pub followers: Vec<StreamPeer>,
}

/// A copy of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPeer {
    /// Name of its server.
    pub server: String,
    /// It has everything that the leader has.
    pub current: bool,
}

impl Bus {
    /// Makes the streams and the state bucket, or brings their limits up to date. Idempotent, and safe for several
    /// processes at a time. Waits up to `bus.connect_timeout` for a cluster that has no leader yet.
    ///
    /// # Errors
    /// [`BusError::Stream`] with the server's reason.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        let streams = &self.inner.config.streams;
        for config in self.events_configs() {
            self.ensure_stream(config).await?;
        }
        let wanted = [
            (names::STREAM_SIGNALS, vec![names::SUBJECTS_SIGNALS], streams.signals),
            (
                names::STREAM_INSIGHTS,
                vec![names::SUBJECTS_INSIGHTS, names::SUBJECTS_INSIGHTS_FENCE],
                streams.insights,
            ),
            (names::STREAM_DEADLETTER, vec![names::SUBJECTS_DEADLETTER], streams.deadletter),
        ];
        for (name, subjects, limits) in wanted {
            let subjects = subjects.into_iter().map(str::to_owned).collect();
            // A fence replaces the one before it and outlives the age limit.
            let config = Config {
                allow_rollup: true,
                allow_message_ttl: true,
                ..self.stream_config(name, subjects, limits)
            };
            self.ensure_stream(config).await?;
        }
        let bucket = kv::Config {
            bucket: names::BUCKET_STATE.to_owned(),
            description: "low-water marks and leases".to_owned(),
            history: 1,
            max_bytes: STATE_BYTES_MAX,
            max_value_size: STATE_VALUE_BYTES_MAX,
            storage: StorageType::File,
            num_replicas: streams.replicas,
            limit_markers: Some(STATE_MARKER_AGE),
            ..kv::Config::default()
        };
        self.patiently(names::BUCKET_STATE, async || {
            self.inner.jetstream.create_or_update_key_value(bucket.clone()).await.map(drop)
        })
        .await
    }

    /// The streams that hold the events, by shard.
    pub fn events_streams(&self) -> Vec<EventsStream> {
        let count = self.inner.config.streams.events.streams.clamp(1, names::SHARD_COUNT);
        let holds =
            |index| (0..names::SHARD_COUNT).filter(move |s| names::events_stream_index(count, *s) == index);
        let shards = |index| holds(index).min().unwrap_or(0)..holds(index).max().unwrap_or(0) + 1;
        let stream = |index| EventsStream { name: names::events_stream(count, index), shards: shards(index) };
        (0..count).map(stream).collect()
    }

    /// The stream that holds a shard.
    pub fn events_stream_of(&self, shard: u16) -> EventsStream {
        let holds = |stream: &EventsStream| stream.shards.contains(&(shard % names::SHARD_COUNT));
        self.events_streams().into_iter().find(holds).expect("every shard is in one stream")
    }

    /// Names of the streams that hold the events on this server, whatever this process was told of their number; sorted.
    ///
    /// # Errors
    /// As [`Bus::stream_state`].
    pub async fn stored_events_streams(&self) -> Result<Vec<String>, BusError> {
        let listed = self.inner.jetstream.stream_names().try_collect::<Vec<String>>().await;
        let mut names = listed.map_err(|error| failed(names::STREAM_EVENTS, &error))?;
        let is_part = |name: &str| {
            name.strip_prefix(names::STREAM_EVENTS)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        names.retain(|name| is_part(name));
        names.sort();
        Ok(names)
    }

    /// Where the copies of a stream are.
    ///
    /// # Errors
    /// As [`Bus::stream_state`].
    pub async fn stream_placement(&self, stream: &str) -> Result<StreamPlacement, BusError> {
        let handle = self.inner.jetstream.get_stream(stream).await;
        let handle = handle.map_err(|error| failed(stream, &error))?;
        let cluster = handle.cached_info().cluster.clone();
        let peer = |peer: &PeerInfo| StreamPeer {
            server: peer.name.clone(),
            current: peer.current && !peer.offline,
        };
        Ok(StreamPlacement {
            leader: cluster.as_ref().and_then(|cluster| cluster.leader.clone()),
            followers: cluster.map(|cluster| cluster.replicas.iter().map(peer).collect()).unwrap_or_default(),
        })
    }

    /// What a stream holds now.
    ///
    /// # Errors
    /// [`BusError::Stream`] when it does not exist or NATS is away.
    pub async fn stream_state(&self, stream: &str) -> Result<StreamState, BusError> {
        let handle = self.inner.jetstream.get_stream(stream).await;
        let handle = handle.map_err(|error| failed(stream, &error))?;
        let state = &handle.cached_info().state;
        Ok(StreamState {
            messages: state.messages,
            bytes: state.bytes,
            first_sequence: state.first_sequence,
            last_sequence: state.last_sequence,
        })
    }

    fn events_configs(&self) -> Vec<Config> {
        let events = &self.inner.config.streams.events;
        let streams = self.events_streams();
        let share = ByteSize(events.max_bytes.bytes() / streams.len() as u64);
        let limits = StreamLimits { max_bytes: share, max_age: events.max_age };
        streams.iter().map(|stream| self.stream_config(&stream.name, stream.subjects(), limits)).collect()
    }

    async fn ensure_stream(&self, config: Config) -> Result<(), BusError> {
        self.patiently(&config.name, async || {
            self.inner.jetstream.create_or_update_stream(config.clone()).await.map(drop)
        })
        .await
    }

    /// Repeats what a server refuses only because its cluster is not ready.
    async fn patiently<E: Error + 'static>(
        &self,
        stream: &str,
        make: impl AsyncFn() -> Result<(), E>,
    ) -> Result<(), BusError> {
        let deadline = Instant::now() + self.inner.config.connect_timeout.get();
        for attempt in 0.. {
            let Err(error) = make().await else { return Ok(()) };
            let refusal = refusal(&error);
            let delay = RETRY_BACKOFF.delay(attempt);
            if refusal.as_ref().is_some_and(is_final) || Instant::now() + delay >= deadline {
                let message = match refusal {
                    Some(refusal) if refusal.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP => format!(
                        "{}; was bus.streams.events.streams another number before? Let the old streams run empty and \
                         delete them",
                        chain(&error)
                    ),
                    _ => chain(&error),
                };
                return Err(BusError::Stream { stream: stream.to_owned(), message });
            }
            tokio::time::sleep(delay).await;
        }
        unreachable!("the attempts end at the deadline")
    }

    fn stream_config(&self, name: &str, subjects: Vec<String>, limits: StreamLimits) -> Config {
        let streams = &self.inner.config.streams;
        let window = streams.duplicate_window.get();
        let max_age = limits.max_age.get();
        Config {
            name: name.to_owned(),
            subjects,
            max_bytes: i64::try_from(limits.max_bytes.bytes()).unwrap_or(i64::MAX),
            max_age,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            // The server refuses a window longer than the age; an age of 0 means for ever.
            duplicate_window: if max_age.is_zero() { window } else { window.min(max_age) },
            num_replicas: streams.replicas,
            allow_direct: true,
            ..Config::default()
        }
    }
}

fn failed(stream: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Stream { stream: stream.to_owned(), message: chain(error) }
}

/// What the server said, somewhere in an error of the client.
fn refusal(error: &(dyn Error + 'static)) -> Option<jetstream::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refusal) = error.downcast_ref::<jetstream::Error>() {
            return Some(refusal.clone());
        }
        if let Some(CreateStreamErrorKind::JetStream(refusal)) =
            error.downcast_ref::<CreateStreamError>().map(CreateStreamError::kind)
        {
            return Some(refusal);
        }
        next = error.source();
    }
    None
}

/// Whether asking again cannot help. Servers that have no leader yet answer with 5xx, those that do not know all their peers
/// yet with a 400 of its own.
fn is_final(refusal: &jetstream::Error) -> bool {
    let waiting_is_vain = [ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED, ErrorCode::STORAGE_RESOURCES_EXCEEDED];
    let may_come = refusal.code() >= 500 || refusal.error_code() == ErrorCode::CLUSTER_NO_PEERS;
    !may_come || waiting_is_vain.contains(&refusal.error_code())
}
