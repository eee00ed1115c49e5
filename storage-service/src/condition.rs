//! Whether the store takes findings, and what is missing in its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Findings that may wait in the stream before answers say so: more than a burst.
const BEHIND_FINDINGS_MAX: u64 = 256;

/// Shared by the intake, the writer and the answers.
#[derive(Debug, Clone)]
pub struct Condition {
    failed: watch::Sender<Option<Arc<str>>>,
    behind: Arc<AtomicU64>,
}

impl Default for Condition {
    fn default() -> Self {
        Self { failed: watch::Sender::new(None), behind: Arc::default() }
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

    /// So many findings still wait in the stream.
    pub fn set_behind(&self, findings: u64) {
        self.behind.store(findings, Ordering::Relaxed);
    }

    /// Findings that wait in the stream.
    pub fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
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
        condition.set_behind(BEHIND_FINDINGS_MAX + 1);
        assert_eq!(condition.gaps(), ["257 findings wait to be stored"]);
    }
}
