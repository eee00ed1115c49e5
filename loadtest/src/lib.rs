//! Load through the real path: event batches into JetStream and out again, counted on both ends.
//!
//! [`generator`] makes batches in the shape the node agent makes them; [`throughput`] publishes them with a
//! window of outstanding acknowledgements, reads them back through checked views and, in the same run,
//! measures what NATS alone does with the same bytes.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod generator;
pub mod throughput;
