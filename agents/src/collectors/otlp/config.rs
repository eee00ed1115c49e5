//! Configuration of the OTLP receiver.

use serde::{Deserialize, Serialize};
use tapio_runtime::config::{ByteSize, HumanDuration};

/// The OTLP receiver.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpConfig {
    /// Whether to receive at all. Default true.
    pub enabled: bool,
    /// Address of gRPC. Default `127.0.0.1:4317`; port 0 takes a free one.
    pub grpc_listen: String,
    /// Address of HTTP. Default `127.0.0.1:4318`; port 0 takes a free one.
    pub http_listen: String,
    /// Largest request, compressed as well as decompressed. Default 8 MiB.
    pub message_max: ByteSize,
    /// Spans, points or records in one request; the ones above are rejected. Default 65536.
    pub items_max: usize,
    /// Connections over each protocol; further ones wait until another ends. Default 512.
    pub connections_max: usize,
    /// Requests worked on at once over both protocols; further ones are told to retry. With `message_max` it
    /// bounds the memory of the receiver. Default 8.
    pub requests_max: usize,
    /// How long a client is told to wait before it retries. Default 1 s, whole seconds over HTTP.
    pub retry_after: HumanDuration,
    /// How long open requests may take at the end. Default 3 s.
    pub drain: HumanDuration,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            grpc_listen: "127.0.0.1:4317".to_owned(),
            http_listen: "127.0.0.1:4318".to_owned(),
            message_max: ByteSize::mib(8),
            items_max: 65_536,
            connections_max: 512,
            requests_max: 8,
            retry_after: HumanDuration::from_secs(1),
            drain: HumanDuration::from_secs(3),
        }
    }
}
