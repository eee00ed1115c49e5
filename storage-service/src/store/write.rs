//! Puts a batch of findings: idempotent, atomic, durable.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tapio_schemas::finding::{PERSIST_CONFIDENCE_ABOVE, Status};
use tapio_schemas::{Finding, FindingId, UnixNanos};

use super::record::StoredFinding;
use super::{Store, StoreError, Totals, index, keys, record};

/// Revisions kept of one finding; the oldest go first. A batch may exceed it until the next one.
const REVISIONS_MAX: usize = 64;

/// A finding to store, with the document it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// The finding.
    pub finding: Finding,
    /// Its document, kept byte for byte.
    pub json: Bytes,
}

impl Incoming {
    /// Reads a document.
    ///
    /// # Errors
    /// When it is not the JSON of a finding.
    pub fn parse(json: Bytes) -> Result<Self, serde_json::Error> {
        Ok(Self { finding: serde_json::from_slice(&json)?, json })
    }
}

/// What became of a batch: every finding is in exactly one of these.
#[derive(Debug, Clone, Default)]
pub struct PutReport {
    /// New and durable, in the order given.
    pub stored: Vec<Arc<StoredFinding>>,
    /// Stored before, the same.
    pub duplicates: u64,
    /// Another document is stored under this id and revision; the first stays.
    pub conflicting: u64,
    /// Not sure enough to be stored.
    pub low_confidence: u64,
    /// Those of them that are newer than what is stored of their finding.
    pub unsure: Vec<Arc<StoredFinding>>,
    /// Predictions have been scored.
    pub scored: bool,
}

/// A batch in the making: what it will have changed once it is applied.
struct Pending<'a> {
    store: &'a Store,
    batch: sled::Batch,
    records: HashMap<(FindingId, u32), Arc<StoredFinding>>,
    latest: HashMap<FindingId, u32>,
    totals: Totals,
    trimmed: Vec<(FindingId, u32)>,
    report: PutReport,
}

impl Store {
    /// Stores what is sure enough, in one atomic step, and returns when it is on disk.
    ///
    /// A finding is stored when its confidence is above [`PERSIST_CONFIDENCE_ABOVE`]. The end of a
    /// finding that is stored (a later revision that is no longer active) is stored whatever its
    /// confidence, or the finding would be active for ever. Also a batch of nothing new is flushed:
    /// an earlier attempt may have been applied and not flushed.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`], after which it can be tried again; [`StoreError::Write`], after which the store is poisoned and nothing may be acknowledged.
    pub fn put(&self, incoming: Vec<Incoming>, now: UnixNanos) -> Result<PutReport, StoreError> {
        self.refuse_when_poisoned()?;
        self.refuse_without_room(incoming.iter().map(|item| item.json.len() as u64).sum())?;
        let mut pending = Pending {
            store: self,
            batch: sled::Batch::default(),
            records: HashMap::new(),
            latest: HashMap::new(),
            totals: self.totals()?,
            trimmed: Vec::new(),
            report: PutReport::default(),
        };
        for item in incoming {
            pending.add(item, now)?;
        }
        let Pending { mut batch, totals, trimmed, mut report, .. } = pending;
        // First: should this be all that gets to the disk, the findings come again and it is repeated.
        report.scored = self.note_scored(&report.stored)?;
        totals.write(&mut batch);
        self.commit(batch)?;
        for (id, revision) in &trimmed {
            self.cache.remove(*id, *revision);
        }
        for stored in &report.stored {
            self.cache.put(stored);
        }
        self.metrics.stored.inc_by(report.stored.len() as u64);
        self.metrics.removed("revisions", trimmed.len() as u64);
        self.metrics.not_stored("duplicate", report.duplicates);
        self.metrics.not_stored("conflicting", report.conflicting);
        self.metrics.not_stored("low_confidence", report.low_confidence);
        self.observe_totals();
        Ok(report)
    }
}

