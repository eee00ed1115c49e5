//! What has been published, so that a restart neither doubles a finding nor leaves one that is not true any more.
//!
//! After a restart the signals of a while are decided again. Everything up to `decided` was decided and published by an
//! earlier process. So up to there nothing is published; what comes out is compared with what was told, and when
//! the replay ends elsewhere than the earlier process did, the difference is told as one more revision. The revision
//! that is published always follows the last one told, whatever this process counts.

use std::collections::{BTreeMap, HashMap};

use tapio_schemas::{Finding, FindingId, Score, UnixNanos};

use crate::incidents::ending;

/// Findings remembered. Above it the ones told longest ago are forgotten, and counted.
const TOLD_MAX: usize = 65_536;
/// Findings that are not over and are remembered as a whole. Above it the ones told longest ago are forgotten.
const UNFINISHED_MAX: usize = 4096;
/// So many more are taken in before room is made.
const SLACK: usize = 1024;
/// Event time after which an incident that stands behind a finding must be there again.
const STANDS_AFTER_NS: u64 = 5_000_000_000;
/// What is said of a finding whose incident did not come out of the replay.
const LOST_IN_RESTART: &str = "the evidence was lost in a restart";

/// What the ledger did, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerCounters {
    /// Revisions made again by a replay and not published twice.
    pub known: u64,
    /// Revisions of a replay about something that nobody was told at that time.
    pub withheld: u64,
    /// Revisions published because the replay ended elsewhere.
    pub corrected: u64,
    /// Last revisions of findings that no incident stands for.
    pub closed: u64,
    /// Findings forgotten because there were too many.
    pub forgotten: u64,
}

impl LedgerCounters {
    /// Every count with its name.
    pub fn by_reason(&self) -> [(&'static str, u64); 5] {
        [
            ("known", self.known),
            ("withheld", self.withheld),
            ("corrected", self.corrected),
            ("closed", self.closed),
            ("forgotten", self.forgotten),
        ]
    }
}

#[derive(Debug)]
struct Told {
    /// 0 when it was withheld.
    revision: u32,
    /// `None` when it was withheld and is not over: whatever it says is news.
    content: Option<u64>,
    at: UnixNanos,
}

/// What has been published of one cluster.
#[derive(Debug)]
pub struct Ledger {
    told_max: usize,
    unfinished_max: usize,
    told: HashMap<FindingId, Told>,
    /// Last revisions of findings that are not over.
    unfinished: BTreeMap<FindingId, Finding>,
    /// Newest revision that the replay made of a finding told before, or of one that was withheld and is not over.
    replayed: BTreeMap<FindingId, Finding>,
    /// Event time from which on the signals are read again.
    from: UnixNanos,
    decided: UnixNanos,
    stale_ns: u64,
    looked: UnixNanos,
    counters: LedgerCounters,
}

impl Ledger {
    /// An empty one. `stale_ns`: silence after which something counts as over.
    pub fn new(stale_ns: u64) -> Self {
        Self::with_limits(stale_ns, TOLD_MAX, UNFINISHED_MAX)
    }

    fn with_limits(stale_ns: u64, told_max: usize, unfinished_max: usize) -> Self {
        Self {
            told_max,
            unfinished_max,
            told: HashMap::new(),
            unfinished: BTreeMap::new(),
            replayed: BTreeMap::new(),
            from: UnixNanos(0),
            decided: UnixNanos(0),
            stale_ns,
            looked: UnixNanos(0),
            counters: LedgerCounters::default(),
        }
    }

    /// A revision read from the insight stream.
    pub fn read(&mut self, finding: Finding) {
        let newer = self.told.get(&finding.id).is_none_or(|told| told.revision < finding.revision);
        if newer {
            self.note(finding);
        }
    }

    /// All is read. Everything up to `decided`, and before the tick of the newest revision read (a tick's findings go out
    /// when those before are stored), was published by earlier processes; neither can lie after `now` (a clock that was wrong must not silence us). Signals are read again
    /// from event time `from` on.
    pub fn begin(&mut self, from: UnixNanos, decided: UnixNanos, now: UnixNanos) {
        self.from = from;
        self.told.values_mut().for_each(|told| told.at = told.at.min(now));
        // Revisions of one tick may have been published in part.
        let newest = self.told.values().map(|told| told.at.minus(1)).max().unwrap_or_default();
        self.decided = decided.max(newest).min(now);
    }

    /// How many findings are known.
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// What it did so far.
    pub fn counters(&self) -> LedgerCounters {
        self.counters
    }

