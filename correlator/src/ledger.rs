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
    content: u64,
    at: UnixNanos,
}

/// What has been published of one cluster.
#[derive(Debug, Default)]
pub struct Ledger {
    told: HashMap<FindingId, Told>,
    /// Last revisions of findings that are not over.
    unfinished: BTreeMap<FindingId, Finding>,
    /// Newest revision that the replay made of a finding told before.
    replayed: BTreeMap<FindingId, Finding>,
    decided: UnixNanos,
    stale_ns: u64,
    looked: UnixNanos,
    counters: LedgerCounters,
}

impl Ledger {
    /// An empty one. `stale_ns`: silence after which something counts as over.
    pub fn new(stale_ns: u64) -> Self {
        Self { stale_ns, ..Self::default() }
    }

    /// A revision read from the insight stream.
    pub fn read(&mut self, finding: Finding) {
        let newer = self.told.get(&finding.id).is_none_or(|told| told.revision < finding.revision);
        if newer {
            self.note(finding);
        }
    }

    /// All is read. Everything up to `decided`, and up to the newest revision read, was published by earlier
    /// processes; neither can lie after `now` (a clock that was wrong must not silence us).
    pub fn begin(&mut self, decided: UnixNanos, now: UnixNanos) {
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
    pub fn take(&mut self, mut finding: Finding) -> Option<Finding> {
        let content = content(&finding);
        let Some(told) = self.told.get_mut(&finding.id) else {
            if finding.emitted_at > self.decided {
                finding.revision = finding.revision.max(1);
                self.note(finding.clone());
                return Some(finding);
            }
            self.counters.withheld += 1;
            self.told.insert(finding.id, Told { revision: 0, content, at: finding.emitted_at });
            return None;
        };
        if finding.emitted_at <= told.at.max(self.decided) {
            if told.revision == 0 {
                self.counters.withheld += 1;
                (told.content, told.at) = (content, finding.emitted_at);
            } else {
                self.counters.known += 1;
                self.replayed.insert(finding.id, finding);
            }
            return None;
        }
        self.replayed.remove(&finding.id);
        if told.content == content {
            return None;
        }
        finding.revision = told.revision + 1;
        self.note(finding.clone());
        Some(finding)
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
            if told.content != content(finding) {
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
        let told = Told { revision: finding.revision, content: content(&finding), at: finding.emitted_at };
        self.told.insert(finding.id, told);
        if ending::is_over(finding.status) {
            self.unfinished.remove(&finding.id);
        } else {
            self.unfinished.insert(finding.id, finding);
        }
        if self.told.len() > TOLD_MAX + TOLD_MAX / 8 {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        if self.told.len() <= TOLD_MAX {
            return;
        }
        let mut ages: Vec<_> = self.told.iter().map(|(id, told)| (told.at, *id)).collect();
        ages.sort_unstable();
        for (_, id) in ages.iter().take(self.told.len() - TOLD_MAX) {
            self.told.remove(id);
            self.unfinished.remove(id);
            self.replayed.remove(id);
            self.counters.forgotten += 1;
        }
    }
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