impl Pending<'_> {
    fn add(&mut self, incoming: Incoming, now: UnixNanos) -> Result<(), StoreError> {
        let (id, revision) = (incoming.finding.id, incoming.finding.revision);
        if let Some(same) = self.is_same_as_stored(&incoming)? {
            if same {
                self.report.duplicates += 1;
            } else {
                tracing::warn!(%id, revision, "two documents for one revision; the first stays");
                self.report.conflicting += 1;
            }
            return Ok(());
        }
        let latest = self.latest(id)?;
        if !is_sure_enough(&incoming.finding, latest) {
            self.report.low_confidence += 1;
            if latest.is_none_or(|latest| revision > latest) {
                let Incoming { finding, json } = incoming;
                self.report.unsure.push(Arc::new(StoredFinding { finding, json, stored_at: now }));
            }
            return Ok(());
        }
        let bytes = record::encode(now, &incoming.json);
        self.totals.add(bytes.len());
        self.batch.insert(keys::record(id, revision), bytes);
        self.batch.insert(keys::stored(now, id, revision), &[]);
        if latest.is_none_or(|latest| revision > latest) {
            self.supersede(latest, &incoming.finding)?;
        }
        self.trim(id)?;
        let Incoming { finding, json } = incoming;
        let stored = Arc::new(StoredFinding { finding, json, stored_at: now });
        self.records.insert((id, revision), Arc::clone(&stored));
        self.report.stored.push(stored);
        Ok(())
    }

    /// `None` when this revision is new.
    fn is_same_as_stored(&self, incoming: &Incoming) -> Result<Option<bool>, StoreError> {
        let (id, revision) = (incoming.finding.id, incoming.finding.revision);
        if let Some(earlier) = self.records.get(&(id, revision)) {
            return Ok(Some(earlier.json == incoming.json));
        }
        let bytes = self.store.db.get(keys::record(id, revision)).map_err(StoreError::Read)?;
        Ok(bytes.map(|bytes| record::split(&bytes).is_ok_and(|(_, json)| json == incoming.json)))
    }

    fn latest(&self, id: FindingId) -> Result<Option<u32>, StoreError> {
        match self.latest.get(&id) {
            Some(revision) => Ok(Some(*revision)),
            None => self.store.latest_revision(id),
        }
    }

    /// Moves the indexes from the old newest revision to this one.
    fn supersede(&mut self, old: Option<u32>, finding: &Finding) -> Result<(), StoreError> {
        if let Some(old) = old {
            for key in self.index_keys_of(finding.id, old)? {
                self.batch.remove(key);
            }
        }
        for (key, value) in index::entries_of(finding) {
            self.batch.insert(key, value);
        }
        self.batch.insert(keys::latest(finding.id), &finding.revision.to_be_bytes());
        self.latest.insert(finding.id, finding.revision);
        Ok(())
    }

    fn index_keys_of(&self, id: FindingId, revision: u32) -> Result<Vec<Vec<u8>>, StoreError> {
        let stored = match self.records.get(&(id, revision)) {
            Some(stored) => Some(Arc::clone(stored)),
            None => match self.store.load(id, revision) {
                // What it left in the indexes leads to the new revision or nowhere; a damaged record
                // must not keep new ones out.
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(%error, "superseding a damaged record");
                    None
                }
                loaded => loaded?,
            },
        };
        Ok(stored.map(|stored| index::all_keys_of(&stored.finding).collect()).unwrap_or_default())
    }

    /// Removes the oldest revisions of a finding that has too many.
    fn trim(&mut self, id: FindingId) -> Result<(), StoreError> {
        let on_disk: Result<Vec<_>, _> = self.store.db.scan_prefix(keys::records_of(id)).collect();
        let on_disk = on_disk.map_err(StoreError::Read)?;
        let surplus = (on_disk.len() + 1).saturating_sub(REVISIONS_MAX);
        let latest = self.latest(id)?;
        for (key, value) in on_disk.into_iter().take(surplus) {
            let (id, revision) = keys::parse_record(&key)?;
            if Some(revision) == latest || self.trimmed.contains(&(id, revision)) {
                continue;
            }
            let stored_at = record::split(&value).map(|(at, _)| at).unwrap_or_default();
            self.batch.remove(key);
            self.batch.remove(keys::stored(stored_at, id, revision));
            self.totals.remove(value.len());
            self.trimmed.push((id, revision));
        }
        Ok(())
    }
}

fn is_sure_enough(finding: &Finding, latest_stored: Option<u32>) -> bool {
    let ends_a_stored_one =
        finding.status != Status::Active && latest_stored.is_some_and(|l| finding.revision > l);
    finding.confidence.get() > PERSIST_CONFIDENCE_ABOVE || ends_a_stored_one
}
