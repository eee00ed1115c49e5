//! What each process tells of itself, each time [`EVERY`] has passed, in the state bucket: JSON under
//! [`crate::names::status_key`], gone by itself [`TTL`] after the last word. `tapio status` adds them up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{ProducerId, UnixNanos};
use crate::kind::EventSeverity;
use crate::signal::SignalKind;
use crate::trouble::{DEFERRED_SECONDS_MAX, LAG_MAX, STORE_WAIT_SECONDS_MAX, Trouble};

/// Time between two words.
pub const EVERY: Duration = Duration::from_secs(2);
/// A process that has not said anything for this long is forgotten. Until then it is shown as silent.
pub const TTL: Duration = Duration::from_secs(900);
/// Older than this, what a process said is not what is.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Producers in the word of one correlator; the longest silent are left out and counted.
pub const PRODUCERS_MAX: usize = 200;
/// Roles, as parts of keys.
pub const ROLES: [&str; 3] = ["agent", "correlator", "storage"];

/// Events lost or put aside, with where and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Stage of the path.
    pub stage: String,
    /// Reason, from a closed list of the stage.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Events under way, by where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Ring, batch, memory, spool, window.
    pub place: String,
    /// How many.
    pub count: u64,
}

/// How far one shard's numbering is acknowledged by the stream: `[shard, position, skipped]`.
///
/// Events of this run with a number below `position` are in the stream, but for `skipped` of them, which the agent dropped
/// after they had their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentShard(pub u16, pub u64, pub u64);

/// A node agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// When it said so, by its clock.
    pub at: UnixNanos,
    /// When this run began.
    pub started: UnixNanos,
    /// Its machine.
    pub node: String,
    /// Its name in batches.
    pub producer: ProducerId,
    /// Which run: counts its starts.
    pub epoch: u32,
    /// Events its collectors made, with what an earlier run left in the spool.
    pub produced: u64,
    /// Events the stream has acknowledged.
    pub acknowledged: u64,
    /// Of these, events numbered by an earlier run.
    pub acknowledged_earlier: u64,
    /// Events that never reached the stream.
    pub dropped: Vec<Dropped>,
    /// Events under way.
    pub in_flight: Vec<InFlight>,
    /// How far each shard is.
    pub sent: Vec<SentShard>,
    /// Bytes that wait in memory and on disk.
    pub backlog_bytes: u64,
    /// Bytes that may wait; less than configured when the disk is nearly full.
    pub backlog_bytes_max: u64,
    /// State of the way to NATS: `closed`, `half-open`, `open`.
    pub circuit: String,
    /// How its watches of a cluster stand; none for who watches none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<WatchStatus>,
}

/// How a watch of a kind of Kubernetes object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchState {
    /// All objects are being asked for.
    Listing,
    /// Changes come as they happen.
    Live,
    /// It should be heard and has not been for longer than it may be silent.
    Stale,
    /// It fails, and is tried again.
    Failing,
    /// A permission is missing.
    Forbidden,
    /// The API server does not have this kind.
    Absent,
}

/// A watch of a kind of Kubernetes object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// As permissions name it: `pods`, `deployments.apps`.
    pub name: String,
    /// How it stands.
    pub state: WatchState,
    /// Since when.
    pub since: UnixNanos,
    /// When the API server last said something of it: what is known of these objects is as of then.
    pub heard_at: UnixNanos,
    /// Why, when it does not work.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What one owner of one shard has read of one producer's run:
/// `[shard, epoch, from, next, processed, dropped, missing]`.
///
/// Of the events numbered `from..next`, `processed` were used, `dropped` were refused, `missing` never came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadShard(pub u16, pub u32, pub u64, pub u64, pub u64, pub u64, pub u64);

/// What a correlator has read of one producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerRead {
    /// Who.
    pub producer: ProducerId,
    /// Machine its events come from.
    pub node: String,
    /// By shard.
    pub shards: Vec<ReadShard>,
    /// Why events were refused.
    pub dropped: Vec<Dropped>,
    /// Batches read before.
    pub duplicate_batches: u64,
    /// Events behind the watermark, used all the same.
    pub late: u64,
}

/// A shard that a correlator owns: `[shard, lease epoch, owned since, watermark, read everything at]`, times in unix
/// nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedShardStatus(pub u16, pub u64, pub UnixNanos, pub UnixNanos, pub UnixNanos);