    /// A revision was made: gives it back as it is to be published, if it is.
    ///
    /// An incident that was over before the mark was taken is not read again as a whole. What the replay makes of its
    /// end is a shadow, which says nothing until something new happens to it. What else is withheld, and not over when
    /// the replay ends, is told then: something is wrong, and nobody was told.
    pub fn take(&mut self, mut finding: Finding) -> Option<Finding> {
        let content = content(&finding);
        let is_shadow = finding.first_bad_at < self.from && finding.updated_at <= self.decided;
        let Some(told) = self.told.get_mut(&finding.id) else {
            if finding.emitted_at > self.decided && !is_shadow {
                finding.revision = finding.revision.max(1);
                self.note(finding.clone());
                return Some(finding);
            }
            let told = Told { revision: 0, content: Some(content), at: finding.emitted_at };
            self.told.insert(finding.id, told);
            self.withhold(finding, is_shadow);
            return None;
        };
        if is_shadow || finding.emitted_at <= told.at.max(self.decided) {
            if is_shadow || told.revision == 0 {
                self.withhold(finding, is_shadow);
            } else {
                self.counters.known += 1;
                self.replayed.insert(finding.id, finding);
            }
            return None;
        }
        self.replayed.remove(&finding.id);
        if told.content == Some(content) {
            return None;
        }
        finding.revision = told.revision + 1;
        self.note(finding.clone());
        Some(finding)
    }

    fn withhold(&mut self, finding: Finding, is_shadow: bool) {
        self.counters.withheld += 1;
        let Some(told) = self.told.get_mut(&finding.id).filter(|told| !is_shadow && told.revision == 0)
        else {
            return;
        };
        told.at = finding.emitted_at;
        if ending::is_over(finding.status) {
            told.content = Some(content(&finding));
            self.replayed.remove(&finding.id);
        } else {
            told.content = None;
            self.replayed.insert(finding.id, finding);
        }
    }

    /// Decisions are taken up to `now`: what was told and is not so, and what nobody stands for, gets its revision.
    /// `stands`: whether an incident stands for a finding.
    pub fn settle(&mut self, now: UnixNanos, stands: impl Fn(FindingId) -> bool) -> Vec<Finding> {
        if now <= self.looked {
            return Vec::new();
        }
        self.looked = now;
        let mut out = self.corrections(now);
        out.extend(self.last_words(now, stands));
        for finding in &out {
            self.note(finding.clone());
        }
        self.make_room();
        out
    }

    fn corrections(&mut self, now: UnixNanos) -> Vec<Finding> {
        let mut out = Vec::new();
        let (told, decided) = (&self.told, self.decided);
        self.replayed.retain(|id, finding| {
            let Some(told) = told.get(id) else { return false };
            if now <= told.at.max(decided) {
                return true;
            }
            if told.content != Some(content(finding)) {
                let mut finding = finding.clone();
                finding.revision = told.revision + 1;
                finding.emitted_at = now;
                out.push(finding);
            }
            false
        });
        self.counters.corrected += out.len() as u64;
        out
    }

    fn last_words(&mut self, now: UnixNanos, stands: impl Fn(FindingId) -> bool) -> Vec<Finding> {
        let mut out = Vec::new();
        for (id, last) in &self.unfinished {
            let at = self.told.get(id).map_or(last.emitted_at, |told| told.at);
            let due = at.max(self.decided).plus(STANDS_AFTER_NS);
            if now < due || self.replayed.contains_key(id) || stands(*id) {
                continue;
            }
            if now.since(last.updated_at) > self.stale_ns {
                out.push(ending::silent(last.clone(), now));
            } else if last.status == tapio_schemas::finding::Status::Active {
                out.push(ending::lost(last.clone(), LOST_IN_RESTART, now));
            }
        }
        self.counters.closed += out.len() as u64;
        out
    }

