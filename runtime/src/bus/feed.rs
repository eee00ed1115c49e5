//! A stream of messages that survives what happens to the connection and to the server.
//!
//! The client's own iterators give up, or wait for missed heartbeats, in cases that are ordinary
//! here: a server that was killed and came back. The feed opens its consumer again, from the message
//! after the last one it gave (ordered), or as it stands on the server (durable).

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::{self, Context};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::message::chain;
use super::{Bus, BusError, Message, RETRY_BACKOFF};

/// How long one pull request waits at the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// The server speaks at least this often; two silent periods mean that the pull is lost.
const PULL_HEARTBEAT: Duration = Duration::from_secs(2);
/// Every so many failed openings a warning is logged.
const WARN_EVERY_ATTEMPTS: u32 = 10;

/// Which promise the feed keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// Acknowledged messages do not come again; others do.
    Durable,
    /// Every message once, in the order of the stream.
    Ordered {
        /// All subjects are wanted, so a hole in the sequence is a loss.
        unfiltered: bool,
    },
}

/// What is heard of a stream that is read to its end, and beyond.
// Nearly all of it are messages: a box for each would cost more than the room.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum News {
    /// A message.
    Message(Message),
    /// All that was there when reading began, or began again, has been given.
    Current,
    /// The way to the server was lost after that: what is there now is not known before [`News::Current`].
    Behind,
}

struct Opened {
    source: pull::Stream,
    epoch: u64,
    /// Last sequence before the first message to come.
    before: u64,
    /// Messages that were there for it already.
    pending: u64,
}

pub(super) struct Feed {
    bus: Bus,
    stream: String,
    config: pull::Config,
    batch: usize,
    promise: Promise,
    source: Option<pull::Stream>,
    opening: Option<BoxFuture<'static, Result<Opened, BusError>>>,
    epoch: watch::Receiver<u64>,
    opened_epoch: u64,
    buffered: VecDeque<jetstream::Message>,
    last_sequence: u64,
    last_consumer_sequence: u64,
    failures: u32,
    /// Everything that was there when the consumer was opened has been received.
    current: bool,
    /// What was said of that last.
    current_told: bool,
    /// It was said at least once.
    was_current: bool,
}

impl Feed {
    /// Opens the consumer; the first time an error is the caller's.
    pub(super) async fn open(
        bus: Bus,
        stream: String,
        config: pull::Config,
        batch: usize,
        promise: Promise,
    ) -> Result<Self, BusError> {
        let epoch = bus.inner.link.epoch_receiver();
        let mut feed = Self {
            bus,
            stream,
            config,
            batch,
            promise,
            source: None,
            opening: None,
            epoch,
            opened_epoch: 0,
            buffered: VecDeque::new(),
            last_sequence: 0,
            last_consumer_sequence: 0,
            failures: 0,
            current: false,
            current_told: false,
            was_current: false,
        };
        let opened = feed.start_opening(Duration::ZERO).await?;
        feed.accept(opened);
        Ok(feed)
    }

