//! A message of a stream.

use std::error::Error;
use std::fmt;

use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use std::time::Duration;

use super::{BusError, Headers};

/// A message delivered from a stream. Durable consumers must acknowledge it, last, after its effect
/// is durable; ordered consumers need not.
pub struct Message {
    /// Subject it was published to.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Sequence in the stream, from 1.
    pub sequence: u64,
    /// Messages behind it that the consumer has still to get.
    pub pending: u64,
    /// When the server stored it.
    pub published_at_unix_nanos: u64,
    /// How many times it was delivered, from 1.
    pub delivered: u64,
    /// Its headers.
    pub headers: Headers,
    acker: jetstream::message::Acker,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} #{}, {} bytes)", self.subject, self.sequence, self.payload.len())
    }
}

impl Message {
    /// `None` for a message that did not come from a stream.
    pub(super) fn from_stream(message: jetstream::Message) -> Option<(Self, u64)> {
        let info = message.info().ok()?;
        let (sequence, pending) = (info.stream_sequence, info.pending);
        let delivered = u64::try_from(info.delivered).unwrap_or(1);
        let published = u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(0);
        let consumer_sequence = info.consumer_sequence;
        let (message, acker) = message.split();
        let message = Self {
            subject: message.subject.to_string(),
            payload: message.payload,
            sequence,
            pending,
            published_at_unix_nanos: published,
            delivered,
            headers: Headers::from_map(message.headers.as_ref()),
            acker,
        };
        Some((message, consumer_sequence))
    }

    /// Tells the server that it need not come again. Not confirmed: when it is lost, the message
    /// comes again.
    ///
    /// # Errors
    /// [`BusError::Ack`].
    pub async fn ack(&self) -> Result<(), BusError> {
        self.acker.ack().await.map_err(|error| self.ack_error(&*error))
    }

    /// As [`Message::ack`], and waits for the server's word.
    ///
    /// # Errors
    /// [`BusError::Ack`].
    pub async fn ack_confirmed(&self) -> Result<(), BusError> {
        self.acker.double_ack().await.map_err(|error| self.ack_error(&*error))
    }

    /// Asks for it again, at once or after `delay`.
    ///
    /// # Errors
    /// [`BusError::Ack`].
    pub async fn nak(&self, delay: Option<Duration>) -> Result<(), BusError> {
        self.ack_with(AckKind::Nak(delay)).await
    }

    /// Gives it up: it never comes again. Put it on the dead-letter stream first.
    ///
    /// # Errors
    /// [`BusError::Ack`].
    pub async fn term(&self) -> Result<(), BusError> {
        self.ack_with(AckKind::Term).await
    }

    /// Asks for more time: the acknowledgement wait starts anew.
    ///
    /// # Errors
    /// [`BusError::Ack`].
    pub async fn in_progress(&self) -> Result<(), BusError> {
        self.ack_with(AckKind::Progress).await
    }

    async fn ack_with(&self, kind: AckKind) -> Result<(), BusError> {
        self.acker.ack_with(kind).await.map_err(|error| self.ack_error(&*error))
    }

    fn ack_error(&self, error: &(dyn Error + Send + Sync + 'static)) -> BusError {
        let (subject, sequence) = (self.subject.clone(), self.sequence);
        BusError::Ack { subject, sequence, message: error.to_string() }
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