/// Work that a correlator has put aside, because a batch of its shard takes longer than it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    /// Batches that wait.
    pub batches: u64,
    /// For how long some have been waiting without a pause.
    pub seconds: u64,
}

/// Memory of a process that sheds when it runs out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Resident bytes.
    pub bytes: u64,
    /// Bytes it may have; `u64::MAX` for no bound.
    pub bytes_max: u64,
    /// Routine events up to this severity are shed; `None`: none are.
    pub sheds: Option<EventSeverity>,
}

impl MemoryStatus {
    /// Resident bytes, the bound, and what is shed for it.
    pub fn new(bytes: u64, bytes_max: u64, sheds: Option<EventSeverity>) -> Self {
        Self { bytes, bytes_max, sheds }
    }

    /// In words, while anything is shed.
    pub fn says(&self) -> Option<String> {
        let sheds = self.sheds?;
        let (mib, mib_max) = (self.bytes >> 20, self.bytes_max >> 20);
        Some(format!("{mib} of {mib_max} MiB are used, so routine events up to severity {sheds} are dropped"))
    }
}

/// A correlator replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorrelatorStatus {
    /// When it said so, by its clock.
    pub at: UnixNanos,
    /// Its name among the replicas.
    pub replica: String,
    /// Shards it owns.
    pub shards: Vec<OwnedShardStatus>,
    /// What it has put aside.
    #[serde(default)]
    pub deferred: Deferred,
    /// Its memory.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// What it has read, by producer.
    pub producers: Vec<ProducerRead>,
    /// Producers left out because there are too many.
    pub producers_left_out: u64,
    /// Batches refused and put into the dead-letter stream.
    pub batches_rejected: u64,
    /// Finding revisions published.
    pub findings: u64,
    /// State of the way to NATS.
    pub circuit: String,
}

/// A storage replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// When it said so, by its clock.
    pub at: UnixNanos,
    /// Its name: the durable consumer's.
    pub name: String,
    /// Findings delivered by the stream, each time they are.
    pub received: u64,
    /// Findings stored.
    pub stored: u64,
    /// Findings not stored, by reason.
    pub refused: Vec<Dropped>,
    /// Findings that could not be written and are asked for again.
    pub retried: u64,
    /// Findings that wait to be stored.
    pub behind: u64,
    /// For how long the oldest of them has been in the stream.
    #[serde(default)]
    pub waits_seconds: u64,
    /// Why the store does not take findings, when it does not.
    pub failed: Option<String>,
    /// What is wrong, in words.
    pub gaps: Vec<String>,
    /// State of the way to NATS.
    pub circuit: String,
}

/// What a process tells of itself.
pub trait Word: Serialize {
    /// Its troubles, which become events about Tapio itself. The agent tells its own on the way of its events.
    fn troubles(&self) -> Vec<Trouble>;
    /// When it said so.
    fn at(&self) -> UnixNanos;
}

impl Word for AgentStatus {
    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    fn at(&self) -> UnixNanos {
        self.at
    }
}

impl CorrelatorStatus {
    /// Event time by which the slowest of its shards is behind the clock.
    pub fn lag(&self) -> Duration {
        // A shard of which nothing is read yet is behind since it is owned.
        let behind = self.shards.iter().map(|shard| self.at.since(shard.3.max(shard.2)));
        Duration::from_nanos(behind.max().unwrap_or_default())
    }
}

impl Word for CorrelatorStatus {
    fn troubles(&self) -> Vec<Trouble> {
        let trouble =
            |kind, says| Trouble { part: "correlator", place: self.replica.as_str().into(), kind, says };
        let (lag, deferred) = (self.lag(), self.deferred);
        let lags = (lag > LAG_MAX).then(|| {
            let says = format!("replica {} is {} s behind the events", self.replica, lag.as_secs());
            trouble(SignalKind::TapioLag, says)
        });
        let defers = (deferred.seconds > DEFERRED_SECONDS_MAX).then(|| {
            let Deferred { batches, seconds } = deferred;
            let says =
                format!("{batches} batches wait behind one that takes too long, for {seconds} s already");
            trouble(SignalKind::TapioDeferring, says)
        });
        let sheds = self.memory.says().map(|says| trouble(SignalKind::TapioMemory, says));
        lags.into_iter().chain(defers).chain(sheds).collect()
    }

