//! Core NATS: at most once, for questions and for people who watch.

use std::fmt;
use std::time::Duration;

use async_nats::Subscriber;
use async_nats::client::{Request, RequestErrorKind};
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use super::message::chain;
use super::{Bus, BusError, ConnectionState, Headers};

/// A message that was not stored for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreMessage {
    /// Subject.
    pub subject: String,
    /// Bytes.
    pub payload: Bytes,
    /// Headers.
    pub headers: Headers,
}

/// Why something was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// What would be queued now would be told long after it was true.
    #[error("nats is away")]
    Away,
    /// More is waiting to be written than there is room for.
    #[error("the connection has no room")]
    Full,
    /// Larger than the server takes, or no subject.
    #[error("the message is too large, or its subject is none")]
    Refused,
}

/// Live messages of a subject, at most once: what is published while NATS is away is not seen.
pub struct Subscription {
    subscriber: Subscriber,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}

impl Subscription {
    /// The next message; `None` when the bus is closed.
    pub async fn next(&mut self) -> Option<CoreMessage> {
        let message = self.subscriber.next().await?;
        Some(CoreMessage {
            subject: message.subject.to_string(),
            payload: message.payload,
            headers: Headers::from_map(message.headers.as_ref()),
        })
    }
}

impl Bus {
    /// Subscribes to a subject, wildcards allowed. The server knows of it when this returns.
    ///
    /// # Errors
    /// [`BusError::Subject`], [`BusError::Closed`].
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, BusError> {
        let subscriber = self.inner.client.subscribe(subject.to_owned()).await;
        let subscriber = subscriber.map_err(|_| BusError::Subject { subject: subject.to_owned() })?;
        self.flush().await?;
        Ok(Subscription { subscriber })
    }

    /// Tells whoever listens now, at most once: nothing is stored, acknowledged or repeated. Never waits, and may be
    /// called from any thread.
    ///
    /// # Errors
    /// [`Untold`].
    pub fn tell(&self, subject: &str, payload: Bytes) -> Result<(), Untold> {
        if self.state() != ConnectionState::Connected {
            return Err(Untold::Away);
        }
        if payload.len() > self.max_payload() {
            return Err(Untold::Refused);
        }
        let sent = self.inner.client.publish(subject.to_owned(), payload).now_or_never();
        sent.ok_or(Untold::Full)?.map_err(|_| Untold::Refused)
    }

    /// Asks and waits for the one answer.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] at once when no one listens, [`BusError::Service`] when the
    /// answer is an error, [`BusError::Request`] otherwise.
    pub async fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Result<Bytes, BusError> {
        let request = Request::new().payload(payload).timeout(Some(timeout));
        let answer = self.inner.client.send_request(subject.to_owned(), request).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.to_owned() },
            RequestErrorKind::TimedOut => BusError::Request {
                subject: subject.to_owned(),
                message: format!("no answer within {timeout:?}"),
            },
            _ => BusError::Request { subject: subject.to_owned(), message: chain(&error) },
        })?;
        let headers = Headers::from_map(answer.headers.as_ref());
        match headers.get(NATS_SERVICE_ERROR_CODE) {
            Some(code) => Err(BusError::Service {
                code: code.parse().unwrap_or(500),
                message: headers.get(NATS_SERVICE_ERROR).unwrap_or_default().to_owned(),
            }),
            None => Ok(answer.payload),
        }
    }
}
