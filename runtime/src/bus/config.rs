//! `bus.*`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{ByteSize, HumanDuration};

/// Where NATS is and how patient to be with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// Servers to try, in order; `user:password@` or `token@` before the host logs in. Default
    /// `nats://127.0.0.1:4222`.
    pub urls: Vec<String>,
    /// A NATS credentials file (`.creds`). Default: none.
    pub credentials_file: Option<PathBuf>,
    /// Refuse a connection without TLS. Default false.
    pub tls_required: bool,
    /// PEM file of the authority that signed the server. Default: those of the system.
    pub tls_ca_file: Option<PathBuf>,
    /// PEM file of our certificate, with `tls_key_file`. Default: none.
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of our key, with `tls_cert_file`. Default: none.
    pub tls_key_file: Option<PathBuf>,
    /// Name the server shows for this connection. Default `tapio`.
    pub client_name: String,
    /// Time for the first connection. Default 10s.
    pub connect_timeout: HumanDuration,
    /// Time for one acknowledgement before the message is sent again under the same id. Default 5s.
    pub ack_timeout: HumanDuration,
    /// Time for one administrative request to JetStream. Default 5s.
    pub request_timeout: HumanDuration,
    /// Longest delay between two attempts to come back. Default 2s.
    pub reconnect_delay_max: HumanDuration,
    /// Messages that may wait for their acknowledgement, per publisher. Default 256: at 64 KiB a
    /// message 16 MiB.
    pub publish_window: usize,
    /// Limits of the streams.
    pub streams: StreamsConfig,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials_file: None,
            tls_required: false,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            client_name: "tapio".to_owned(),
            connect_timeout: HumanDuration::from_secs(10),
            ack_timeout: HumanDuration::from_secs(5),
            request_timeout: HumanDuration::from_secs(5),
            reconnect_delay_max: HumanDuration::from_secs(2),
            publish_window: 256,
            streams: StreamsConfig::default(),
        }
    }
}

impl BusConfig {
    /// The defaults with one server.
    pub fn with_url(url: impl Into<String>) -> Self {
        Self { urls: vec![url.into()], ..Self::default() }
    }
}

/// Limits of every stream. A full stream drops its oldest messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamsConfig {
    /// Raw events. Default 2 GiB, 2h, one stream.
    pub events: EventsStreamsConfig,
    /// Signals. Default 256 MiB, 1d.
    pub signals: StreamLimits,
    /// Findings. Default 512 MiB, 7d.
    pub insights: StreamLimits,
    /// What could not be decoded. Default 128 MiB, 7d.
    pub deadletter: StreamLimits,
    /// Copies in a cluster: 1, 3 or 5. Default 1.
    pub replicas: usize,
    /// How long the server remembers message ids. Default 2m.
    pub duplicate_window: HumanDuration,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        const HOUR_SECS: u64 = 3_600;
        let limits = |max_bytes, hours| StreamLimits {
            max_bytes,
            max_age: HumanDuration::from_secs(hours * HOUR_SECS),
        };
        Self {
            events: EventsStreamsConfig::default(),
            signals: limits(ByteSize::mib(256), 24),
            insights: limits(ByteSize::mib(512), 7 * 24),
            deadletter: limits(ByteSize::mib(128), 7 * 24),
            replicas: 1,
            duplicate_window: HumanDuration::from_secs(120),
        }
    }
}

/// How much of the events is kept, and in how many streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsStreamsConfig {
    /// Bytes on disk, over all streams of events. Default 2 GiB.
    pub max_bytes: ByteSize,
    /// Age of the oldest message. Default 2h.
    pub max_age: HumanDuration,
    /// Streams that share the 64 shards, 1 to 64. Each has a leader of its own, so that several servers of a cluster
    /// take events. Producers and readers must agree on it; it is changed with the streams empty. Default 1.
    pub streams: u16,
}

impl Default for EventsStreamsConfig {
    fn default() -> Self {
        Self { max_bytes: ByteSize::gib(2), max_age: HumanDuration::from_secs(7_200), streams: 1 }
    }
}

/// How much one stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamLimits {
    /// Bytes on disk.
    pub max_bytes: ByteSize,
    /// Age of the oldest message.
    pub max_age: HumanDuration,
}
