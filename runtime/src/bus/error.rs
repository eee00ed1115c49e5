//! What can go wrong on the bus.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the bus: what, which, and what to do where we know it.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No server took the connection in time.
    #[error(
        "cannot connect to nats at {urls} within {timeout:?}: {message}; is the server running, and is bus.urls right"
    )]
    Connect {
        /// The servers.
        urls: String,
        /// `bus.connect_timeout`.
        timeout: Duration,
        /// The last reason.
        message: String,
    },
    /// The server does not want us.
    #[error("nats at {urls} refused us: {message}; check bus.credentials_file or the user in bus.urls")]
    Refused {
        /// The servers.
        urls: String,
        /// What it says.
        message: String,
    },
    /// A URL does not parse.
    #[error("bus.urls has `{url}`, which is not a nats url: {message}")]
    Url {
        /// The text.
        url: String,
        /// What is wrong.
        message: String,
    },
    /// The credentials file cannot be used.
    #[error("bus.credentials_file {path} cannot be used: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A certificate without its key, or the other way round.
    #[error("bus.tls_cert_file and bus.tls_key_file belong together; set both or none")]
    HalfCertificate,
    /// The connection was closed for good.
    #[error("the bus is closed")]
    Closed,
    /// The message can never be stored.
    #[error("message for {subject} has {bytes} bytes, more than the {limit} the server takes")]
    TooLarge {
        /// Subject.
        subject: String,
        /// Payload size.
        bytes: usize,
        /// The server's `max_payload`.
        limit: usize,
    },
    /// The subject cannot be published to.
    #[error("`{subject}` is not a subject to publish to")]
    Subject {
        /// The text.
        subject: String,
    },
    /// No acknowledgement in the time the caller gave. The message may have been stored.
    #[error("message for {subject} was not acknowledged within {deadline:?}; last reason: {last}")]
    Deadline {
        /// Subject.
        subject: String,
        /// The caller's deadline.
        deadline: Duration,
        /// Why the last attempt failed.
        last: String,
    },
    /// The caller gave up. The message may have been stored.
    #[error("publishing to {subject} was given up by a shutdown")]
    Cancelled {
        /// Subject.
        subject: String,
    },
    /// Another owner has taken the fence since: nothing under the old one is stored any more.
    #[error("message for {subject} was refused: its fence, epoch {epoch}, was taken by a later owner")]
    Fenced {
        /// Subject of the message, or of the fence.
        subject: String,
        /// Epoch under which we published.
        epoch: u64,
    },
    /// A stream or bucket cannot be made or read.
    #[error("stream {stream}: {message}")]
    Stream {
        /// Its name.
        stream: String,
        /// What the server says.
        message: String,
    },
    /// A consumer cannot be made.
    #[error("consumer {consumer} of {stream}: {message}")]
    Consumer {
        /// Its name.
        consumer: String,
        /// Its stream.
        stream: String,
        /// What the server says.
        message: String,
    },
    /// An acknowledgement could not be sent; the message will come again.
    #[error("acknowledgement of {subject} sequence {sequence}: {message}")]
    Ack {
        /// Subject.
        subject: String,
        /// Stream sequence.
        sequence: u64,
        /// Why.
        message: String,
    },
    /// Someone else changed the key first.
    #[error("key {key} was changed by someone else")]
    Conflict {
        /// The key.
        key: String,
    },
    /// A key-value operation failed.
    #[error("key {key}: {message}")]
    Kv {
        /// The key.
        key: String,
        /// What the server says.
        message: String,
    },
    /// No one answers on this subject.
    #[error("no one answers on {subject}; is the service running")]
    NoResponders {
        /// Subject.
        subject: String,
    },
    /// A request failed on its way.
    #[error("request to {subject}: {message}")]
    Request {
        /// Subject.
        subject: String,
        /// Why.
        message: String,
    },
    /// The service answered with an error.
    #[error("service error {code}: {message}")]
    Service {
        /// As in HTTP.
        code: usize,
        /// Its words.
        message: String,
    },
}
