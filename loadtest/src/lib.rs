//! Load through the real path, with faults whose truth is known, measured on both ends.
//!
//! [`load`] makes a cluster's ordinary events at any rate and faults among them; [`drive`] publishes them as node agents
//! do; [`rig`] runs nats-server, correlators and storage as processes and listens to what comes out; [`ceiling`] measures
//! what NATS does alone with the same bytes; [`balance`] and [`verdict`] say whether nothing was lost and every finding is
//! there once; [`growth`] says whether processes settle.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod balance;
pub mod ceiling;
pub mod chaos;
pub mod drive;
pub mod error;
pub mod growth;
pub mod latency;
pub mod load;
pub mod measure;
pub mod producer;
pub mod report;
pub mod rig;
pub mod takeover;
pub mod verdict;
