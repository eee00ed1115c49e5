//! How long a span is waited with after its end, so that what belongs to it is there when it is closed.
//!
//! An exporter sends its spans in batches, every few seconds by default (OpenTelemetry's batch span processor: 5 s), each
//! service in its own beat. A child that comes after its parent was closed looks like a step that was left out. So spans wait
//! as long as spans came late in the last minutes; where all come in time nobody waits.

use tapio_schemas::UnixNanos;

use super::TICK_NS;

/// What children and lines may be later than their span by clocks that differ.
const GRACE_NS: u64 = 500_000_000;
/// Longest wait for those who come late.
const LATE_MAX_NS: u64 = 10_000_000_000;
/// A span that came late is remembered for at least so long, and through any silence.
const KNOWN_NS: u64 = 120_000_000_000;

/// How late spans were.
#[derive(Debug, Default)]
pub struct Grace {
    since: UnixNanos,
    /// What the latest needed, ns: in this stretch of time, and in the one before.
    young: u64,
    old: u64,
    /// What other shards needed: senders have spans in all of them.
    others: u64,
    is_hurried: bool,
}

impl Grace {
    /// Time from the end of a span until it is closed, ns.
    pub fn ns(&self) -> u64 {
        GRACE_NS + self.late_ns()
    }

    /// Part of it that is for those who come late, ns.
    pub fn late_ns(&self) -> u64 {
        if self.is_hurried { 0 } else { self.seen_ns().max(self.others) }
    }

    /// Part of it that those who came late here needed, ns.
    pub fn seen_ns(&self) -> u64 {
        self.young.max(self.old)
    }

    /// What those who came late in any of these shards needed, ns. One that has been silent for long says nothing of the others.
    pub fn of_all<'a>(shards: impl Iterator<Item = &'a Self> + Clone) -> u64 {
        let newest = shards.clone().map(|grace| grace.since).max().unwrap_or_default();
        let heard = shards.filter(|grace| newest.since(grace.since) <= 2 * KNOWN_NS);
        heard.map(Self::seen_ns).max().unwrap_or_default()
    }

    /// There is no room to wait for anybody, or there is again.
    pub fn hurry(&mut self, is_hurried: bool) {
        self.is_hurried = is_hurried;
    }

    /// Nobody is waited for.
    pub fn is_hurried(&self) -> bool {
        self.is_hurried
    }

    /// What those who came late anywhere needed, ns.
    pub fn hear(&mut self, late_ns: u64) {
        self.others = late_ns;
    }

    /// Notes a span that ended at `at`, when steps were run up to `ran`. True when what it belongs to was judged without it,
    /// and it is the first to be so late: who is later than the longest wait is so for good.
    pub fn see(&mut self, at: UnixNanos, ran: UnixNanos) -> bool {
        if ran.since(self.since) >= KNOWN_NS {
            (self.since, self.old, self.young) = (ran, self.young, 0);
        }
        let late = ran.since(at);
        if late == 0 {
            return false;
        }
        let is_judged = late > self.ns() && (self.is_hurried || self.seen_ns() < LATE_MAX_NS);
        // A quarter more, so that not each one that is a little later is the first again.
        let needed = (late + late / 4).div_ceil(TICK_NS) * TICK_NS;
        self.young = self.young.max(needed.min(LATE_MAX_NS));
        is_judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> UnixNanos {
        UnixNanos((1_000_000_000 + ms) * MS)
    }

    #[test]
    fn it_is_as_long_as_spans_were_late_and_short_again_when_they_are_not() {
        let mut grace = Grace::default();
        assert!(!grace.see(at(1_000), at(750)));
        assert_eq!(grace.ns(), GRACE_NS);
        assert!(!grace.see(at(1_000), at(1_400)), "no later than clocks may differ");
        assert_eq!(grace.ns(), 1_000 * MS);
        assert!(grace.see(at(1_000), at(5_000)));
        assert!(!grace.see(at(2_000), at(6_000)), "it was waited for");
        assert_eq!(grace.ns(), 5_500 * MS);
        grace.see(at(900_000), at(900_000));
        assert_eq!(grace.ns(), 5_500 * MS, "silence says nothing");
        grace.see(at(1_020_000), at(1_020_000));
        assert_eq!(grace.ns(), GRACE_NS);
    }

    #[test]
    fn who_was_late_in_another_shard_is_waited_for_here() {
        let mut grace = Grace::default();
        grace.hear(5_000 * MS);
        assert!(!grace.see(at(1_000), at(5_000)));
        assert_eq!((grace.ns(), grace.seen_ns()), (5_500 * MS, 5_000 * MS));
        grace.hear(0);
        assert_eq!(grace.ns(), 5_500 * MS, "what was seen here stays");
    }

    #[test]
    fn who_is_later_than_the_longest_wait_is_news_once() {
        let mut grace = Grace::default();
        let news = (0..1_000).filter(|s| grace.see(at(s * 100), at(30_000 + s * 100))).count();
        assert_eq!((news, grace.ns()), (1, GRACE_NS + LATE_MAX_NS));
    }

    #[test]
    fn a_shard_that_went_silent_says_nothing_of_the_others() {
        let (mut silent, mut busy) = (Grace::default(), Grace::default());
        silent.see(at(1_000), at(5_000));
        busy.see(at(5_000), at(5_000));
        assert_eq!(Grace::of_all([&silent, &busy].into_iter()), 5_000 * MS);
        busy.see(at(400_000), at(400_000));
        assert_eq!(Grace::of_all([&silent, &busy].into_iter()), 0);
    }
}
