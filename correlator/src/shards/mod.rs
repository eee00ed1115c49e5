//! Stage one: events of a shard → signals, facts, tallies, gaps.

mod budget;
mod bursts;
mod callees;
mod calls;
mod confirm;
mod context;
mod counters;
mod endings;
mod entities;
mod episode;
mod exits;
mod faults;
mod first_words;
mod grace;
mod groups;
mod last_words;
mod losses;
mod measures;
mod meters;
mod news;
mod open_span;
mod record;
mod reorder;
mod repeats;
mod request_tallies;
mod requests;
mod sequences;
pub mod series;
mod set;
mod shard;
mod templates;
mod texts;
mod topology;
mod watermark;

pub use budget::{Budget, CHUNK_UNITS, Cursor};
pub(crate) use calls::{SLOW_BUCKETS, SLOW_EXTRA_NS, bucket_ns};
pub(crate) use confirm::Confirm;
pub use context::{Meaning, is_change, meaning};
pub use counters::{Counters, Dropped, Evicted, Unsaid};
pub(crate) use episode::{add_evidence, stamped};
pub use last_words::folded;
pub(crate) use losses::unused;
pub(crate) use news::LINE_STRENGTH;
pub(crate) use record::hash_parts;
pub use reorder::Waiting;
pub use sequences::{Account, AccountLine};
pub use set::{BatchError, ShardSet};
pub use shard::{Advanced, GivenUp, Shard};
pub use watermark::{TICK_NS, Watermark, grid_ceil, grid_floor};

#[cfg(test)]
mod first_words_tests;
#[cfg(test)]
mod healing_tests;
#[cfg(test)]
mod intake_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod requests_late_tests;
#[cfg(test)]
mod requests_tests;
#[cfg(test)]
mod shard_tests;
#[cfg(test)]
pub(crate) mod trap;
