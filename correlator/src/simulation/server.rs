//! The server in memory: streams, message ids, the fence, leases with their notes, and kept values. It does what the
//! contracts of `tapio_runtime::{bus, lease}` say.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Outgoing};
use tapio_schemas::Finding;
use tapio_schemas::names::{HEADER_FENCE_EPOCH, SHARD_COUNT};

use super::scene::MS;
use crate::checkpoint::{Checkpoint, Kept, Memory};
use crate::slo::Snapshot;

/// The last resource is the incidents.
pub const RESOURCES: usize = SHARD_COUNT as usize + 1;
pub const INCIDENTS: usize = SHARD_COUNT as usize;
/// A member that has not renewed for so long is none.
pub const TTL: u64 = 2000 * MS;

/// A message of the event stream.
pub struct Stored {
    pub sequence: u64,
    pub at: u64,
    pub payload: Bytes,
}

/// Who owns a resource.
#[derive(Default, Clone)]
pub struct Owned {
    pub owner: Option<String>,
    pub epoch: u64,
    pub note: Vec<u8>,
}

/// All that survives a crash of a replica.
#[derive(Default)]
pub struct Server {
    pub now: u64,
    pub down_until: u64,
    /// It stands still: connections stay, and nothing moves.
    pub frozen_until: u64,
    /// How long message ids are remembered.
    pub duplicate_window: u64,
    pub events: Vec<Vec<Stored>>,
    pub events_last: u64,
    pub signals: Vec<Bytes>,
    pub insights: Vec<Finding>,
    pub dead_letters: Vec<String>,
    ids: HashMap<String, u64>,
    pub fence: u64,
    revision: u64,
    pub resources: Vec<Owned>,
    /// Members by group (shards, incidents) and name: when they renewed last.
    pub members: [BTreeMap<String, u64>; 2],
    standing: Option<String>,
    memory: Memory,
    budgets: Option<Snapshot>,
    /// What happened, for the report of a run.
    pub counts: BTreeMap<&'static str, u64>,
}

pub type SharedServer = Rc<RefCell<Server>>;

impl Server {
    pub fn new(now: u64, duplicate_window: u64) -> Self {
        Self {
            now,
            duplicate_window,
            events: (0..SHARD_COUNT).map(|_| Vec::new()).collect(),
            resources: vec![Owned::default(); RESOURCES],
            ..Self::default()
        }
    }

    pub fn is_up(&self) -> bool {
        self.is_connected() && self.now >= self.frozen_until
    }

    /// Whether connections to it stand.
    pub fn is_connected(&self) -> bool {
        self.now >= self.down_until
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn store_events(&mut self, shard: u16, payload: Bytes) {
        self.events_last += 1;
        let stored = Stored { sequence: self.events_last, at: self.now, payload };
        self.events[usize::from(shard)].push(stored);
    }

    /// Stores a message of a replica, as its stream does.
    pub fn store(&mut self, outgoing: &Outgoing) -> Result<(), BusError> {
        if let Some(id) = &outgoing.msg_id {
            let known = self.ids.get(id).is_some_and(|at| self.now <= at + self.duplicate_window);
            if known {
                self.count("duplicates refused");
                return Ok(());
            }
        }
        let subject = &outgoing.subject;
        if subject.starts_with("tapio.v1.signals.") {
            self.signals.push(outgoing.payload.clone());
        } else if subject.starts_with("tapio.v1.insights.") {
            let epoch = outgoing.headers.get(HEADER_FENCE_EPOCH).and_then(|e| e.parse().ok()).unwrap_or(0);
            if epoch != self.fence {
                self.count("findings fenced");
                return Err(BusError::Fenced { subject: subject.clone(), epoch });
            }
            self.insights.push(serde_json::from_slice(&outgoing.payload).expect("a finding"));
        } else {
            self.dead_letters.push(subject.clone());
        }
        if let Some(id) = &outgoing.msg_id {
            self.ids.insert(id.clone(), self.now);
        }
        Ok(())
    }

    /// Members of a group that renewed in time.
    pub fn live(&self, group: usize) -> Vec<String> {
        let alive = |at: &u64| self.now < at + TTL;
        self.members[group].iter().filter(|(_, at)| alive(at)).map(|(name, _)| name.clone()).collect()
    }

    pub fn acquire(&mut self, resource: usize, owner: &str) -> Owned {
        self.revision += 1;
        let owned = &mut self.resources[resource];
        (owned.owner, owned.epoch) = (Some(owner.to_owned()), self.revision);
        owned.clone()
    }

    /// Writes a note, for the owner of the epoch only.
    pub fn note(&mut self, resource: usize, epoch: u64, note: Vec<u8>, free: bool) {
        let owned = &mut self.resources[resource];
        if owned.epoch == epoch && owned.owner.is_some() {
            owned.note = note;
            if free {
                owned.owner = None;
            }
        }
    }

    pub fn save(&mut self, checkpoint: Checkpoint) {
        if let Some(memory) = checkpoint.memory {
            self.memory = memory;
        }
        self.budgets = checkpoint.budgets;
        self.standing = Some(serde_json::to_string(&checkpoint.standing).expect("JSON"));
    }

    pub fn load(&self) -> Kept {
        Kept {
            standing: self.standing.as_ref().map(|text| serde_json::from_str(text).expect("a standing")),
            changes: self.memory.changes.clone(),
            machines: self.memory.machines.clone(),
            budgets: self
                .budgets
                .as_ref()
                .map(|kept| serde_json::from_slice(&kept.json).expect("a snapshot")),
        }
    }
}
