//! The OTLP receiver: traces, metrics and logs over gRPC and HTTP.

pub mod config;
pub mod convert;
pub mod json;