    /// It is told.
    fn note(&mut self, finding: Finding) {
        let told =
            Told { revision: finding.revision, content: Some(content(&finding)), at: finding.emitted_at };
        self.told.insert(finding.id, told);
        if ending::is_over(finding.status) {
            self.unfinished.remove(&finding.id);
        } else {
            self.unfinished.insert(finding.id, finding);
        }
        if self.told.len() > self.told_max + SLACK || self.unfinished.len() > self.unfinished_max + SLACK {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        if self.told.len() <= self.told_max && self.unfinished.len() <= self.unfinished_max {
            return;
        }
        let told = self.told.iter().map(|(id, told)| (told.at, *id)).collect();
        for id in oldest_above(told, self.told_max) {
            self.told.remove(&id);
            self.unfinished.remove(&id);
            self.replayed.remove(&id);
            self.counters.forgotten += 1;
        }
        let unfinished = self.unfinished.iter().map(|(id, finding)| (finding.emitted_at, *id)).collect();
        for id in oldest_above(unfinished, self.unfinished_max) {
            self.unfinished.remove(&id);
            self.counters.forgotten += 1;
        }
    }
}

/// The oldest of those above the limit.
fn oldest_above(mut ages: Vec<(UnixNanos, FindingId)>, count_max: usize) -> Vec<FindingId> {
    let surplus = ages.len().saturating_sub(count_max);
    if surplus == 0 {
        return Vec::new();
    }
    ages.sort_unstable();
    ages.truncate(surplus);
    ages.into_iter().map(|(_, id)| id).collect()
}

/// Hash of what a finding says, without when it was looked at.
fn content(finding: &Finding) -> u64 {
    let mut plain = finding.clone();
    plain.revision = 0;
    plain.emitted_at = UnixNanos(0);
    plain.updated_at = UnixNanos(0);
    plain.opened_at = UnixNanos(0);
    plain.freshness.watermark = UnixNanos(0);
    let round = |score: Score| Score::clamped((score.get() * 100.0).round() / 100.0);
    plain.confidence = round(plain.confidence);
    plain.hypotheses.iter_mut().for_each(|h| h.probability = round(h.probability));
    xxhash_rust::xxh3::xxh3_64(&serde_json::to_vec(&plain).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::finding::Status;

    const SECOND: u64 = 1_000_000_000;
    const STALE: u64 = 600 * SECOND;

    fn at(second: u64) -> UnixNanos {
        UnixNanos(second * SECOND)
    }

    /// A revision of finding `id`, made at a second, that says `story`.
    fn made(id: u128, revision: u32, second: u64, story: &str, status: Status) -> Finding {
        let json = serde_json::json!({
            "schema": "tapio.finding/v1", "id": FindingId(id), "revision": revision, "status": status,
            "cluster": "c", "severity": "error", "title": "t", "story": story,
            "opened_at": at(1), "first_bad_at": at(1), "updated_at": at(second), "emitted_at": at(second),
            "confidence": 0.9, "root_cause": null, "hypotheses": [], "chain": [],
            "impact": {"business_impact": 0.0, "customer_facing": false, "slo_impact": false,
                       "cascade_risk": 0.0, "requests_affected": 0.0, "callers": []},
            "actions": [], "semantic_group": {"id": tapio_schemas::GroupId(0), "type": "", "intent": ""},
            "freshness": {"watermark": at(second), "gaps": []}
        });
        serde_json::from_value(json).expect("a finding")
    }

    fn active(id: u128, revision: u32, second: u64, story: &str) -> Finding {
        made(id, revision, second, story, Status::Active)
    }

    /// A ledger of a process that begins at second 1000 after another one that had decided up to `decided`.
    fn restarted(told: &[Finding], decided: u64) -> Ledger {
        let mut ledger = Ledger::new(STALE);
        told.iter().for_each(|finding| ledger.read(finding.clone()));
        ledger.begin(at(0), at(decided), at(1000));
        ledger
    }

    #[test]
    fn what_was_told_is_left_out_and_what_follows_counts_on() {
        let told = [active(1, 1, 10, "a"), active(1, 2, 20, "b")];
        let mut ledger = restarted(&told, 25);
        assert!(told.iter().all(|finding| ledger.take(finding.clone()).is_none()));
        assert_eq!(ledger.settle(at(26), |_| true), []);
        // The engine counts from one again: the revision follows what was told all the same.
        let next = ledger.take(active(1, 1, 30, "c")).expect("published");
        assert_eq!((next.revision, next.story.as_str()), (3, "c"));
        assert_eq!(ledger.take(active(1, 2, 40, "c")), None, "nothing new");
        assert_eq!((ledger.counters().known, ledger.counters().corrected), (2, 0));
    }

    #[test]
    fn a_replay_that_ends_elsewhere_is_told_as_one_more_revision() {
        let mut ledger = restarted(&[active(1, 1, 10, "a"), active(1, 2, 20, "b")], 25);
        ledger.take(active(1, 1, 10, "a"));
        ledger.take(made(1, 2, 22, "it ended", Status::Recovered));
        assert_eq!(ledger.settle(at(25), |_| true), [], "up to there the replay may still change its mind");
        let told = ledger.settle(at(26), |_| true);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].revision, told[0].status, told[0].emitted_at), (3, Status::Recovered, at(26)));
        assert_eq!(ledger.settle(at(700), |_| false), [], "it is over and said so");
    }

