//! The state bucket: small values under keys, with compare-and-set and a time to live kept by the server.
//!
//! A bucket is a stream with one message per key, and the revision of a key is the sequence of that message: it
//! rises with every change of the bucket, deletions included, and is never used again.

use std::future::IntoFuture;
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL, NATS_ROLLUP};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use bytes::Bytes;
use tapio_schemas::names;

use super::message::chain;
use super::streams::STATE_MARKER_AGE;
use super::watch::KvEvent;
use super::{Bus, BusError, publish};

/// What a message of the bucket does to its key; absent for a value.
pub(super) const HEADER_OPERATION: &str = "KV-Operation";
const OPERATION_PURGE: &str = "PURGE";
/// Why the server wrote a message that takes a key away.
pub(super) const HEADER_MARKER: &str = "Nats-Marker-Reason";
/// A create may meet so many values that vanish between the refusal and the look at them.
const CREATE_ATTEMPTS: usize = 3;

/// A value and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEntry {
    /// The bytes.
    pub value: Bytes,
    /// Grows with every change in the bucket; what compare-and-set compares.
    pub revision: u64,
}

/// The bucket `tapio_state`. Keys are letters, digits and `-/_=.`. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Kv {
    pub(super) bus: Bus,
    stream: Stream<()>,
    timeout: Duration,
}

/// The newest message of a key.
enum Newest {
    Value(KvEntry),
    /// Taken away, by a message with this revision, or by none that is left (0).
    Gone(u64),
}

/// A change of a key.
#[derive(Default)]
struct Change {
    value: Bytes,
    /// Revision the key must have; 0 means none at all.
    expected: Option<u64>,
    ttl: Option<Duration>,
    purge: bool,
}

impl Bus {
    /// Opens the state bucket, which [`Bus::ensure_streams`] made.
    ///
    /// # Errors
    /// [`BusError::Stream`] when it does not exist.
    pub async fn kv(&self) -> Result<Kv, BusError> {
        let name = stream_name();
        let missing = |error: &dyn std::error::Error| BusError::Stream {
            stream: names::BUCKET_STATE.to_owned(),
            message: chain(error),
        };
        self.inner.jetstream.get_stream(&name).await.map_err(|error| missing(&error))?;
        let stream = self.inner.jetstream.get_stream_no_info(&name).await.map_err(|error| missing(&error))?;
        Ok(Kv { bus: self.clone(), stream, timeout: self.inner.config.request_timeout.get() })
    }
}

