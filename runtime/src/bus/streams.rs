//! The streams and the bucket, with their limits.

use std::time::Duration;

use async_nats::jetstream::kv;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use tapio_schemas::names;

use super::message::chain;
use super::{Bus, BusError, StreamLimits};

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

impl Bus {
    /// Makes the four streams and the state bucket, or brings their limits up to date. Idempotent,
    /// and safe for several processes at a time.
    ///
    /// # Errors
    /// [`BusError::Stream`] with the server's reason.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        let streams = &self.inner.config.streams;
        let wanted = [
            (names::STREAM_EVENTS, vec![names::SUBJECTS_EVENTS], streams.events),
            (
                names::STREAM_SIGNALS,
                vec![names::SUBJECTS_SIGNALS, names::SUBJECTS_SIGNALS_FENCE],
                streams.signals,
            ),
            (
                names::STREAM_INSIGHTS,
                vec![names::SUBJECTS_INSIGHTS, names::SUBJECTS_INSIGHTS_FENCE],
                streams.insights,
            ),
            (names::STREAM_DEADLETTER, vec![names::SUBJECTS_DEADLETTER], streams.deadletter),
        ];
        for (name, subjects, limits) in wanted {
            let config = self.stream_config(name, &subjects, limits);
            let made = self.inner.jetstream.create_or_update_stream(config).await;
            made.map_err(|error| failed(name, &error))?;
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
        let made = self.inner.jetstream.create_or_update_key_value(bucket).await;
        made.map_err(|error| failed(names::BUCKET_STATE, &error))?;
        Ok(())
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

    fn stream_config(&self, name: &str, subjects: &[&str], limits: StreamLimits) -> Config {
        let streams = &self.inner.config.streams;
        let window = streams.duplicate_window.get();
        let max_age = limits.max_age.get();
        Config {
            name: name.to_owned(),
            subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
            max_bytes: i64::try_from(limits.max_bytes.bytes()).unwrap_or(i64::MAX),
            max_age,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            // The server refuses a window longer than the age; an age of 0 means for ever.
            duplicate_window: if max_age.is_zero() { window } else { window.min(max_age) },
            num_replicas: streams.replicas,
            allow_direct: true,
            // A fence replaces the one before it and outlives the age limit.
            allow_rollup: true,
            allow_message_ttl: true,
            ..Config::default()
        }
    }
}

fn failed(stream: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Stream { stream: stream.to_owned(), message: chain(error) }
}
