//! The services under test as processes of their own, and what is seen of them from outside.

pub mod agents;
pub mod lanes;
pub mod observe;
pub mod owners;
pub mod process;
pub mod scrape;
pub mod stack;
pub mod store;
pub mod words;
