//! Publishing one message until the stream has it.

use std::error::Error;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;

use super::message::chain;
use super::publisher::Outgoing;
use super::{Bus, BusError, Headers, RETRY_BACKOFF, fence};

/// Acknowledgements the client tracks at a time, over all publishers of a bus.
pub(super) const ACKS_IN_FLIGHT_MAX: usize = 65_536;
/// Reason of a refusal because the newest message is not the one expected.
const WRONG_SEQUENCE: &str = "wrong_sequence";
/// Every so many failed attempts of one message a warning is logged.
const WARN_EVERY_ATTEMPTS: u32 = 10;

/// The stream's word that it has the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishAck {
    /// Stream that stored it.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// It was there already, from an earlier attempt or another publisher of the same id.
    pub duplicate: bool,
}

/// Makes ids for messages whose caller has none.
#[derive(Debug)]
pub(super) struct MessageIds {
    process: u64,
    next: AtomicU64,
}

impl MessageIds {
    pub(super) fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let process = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self { process, next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        format!("{:016x}-{}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// A message that was sent and not yet acknowledged.
pub(super) struct Sent {
    epoch: u64,
    ack: PublishAckFuture,
}

impl Bus {
    /// Publishes and waits for the stream's acknowledgement, repeating with backoff for as long as
    /// it takes. Repetitions carry the same id (one is made when `msg_id` is `None`), so within the
    /// duplicate window the stream keeps one copy. Drop the future to give up.
    ///
    /// # Errors
    /// Only what no repetition can mend: [`BusError::TooLarge`], [`BusError::Subject`],
    /// [`BusError::Closed`].
    pub async fn publish(
        &self,
        subject: &str,
        msg_id: Option<&str>,
        headers: Headers,
        payload: Bytes,
    ) -> Result<PublishAck, BusError> {
        let msg_id = msg_id.map(str::to_owned);
        let mut outgoing = Outgoing { subject: subject.to_owned(), msg_id, headers, payload };
        self.prepare(&mut outgoing)?;
        self.deliver(outgoing, &mut String::new()).await
    }

    /// As [`Bus::publish`], and gives up after `deadline`. The message may have been stored.
    ///
    /// # Errors
    /// As [`Bus::publish`], and [`BusError::Deadline`].
    pub async fn publish_within(
        &self,
        deadline: Duration,
        subject: &str,
        msg_id: Option<&str>,
        headers: Headers,
        payload: Bytes,
    ) -> Result<PublishAck, BusError> {
        let msg_id = msg_id.map(str::to_owned);
        let mut outgoing = Outgoing { subject: subject.to_owned(), msg_id, headers, payload };
        self.prepare(&mut outgoing)?;
        let mut last = "nats is away".to_owned();
        match tokio::time::timeout(deadline, self.deliver(outgoing, &mut last)).await {
            Ok(result) => result,
            Err(_) => {
                self.inner.metrics.failure("deadline");
                Err(BusError::Deadline { subject: subject.to_owned(), deadline, last })
            }
        }
    }

    /// Refuses what can never be stored, and gives the message an id.
    pub(super) fn prepare(&self, outgoing: &mut Outgoing) -> Result<(), BusError> {
        let subject = &outgoing.subject;
        if !is_publishable(subject) {
            self.inner.metrics.failure("subject");
            return Err(BusError::Subject { subject: subject.clone() });
        }
        let (bytes, limit) = (outgoing.payload.len(), self.max_payload());
        if bytes > limit {
            self.inner.metrics.failure("too_large");
            return Err(BusError::TooLarge { subject: subject.clone(), bytes, limit });
        }
        outgoing.msg_id.get_or_insert_with(|| self.inner.ids.next());
        Ok(())
    }

    /// Sends a prepared message until it is stored; in its turn when it has a lane.
    pub(super) async fn deliver(
        &self,
        outgoing: Outgoing,
        last: &mut String,
    ) -> Result<PublishAck, BusError> {
        let lane = self.lane(&outgoing.headers);
        let _turn = match &lane {
            Some(lane) => Some(lane.acquire().await.map_err(|_| BusError::Closed)?),
            None => None,
        };
        let first = self.send_once(&outgoing).await;
        self.settle(outgoing, first, last).await
    }

    /// Sends once, waiting for a connection first: what is queued while NATS is away would be sent
    /// long after it was given up.
    pub(super) async fn send_once(&self, outgoing: &Outgoing) -> Result<Sent, BusOrRetry> {
        self.inner.link.wait_connected().await.map_err(BusOrRetry::Fatal)?;
        let epoch = self.inner.link.epoch();
        let message = PublishMessage::build()
            .payload(outgoing.payload.clone())
            .headers(outgoing.headers.to_map())
            .message_id(outgoing.msg_id.as_deref().unwrap_or_default());
        match self.inner.jetstream.send_publish(outgoing.subject.clone(), message).await {
            Ok(ack) => Ok(Sent { epoch, ack }),
            Err(error) => Err(self.classify(outgoing, &error)),
        }
    }

    /// Waits for the acknowledgement of the first attempt and repeats until there is one.
    pub(super) async fn settle(
        &self,
        mut outgoing: Outgoing,
        first: Result<Sent, BusOrRetry>,
        last_reason: &mut String,
    ) -> Result<PublishAck, BusError> {
        let mut attempt = first;
        for failures in 0u32.. {
            let failure = match attempt {
                Ok(sent) => match self.acknowledged(&outgoing, sent).await {
                    Ok(ack) => {
                        self.inner.circuit.acknowledged();
                        self.inner.metrics.acked(outgoing.payload.len(), ack.duplicate);
                        return Ok(ack);
                    }
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            let (kind, reason) = match failure {
                BusOrRetry::Fatal(error) => {
                    self.inner.metrics.failure("fatal");
                    return Err(error);
                }
                BusOrRetry::Retry(kind, reason) => (kind, reason),
            };
            self.inner.metrics.retry(kind);
            // Who refuses a message, or its subject, answers.
            if matches!(kind, "timeout" | "connection") {
                self.inner.circuit.failed();
            }
            if failures % WARN_EVERY_ATTEMPTS == WARN_EVERY_ATTEMPTS - 1 {
                let subject = &outgoing.subject;
                tracing::warn!(subject, reason, attempts = failures + 1, "publish is repeated");
            }
            *last_reason = reason;
            // Under a fence a refusal may mean that another owner has come since.
            if kind == WRONG_SEQUENCE && !self.restamp(&mut outgoing).await {
                self.inner.metrics.failure("fenced");
                let (subject, epoch) = (outgoing.subject, fence::epoch_of(&outgoing.headers));
                return Err(BusError::Fenced { subject, epoch });
            }
            // After a reconnect the reason is gone: repeat at once.
            if kind != "reconnected" {
                tokio::time::sleep(RETRY_BACKOFF.delay(failures)).await;
            }
            attempt = self.send_once(&outgoing).await;
        }
        unreachable!("attempts end with an acknowledgement or an error")
    }

    async fn acknowledged(&self, outgoing: &Outgoing, sent: Sent) -> Result<PublishAck, BusOrRetry> {
        let timeout = self.inner.config.ack_timeout.get();
        tokio::select! {
            biased;
            answer = sent.ack.into_future() => match answer {
                Ok(ack) => Ok(PublishAck {
                    stream: ack.stream,
                    sequence: ack.sequence,
                    duplicate: ack.duplicate,
                }),
                Err(error) => Err(self.classify(outgoing, &error)),
            },
            () = self.inner.link.wait_epoch_after(sent.epoch) => {
                Err(BusOrRetry::Retry("reconnected", "the connection was lost".to_owned()))
            }
            () = tokio::time::sleep(timeout) => {
                Err(BusOrRetry::Retry("timeout", format!("no acknowledgement within {timeout:?}")))
            }
        }
    }

    fn classify(&self, outgoing: &Outgoing, error: &PublishError) -> BusOrRetry {
        let reason = chain(error);
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => BusOrRetry::Fatal(BusError::TooLarge {
                subject: outgoing.subject.clone(),
                bytes: outgoing.payload.len(),
                limit: self.max_payload(),
            }),
            // No stream takes the subject: not yet made, or JetStream is still starting.
            PublishErrorKind::StreamNotFound => BusOrRetry::Retry("no_stream", reason),
            _ if is_wrong_sequence(error) => BusOrRetry::Retry(WRONG_SEQUENCE, reason),
            PublishErrorKind::TimedOut => BusOrRetry::Retry("timeout", reason),
            PublishErrorKind::BrokenPipe => BusOrRetry::Retry("connection", reason),
            _ => BusOrRetry::Retry("refused", reason),
        }
    }
}

/// An attempt's failure.
pub(super) enum BusOrRetry {
    /// No repetition helps.
    Fatal(BusError),
    /// Label for the metric, and the reason in words.
    Retry(&'static str, String),
}

/// Whether the stream refused a message because what it expected to be the newest is not.
pub(super) fn is_wrong_sequence(error: &PublishError) -> bool {
    let code = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::WrongLastSequence
        || code.is_some_and(|error| error.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// Non-empty tokens without spaces, control characters or wildcards.
fn is_publishable(subject: &str) -> bool {
    subject.split('.').all(|token| {
        !token.is_empty()
            && token.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '*' && c != '>')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_checked_before_they_are_sent() {
        assert!(is_publishable("tapio.v1.events.a.0"));
        for bad in ["", ".", "a..b", "a.*", "a.>", "a b", "a\r\nPUB x"] {
            assert!(!is_publishable(bad), "{bad:?}");
        }
    }
}
