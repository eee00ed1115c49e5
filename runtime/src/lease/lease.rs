//! A lease in the hand of its owner.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::SharedClock;

/// Until when a membership lasts, by the member's own clock. All its leases hang on it.
#[derive(Debug)]
pub(super) struct Validity {
    clock: SharedClock,
    /// Monotonic time, nanoseconds; 0 is over.
    deadline_nanos: AtomicU64,
}

impl Validity {
    pub(super) fn new(clock: SharedClock, deadline: Duration) -> Arc<Self> {
        Arc::new(Self { clock, deadline_nanos: AtomicU64::new(nanos(deadline)) })
    }

    pub(super) fn deadline(&self) -> Duration {
        Duration::from_nanos(self.deadline_nanos.load(Ordering::Acquire))
    }

    /// Moves the deadline forward, never back, and not once it has passed: what is over stays over.
    pub(super) fn extend(&self, deadline: Duration) -> bool {
        if !self.is_valid() {
            return false;
        }
        self.deadline_nanos.fetch_max(nanos(deadline), Ordering::AcqRel);
        true
    }

    pub(super) fn end(&self) {
        self.deadline_nanos.store(0, Ordering::Release);
    }

    pub(super) fn is_valid(&self) -> bool {
        self.clock.monotonic() < self.deadline()
    }

    fn left(&self) -> Duration {
        self.deadline().saturating_sub(self.clock.monotonic())
    }
}

struct Inner {
    resource: Arc<str>,
    epoch: u64,
    validity: Arc<Validity>,
    held: AtomicBool,
}

/// The right to work on a resource, for as long as [`Lease::is_valid`] says so. Clones are the same lease.
#[derive(Clone)]
pub struct Lease(Arc<Inner>);

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} epoch {}, valid for {:?})", self.resource(), self.epoch(), self.valid_for())
    }
}

impl Lease {
    pub(super) fn new(resource: Arc<str>, epoch: u64, validity: Arc<Validity>) -> Self {
        Self(Arc::new(Inner { resource, epoch, validity, held: AtomicBool::new(true) }))
    }

    /// What is owned.
    pub fn resource(&self) -> &str {
        &self.0.resource
    }

    /// The fencing epoch: every later owner of this resource has a greater one.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Whether no one else can own the resource now. Two atomic loads and the clock: ask before each use, because a
    /// process may have been stopped since the last answer.
    pub fn is_valid(&self) -> bool {
        self.0.held.load(Ordering::Acquire) && self.0.validity.is_valid()
    }

    /// How long it stays valid when it is not renewed again; zero when it is over.
    pub fn valid_for(&self) -> Duration {
        if self.0.held.load(Ordering::Acquire) { self.0.validity.left() } else { Duration::ZERO }
    }

    pub(super) fn end(&self) {
        self.0.held.store(false, Ordering::Release);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn what_is_over_stays_over() {
        let clock = ManualClock::new(0);
        let validity = Validity::new(clock.shared(), Duration::from_secs(2));
        let lease = Lease::new("shard.1".into(), 7, Arc::clone(&validity));
        let other = Lease::new("shard.2".into(), 8, Arc::clone(&validity));
        assert!(lease.is_valid() && lease.valid_for() == Duration::from_secs(2));
        clock.advance(Duration::from_millis(1_999));
        assert!(validity.extend(Duration::from_secs(3)));
        assert!(validity.extend(Duration::from_secs(1)), "an earlier deadline changes nothing");
        other.end();
        assert!(lease.is_valid() && !other.is_valid());
        clock.advance(Duration::from_millis(1_001));
        assert!(!lease.is_valid());
        assert!(!validity.extend(Duration::from_secs(9)));
        assert!(!lease.is_valid() && lease.valid_for() == Duration::ZERO);
    }
}
