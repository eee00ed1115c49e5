//! What correlators say they have read, of each producer and shard: the words that `tapio status` adds up.
//!
//! The words of all owners of a shard are kept, so that the account does not end with a process that is killed. The newest
//! owner counts for what it read, and each one before for what lies before that: a number that nobody says it read is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use tapio_runtime::bus::{Bus, BusError, KvEvent, KvWatch};
use tapio_schemas::ProducerId;
use tapio_schemas::names::{KEY_STATUS_PREFIX, token};
use tapio_schemas::status::{CorrelatorStatus, ReadShard};
use tokio::task::JoinHandle;

use super::lanes::Lane;
use super::stack::CLUSTER;
use crate::error::LoadError;
use crate::load::is_producer;

/// Reasons of a producer's drops, joined.
const REASONS_BETWEEN: &str = "+";

/// What was said of one lane, by the lease epoch of who said it.
type Owners = BTreeMap<u64, ReadShard>;

/// All words so far.
#[derive(Debug, Default)]
pub struct Words {
    lanes: BTreeMap<Lane, Owners>,
    /// Of who is no producer of the load.
    others: BTreeMap<Lane, Owners>,
    reasons: BTreeMap<u64, BTreeSet<String>>,
    /// Batches refused, by replica.
    rejected: BTreeMap<String, u64>,
}

/// What became of events, as correlators say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Numbers that were read.
    pub read: u64,
    /// Of these, events used.
    pub processed: u64,
    /// Of these, events not used, by `correlator.reason`.
    pub dropped: BTreeMap<String, u64>,
    /// Of these, numbers that never came.
    pub missing: u64,
    /// Batches refused: what they held was never numbered.
    pub rejected_batches: u64,
}

impl Hears for Words {
    const ROLE: &'static str = "correlator";
    type Word = CorrelatorStatus;

    fn take(&mut self, word: &CorrelatorStatus) {
        self.rejected.insert(word.replica.clone(), word.batches_rejected);
        let leases: BTreeMap<u16, u64> = word.shards.iter().map(|owned| (owned.0, owned.1)).collect();
        for producer in &word.producers {
            let ProducerId(id) = producer.producer;
            let lanes = if is_producer(id) { &mut self.lanes } else { &mut self.others };
            let reasons = producer.dropped.iter().map(|dropped| dropped.reason.clone());
            self.reasons.entry(id).or_default().extend(reasons);
            for row in &producer.shards {
                // Given up between the two halves of the word: the next owner says it.
                let Some(lease) = leases.get(&row.0) else { continue };
                lanes.entry((id, row.1, row.0)).or_default().insert(*lease, *row);
            }
        }
    }
}

impl Words {
    /// Adds up, of the load.
    pub fn said(&self) -> Said {
        let rejected_batches = self.rejected.values().sum();
        let mut said = Said { rejected_batches, ..Said::default() };
        for (lane, owners) in &self.lanes {
            let of = account(owners);
            said.read += of.read;
            said.processed += of.processed;
            said.missing += of.missing;
            if of.dropped > 0 {
                *said.dropped.entry(self.reason(lane.0)).or_default() += of.dropped;
            }
        }
        said
    }

    /// Lanes of which other numbers were read than `stored` says are there: lane, read, stored.
    pub fn differences(&self, stored: &BTreeMap<Lane, u64>) -> Vec<(Lane, u64, u64)> {
        let lanes: BTreeSet<Lane> = self.lanes.keys().chain(stored.keys()).copied().collect();
        let read = |lane: &Lane| self.lanes.get(lane).map_or(0, |owners| account(owners).read);
        let there = |lane: &Lane| stored.get(lane).copied().unwrap_or(0);
        let rows = lanes.into_iter().map(|lane| (lane, read(&lane), there(&lane)));
        rows.filter(|(_, read, there)| read != there).collect()
    }

    /// Events that were read of a producer that is none of the load's, by run and shard. Of numbers that never came, an owner that
    /// was followed may have told some that the next one tells too.
    pub fn of(&self, producer: u64) -> BTreeMap<(u32, u16), u64> {
        let its = self.others.iter().filter(|((who, ..), _)| *who == producer);
        let read = |owners| {
            let Account { read, missing, .. } = account(owners);
            read - missing
        };
        its.map(|((_, run, shard), owners)| ((*run, *shard), read(owners))).collect()
    }

