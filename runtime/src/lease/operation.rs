//! The writes of a member, each a compare-and-set. They run beside the driver and tell it how they ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::lease::Validity;
use super::record::{Identity, LeaseRecord};
use crate::backoff::Backoff;
use crate::bus::{BusError, Kv, KvEntry};
use crate::clock::SharedClock;

/// Delays between attempts of a write that must be made while the lease lasts.
const WRITE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(200));

/// The end of an operation, with what it was for.
pub(super) enum Ended {
    /// Our own key was made.
    Joined { incarnation: String, sent: Duration, result: Result<u64, BusError> },
    /// Our own key was renewed.
    Renewed { incarnation: String, sent: Duration, draining: bool, result: Renewal },
    /// Our own key was removed, or not: it ends by itself then.
    Left,
    /// A silent or unknown member's key was removed, or it moved.
    Expelled { replica: String, result: Expulsion },
    /// A resource was taken.
    Acquired { index: usize, incarnation: String, note: Bytes, result: Acquisition },
    /// A note was written, or a resource made free.
    Written { index: usize, epoch: u64, record: LeaseRecord, result: Writing },
}

/// How a renewal ended.
pub(super) enum Renewal {
    Renewed(u64),
    /// An earlier renewal had been stored after all: this is the revision now.
    Moved(u64),
    /// Our key is another's, or gone.
    Lost,
    /// Not known; try again.
    Failed(BusError),
}

/// How the removal of a member ended.
pub(super) enum Expulsion {
    /// Gone with this revision.
    Gone(u64),
    /// It moves; this is its key now, `None` when it is gone already and the watch will tell.
    Moves(Option<KvEntry>),
    Failed(BusError),
}

/// How taking a resource ended.
pub(super) enum Acquisition {
    Ours(u64),
    /// Someone was first; this is the key now.
    Taken(Option<KvEntry>),
    Failed(BusError),
}

/// How writing to a resource that we own ended.
pub(super) enum Writing {
    /// Written with this revision.
    Written(u64),
    /// We do not own it.
    Lost,
}

pub(super) async fn renew(
    kv: Kv,
    key: String,
    value: Bytes,
    revision: u64,
    ttl: Duration,
    mine: &str,
) -> Renewal {
    match kv.compare_and_set_with_ttl(&key, value, revision, ttl).await {
        Ok(revision) => Renewal::Renewed(revision),
        Err(BusError::Conflict { .. }) => match kv.get(&key).await {
            Ok(Some(entry)) if is_incarnation(&entry, mine) => Renewal::Moved(entry.revision),
            Ok(_) => Renewal::Lost,
            Err(error) => Renewal::Failed(error),
        },
        Err(error) => Renewal::Failed(error),
    }
}

pub(super) async fn expel(kv: Kv, key: String, revision: u64) -> Expulsion {
    match kv.delete_expecting(&key, revision).await {
        Ok(revision) => Expulsion::Gone(revision),
        Err(BusError::Conflict { .. }) => match kv.get(&key).await {
            Ok(entry) => Expulsion::Moves(entry),
            Err(error) => Expulsion::Failed(error),
        },
        Err(error) => Expulsion::Failed(error),
    }
}

pub(super) async fn acquire(kv: Kv, key: String, record: LeaseRecord, revision: u64) -> Acquisition {
    let value = record.encode();
    let taken = match revision {
        0 => kv.create(&key, value).await,
        revision => kv.compare_and_set(&key, value, revision).await,
    };
    match taken {
        Ok(revision) => Acquisition::Ours(revision),
        Err(BusError::Conflict { .. }) => match kv.get(&key).await {
            Ok(entry) => Acquisition::Taken(entry),
            Err(error) => Acquisition::Failed(error),
        },
        Err(error) => Acquisition::Failed(error),
    }
}

/// Writing to a resource that is ours.
pub(super) struct Write {
    pub kv: Kv,
    pub clock: SharedClock,
    pub key: String,
    pub me: Identity,
    pub epoch: u64,
    pub revision: u64,
    pub note: Bytes,
    pub free: bool,
    pub validity: Arc<Validity>,
}

impl Write {
    /// Repeats until it is written or no longer ours.
    pub(super) async fn run(mut self) -> (LeaseRecord, Writing) {
        let owner = (!self.free).then(|| self.me.clone());
        let record = LeaseRecord { owner, epoch: Some(self.epoch), note: self.note.clone() };
        let result = self.write(&record).await;
        (record, result)
    }

    async fn write(&mut self, record: &LeaseRecord) -> Writing {
        for attempt in 0.. {
            if !self.validity.is_valid() {
                return Writing::Lost;
            }
            match self.kv.compare_and_set(&self.key, record.encode(), self.revision).await {
                Ok(revision) => return Writing::Written(revision),
                Err(BusError::Conflict { .. }) => match self.kv.get(&self.key).await {
                    Ok(Some(entry)) => match self.after_conflict(&entry, record) {
                        Some(end) => return end,
                        None => continue,
                    },
                    Ok(None) => return Writing::Lost,
                    Err(_) => {}
                },
                Err(_) => {}
            }
            self.clock.sleep(WRITE_BACKOFF.delay(attempt)).await;
        }
        unreachable!("the attempts end with the lease")
    }

    /// An earlier attempt may have been stored although its answer was lost.
    fn after_conflict(&mut self, entry: &KvEntry, record: &LeaseRecord) -> Option<Writing> {
        let Some(there) = LeaseRecord::decode(&entry.value) else { return Some(Writing::Lost) };
        if there == *record {
            return Some(Writing::Written(entry.revision));
        }
        let epoch = there.epoch.unwrap_or(entry.revision);
        if there.owner.as_ref() == Some(&self.me) && epoch == self.epoch {
            self.revision = entry.revision;
            return None;
        }
        Some(Writing::Lost)
    }
}

fn is_incarnation(entry: &KvEntry, mine: &str) -> bool {
    super::record::MemberRecord::decode(&entry.value).is_some_and(|record| record.incarnation == mine)
}
