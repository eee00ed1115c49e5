//! The OTLP receiver: traces, metrics and logs over gRPC (4317) and HTTP (4318, protobuf and JSON, gzip).
//!
//! A request is taken as a whole or not at all: when the node agent has no room the client is told to retry.
//! Items that can never be taken (no trace id, too old, no value) are rejected one by one with a partial success.

pub(super) mod body;
pub mod config;
pub(super) mod connections;
pub mod convert;
mod grpc;
mod http;
pub mod json;
mod receiver;
mod reception;
pub(super) mod tls;

pub use config::OtlpConfig;
pub use receiver::{BindError, OtlpReceiver};
pub use reception::Bounds;