    fn reason(&self, producer: u64) -> String {
        let reasons: Vec<&str> =
            self.reasons.get(&producer).into_iter().flatten().map(String::as_str).collect();
        format!("correlator.{}", reasons.join(REASONS_BETWEEN))
    }
}

/// One lane's sums.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    read: u64,
    processed: u64,
    dropped: u64,
    missing: u64,
}

/// From the newest owner back; each counts for the numbers that none after it said. What an owner says of its numbers and
/// does not add up to them stays in `processed`: too few or too many.
fn account(owners: &Owners) -> Account {
    let mut sums = Account::default();
    let mut covered: Vec<(u64, u64)> = Vec::new();
    for &ReadShard(_, _, from, next, processed, dropped, missing) in owners.values().rev() {
        let share = next.saturating_sub(from) - cover(&mut covered, from, next);
        if share == 0 {
            continue;
        }
        // Of an owner whose numbers were in part read again by the next one, what it dropped is taken to be in the rest.
        let (dropped_here, missing_here) = (dropped.min(share), missing.min(share - dropped.min(share)));
        let too_many = (processed + dropped + missing).saturating_sub(next - from);
        let too_few = (next - from).saturating_sub(processed + dropped + missing);
        sums.read += share;
        sums.dropped += dropped_here;
        sums.missing += missing_here;
        sums.processed += (share - dropped_here - missing_here + too_many).saturating_sub(too_few);
    }
    sums
}

/// Adds `from..next` to ranges that do not touch; gives how many of its numbers were in them.
fn cover(covered: &mut Vec<(u64, u64)>, from: u64, next: u64) -> u64 {
    let (mut all, mut known) = ((from, next), 0);
    covered.retain(|&(first, end)| {
        let is_apart = end < from || next < first;
        if !is_apart {
            known += end.min(next).saturating_sub(first.max(from));
            all = (all.0.min(first), all.1.max(end));
        }
        is_apart
    });
    covered.push(all);
    known
}

/// Who keeps the words of one role.
pub trait Hears: Default + Send + 'static {
    /// Whose words.
    const ROLE: &'static str;
    /// What they say.
    type Word: DeserializeOwned + Send;

    /// Takes what one of them says now.
    fn take(&mut self, word: &Self::Word);
}

/// Listens to the words of a role as long as it lives.
pub struct Listener<H> {
    words: Arc<Mutex<H>>,
    task: JoinHandle<()>,
}

impl<H: Hears> Listener<H> {
    /// Hears from now on what is said in the load's cluster.
    ///
    /// # Errors
    /// When the state bucket is not there.
    pub async fn start(bus: &Bus) -> Result<Self, LoadError> {
        let prefix = format!("{KEY_STATUS_PREFIX}.{}.{}", H::ROLE, token(CLUSTER));
        let watch = bus.kv().await?.watch(&prefix).await?;
        let words = Arc::new(Mutex::new(H::default()));
        let task = tokio::spawn(listen(watch, Arc::clone(&words)));
        Ok(Self { words, task })
    }

