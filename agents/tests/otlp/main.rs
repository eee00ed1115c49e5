//! The OTLP receiver against real clients: the OpenTelemetry SDK for Python, a plain gRPC client, plain HTTP.

mod grpc;
mod http;
mod lifecycle;
mod sdk;
mod support;
