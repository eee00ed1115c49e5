//! What the agent tells of itself: its ledger, and how far the stream has acknowledged it.

use std::sync::Arc;

use tapio_runtime::status::Speaker;
use tapio_runtime::supervise::{RestartPolicy, SuperviseError, Supervision};
use tapio_schemas::ids::{ProducerId, UnixNanos};
use tapio_schemas::status::{AgentStatus, Dropped, InFlight, SentShard};

use crate::collectors::CollectorStates;
use crate::ledger::Ledger;
use crate::node::AgentParts;
use crate::outbox::Outbox;

/// Looks at the ledger of a busy agent until it balances.
const SNAPSHOTS_MAX: usize = 1000;

/// What the word is made of.
#[derive(Clone)]
pub struct Word {
    /// Machine.
    pub node: String,
    /// Name in batches.
    pub producer: ProducerId,
    /// Which run.
    pub epoch: u32,
    /// When it began.
    pub started: UnixNanos,
    /// Counts.
    pub ledger: Ledger,
    /// How far the stream is.
    pub outbox: Arc<Outbox>,
    /// What the collectors say of themselves.
    pub states: CollectorStates,
    /// Bus and clock.
    pub parts: AgentParts,
}

impl Word {
    /// The word now, at a moment at which nothing is between two stages, if there is one soon.
    pub fn read(&self) -> AgentStatus {
        let mut ledger = self.ledger.snapshot();
        for _ in 0..SNAPSHOTS_MAX {
            if ledger.balances() {
                break;
            }
            std::thread::yield_now();
            ledger = self.ledger.snapshot();
        }
        let sent = self.outbox.sent();
        let dropped = |&(reason, count): &(crate::ledger::DropReason, u64)| Dropped {
            stage: reason.stage().to_owned(),
            reason: reason.as_str().to_owned(),
            count,
        };
        let in_flight = |&(place, count): &(crate::ledger::Place, u64)| InFlight {
            place: place.as_str().to_owned(),
            count,
        };
        // While only an earlier run's batches are acknowledged, nothing of this one is.
        let is_ours = sent.epoch == self.epoch;
        let ours = sent.shards.iter().filter(|_| is_ours);
        let before: u64 = sent.shards.values().map(|to| to.position - to.skipped).sum();
        AgentStatus {
            at: UnixNanos(self.parts.clock.now_unix_nanos()),
            started: self.started,
            node: self.node.clone(),
            producer: self.producer,
            epoch: self.epoch,
            produced: ledger.produced,
            acknowledged: ledger.published,
            acknowledged_earlier: sent.earlier + if is_ours { 0 } else { before },
            dropped: ledger.dropped.iter().map(dropped).collect(),
            in_flight: ledger.in_flight.iter().filter(|(_, n)| *n > 0).map(in_flight).collect(),
            sent: ours.map(|(shard, to)| SentShard(*shard, to.position, to.skipped)).collect(),
            backlog_bytes: self.outbox.bytes(),
            backlog_bytes_max: self.outbox.bytes_max(),
            circuit: self.parts.bus.circuit().as_str().to_owned(),
            watches: self.states.watches(),
        }
    }
}

/// Tells it as long as the agent runs. Added first, it is stopped last: its last word is how the run ended.
///
/// # Errors
/// When the supervisor is gone.
pub async fn add(supervision: &Supervision, cluster: &str, word: Word) -> Result<(), SuperviseError> {
    let speaker = Speaker { role: "agent", cluster: Some(cluster.to_owned()), name: word.node.clone() };
    supervision
        .add_task("agent-status", RestartPolicy::default(), move |context| {
            let word = word.clone();
            tapio_runtime::status::tell(word.parts.bus.clone(), speaker.clone(), move || word.read(), context)
        })
        .await
}
