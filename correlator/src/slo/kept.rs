//! What of budgets outlives a restart: how they stood at some moments, at one of which the reading again begins.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tapio_schemas::{Entity, UnixNanos};

use super::Budgets;
use super::burn::Budget;
use super::ring::Ring;

/// Most bytes of a snapshot: two of them are kept in one value of the key-value bucket (1 MiB).
const SNAPSHOT_BYTES_MAX: usize = 440 << 10;
/// Bytes of a snapshot beside its services, at most.
const FRAME_BYTES: usize = 64;
/// Snapshots held, 14 MiB at most. Above it every second one of the older half goes: a restart then reads more.
const SNAPSHOTS_MAX: usize = 32;

/// Budgets as they stood when everything up to a time was counted, and nothing after it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptBudgets {
    /// Everything up to here is counted.
    pub counted: UnixNanos,
    services: Vec<KeptBudget>,
}

/// One budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptBudget {
    service: Entity,
    /// Of another window nothing can be taken over.
    window_ns: u64,
    is_burning: bool,
    used_up_at: Option<UnixNanos>,
    ring: KeptRing,
}

/// Counts by number of the bucket: requests, failures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptRing {
    /// Start of the first window that was counted.
    pub since: UnixNanos,
    /// End of the last one.
    pub newest: UnixNanos,
    /// Fine buckets with failures: of the others nothing is asked.
    pub fine: Vec<(u64, u64, u64)>,
    /// Coarse buckets.
    pub coarse: Vec<(u64, u64, u64)>,
}

impl KeptBudgets {
    /// As it is kept.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { counted: self.counted, json: Bytes::from(serde_json::to_vec(self).unwrap_or_default()) }
    }
}

impl KeptBudget {
    /// Bytes that it takes of a snapshot, the comma included.
    fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX / 2, |json| json.len() + 1)
    }

    fn failures(&self) -> u64 {
        self.ring.coarse.iter().map(|(.., failures)| failures).sum()
    }
}

/// [`KeptBudgets`] as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything up to here is counted.
    pub counted: UnixNanos,
    /// The JSON.
    pub json: Bytes,
}

/// The newest snapshots, oldest first.
#[derive(Debug, Default)]
pub struct Snapshots(VecDeque<Snapshot>);

impl Snapshots {
    fn push(&mut self, snapshot: Snapshot) {
        self.0.push_back(snapshot);
        if self.0.len() > SNAPSHOTS_MAX {
            let mut place = 0..;
            self.0.retain(|_| place.next().is_none_or(|at| at > SNAPSHOTS_MAX / 2 || at % 2 == 0));
        }
    }

    /// The newest one of `needed` or before; forgets what lies before it.
    fn at(&mut self, needed: UnixNanos) -> Option<&Snapshot> {
        let covered = self.0.iter().take_while(|snapshot| snapshot.counted <= needed).count();
        self.0.drain(..covered.saturating_sub(1));
        self.0.front().filter(|_| covered > 0)
    }
}

impl Budgets {
    /// Remembers how things stand. Services with the fewest failures are left out when there are too many, and counted.
    pub(super) fn snapshot(&mut self) {
        let mut services: Vec<KeptBudget> = self
            .budgets
            .iter()
            .map(|(service, followed)| {
                let (ring, is_burning, used_up_at) = followed.budget.parts();
                let window_ns = ring.window_ns();
                KeptBudget { service: service.clone(), window_ns, is_burning, used_up_at, ring: ring.kept() }
            })
            .collect();
        services.sort_by_key(|kept| std::cmp::Reverse(kept.failures()));
        let mut bytes = FRAME_BYTES;
        let fits = |kept: &KeptBudget| {
            bytes += kept.bytes();
            bytes <= SNAPSHOT_BYTES_MAX
        };
        let count = services.len();
        let services: Vec<KeptBudget> = services.into_iter().take_while(fits).collect();
        self.unkept = self.unkept.max((count - services.len()) as u64);
        self.snapshots.push(KeptBudgets { counted: self.judged, services }.snapshot());
    }

    /// How things stood at `needed` or before, as late as is known: what follows it must be counted again. `None` when
    /// nothing is known that is old enough.
    pub fn stood(&mut self, needed: UnixNanos) -> Option<&Snapshot> {
        self.snapshots.at(needed)
    }

