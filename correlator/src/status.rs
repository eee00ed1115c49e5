//! What a replica tells of itself: the shards it owns, how far they are, and what became of each producer's events.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tapio_runtime::status::Speaker;
use tapio_runtime::supervise::{RestartPolicy, SuperviseError, Supervision};
use tapio_schemas::status::{
    CorrelatorStatus, Deferred, Dropped, MemoryStatus, OwnedShardStatus, PRODUCERS_MAX, ProducerRead,
    ReadShard,
};
use tapio_schemas::{ProducerId, UnixNanos};

use crate::config::CorrelatorConfig;
use crate::metrics::CorrelatorMetrics;
use crate::pipeline::CorrelatorParts;
use crate::shards::AccountLine;

/// Stage of the path, in what is dropped.
const STAGE: &str = "correlator";

/// Where the shard workers put their words; each about once a second, so a lock does not hurt.
#[derive(Debug, Default)]
pub struct Board {
    words: Mutex<Words>,
    rejected: AtomicU64,
}

#[derive(Debug, Default)]
struct Words {
    replica: String,
    memory: MemoryStatus,
    by_worker: BTreeMap<usize, WorkerWord>,
}

#[derive(Debug)]
struct WorkerWord {
    owned: Vec<OwnedShardStatus>,
    deferred: Deferred,
    producers: BTreeMap<ProducerId, Read>,
}

#[derive(Debug, Clone)]
struct Read {
    read: ProducerRead,
    last: UnixNanos,
}

impl Board {
    /// The name of this replica.
    pub fn name(&self, replica: &str) {
        let mut words = self.lock();
        words.replica = replica.to_owned();
        words.by_worker.clear();
    }

    /// What a worker owns, has put aside (batches, and for how long already) and has read.
    pub fn set(
        &self,
        worker: usize,
        owned: Vec<OwnedShardStatus>,
        deferred: (usize, Duration),
        lines: impl Iterator<Item = (u16, AccountLine)>,
    ) {
        let mut producers = BTreeMap::new();
        for (shard, line) in lines {
            enter(&mut producers, shard, &line);
        }
        let (batches, age) = deferred;
        let deferred = Deferred { batches: batches as u64, seconds: age.as_secs() };
        self.lock().by_worker.insert(worker, WorkerWord { owned, deferred, producers });
    }

    /// What the process uses of its memory.
    pub fn set_memory(&self, memory: MemoryStatus) {
        self.lock().memory = memory;
    }

    /// Counts a batch that was refused.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Batches refused.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// What all workers say together: everything but the time, the findings and the circuit.
    fn read(&self) -> CorrelatorStatus {
        let words = self.lock();
        let mut shards = Vec::new();
        let mut producers: BTreeMap<ProducerId, Read> = BTreeMap::new();
        let mut deferred = Deferred::default();
        for word in words.by_worker.values() {
            shards.extend(&word.owned);
            deferred.batches += word.deferred.batches;
            deferred.seconds = deferred.seconds.max(word.deferred.seconds);
            for (id, more) in &word.producers {
                match producers.get_mut(id) {
                    Some(known) => known.join(more),
                    None => drop(producers.insert(*id, more.clone())),
                }
            }
        }
        shards.sort_by_key(|shard: &OwnedShardStatus| shard.0);
        let mut producers: Vec<Read> = producers.into_values().collect();
        producers.sort_by_key(|read| std::cmp::Reverse(read.last));
        let left_out = producers.len().saturating_sub(PRODUCERS_MAX) as u64;
        producers.truncate(PRODUCERS_MAX);
        CorrelatorStatus {
            at: UnixNanos(0),
            replica: words.replica.clone(),
            shards,
            deferred,
            memory: words.memory.clone(),
            producers: producers.into_iter().map(|read| read.read).collect(),
            producers_left_out: left_out,
            batches_rejected: self.rejected(),
            findings: 0,
            circuit: String::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn enter(producers: &mut BTreeMap<ProducerId, Read>, shard: u16, line: &AccountLine) {
    let account = &line.account;
    let dropped = account.dropped.by_reason().into_iter().filter(|(_, count)| *count > 0);
    let more = Read {
        read: ProducerRead {
            producer: line.producer,
            node: line.node.to_string(),
            shards: vec![ReadShard(
                shard,
                line.epoch,
                account.from,
                line.next,
                account.processed,
                account.dropped.total(),
                line.missing,
            )],
            dropped: dropped
                .map(|(reason, count)| Dropped { stage: STAGE.to_owned(), reason: reason.to_owned(), count })
                .collect(),
            duplicate_batches: account.duplicate_batches,
            late: account.late,
        },
        last: line.last,
    };
    match producers.get_mut(&line.producer) {
        Some(known) => known.join(&more),
        None => drop(producers.insert(line.producer, more)),
    }
}

impl Read {
    fn join(&mut self, more: &Self) {
        let read = &mut self.read;
        if read.node.is_empty() {
            read.node.clone_from(&more.read.node);
        }
        read.shards.extend(&more.read.shards);
        read.duplicate_batches += more.read.duplicate_batches;
        read.late += more.read.late;
        for dropped in &more.read.dropped {
            match read.dropped.iter_mut().find(|known| known.reason == dropped.reason) {
                Some(known) => known.count += dropped.count,
                None => read.dropped.push(dropped.clone()),
            }
        }
        self.last = self.last.max(more.last);
    }
}

/// Tells it as long as the correlator runs. Added first, it is stopped last.
///
/// # Errors
/// When the supervisor is gone.
pub async fn add(
    supervision: &Supervision,
    config: &CorrelatorConfig,
    parts: &CorrelatorParts,
    metrics: &CorrelatorMetrics,
) -> Result<(), SuperviseError> {
    let (bus, clock, metrics) = (parts.bus.clone(), parts.clock.clone(), metrics.clone());
    let replica = config.replica_name(clock.now_unix_nanos());
    let speaker = Speaker { role: "correlator", cluster: Some(config.cluster.clone()), name: replica };
    supervision
        .add_task("correlator.status", RestartPolicy::default(), move |context| {
            let (told, clock, metrics) = (bus.clone(), clock.clone(), metrics.clone());
            let read = move || CorrelatorStatus {
                at: UnixNanos(clock.now_unix_nanos()),
                findings: metrics.findings.get(),
                circuit: told.circuit().as_str().to_owned(),
                ..metrics.board.read()
            };
            tapio_runtime::status::tell(bus.clone(), speaker.clone(), read, context)
        })
        .await
}
