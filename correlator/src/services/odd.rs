//! What can be odd about the way of a request.

use smol_str::SmolStr;
use tapio_schemas::service::Step;
use tapio_schemas::{EventId, UnixNanos};

/// What is odd about a service's requests.
#[derive(Debug, Clone)]
pub struct Odd {
    /// Evidence, nats.
    pub evidence: f64,
    /// Since when.
    pub since: UnixNanos,
    /// (odd, all) since then.
    pub counts: (u64, u64),
    /// What it is.
    pub what: What,
    /// Operation that shows it.
    pub operation: SmolStr,
    /// Events that show it.
    pub events: Vec<EventId>,
}

/// How a way can be odd.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A step did not come.
    Missing {
        /// After which it always came; none = any request.
        given: Option<Step>,
        /// It.
        missing: Step,
        /// Requests of the reference in which it came.
        of: u64,
    },
    /// A step was never seen before.
    New(Step),
    /// Nothing was called any more.
    Empty,
}
