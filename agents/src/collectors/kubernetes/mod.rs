//! The kubernetes collector.
