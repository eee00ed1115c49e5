//! Whether the store takes findings, and what is missing in its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tapio_schemas::UnixNanos;
use tokio::sync::watch;

/// Findings that may wait in the stream before answers say so: more than a burst.
const BEHIND_FINDINGS_MAX: u64 = 256;

/// Shared by the intake, the writer and the answers.
#[derive(Debug, Clone)]
pub struct Condition {
    failed: watch::Sender<Option<Arc<str>>>,
    behind: Arc<AtomicU64>,
    /// When the stream got the oldest finding that waits; zero while none does, or nobody knows.
    oldest: Arc<AtomicU64>,
}

impl Default for Condition {
    fn default() -> Self {
        Self { failed: watch::Sender::new(None), behind: Arc::default(), oldest: Arc::default() }
    }
}

impl Condition {
    /// Findings cannot be written.
    pub fn fail(&self, reason: &str) {
        self.failed.send_if_modified(|failed| {
            let news = failed.is_none();
            *failed = Some(reason.into());
            news
        });
    }

    /// Findings can be written again.
    pub fn mend(&self) {
        self.failed.send_if_modified(|failed| failed.take().is_some());
    }

    /// Changes when the writer fails or is mended; `None` when all is well.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.failed.subscribe()
    }

    /// So many findings wait to be stored; the stream got the oldest of them at this time, or soon after. `None`: as known.
    pub fn set_behind(&self, findings: u64, oldest: Option<UnixNanos>) {
        self.behind.store(findings, Ordering::Relaxed);
        let oldest = if findings == 0 { Some(UnixNanos(0)) } else { oldest };
        if let Some(oldest) = oldest {
            self.oldest.store(oldest.0, Ordering::Relaxed);
        }
    }

    /// Since when the oldest waits is not known any more.
    pub fn forget_oldest(&self) {
        self.oldest.store(0, Ordering::Relaxed);
    }

    /// Findings that wait to be stored.
    pub fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
    }

    /// For how long the oldest of them has been in the stream; nothing while that is not known.
    pub fn waits(&self, now: UnixNanos) -> Duration {
        let oldest = self.oldest.load(Ordering::Relaxed);
        Duration::from_nanos(if oldest == 0 { 0 } else { now.since(UnixNanos(oldest)) })
    }

    /// What answers may lack, in words.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if let Some(reason) = &*self.failed.borrow() {
            gaps.push(format!("the store does not take findings: {reason}"));
        }
        let behind = self.behind.load(Ordering::Relaxed);
        if behind > BEHIND_FINDINGS_MAX {
            gaps.push(format!("{behind} findings wait to be stored"));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_until_it_is_mended() {
        let condition = Condition::default();
        let mut watch = condition.watch();
        condition.fail("no space left");
        condition.fail("no space left at all");
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        assert_eq!(condition.gaps(), ["the store does not take findings: no space left at all"]);
        condition.mend();
        assert!(watch.has_changed().unwrap() && condition.gaps().is_empty());
        let second = UnixNanos(1_000_000_000);
        condition.set_behind(BEHIND_FINDINGS_MAX + 1, Some(second));
        assert_eq!(condition.gaps(), ["257 findings wait to be stored"]);
        assert_eq!(condition.waits(second.plus(7)), Duration::from_nanos(7));
        condition.set_behind(1, None);
        assert_eq!(condition.waits(second.plus(7)), Duration::from_nanos(7));
        condition.forget_oldest();
        assert_eq!((condition.waits(second.plus(7)), condition.behind()), (Duration::ZERO, 1));
        condition.set_behind(2, Some(second));
        condition.set_behind(0, None);
        assert_eq!((condition.waits(second.plus(7)), condition.gaps().len()), (Duration::ZERO, 0));
    }
}
