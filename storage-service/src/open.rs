//! Open findings that are not sure enough for the disk: the newest revision of each, in memory.
//!
//! Only findings with a confidence above the line are persisted, but what goes on and cannot be
//! proven goes on all the same, and whoever asks must hear of it. What is here is a view of the
//! insights stream and is built again from it at the start (see `rebuild`).

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::finding::{PERSIST_CONFIDENCE_ABOVE, Status};
use tapio_schemas::{FindingId, Score};

use crate::store::{Filter, Position, StoredFinding};

/// Open findings held at a time: hundreds of incidents in each of several clusters. The one whose
/// last evidence is oldest goes first.
pub const OPEN_FINDINGS_MAX: usize = 4096;
/// ... and the bytes of their documents.
pub const OPEN_BYTES_MAX: usize = 16 << 20;
/// Findings remembered as ended or left out, so that an old revision that comes late is not taken
/// for news, and so that it can be said how many are missing.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");

/// True for a finding that goes on and is not sure enough to be persisted.
pub fn is_open_and_unsure(status: Status, confidence: Score) -> bool {
    matches!(status, Status::Active | Status::NotProvable) && confidence.get() <= PERSIST_CONFIDENCE_ABOVE
}

/// The held findings. Clones share them.
#[derive(Clone)]
pub struct OpenFindings {
    inner: Arc<Mutex<Inner>>,
    held: Gauge,
    evicted: Counter,
}

struct Inner {
    by_time: BTreeMap<Position, Arc<StoredFinding>>,
    by_id: HashMap<FindingId, Position>,
    bytes: usize,
    bytes_max: usize,
    /// Revision up to which the disk, or nothing at all, stands for a finding.
    settled: LruCache<FindingId, u32>,
    /// Still open as far as is known, but there was no room.
    left_out: LruCache<FindingId, ()>,
}

impl OpenFindings {
    /// Nothing is open yet.
    pub fn new(metrics: &Metrics) -> Self {
        let open = Self::with_bytes_max(OPEN_BYTES_MAX);
        metrics.register(
            "storage_open_findings",
            "Open findings held in memory because they are not sure enough to be stored",
            open.held.clone(),
        );
        metrics.register(
            "storage_open_findings_evicted",
            "Open findings left out because there were too many of them",
            open.evicted.clone(),
        );
        open
    }

    fn with_bytes_max(bytes_max: usize) -> Self {
        let inner = Inner {
            by_time: BTreeMap::new(),
            by_id: HashMap::new(),
            bytes: 0,
            bytes_max,
            settled: LruCache::new(REMEMBERED),
            left_out: LruCache::new(REMEMBERED),
        };
        Self { inner: Arc::new(Mutex::new(inner)), held: Gauge::default(), evicted: Counter::default() }
    }

    /// Takes a revision that is not on disk: holds it while it is open, lets go of the finding when it
    /// has ended. True when whoever follows should hear of it.
    pub fn observe(&self, stored: &Arc<StoredFinding>) -> bool {
        let finding = &stored.finding;
        if !is_open_and_unsure(finding.status, finding.confidence) {
            return self.settle(finding.id, finding.revision);
        }
        let mut inner = self.lock();
        let is_old = inner.settled.peek(&finding.id).is_some_and(|settled| *settled >= finding.revision)
            || inner.get(finding.id).is_some_and(|held| held.finding.revision >= finding.revision);
        if is_old {
            return false;
        }
        inner.remove(finding.id);
        inner.insert(Arc::clone(stored));
        let evicted = inner.evict();
        self.evicted.inc_by(evicted);
        self.held.set(i64::try_from(inner.by_id.len()).unwrap_or(i64::MAX));
        true
    }

    /// Up to this revision the finding is on disk, or has ended. True when it was held until now.
    pub fn settle(&self, id: FindingId, revision: u32) -> bool {
        let mut inner = self.lock();
        let newest = inner.settled.peek(&id).map_or(revision, |settled| revision.max(*settled));
        inner.settled.put(id, newest);
        inner.left_out.pop(&id);
        let was_held = inner.get(id).is_some_and(|held| held.finding.revision <= revision);
        if was_held {
            inner.remove(id);
        }
        self.held.set(i64::try_from(inner.by_id.len()).unwrap_or(i64::MAX));
        was_held
    }

    /// The held revision of a finding.
    pub fn get(&self, id: FindingId) -> Option<Arc<StoredFinding>> {
        self.lock().get(id).cloned()
    }

