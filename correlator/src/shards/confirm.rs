//! When a deviation that may heal by itself is certain.
//!
//! Kubernetes mends much within seconds: a container that ended once is started again, a probe that failed once is
//! asked again, a volume that was not there yet is mounted at the next try. Such a deviation is said at once, because it
//! may explain others, but faintly; it becomes certain when it is repeated or lasts.

use std::collections::HashMap;

use tapio_schemas::{EntityRef, SignalKind, SmolStr, UnixNanos};

use super::faults::is_of_a_machine;
use super::record::hash_parts;

/// Strength of what is not certain yet: evidence beside other evidence, nothing alone.
pub const FAINT: f64 = 0.3;

/// The kubelet starts a container again at once after its first end; one that does not run by then stays down.
const RESTART_NS: u64 = 15_000_000_000;
/// A pod that was ready and is not for this long is not merely being probed at a bad moment (three periods of a
/// readiness probe, Kubernetes' default).
const NOT_READY_NS: u64 = 30_000_000_000;
/// Mounts are tried again after 0.5, 1, 2, 4 … s; what still fails after this long is not a cache that lags behind.
const MOUNT_NS: u64 = 30_000_000_000;
/// Failures of a probe before Kubernetes acts on them, by default.
const PROBE_FAILURES: u64 = 3;
/// Ends of a unit that is restarted each time: systemd mends one, not the third.
const UNIT_ENDS: u64 = 3;
/// Lines of a program that say the same is wrong …
const LINES: u64 = 3;
/// … or for how long they do.
const LINES_NS: u64 = 30_000_000_000;
/// A kubelet that has started reads the log of the kernel from its beginning, for so long, and tells of each kill as if it
/// were now.
const KUBELET_RETELLS_NS: u64 = 10_000_000_000;
/// Whether a kubelet has just started is known so long after what it tells.
const KUBELET_STARTS_NS: u64 = 1_000_000_000;
/// Starts of containers and kubelets remembered per shard; when full, remembering begins anew (a single end is then told at worst).
const STARTS_MAX: usize = 4096;

/// Any one of these makes it certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirm {
    /// Seen this often.
    seen_min: u64,
    /// Not over this long after it began, without any further evidence. `u64::MAX`: never by that.
    lasts_ns: u64,
    /// Evidence this long after it began. `u64::MAX`: never by that.
    spans_ns: u64,
}

impl Confirm {
    const NEVER: Self = Self { seen_min: u64::MAX, lasts_ns: u64::MAX, spans_ns: u64::MAX };

    /// What makes a deviation of this kind certain; `None` when it is so at once.
    pub fn needed(kind: SignalKind, entity: &EntityRef) -> Option<Self> {
        match kind {
            // Only what runs in a pod is started again by somebody who then says nothing of it.
            SignalKind::ContainerCrashed | SignalKind::ExitNonzero | SignalKind::Killed
                if !entity.pod.is_empty() =>
            {
                Some(Self { seen_min: 2, lasts_ns: RESTART_NS, ..Self::NEVER })
            }
            SignalKind::PodNotReady => Some(Self { lasts_ns: NOT_READY_NS, ..Self::NEVER }),
            SignalKind::MountFailed => Some(Self { spans_ns: MOUNT_NS, ..Self::NEVER }),
            // A program may speak of what another one said, or of what it has mended: one line is a word, not a state. What
            // the kernel says has happened.
            SignalKind::LogFault if !is_of_a_machine(entity) => {
                Some(Self { seen_min: LINES, spans_ns: LINES_NS, ..Self::NEVER })
            }
            SignalKind::ProbeFailed => Some(Self { seen_min: PROBE_FAILURES, ..Self::NEVER }),
            _ => None,
        }
    }

    /// Of a unit that systemd starts again and again: that it is repeated.
    pub fn restarted_unit() -> Self {
        Self { seen_min: UNIT_ENDS, ..Self::NEVER }
    }

    /// Of a kill that a kubelet tells: that it has not just started.
    pub fn told_by_kubelet() -> Self {
        Self { lasts_ns: KUBELET_STARTS_NS, ..Self::NEVER }
    }

    /// It runs again: that it lasts is no longer told by silence.
    pub fn resumed(self) -> Self {
        Self { lasts_ns: u64::MAX, ..self }
    }

    /// When it becomes certain by lasting.
    pub fn due(&self, onset: UnixNanos) -> Option<UnixNanos> {
        (self.lasts_ns != u64::MAX).then(|| onset.plus(self.lasts_ns))
    }

