//! When and how often a worker is built anew.

use std::time::Duration;

use crate::backoff::Backoff;

/// Restart policy of one component.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RestartPolicy {
    /// Delay before the first restart within the window.
    pub backoff_min: Duration,
    /// No delay is longer.
    pub backoff_max: Duration,
    /// Share of a delay that is random, 0..=1.
    pub jitter: f64,
    /// Restarts allowed within `budget_window`; one more and the component is failed.
    pub budget: u32,
    /// The window of the budget.
    pub budget_window: Duration,
    /// A worker that does not tick for so long is stuck; `None` trusts it.
    pub progress_timeout: Option<Duration>,
    /// Time a stuck worker, or an actor that was asked to stop, gets to end.
    pub stop_grace: Duration,
    /// Ending without an error is an end, not a failure.
    pub may_finish: bool,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            jitter: 0.2,
            budget: 5,
            budget_window: Duration::from_secs(60),
            progress_timeout: Some(Duration::from_secs(30)),
            stop_grace: Duration::from_secs(5),
            may_finish: false,
        }
    }
}

impl RestartPolicy {
    pub(super) fn backoff(&self) -> Backoff {
        Backoff { min: self.backoff_min, max: self.backoff_max, jitter: self.jitter }
    }
}
