//! Keeps findings, and serves them.
//!
//! The path of a finding: insights stream → [`consumer`] → [`writer`] → [`store`] → [`api`]. It is
//! acknowledged when it is on disk; what came twice is stored once.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod api;
pub mod cell;
pub mod config;
pub mod consumer;
pub mod live;
mod service;
pub mod store;
pub mod writer;

pub use config::StorageConfig;
pub use service::{StorageError, StorageHandle, StorageParts, StorageService};
