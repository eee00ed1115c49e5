//! The OTLP receiver against real clients: the OpenTelemetry SDK for Python, a plain gRPC client, plain HTTP.

#[path = "../support/mod.rs"]
mod agent;
mod arbitrary;
mod grpc;
mod http;
mod lifecycle;
mod sdk;
mod stream;
mod support;