    /// The next message. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Message, BusError> {
        loop {
            if let Some(message) = self.next_or_current().await? {
                return Ok(message);
            }
        }
    }

    /// The next message; `None` once, when all that was there at first has been given.
    pub(super) async fn next_or_current(&mut self) -> Result<Option<Message>, BusError> {
        loop {
            match self.news().await? {
                News::Message(message) => return Ok(Some(message)),
                News::Current if !std::mem::replace(&mut self.was_current, true) => return Ok(None),
                News::Current | News::Behind => {}
            }
        }
    }

    /// The next message, or how far reading is, when that changes. Cancelling it loses nothing.
    pub(super) async fn news(&mut self) -> Result<News, BusError> {
        loop {
            if self.current_told && !self.current {
                self.current_told = false;
                return Ok(News::Behind);
            }
            if let Some(message) = self.buffered.pop_front() {
                if let Some(message) = self.check(message) {
                    return Ok(News::Message(message));
                }
                continue;
            }
            if self.current && !self.current_told {
                self.current_told = true;
                return Ok(News::Current);
            }
            let opened_epoch = self.opened_epoch;
            let Some(source) = self.source.as_mut() else {
                self.reopen().await?;
                continue;
            };
            let epoch = &mut self.epoch;
            let reconnected = async {
                // The bus outlives its link, so an error cannot be; a closed bus ends the source.
                let _ = epoch.wait_for(|epoch| *epoch > opened_epoch).await;
            };
            tokio::select! {
                biased;
                item = source.next() => match item {
                    Some(Ok(message)) => self.buffered.push_back(message),
                    Some(Err(error)) => self.lose(&chain(&error)),
                    None => self.lose("the subscription ended"),
                },
                () = reconnected => self.lose("reconnected"),
            }
        }
    }

    /// Waits up to `wait` for one message, then takes what is there, at most `max`.
    pub(super) async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, BusError> {
        let mut messages = Vec::new();
        let deadline = Instant::now() + wait;
        match tokio::time::timeout_at(deadline, self.next()).await {
            Ok(first) => messages.push(first?),
            Err(_) => return Ok(messages),
        }
        while messages.len() < max {
            match self.next().now_or_never() {
                Some(message) => messages.push(message?),
                None => break,
            }
        }
        Ok(messages)
    }

    /// Counts the message in, or refuses it because of a hole.
    fn check(&mut self, message: jetstream::Message) -> Option<Message> {
        let (message, consumer_sequence) = Message::from_stream(message)?;
        if let Promise::Ordered { unfiltered } = self.promise {
            let in_order =
                consumer_sequence == self.last_consumer_sequence + 1 && message.sequence > self.last_sequence;
            if !in_order {
                self.buffered.clear();
                self.lose("a message was lost on its way");
                return None;
            }
            let hole = message.sequence - self.last_sequence - 1;
            if unfiltered && hole > 0 {
                self.bus.inner.metrics.skipped(&self.stream, hole);
            }
        }
        self.last_consumer_sequence = consumer_sequence;
        self.last_sequence = message.sequence;
        self.current |= message.pending == 0;
        self.bus.inner.metrics.received(&self.stream);
        Some(message)
    }

    /// Gives the consumer up. What a durable one has already delivered here is kept, or it would
    /// come again only after the acknowledgement wait.
    fn lose(&mut self, reason: &str) {
        tracing::debug!(stream = self.stream, reason, "consumer is opened again");
        self.bus.inner.metrics.reopened(&self.stream);
        self.current = false;
        let source = self.source.take();
        if self.promise == Promise::Durable {
            let mut source = source;
            let mut ready = || source.as_mut()?.next().now_or_never().flatten()?.ok();
            while let Some(message) = ready() {
                self.buffered.push_back(message);
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), BusError> {
        if self.opening.is_none() {
            let delay = match self.failures {
                0 => Duration::ZERO,
                failures => RETRY_BACKOFF.delay(failures - 1),
            };
            self.opening = Some(self.start_opening(delay));
        }
        // Kept in self while it is awaited: a caller with a short timeout must not start over.
        let opening = self.opening.as_mut().expect("just set");
        let result = opening.await;
        self.opening = None;
        match result {
            Ok(opened) => self.accept(opened),
            Err(BusError::Closed) => return Err(BusError::Closed),
            Err(error) => {
                self.failures += 1;
                if self.failures.is_multiple_of(WARN_EVERY_ATTEMPTS) {
                    let (stream, attempts) = (&self.stream, self.failures);
                    tracing::warn!(stream, attempts, %error, "consumer cannot be opened");
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, opened: Opened) {
        self.source = Some(opened.source);
        self.opened_epoch = opened.epoch;
        self.last_consumer_sequence = 0;
        self.last_sequence = self.last_sequence.max(opened.before);
        self.current |= opened.pending == 0;
        self.failures = 0;
    }

    fn start_opening(&self, delay: Duration) -> BoxFuture<'static, Result<Opened, BusError>> {
        let mut config = self.config.clone();
        if matches!(self.promise, Promise::Ordered { .. }) && self.last_sequence > 0 {
            let start_sequence = self.last_sequence + 1;
            config.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence };
        }
        let (bus, stream, batch) = (self.bus.clone(), self.stream.clone(), self.batch);
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            bus.inner.link.wait_connected().await?;
            let epoch = bus.inner.link.epoch();
            let consumer = create(&bus.inner.jetstream, &stream, config).await?;
            let before = consumer.cached_info().delivered.stream_sequence;
            let pending = consumer.cached_info().num_pending;
            let source = consumer
                .stream()
                .max_messages_per_batch(batch)
                .expires(PULL_EXPIRES)
                .heartbeat(PULL_HEARTBEAT)
                .messages()
                .await
                .map_err(|error| failed(&stream, &consumer.cached_info().name, &error))?;
            Ok(Opened { source, epoch, before, pending })
        })
    }
}

async fn create(
    jetstream: &Context,
    stream: &str,
    config: pull::Config,
) -> Result<Consumer<pull::Config>, BusError> {
    let durable = config.durable_name.clone();
    let error = match jetstream.create_consumer_on_stream(config, stream).await {
        Ok(consumer) => return Ok(consumer),
        Err(error) => error,
    };
    let name = durable.as_deref().unwrap_or("(ordered)");
    // It may exist with a start that cannot be changed any more; its position counts, not its start.
    if let Some(existing) = &durable
        && let Ok(consumer) = jetstream.get_consumer_from_stream(existing, stream).await
    {
        return Ok(consumer);
    }
    Err(failed(stream, name, &error))
}

pub(super) fn failed(stream: &str, consumer: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Consumer { consumer: consumer.to_owned(), stream: stream.to_owned(), message: chain(error) }
}
