//! One module per source of events. A collector gets an [`EventSink`](crate::sink::EventSink) and reports
//! with [`UnifiedEvent`](tapio_schemas::event::UnifiedEvent)s; it knows nothing of shards and NATS.

pub mod kubernetes;
pub mod otlp;
