//! Requests and failures of one service over the window of its objective, in bounded memory.

use std::collections::VecDeque;

use tapio_schemas::UnixNanos;

use super::kept::KeptRing;

/// Fine buckets: those of the longest window in which a burn is looked for.
pub const FINE_MAX: usize = 361;
/// Coarse buckets: those of the objective's window.
const COARSE_MAX: usize = 121;
/// Fine buckets in the objective's window: a minute of 30 days.
const FINE_OF_WINDOW: u64 = 43_200;
/// Coarse buckets in the objective's window: six hours of 30 days.
const COARSE_OF_WINDOW: u64 = 120;
/// Shortest bucket: requests are counted in windows of this length.
const BUCKET_MIN_NS: u64 = 5_000_000_000;

/// Counts of a stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures);
    }
}

/// Buckets by number, a bucket without requests left out.
#[derive(Debug, Default)]
struct Buckets(VecDeque<(u64, Counts)>);

impl Buckets {
    /// Adds to a bucket; what comes late is counted where it belongs, if that is still there.
    fn add(&mut self, number: u64, counts: Counts, count_max: usize) {
        let at = self.0.partition_point(|(known, _)| *known < number);
        match self.0.get_mut(at).filter(|(known, _)| *known == number) {
            Some((_, known)) => known.add(counts),
            None => self.0.insert(at, (number, counts)),
        }
        let oldest = self.0.back().map_or(0, |(newest, _)| (newest + 1).saturating_sub(count_max as u64));
        while self.0.front().is_some_and(|(number, _)| *number < oldest) {
            self.0.pop_front();
        }
    }

    /// Sum from a bucket on.
    fn since(&self, first: u64) -> Counts {
        let mut sum = Counts::default();
        let newest_first = self.0.iter().rev().take_while(|(number, _)| *number >= first);
        newest_first.for_each(|(_, counts)| sum.add(*counts));
        sum
    }
}

/// Two rings: fine buckets for what happens now, coarse ones for the whole window.
#[derive(Debug)]
pub struct Ring {
    window_ns: u64,
    fine: Buckets,
    coarse: Buckets,
    /// Start of the first window that was counted.
    since: UnixNanos,
    /// End of the last one.
    newest: UnixNanos,
}

impl Ring {
    /// Nothing is counted before `since`.
    pub fn new(window_ns: u64, since: UnixNanos) -> Self {
        Self { window_ns, fine: Buckets::default(), coarse: Buckets::default(), since, newest: since }
    }

    /// As it was kept.
    pub fn of(window_ns: u64, kept: &KeptRing) -> Self {
        let buckets = |kept: &[(u64, u64, u64)]| {
            let counts = |(requests, failures)| Counts { requests, failures };
            Buckets(kept.iter().map(|(number, a, b)| (*number, counts((*a, *b)))).collect())
        };
        let (fine, coarse) = (buckets(&kept.fine), buckets(&kept.coarse));
        Self { window_ns, fine, coarse, since: kept.since, newest: kept.newest }
    }

    /// What is to be kept of it.
    pub fn kept(&self) -> KeptRing {
        let plain = |(number, counts): &(u64, Counts)| (*number, counts.requests, counts.failures);
        KeptRing {
            since: self.since,
            newest: self.newest,
            fine: self.fine.0.iter().filter(|(_, counts)| counts.failures > 0).map(plain).collect(),
            coarse: self.coarse.0.iter().map(plain).collect(),
        }
    }

    /// Length of the objective's window, ns.
    pub fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// Length of a fine bucket, ns.
    pub fn bucket_ns(&self) -> u64 {
        (self.window_ns / FINE_OF_WINDOW).max(BUCKET_MIN_NS)
    }

    fn coarse_ns(&self) -> u64 {
        self.window_ns / COARSE_OF_WINDOW
    }

    /// Adds the counts of a window that began and ended then.
    pub fn add(&mut self, start: UnixNanos, end: UnixNanos, counts: Counts) {
        let (fine, coarse) = (start.0 / self.bucket_ns(), start.0 / self.coarse_ns().max(1));
        self.fine.add(fine, counts, FINE_MAX);
        self.coarse.add(coarse, counts, COARSE_MAX);
        self.since = self.since.min(start);
        self.newest = self.newest.max(end);
    }

    /// End of the last window that was counted.
    pub fn newest(&self) -> UnixNanos {
        self.newest
    }