    /// What was said so far. Not to be held over an await.
    pub fn words(&self) -> MutexGuard<'_, H> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H> Drop for Listener<H> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen<H: Hears>(mut watch: KvWatch, words: Arc<Mutex<H>>) {
    loop {
        match watch.next().await {
            Ok(KvEvent::Put { key, entry }) => match serde_json::from_slice(&entry.value) {
                Ok(word) => words.lock().unwrap_or_else(PoisonError::into_inner).take(&word),
                Err(error) => eprintln!("{key} is not the word of one in the role {}: {error}", H::ROLE),
            },
            Ok(KvEvent::Gone { .. } | KvEvent::Current) => {}
            // What is not heard is missing in the account.
            Err(BusError::Closed) => return,
            Err(error) => eprintln!("words of the role {}: {error}", H::ROLE),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tapio_schemas::UnixNanos;
    use tapio_schemas::status::{Dropped, OwnedShardStatus, ProducerRead};

    pub(crate) const ID: u64 = crate::load::PRODUCER + 3;

    /// A replica that owns shard 9 under `lease` and says `row` of producer [`ID`] there.
    pub(crate) fn word(lease: u64, row: ReadShard) -> CorrelatorStatus {
        let dropped = Dropped { stage: "correlator".into(), reason: "too_old".into(), count: row.5 };
        CorrelatorStatus {
            at: UnixNanos(0),
            replica: format!("r{lease}"),
            shards: vec![OwnedShardStatus(9, lease, UnixNanos(0), UnixNanos(0), UnixNanos(0))],
            deferred: Default::default(),
            memory: Default::default(),
            producers: vec![ProducerRead {
                producer: ProducerId(ID),
                node: "n".into(),
                shards: vec![row],
                dropped: if row.5 > 0 { vec![dropped] } else { Vec::new() },
                duplicate_batches: 0,
                late: 0,
            }],
            producers_left_out: 0,
            batches_rejected: 0,
            findings: 0,
            circuit: String::new(),
        }
    }

    fn said(words: &[(u64, ReadShard)]) -> Said {
        let mut all = Words::default();
        words.iter().for_each(|(lease, row)| all.take(&word(*lease, *row)));
        all.said()
    }

    /// Numbers `from..next` of run 1, so many processed, dropped and missing.
    pub(crate) fn row(from: u64, next: u64, processed: u64, dropped: u64, missing: u64) -> ReadShard {
        ReadShard(9, 1, from, next, processed, dropped, missing)
    }

    #[test]
    fn the_account_goes_on_over_owners_and_nothing_counts_twice() {
        let whole = Said { read: 100, processed: 100, ..Said::default() };
        // The last word of an owner stands, and the next one reads some of it again.
        let owners = [(2, row(0, 30, 30, 0, 0)), (2, row(0, 50, 50, 0, 0)), (5, row(40, 100, 60, 0, 0))];
        assert_eq!(said(&owners), whole);
        // Told in another order, and by an owner in the middle that got nowhere.
        let owners = [(9, row(40, 100, 60, 0, 0)), (5, row(35, 45, 10, 0, 0)), (2, row(0, 50, 50, 0, 0))];
        assert_eq!(said(&owners), whole);
        // One in between spoke once, when it had hardly begun: what was said before it stands.
        let owners = [(9, row(40, 100, 60, 0, 0)), (5, row(35, 36, 1, 0, 0)), (2, row(0, 50, 50, 0, 0))];
        assert_eq!(said(&owners), whole);
    }

    #[test]
    fn numbers_that_nobody_read_are_not_read() {
        let hole = said(&[(2, row(0, 30, 30, 0, 0)), (5, row(40, 100, 60, 0, 0))]);
        assert_eq!((hole.read, hole.processed), (90, 90));
        let head = said(&[(5, row(40, 100, 60, 0, 0))]);
        assert_eq!((head.read, head.processed), (60, 60));
    }

    #[test]
    fn what_vanishes_or_doubles_in_a_replica_shows() {
        assert_eq!(said(&[(2, row(0, 100, 97, 0, 0))]).processed, 97);
        assert_eq!(said(&[(2, row(0, 100, 104, 0, 0))]).processed, 104);
        let lossy = said(&[(2, row(0, 100, 90, 7, 3))]);
        assert_eq!((lossy.read, lossy.processed, lossy.missing), (100, 90, 3));
        assert_eq!(lossy.dropped, BTreeMap::from([("correlator.too_old".to_owned(), 7)]));
        let before = said(&[(2, row(0, 50, 47, 0, 0)), (5, row(40, 100, 60, 0, 0))]);
        assert_eq!(before.processed, 97, "also of an owner that was followed");
    }

    #[test]
    fn lanes_that_differ_from_the_stream_are_named() {
        let mut words = Words::default();
        words.take(&word(2, row(0, 90, 90, 0, 0)));
        let stored = BTreeMap::from([((ID, 1, 9), 100), ((ID, 1, 10), 5)]);
        assert_eq!(words.differences(&stored), [((ID, 1, 9), 90, 100), ((ID, 1, 10), 0, 5)]);
        words.take(&word(2, row(0, 100, 100, 0, 0)));
        assert_eq!(words.differences(&BTreeMap::from([((ID, 1, 9), 100)])), []);
    }

    #[test]
    fn who_is_no_producer_of_the_load_is_counted_apart() {
        let mut other = word(2, row(0, 90, 80, 3, 7));
        other.producers[0].producer = ProducerId(77);
        let mut words = Words::default();
        words.take(&other);
        assert_eq!(words.said(), Said::default());
        assert_eq!(words.of(77), BTreeMap::from([((1, 9), 83)]));
        assert_eq!(words.of(ID), BTreeMap::new());
    }
}