    #[test]
    fn a_finding_that_nothing_stands_for_is_first_unknown_then_over() {
        let mut ledger = restarted(&[active(1, 4, 20, "it leaks.")], 25);
        assert_eq!(ledger.settle(at(29), |_| false), [], "its incident may still come");
        assert_eq!(ledger.settle(at(30), |_| true), [], "an incident stands for it");
        let lost = ledger.settle(at(31), |_| false);
        assert_eq!((lost[0].revision, lost[0].status), (5, Status::NotProvable));
        assert!(
            lost[0].story.starts_with("it leaks. Whether it goes on is not known: the evidence was lost")
        );
        assert_eq!(ledger.settle(at(620), |_| false), [], "said once");
        let over = ledger.settle(at(621), |_| false);
        assert_eq!((over[0].revision, over[0].status), (6, Status::Recovered));
        assert!(over[0].story.contains("Nothing of it was seen after 00:00:20"), "{}", over[0].story);
        assert_eq!(ledger.settle(at(9000), |_| false), []);
        assert_eq!(ledger.counters().closed, 2);
    }

    #[test]
    fn what_a_replay_sees_in_part_is_not_told_as_something_new() {
        let mut ledger = restarted(&[], 25);
        assert_eq!(ledger.take(made(7, 1, 15, "a shadow", Status::Recovered)), None);
        assert_eq!(ledger.settle(at(30), |_| false), []);
        // The same thing said again is no news; that it fails again is.
        assert_eq!(ledger.take(made(7, 2, 31, "a shadow", Status::Recovered)), None);
        let again = ledger.take(active(7, 3, 40, "it fails again")).expect("published");
        assert_eq!(again.revision, 1);
        assert_eq!(ledger.counters().withheld, 1);
    }

    #[test]
    fn what_was_withheld_and_goes_on_is_told_when_the_replay_ends() {
        let mut ledger = restarted(&[], 25);
        assert_eq!(ledger.take(active(7, 1, 15, "it leaks")), None);
        assert_eq!(ledger.take(active(8, 1, 16, "it ends in time")), None);
        assert_eq!(ledger.take(made(8, 2, 24, "it ends in time", Status::Recovered)), None);
        assert_eq!(ledger.settle(at(25), |_| true), []);
        let told = ledger.settle(at(26), |_| true);
        assert_eq!((told.len(), told[0].id, told[0].revision), (1, FindingId(7), 1));
        assert_eq!(ledger.settle(at(27), |_| true), [], "told once");
        assert_eq!(ledger.take(active(7, 2, 30, "it leaks")), None, "nothing new");
        // A revision that comes before the look at what was withheld tells it, whatever it says.
        let mut ledger = restarted(&[], 25);
        assert_eq!(ledger.take(active(7, 1, 15, "it leaks")), None);
        assert_eq!(ledger.take(active(7, 2, 26, "it leaks")).map(|told| told.revision), Some(1));
        assert_eq!(ledger.settle(at(27), |_| true), []);
    }

    #[test]
    fn the_end_of_an_incident_that_is_read_in_part_does_not_set_it_right() {
        let mut ledger = Ledger::new(STALE);
        ledger.read(made(1, 9, 20, "the whole story", Status::Recovered));
        ledger.begin(at(15), at(25), at(1000));
        assert_eq!(ledger.take(made(1, 1, 21, "half of it", Status::Recovered)), None);
        assert_eq!(ledger.take(made(2, 1, 22, "half of another one", Status::Recovered)), None);
        assert_eq!(ledger.settle(at(40), |_| false), []);
        // Made later out of the same evidence, it still says nothing.
        let later =
            |id| Finding { emitted_at: at(50), ..made(id, 2, 22, "less than half", Status::Recovered) };
        assert_eq!((ledger.take(later(1)), ledger.take(later(2))), (None, None));
        let again = ledger.take(active(1, 3, 60, "it fails again")).expect("something new happened");
        assert_eq!(again.revision, 10);
    }

    #[test]
    fn without_a_mark_the_newest_finding_told_says_how_far_it_was_decided() {
        let mut ledger = restarted(&[active(1, 1, 20, "a")], 0);
        assert_eq!(ledger.take(active(2, 1, 19, "before")), None);
        assert!(ledger.take(active(3, 1, 20, "in the same tick, not told yet")).is_some());
    }

    #[test]
    fn times_of_a_wrong_clock_do_not_silence_it() {
        let mut ledger = restarted(&[active(1, 1, 50_000, "from the future")], 60_000);
        assert!(ledger.take(active(2, 1, 1001, "now")).is_some());
        assert!(ledger.take(active(1, 1, 1001, "now too")).is_some());
    }

    #[test]
    fn it_is_bounded_and_forgets_what_was_told_longest_ago() {
        let mut ledger = Ledger::with_limits(STALE, 40, 20);
        for n in 1..=100u64 {
            ledger.take(active(u128::from(n), 1, 1000 + n, "x"));
        }
        ledger.settle(at(1100), |_| true);
        assert_eq!((ledger.len(), ledger.unfinished.len()), (40, 20));
        assert_eq!(ledger.counters().forgotten, 60 + 20);
        assert_eq!(ledger.take(active(100, 1, 1100, "x")), None);
    }
}