    fn at(&self) -> UnixNanos {
        self.at
    }
}

impl Word for StorageStatus {
    fn troubles(&self) -> Vec<Trouble> {
        let trouble =
            |kind, says| vec![Trouble { part: "storage", place: self.name.as_str().into(), kind, says }];
        let (behind, seconds) = (self.behind, self.waits_seconds);
        match &self.failed {
            // What waits, waits for the disk.
            Some(says) => trouble(SignalKind::TapioDiskRefuses, says.clone()),
            None if seconds > STORE_WAIT_SECONDS_MAX => {
                let says = format!("{behind} findings wait to be stored, the oldest for {seconds} s");
                trouble(SignalKind::TapioLag, says)
            }
            None => Vec::new(),
        }
    }

    fn at(&self) -> UnixNanos {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica that owns one shard, is so far behind, and has put work aside for so long.
    fn correlator(behind: Duration, deferred: Deferred) -> CorrelatorStatus {
        let at = UnixNanos(1_000_000_000_000);
        let watermark = at.minus(behind.as_nanos() as u64);
        CorrelatorStatus {
            at,
            replica: "r1".into(),
            shards: vec![OwnedShardStatus(3, 1, UnixNanos(0), watermark, at)],
            deferred,
            memory: MemoryStatus::default(),
            producers: Vec::new(),
            producers_left_out: 0,
            batches_rejected: 0,
            findings: 0,
            circuit: "closed".into(),
        }
    }

    #[test]
    fn a_replica_tells_what_lasts_and_not_what_passes() {
        let told = |behind, deferred| {
            let troubles = correlator(behind, deferred).troubles();
            troubles.into_iter().map(|trouble| (trouble.kind, trouble.says)).collect::<Vec<_>>()
        };
        assert_eq!(told(LAG_MAX, Deferred { batches: 4, seconds: DEFERRED_SECONDS_MAX }), []);
        let late = told(Duration::from_secs(45), Deferred { batches: 4, seconds: 12 });
        assert_eq!(
            late,
            [
                (SignalKind::TapioLag, "replica r1 is 45 s behind the events".to_owned()),
                (
                    SignalKind::TapioDeferring,
                    "4 batches wait behind one that takes too long, for 12 s already".to_owned()
                )
            ]
        );
    }

    #[test]
    fn a_store_tells_that_it_is_behind_and_of_a_full_disk_that_alone() {
        let told = |waits_seconds, failed: Option<&str>| {
            let word = StorageStatus {
                at: UnixNanos(0),
                name: "storage-1".into(),
                received: 0,
                stored: 0,
                refused: Vec::new(),
                retried: 0,
                behind: 300,
                waits_seconds,
                failed: failed.map(str::to_owned),
                gaps: Vec::new(),
                circuit: "closed".into(),
            };
            let troubles = word.troubles().into_iter();
            troubles.map(|trouble| (trouble.part, trouble.kind, trouble.says)).collect::<Vec<_>>()
        };
        assert_eq!(told(STORE_WAIT_SECONDS_MAX, None), []);
        let behind = "300 findings wait to be stored, the oldest for 11 s".to_owned();
        assert_eq!(told(11, None), [("storage", SignalKind::TapioLag, behind)]);
        assert_eq!(told(11, Some("full")), [("storage", SignalKind::TapioDiskRefuses, "full".to_owned())]);
    }

    #[test]
    fn what_is_shed_for_memory_is_told_with_its_figures() {
        let mut replica = correlator(Duration::ZERO, Deferred::default());
        replica.memory = MemoryStatus::new(79 << 20, 100 << 20, None);
        assert_eq!(replica.troubles(), []);
        replica.memory.sheds = Some(EventSeverity::Info);
        let told = replica.troubles();
        assert_eq!((told.len(), told[0].kind), (1, SignalKind::TapioMemory));
        assert_eq!(told[0].says, "79 of 100 MiB are used, so routine events up to severity info are dropped");
    }

    #[test]
    fn the_word_of_an_earlier_version_is_read() {
        let mut word = serde_json::to_value(correlator(Duration::ZERO, Deferred::default())).expect("JSON");
        for field in ["deferred", "memory"] {
            word.as_object_mut().expect("an object").remove(field).expect("a field");
        }
        let read: CorrelatorStatus = serde_json::from_value(word).expect("a word");
        assert_eq!(read.deferred, Deferred::default());
    }
}
