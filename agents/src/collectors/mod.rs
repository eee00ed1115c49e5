//! One module per source of events. A collector gets an [`EventSink`](crate::sink::EventSink) and reports
//! with [`UnifiedEvent`](tapio_schemas::event::UnifiedEvent)s; it knows nothing of shards and NATS.

pub mod audit;
pub mod cgroup;
pub mod ebpf;
pub mod filesystem;
pub mod kubernetes;
pub mod network;
pub mod otlp;
pub mod pod_logs;
mod sampling;
pub mod scrape;
mod start;
mod status;
pub mod systemd;

pub use start::{Collectors, Sinks, Wiring, attribution, start};
pub use status::{CollectorState, CollectorStates};
