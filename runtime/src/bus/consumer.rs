//! The two ways to read a stream.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};

use tapio_schemas::names;

use super::feed::{Feed, Promise, failed};
use super::{Bus, BusError, Message, News};

/// Messages asked for at a time.
const BATCH_DEFAULT: usize = 256;
/// The server forgets an ordered consumer that no one pulls from after this time.
pub(super) const ORDERED_INACTIVE: Duration = Duration::from_secs(30);

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// At the oldest message the stream has.
    #[default]
    Beginning,
    /// At this stream sequence, or the first one after it that is left.
    Sequence(u64),
    /// After what is there now.
    New,
    /// At the first message stored at or after this time.
    UnixNanos(u64),
}

impl StartAt {
    fn policy(self) -> DeliverPolicy {
        match self {
            Self::Beginning => DeliverPolicy::All,
            Self::New => DeliverPolicy::New,
            Self::Sequence(start_sequence) => {
                DeliverPolicy::ByStartSequence { start_sequence: start_sequence.max(1) }
            }
            Self::UnixNanos(nanos) => {
                match async_nats::datetime::from_nanos(i128::from(nanos)) {
                    Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
                    // Beyond what a date can say: nothing is stored there.
                    Err(_) => DeliverPolicy::New,
                }
            }
        }
    }
}

/// A consumer whose position the server keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableConfig {
    /// Stream to read.
    pub stream: String,
    /// Name of the position, unique in the stream.
    pub name: String,
    /// Subjects wanted; empty means all but the fences.
    pub filters: Vec<String>,
    /// Where it begins when it is new.
    pub start: StartAt,
    /// A message that is not acknowledged comes again after this time. Default 30 s.
    pub ack_wait: Duration,
    /// Messages delivered and not acknowledged; the server waits beyond it. Default 1024.
    pub max_ack_pending: usize,
    /// Messages asked for at a time. Default 256.
    pub batch: usize,
}

impl DurableConfig {
    /// All subjects from the beginning, with the defaults.
    pub fn new(stream: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            name: name.into(),
            filters: Vec::new(),
            start: StartAt::Beginning,
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 1024,
            batch: BATCH_DEFAULT,
        }
    }
}

/// A consumer without acknowledgements, whose position its owner keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderedConfig {
    /// Stream to read.
    pub stream: String,
    /// Subjects wanted; empty means all but the fences.
    pub filters: Vec<String>,
    /// Where it begins.
    pub start: StartAt,
    /// Messages asked for at a time. Default 256.
    pub batch: usize,
}

impl OrderedConfig {
    /// All subjects from the beginning.
    pub fn new(stream: impl Into<String>) -> Self {
        Self { stream: stream.into(), filters: Vec::new(), start: StartAt::Beginning, batch: BATCH_DEFAULT }
    }
}

/// The filters given, or of the findings those that leave out fences.
fn filters(stream: &str, given: Vec<String>) -> Vec<String> {
    if stream != names::STREAM_INSIGHTS || !given.is_empty() {
        return given;
    }
    vec![names::SUBJECTS_INSIGHTS.to_owned()]
}

impl Bus {
    /// Makes the durable consumer, or takes it up where it stands.
    ///
    /// # Errors
    /// [`BusError::Consumer`] when the server refuses it, for example because the stream is missing.
    pub async fn durable_consumer(&self, config: DurableConfig) -> Result<DurableConsumer, BusError> {
        let pull = pull::Config {
            durable_name: Some(config.name.clone()),
            deliver_policy: config.start.policy(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait,
            max_ack_pending: i64::try_from(config.max_ack_pending).unwrap_or(i64::MAX),
            filter_subjects: filters(&config.stream, config.filters),
            ..pull::Config::default()
        };
        let stream = config.stream.clone();
        let feed = Feed::open(self.clone(), stream, pull, config.batch, Promise::Durable).await?;
        Ok(DurableConsumer { feed, stream: config.stream, name: config.name })
    }

    /// Messages of a stream that a durable consumer has not acknowledged: those that it was given, and those that it was not.
    ///
    /// # Errors
    /// As [`Bus::durable_consumer`].
    pub async fn unacknowledged(&self, stream: &str, name: &str) -> Result<u64, BusError> {
        let found = self.inner.jetstream.get_consumer_from_stream::<pull::Config, _, _>(name, stream).await;
        let consumer = found.map_err(|error| failed(stream, name, &error))?;
        let info = consumer.cached_info();
        Ok(info.num_pending + info.num_ack_pending as u64)
    }

    /// Opens an ordered consumer.
    ///
    /// # Errors
    /// As [`Bus::durable_consumer`].
    pub async fn ordered_consumer(&self, config: OrderedConfig) -> Result<OrderedConsumer, BusError> {
        let unfiltered = config.filters.is_empty();
        let pull = pull::Config {
            deliver_policy: config.start.policy(),
            ack_policy: AckPolicy::None,
            filter_subjects: filters(&config.stream, config.filters),
            inactive_threshold: ORDERED_INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let stream = config.stream.clone();
        let promise = Promise::Ordered { unfiltered };
        let feed = Feed::open(self.clone(), stream, pull, config.batch, promise).await?;
        Ok(OrderedConsumer { feed, stream: config.stream })
    }
}

/// Reads a stream with acknowledgements: what is not acknowledged comes again, also to another
/// process that opens the same name.
pub struct DurableConsumer {
    feed: Feed,
    stream: String,
    name: String,
}

impl fmt::Debug for DurableConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableConsumer({}/{})", self.stream, self.name)
    }
}

impl DurableConsumer {
    /// The next message, waiting as long as it takes. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`BusError::Closed`] only: everything else is mended here.
    pub async fn next(&mut self) -> Result<Message, BusError> {
        self.feed.next().await
    }

    /// Waits up to `wait` for a message, then takes what is there, at most `max`; empty after `wait`.
    ///
    /// # Errors
    /// As [`DurableConsumer::next`].
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, BusError> {
        self.feed.next_batch(max, wait).await
    }
}

/// Reads a stream in order, every message once, through reconnects and server restarts.
pub struct OrderedConsumer {
    feed: Feed,
    stream: String,
}

impl fmt::Debug for OrderedConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderedConsumer({})", self.stream)
    }
}

impl OrderedConsumer {
    /// The next message, waiting as long as it takes. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`BusError::Closed`] only: everything else is mended here.
    pub async fn next(&mut self) -> Result<Message, BusError> {
        self.feed.next().await
    }

    /// The next message; `None` once, when all that was there at first has been given. Cancelling it loses nothing.
    ///
    /// # Errors
    /// As [`OrderedConsumer::next`].
    pub async fn next_or_current(&mut self) -> Result<Option<Message>, BusError> {
        self.feed.next_or_current().await
    }

    /// The next message, or how far reading is, each time that changes. Cancelling it loses nothing.
    ///
    /// # Errors
    /// As [`OrderedConsumer::next`].
    pub async fn news(&mut self) -> Result<News, BusError> {
        self.feed.news().await
    }

    /// Waits up to `wait` for a message, then takes what is there, at most `max`; empty after `wait`.
    ///
    /// # Errors
    /// As [`OrderedConsumer::next`].
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, BusError> {
        self.feed.next_batch(max, wait).await
    }
}
