//! Keeps findings, and serves them.
//!
//! The path of a finding: insights stream → [`consumer`] → [`writer`] → [`store`] → [`view`] →
//! [`api`]. It is acknowledged when it is on disk; what came twice is stored once. What is open and
//! not sure enough for the disk is held in memory ([`open`]).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod api;
pub mod cell;
pub mod condition;
pub mod config;
pub mod consumer;
pub mod freshness;
pub mod learning;
pub mod live;
pub mod open;
pub mod rebuild;
mod service;
mod status;
pub mod store;
pub mod view;
pub mod writer;

pub use config::StorageConfig;
pub use service::{StorageError, StorageHandle, StorageParts, StorageService};
