//! The otlp collector.
