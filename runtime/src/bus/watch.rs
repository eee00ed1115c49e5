//! Following the keys of the state bucket.

use std::fmt;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};

use super::consumer::ORDERED_INACTIVE;
use super::feed::{Feed, Promise};
use super::kv::{self, HEADER_MARKER, HEADER_OPERATION, KvEntry};
use super::{BusError, Kv, Message};

/// Changes asked for at a time.
const WATCH_BATCH: usize = 256;
/// What the server writes as the reason when a time to live ended.
const MARKER_EXPIRED: &str = "MaxAge";

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// It has this value.
    Put {
        /// The key.
        key: String,
        /// Its value and revision.
        entry: KvEntry,
    },
    /// It has no value any more.
    Gone {
        /// The key.
        key: String,
        /// Revision of the removal.
        revision: u64,
        /// Its time to live ended; no one removed it.
        expired: bool,
    },
    /// What there was when the watch began has been given.
    Current,
}

/// The keys below a prefix: first as they are, then every change, through reconnects. Only when NATS was away
/// for longer than an hour may the word that a key is gone be missing.
pub struct KvWatch {
    feed: Feed,
    prefix: String,
}

impl fmt::Debug for KvWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvWatch({})", self.prefix)
    }
}

impl Kv {
    /// Follows the keys that begin with `prefix` and a dot; the empty prefix means all keys.
    ///
    /// # Errors
    /// [`BusError::Consumer`], [`BusError::Closed`].
    pub async fn watch(&self, prefix: &str) -> Result<KvWatch, BusError> {
        let below = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        let config = pull::Config {
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subjects: vec![format!("{}{below}>", kv::subject_prefix())],
            inactive_threshold: ORDERED_INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let promise = Promise::Ordered { unfiltered: false };
        let feed = Feed::open(self.bus.clone(), kv::stream_name(), config, WATCH_BATCH, promise).await?;
        Ok(KvWatch { feed, prefix: prefix.to_owned() })
    }
}

impl KvWatch {
    /// The next event, waiting as long as it takes. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`BusError::Closed`] only.
    pub async fn next(&mut self) -> Result<KvEvent, BusError> {
        Ok(match self.feed.next_or_current().await? {
            Some(message) => event(message),
            None => KvEvent::Current,
        })
    }
}

fn event(message: Message) -> KvEvent {
    let subject = message.subject.as_str();
    let key = subject.strip_prefix(&kv::subject_prefix()).unwrap_or(subject).to_owned();
    let revision = message.sequence;
    let marker = message.headers.get(HEADER_MARKER);
    if marker.is_some() || message.headers.get(HEADER_OPERATION).is_some() {
        return KvEvent::Gone { key, revision, expired: marker == Some(MARKER_EXPIRED) };
    }
    KvEvent::Put { key, entry: KvEntry { value: message.payload, revision } }
}