    /// Whether it is certain at `now`.
    pub fn is_met(&self, count: u64, onset: UnixNanos, last_evidence: UnixNanos, now: UnixNanos) -> bool {
        count >= self.seen_min
            || self.due(onset).is_some_and(|due| due <= now)
            || last_evidence.since(onset) >= self.spans_ns
    }
}

/// When containers and kubelets were last started. The times of an end and of the start after it may be the same second, so that
/// either may come first.
#[derive(Debug, Default)]
pub struct Starts(HashMap<u128, UnixNanos>);

impl Starts {
    /// A container, or the kubelet of a machine, was started.
    pub fn note(&mut self, container: &EntityRef, at: UnixNanos) {
        let key = identity(container);
        if self.0.len() >= STARTS_MAX && !self.0.contains_key(&key) {
            self.0.clear();
        }
        let last = self.0.entry(key).or_insert(at);
        *last = (*last).max(at);
    }

    /// True when the container is known to have been started at or after `at`.
    pub fn runs_since(&self, container: &EntityRef, at: UnixNanos) -> bool {
        self.0.get(&identity(container)).is_some_and(|start| *start >= at)
    }

    /// True when what the kubelet of this machine tells at `at` may have happened long before.
    pub fn retells(&self, machine: &EntityRef, at: UnixNanos) -> bool {
        self.0.get(&identity(machine)).is_some_and(|start| retells(*start, at))
    }
}

/// Whether a kubelet that started then still reads what was before it.
pub fn retells(start: UnixNanos, at: UnixNanos) -> bool {
    at >= start && at.since(start) <= KUBELET_RETELLS_NS
}

fn identity(of: &EntityRef) -> u128 {
    let machine = if of.pod.is_empty() { of.subject().name } else { SmolStr::default() };
    hash_parts(&[&of.cluster, &of.namespace, &of.pod, &of.container, &machine])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn met(confirm: Confirm, count: u64, evidence_s: u64, now_s: u64) -> bool {
        let at = |seconds: u64| UnixNanos(100 * SECOND + seconds * SECOND);
        confirm.is_met(count, at(0), at(evidence_s), at(now_s))
    }

    fn in_pod() -> EntityRef {
        EntityRef { namespace: "a".into(), pod: "p".into(), container: "c".into(), ..EntityRef::default() }
    }

    #[test]
    fn an_end_is_certain_when_repeated_or_when_nothing_runs_again() {
        let end = Confirm::needed(SignalKind::ContainerCrashed, &in_pod()).unwrap();
        assert!(!met(end, 1, 0, 14) && met(end, 1, 0, 15) && met(end, 2, 3, 3));
        assert!(!met(end.resumed(), 1, 0, 500) && met(end.resumed(), 2, 3, 3));
        assert!(Confirm::needed(SignalKind::ExitNonzero, &EntityRef::default()).is_none());
    }

    #[test]
    fn a_mount_is_certain_by_later_evidence_and_readiness_by_time() {
        let mount = Confirm::needed(SignalKind::MountFailed, &in_pod()).unwrap();
        assert!(!met(mount, 1, 0, 600) && !met(mount, 9, 29, 29) && met(mount, 6, 31, 31));
        let ready = Confirm::needed(SignalKind::PodNotReady, &in_pod()).unwrap();
        assert!(!met(ready, 5, 29, 29) && met(ready, 1, 0, 30));
    }

    #[test]
    fn one_line_of_a_program_is_a_word_and_one_of_the_kernel_is_a_state() {
        let line = Confirm::needed(SignalKind::LogFault, &in_pod()).unwrap();
        assert!(!met(line, 2, 29, 600) && met(line, 3, 1, 1) && met(line, 2, 30, 30));
        let machine = EntityRef { node: "n1".into(), ..EntityRef::default() };
        assert!(Confirm::needed(SignalKind::LogFault, &machine).is_none());
    }

    #[test]
    fn starts_are_bounded_and_the_latest_counts() {
        let mut starts = Starts::default();
        starts.note(&in_pod(), UnixNanos(20));
        starts.note(&in_pod(), UnixNanos(10));
        assert!(starts.runs_since(&in_pod(), UnixNanos(20)) && !starts.runs_since(&in_pod(), UnixNanos(21)));
        for number in 0..=STARTS_MAX {
            let other = EntityRef { pod: number.to_string().into(), ..in_pod() };
            starts.note(&other, UnixNanos(30));
        }
        assert!(starts.0.len() <= STARTS_MAX);
    }
}