    /// Start of what is known of the objective's window.
    pub fn seen_from(&self, now: UnixNanos) -> UnixNanos {
        self.since.max(now.minus(self.window_ns))
    }

    /// Counts of the objective's window, as far as it was seen; its oldest coarse bucket is left out when it began before.
    pub fn total(&self, now: UnixNanos) -> Counts {
        self.coarse.since(now.minus(self.window_ns).0.div_ceil(self.coarse_ns().max(1)))
    }

    /// Counts of the last `length_ns`, in whole fine buckets, the first of which began within them.
    pub fn last(&self, now: UnixNanos, length_ns: u64) -> Counts {
        self.fine.since(now.minus(length_ns).0.div_ceil(self.bucket_ns()))
    }

    /// Failures per fine bucket of the last `length_ns` and since it is counted, oldest first, with the start of the first.
    pub fn failures(&self, now: UnixNanos, length_ns: u64) -> (UnixNanos, Vec<u64>) {
        let bucket_ns = self.bucket_ns();
        let known_from = self.since.0 / bucket_ns;
        let first = (now.minus(length_ns).0.div_ceil(bucket_ns)).max(known_from);
        let last = now.minus(1).0 / bucket_ns;
        let count = (last + 1).saturating_sub(first).min(FINE_MAX as u64);
        let mut failures = vec![0; count as usize];
        for (number, counts) in self.fine.0.iter().rev().take_while(|(number, _)| *number >= first) {
            if let Some(place) = failures.get_mut((number - first) as usize) {
                *place = counts.failures;
            }
        }
        (UnixNanos(first * bucket_ns), failures)
    }

    /// Fine and coarse buckets held.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        (self.fine.0.len(), self.coarse.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const DAY: u64 = 1440 * MINUTE;

    fn counted(ring: &mut Ring, minute: u64, requests: u64, failures: u64) {
        let start = UnixNanos(100 * DAY + minute * MINUTE);
        ring.add(start, start.plus(5_000_000_000), Counts { requests, failures });
    }

    fn at(minute: u64) -> UnixNanos {
        UnixNanos(100 * DAY + minute * MINUTE)
    }

    #[test]
    fn memory_is_bounded_however_long_it_counts_and_the_window_slides() {
        let mut ring = Ring::new(30 * DAY, at(0));
        let minutes = 40 * 1440;
        (0..minutes).for_each(|minute| counted(&mut ring, minute, 10, u64::from(minute < 1440)));
        let (fine, coarse) = ring.len();
        assert!(fine <= FINE_MAX && coarse <= COARSE_MAX, "{fine} {coarse}");
        let total = ring.total(at(minutes));
        assert_eq!(total.failures, 0, "the bad day is out of the window");
        assert_eq!(total.requests, 30 * 1440 * 10);
        assert_eq!(ring.last(at(minutes), 60 * MINUTE).requests, 600);
        assert_eq!(ring.seen_from(at(minutes)), at(minutes - 30 * 1440));
    }

    #[test]
    fn what_is_late_is_counted_where_it_belongs_and_order_does_not_matter() {
        let windows = [(3, 10, 1), (0, 10, 2), (7, 10, 0), (3, 5, 5)];
        let count = |order: [usize; 4]| {
            let mut ring = Ring::new(30 * DAY, at(9));
            order.iter().for_each(|i| counted(&mut ring, windows[*i].0, windows[*i].1, windows[*i].2));
            (ring.failures(at(8), 60 * MINUTE), ring.total(at(8)), ring.last(at(8), 5 * MINUTE))
        };
        let ((from, failures), total, last) = count([0, 1, 2, 3]);
        assert_eq!((from, failures), (at(0), vec![2, 0, 0, 6, 0, 0, 0, 0]));
        assert_eq!((total.requests, total.failures, last.failures), (35, 8, 6));
        assert_eq!(count([3, 2, 1, 0]), count([0, 1, 2, 3]));
    }

    #[test]
    fn time_without_requests_has_no_failures() {
        let mut ring = Ring::new(30 * DAY, at(0));
        counted(&mut ring, 0, 10, 10);
        counted(&mut ring, 5, 10, 1);
        assert_eq!(ring.failures(at(6), 60 * MINUTE).1, [10, 0, 0, 0, 0, 1]);
        assert_eq!(ring.failures(at(600), 60 * MINUTE).1.iter().sum::<u64>(), 0);
    }
}