    /// Goes on with what was kept, before anything is counted.
    pub fn restore(&mut self, kept: KeptBudgets) {
        if !self.config.enabled {
            return;
        }
        let counted = kept.counted;
        for kept in kept.services.into_iter().take(self.config.services_max) {
            let terms = self.config.terms(&kept.service).filter(|terms| terms.window_ns == kept.window_ns);
            let Some(terms) = terms else { continue };
            let ring = Ring::of(terms.window_ns, &kept.ring);
            let mut budget = Budget::of(terms, ring, kept.is_burning, kept.used_up_at);
            // What it said then: to be asked once more changes nothing.
            let burn = if budget.is_open() { budget.judge(counted) } else { None };
            self.follow(kept.service, budget, burn);
        }
        (self.judged, self.counted_before) = (counted, counted);
        self.snapshot();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tally;
    use super::super::{Burn, SloConfig};
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn count(budgets: &mut Budgets, seconds: std::ops::Range<u64>) {
        for second in seconds.step_by(5) {
            budgets.add(&tally("api", "api", second, if second >= 3600 { 20 } else { 0 }));
            budgets.add(&tally("web", "web", second, u64::from(second % 50 == 0)));
            budgets.judge(tally("", "", second + 5, 0).window_start);
        }
    }

    fn burns(budgets: &Budgets) -> Vec<(Entity, Burn)> {
        budgets.burns().map(|(service, burn)| (service.clone(), burn.clone())).collect()
    }

    fn again(snapshot: &Snapshot, config: SloConfig) -> Budgets {
        let mut after = Budgets::new(config);
        after.restore(serde_json::from_slice(&snapshot.json).expect("it is read"));
        after
    }

    #[test]
    fn after_a_restart_that_reads_some_of_it_again_it_stands_as_if_there_had_been_none() {
        let mut alone = Budgets::new(SloConfig::default());
        count(&mut alone, 0..3900);
        assert_eq!(burns(&alone).len(), 1);
        let mut before = Budgets::new(SloConfig::default());
        count(&mut before, 0..3800);
        for needed in [3500, 3600, 3650, 3777] {
            let snapshot = before.stood(tally("", "", needed, 0).window_start).expect("known").clone();
            assert!(snapshot.counted.0 <= tally("", "", needed, 0).window_start.0);
            let mut after = again(&snapshot, SloConfig::default());
            let mut then = Budgets::new(SloConfig::default());
            let until = (snapshot.counted.0 - tally("", "", 0, 0).window_start.0) / SECOND;
            count(&mut then, 0..until);
            assert_eq!(burns(&after), burns(&then), "at once");
            count(&mut after, 3400..3900);
            assert_eq!(burns(&after), burns(&alone));
        }
    }

    #[test]
    fn snapshots_are_bounded_and_what_does_not_fit_is_what_failed_least() {
        let mut budgets = Budgets::new(SloConfig::default());
        for number in 0..2000 {
            budgets.add(&tally(&format!("s{number}"), &format!("s{number}"), 0, number % 20));
        }
        budgets.judge(tally("", "", 60, 0).window_start);
        let snapshot = budgets.stood(UnixNanos(u64::MAX)).expect("known").clone();
        let kept: KeptBudgets = serde_json::from_slice(&snapshot.json).expect("it is read");
        assert!(snapshot.json.len() <= SNAPSHOT_BYTES_MAX, "{}", snapshot.json.len());
        assert_eq!(kept.services.len() as u64 + budgets.unkept, 2000);
        assert!(budgets.unkept > 0);
        let fewest = kept.services.iter().map(KeptBudget::failures).min().expect("some");
        let failed_more = (0..2000).filter(|number| number % 20 > fewest).count();
        assert!(fewest >= 2 && failed_more <= kept.services.len(), "those with the fewest went");

        count(&mut budgets, 60..1000);
        assert!(budgets.snapshots.0.len() <= SNAPSHOTS_MAX);
        assert_eq!(budgets.snapshots.0.front(), Some(&snapshot), "the oldest stays until it is not needed");
        assert_eq!(budgets.stood(UnixNanos(1)), None);
    }

    #[test]
    fn another_window_takes_nothing_over() {
        let mut budgets = Budgets::new(SloConfig::default());
        count(&mut budgets, 0..600);
        let snapshot = budgets.stood(UnixNanos(u64::MAX)).expect("known").clone();
        let window = tapio_runtime::config::HumanDuration::from_secs(7 * 86_400);
        assert_eq!(again(&snapshot, SloConfig { window, ..SloConfig::default() }).followed(), 0);
        assert_eq!(again(&snapshot, SloConfig::default()).followed(), 2);
    }
}