impl Kv {
    /// The same bucket with another time for one operation. Default `bus.request_timeout`. An operation that did
    /// not end in its time may have been done.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The value of a key, `None` when it has none. Asks the leader, so it sees every acknowledged change.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn get(&self, key: &str) -> Result<Option<KvEntry>, BusError> {
        match self.newest(key).await? {
            Newest::Value(entry) => Ok(Some(entry)),
            Newest::Gone(_) => Ok(None),
        }
    }

    /// Sets a key, whatever it was; gives the new revision.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.change(key, Change { value, ..Change::default() }).await
    }

    /// As [`Kv::put`]; the server takes the key away when it was not changed for `ttl`, in whole seconds.
    ///
    /// # Errors
    /// As [`Kv::put`].
    pub async fn put_with_ttl(&self, key: &str, value: Bytes, ttl: Duration) -> Result<u64, BusError> {
        self.change(key, Change { value, ttl: Some(ttl), ..Change::default() }).await
    }

    /// Sets a key that has no value; gives its revision.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it has one, [`BusError::Kv`].
    pub async fn create(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.create_for(key, value, None).await
    }

    /// As [`Kv::create`]; the server takes the key away when it was not changed for `ttl`, in whole seconds, at
    /// least one, rounded up.
    ///
    /// # Errors
    /// As [`Kv::create`].
    pub async fn create_with_ttl(&self, key: &str, value: Bytes, ttl: Duration) -> Result<u64, BusError> {
        self.create_for(key, value, Some(ttl)).await
    }

    /// Sets a key if its revision is still `expected`; gives the new revision. A time to live that the key had is
    /// gone.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it was changed meanwhile, [`BusError::Kv`].
    pub async fn compare_and_set(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        self.change(key, Change { value, expected: Some(expected), ..Change::default() }).await
    }

    /// As [`Kv::compare_and_set`], with a new time to live as in [`Kv::create_with_ttl`].
    ///
    /// # Errors
    /// As [`Kv::compare_and_set`].
    pub async fn compare_and_set_with_ttl(
        &self,
        key: &str,
        value: Bytes,
        expected: u64,
        ttl: Duration,
    ) -> Result<u64, BusError> {
        let change = Change { value, expected: Some(expected), ttl: Some(ttl), purge: false };
        self.change(key, change).await
    }

    /// Removes a key; nothing happens when it has no value.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn delete(&self, key: &str) -> Result<(), BusError> {
        if let Newest::Value(_) = self.newest(key).await? {
            self.change(key, Change { purge: true, ..Change::default() }).await?;
        }
        Ok(())
    }

    /// Removes a key if its revision is still `expected`; gives the revision of the removal.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it was changed meanwhile, [`BusError::Kv`].
    pub async fn delete_expecting(&self, key: &str, expected: u64) -> Result<u64, BusError> {
        self.change(key, Change { expected: Some(expected), purge: true, ..Change::default() }).await
    }

    /// All keys that have a value, sorted.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn keys(&self) -> Result<Vec<String>, BusError> {
        let mut keys = std::collections::BTreeSet::new();
        let mut watch = self.watch("").await?;
        loop {
            match self.in_time("*", watch.next()).await?? {
                KvEvent::Put { key, .. } => keys.insert(key),
                KvEvent::Gone { key, .. } => keys.remove(&key),
                KvEvent::Current => return Ok(keys.into_iter().collect()),
            };
        }
    }

    async fn create_for(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<u64, BusError> {
        let mut expected = 0;
        for _ in 0..CREATE_ATTEMPTS {
            let change = Change { value: value.clone(), expected: Some(expected), ttl, purge: false };
            match self.change(key, change).await {
                Err(BusError::Conflict { .. }) => {}
                done => return done,
            }
            // It may have been removed: then the message that says so is its newest.
            match self.newest(key).await? {
                Newest::Gone(revision) => expected = revision,
                Newest::Value(_) => break,
            }
        }
        Err(BusError::Conflict { key: key.to_owned() })
    }

    async fn newest(&self, key: &str) -> Result<Newest, BusError> {
        let subject = subject(key)?;
        let found = self.in_time(key, self.stream.get_last_raw_message_by_subject(&subject)).await?;
        let message = match found {
            Ok(message) => message,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(Newest::Gone(0));
            }
            Err(error) => return Err(failed(key, &error)),
        };
        let headers = &message.headers;
        if headers.get(HEADER_OPERATION).is_some() || headers.get(HEADER_MARKER).is_some() {
            return Ok(Newest::Gone(message.sequence));
        }
        Ok(Newest::Value(KvEntry { value: message.payload, revision: message.sequence }))
    }

    async fn change(&self, key: &str, change: Change) -> Result<u64, BusError> {
        let subject = subject(key)?;
        let mut message = PublishMessage::build().payload(change.value);
        if let Some(expected) = change.expected {
            message = message.header(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        }
        if change.purge {
            message = message.header(HEADER_OPERATION, OPERATION_PURGE).header(NATS_ROLLUP, "sub");
        }
        // The word that a key is gone goes, too, or the bucket would grow with every name there ever was.
        let ttl = if change.purge { Some(STATE_MARKER_AGE) } else { change.ttl };
        if let Some(ttl) = ttl {
            message = message.header(NATS_MESSAGE_TTL, whole_seconds(ttl).to_string());
        }
        let publishing = async {
            self.bus.inner.link.wait_connected().await?;
            let sent = self.bus.inner.jetstream.send_publish(subject, message).await;
            let sent = sent.map_err(|error| failed(key, &error))?;
            sent.into_future().await.map_err(|error| match publish::is_wrong_sequence(&error) {
                true => BusError::Conflict { key: key.to_owned() },
                false => failed(key, &error),
            })
        };
        Ok(self.in_time(key, publishing).await??.sequence)
    }

    async fn in_time<T>(&self, key: &str, operation: impl Future<Output = T>) -> Result<T, BusError> {
        tokio::time::timeout(self.timeout, operation).await.map_err(|_| BusError::Kv {
            key: key.to_owned(),
            message: format!("no answer within {:?}", self.timeout),
        })
    }
}

/// The stream behind the bucket.
pub(super) fn stream_name() -> String {
    format!("KV_{}", names::BUCKET_STATE)
}

/// Subjects of all keys begin with it.
pub(super) fn subject_prefix() -> String {
    format!("$KV.{}.", names::BUCKET_STATE)
}

fn subject(key: &str) -> Result<String, BusError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '/' | '_' | '=' | '.');
    if key.split('.').any(str::is_empty) || !key.chars().all(good) {
        let message = "keys have letters, digits and -/_=. and no empty part".to_owned();
        return Err(BusError::Kv { key: key.to_owned(), message });
    }
    Ok(subject_prefix() + key)
}

/// The server counts in seconds.
fn whole_seconds(ttl: Duration) -> u64 {
    ttl.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

pub(super) fn failed(key: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Kv { key: key.to_owned(), message: chain(error) }
}