    /// What matches, newest first, from below `after`.
    pub fn list(&self, filter: &Filter, after: Option<Position>) -> Vec<Arc<StoredFinding>> {
        let inner = self.lock();
        let newest = inner.by_time.iter().rev();
        let below = newest.filter(|(position, _)| after.is_none_or(|after| **position < after));
        let wanted = below.filter(|(_, stored)| filter.accepts(&stored.finding));
        wanted.map(|(_, stored)| Arc::clone(stored)).collect()
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    /// True when none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many are open as far as is known, but could not be held.
    pub fn left_out(&self) -> usize {
        self.lock().left_out.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn get(&self, id: FindingId) -> Option<&Arc<StoredFinding>> {
        self.by_id.get(&id).and_then(|position| self.by_time.get(position))
    }

    fn remove(&mut self, id: FindingId) {
        let position = self.by_id.remove(&id);
        if let Some(old) = position.and_then(|position| self.by_time.remove(&position)) {
            self.bytes -= old.json.len();
        }
    }

    fn insert(&mut self, stored: Arc<StoredFinding>) {
        let position = Position::of(&stored.finding);
        self.left_out.pop(&position.id);
        self.bytes += stored.json.len();
        self.by_id.insert(position.id, position);
        self.by_time.insert(position, stored);
    }

    fn evict(&mut self) -> u64 {
        let mut evicted = 0;
        while self.by_id.len() > OPEN_FINDINGS_MAX || self.bytes > self.bytes_max {
            let Some(oldest) = self.by_time.first_key_value().map(|(position, _)| position.id) else { break };
            self.remove(oldest);
            self.left_out.put(oldest, ());
            evicted += 1;
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::UnixNanos;
    use tapio_schemas::finding::FINDING_SCHEMA;

    use super::*;

    fn finding(id: u128, revision: u32, status: &str, second: u32) -> Arc<StoredFinding> {
        let at = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        let json = format!(
            r#"{{"schema":"{FINDING_SCHEMA}","id":"fnd-{id:032x}","revision":{revision},"status":"{status}",
            "cluster":"c","severity":"error","title":"{id}/{revision}","story":"","opened_at":"{at}",
            "first_bad_at":"{at}","updated_at":"{at}","emitted_at":"{at}","confidence":0.4,"root_cause":null,
            "hypotheses":[],"chain":[],"impact":{{"business_impact":0,"customer_facing":false,"slo_impact":false,
            "cascade_risk":0,"requests_affected":0,"callers":[]}},"actions":[],
            "semantic_group":{{"id":"grp-00000000000000000000000000000000","type":"","intent":""}},
            "freshness":{{"watermark":"{at}","gaps":[]}}}}"#
        );
        let finding = serde_json::from_str(&json).unwrap();
        Arc::new(StoredFinding { finding, json: json.into(), stored_at: UnixNanos(0) })
    }

    fn titles(open: &OpenFindings, after: Option<Position>) -> Vec<String> {
        open.list(&Filter::default(), after).iter().map(|stored| stored.finding.title.clone()).collect()
    }

    #[test]
    fn the_newest_revision_is_held_until_the_finding_ends() {
        let open = OpenFindings::with_bytes_max(OPEN_BYTES_MAX);
        assert!(open.observe(&finding(1, 2, "active", 5)));
        assert!(!open.observe(&finding(1, 1, "active", 9)), "an older revision that comes late");
        assert!(open.observe(&finding(2, 1, "not_provable", 7)));
        assert_eq!(titles(&open, None), ["2/1", "1/2"]);
        let after = Position::of(&finding(2, 1, "not_provable", 7).finding);
        assert_eq!(titles(&open, Some(after)), ["1/2"]);
        assert!(open.observe(&finding(1, 3, "not_provable", 8)));
        assert_eq!(titles(&open, None), ["1/3", "2/1"]);
        assert!(open.observe(&finding(1, 4, "recovered", 9)), "the end is news");
        assert!(!open.observe(&finding(1, 3, "not_provable", 8)), "and stays the end");
        assert!(open.observe(&finding(1, 5, "active", 10)), "but it can begin again");
        assert_eq!(titles(&open, None), ["1/5", "2/1"]);
    }

    #[test]
    fn what_is_on_disk_is_not_held() {
        let open = OpenFindings::with_bytes_max(OPEN_BYTES_MAX);
        open.observe(&finding(1, 1, "active", 1));
        assert!(open.settle(finding(1, 1, "active", 1).finding.id, 2));
        assert!(open.is_empty());
        assert!(!open.observe(&finding(1, 2, "active", 2)));
        assert!(open.observe(&finding(1, 3, "active", 3)), "less sure again than what is on disk");
    }

    #[test]
    fn the_oldest_gives_way_and_is_missed_until_it_ends() {
        let size = finding(1, 1, "active", 1).json.len();
        let open = OpenFindings::with_bytes_max(2 * size + size / 2);
        for number in 1..=4 {
            open.observe(&finding(u128::from(number), 1, "active", number));
        }
        assert_eq!(titles(&open, None), ["4/1", "3/1"]);
        assert_eq!((open.left_out(), open.evicted.get(), open.held.get()), (2, 2, 2));
        open.observe(&finding(1, 2, "recovered", 9));
        open.settle(finding(4, 1, "active", 4).finding.id, 2);
        assert_eq!(open.left_out(), 1);
        assert!(open.observe(&finding(2, 2, "active", 9)), "room again");
        assert_eq!((open.left_out(), titles(&open, None)), (0, vec!["2/2".to_owned(), "3/1".to_owned()]));
    }
}
