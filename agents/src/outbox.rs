//! Finished batches on their way out: first in first out, memory first, then disk, never beyond a limit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tapio_schemas::ids::ProducerId;
use tapio_schemas::kind::EventSeverity;
use tapio_schemas::wire::{EventBatchView, Unpacker};
use tokio::sync::Notify;

use crate::ledger::{DropReason, Ledger, Place};
use crate::spool::{Spool, SpoolError};

/// From this fill on, `debug` and `info` events are shed before they are batched …
const SHED_INFO_PERMILLE: u64 = 700;
/// … from this, `warning` too …
const SHED_WARNING_PERMILLE: u64 = 850;
/// … from this, `error` too; `critical` goes on until nothing fits.
const SHED_ERROR_PERMILLE: u64 = 950;

/// An encoded batch of one shard.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The message.
    pub payload: Bytes,
    /// Its shard.
    pub shard: u16,
    /// Events in it.
    pub events: u64,
    /// Run that numbered its events.
    pub epoch: u32,
    /// Number of its first event in the shard.
    pub first_sequence: u64,
    /// De-duplication id: producer, epoch, shard, first sequence.
    pub msg_id: String,
    /// The spool file that holds it, if any.
    pub spool_file: Option<u64>,
}

impl Frame {
    /// De-duplication id of the batch that begins with `sequence`.
    pub fn id(producer: ProducerId, epoch: u32, shard: u16, sequence: u64) -> String {
        format!("{producer}-{epoch}-{shard}-{sequence}")
    }

    /// A batch read back from disk; `None` when the bytes are not a batch.
    pub fn from_payload(payload: Bytes, spool_file: Option<u64>) -> Option<Self> {
        let mut unpacker = Unpacker::default();
        let header = *EventBatchView::check(unpacker.unpack(&payload).ok()?).ok()?.header();
        let msg_id = Self::id(header.producer, header.epoch, header.shard, header.first_sequence);
        Some(Self {
            shard: header.shard,
            events: u64::from(header.count),
            epoch: header.epoch,
            first_sequence: header.first_sequence,
            msg_id,
            spool_file,
            payload,
        })
    }
}

/// Shared by the node thread, which fills it, and the publisher, which empties it.
pub struct Outbox {
    state: Mutex<State>,
    changed: Notify,
    memory_bytes_max: u64,
    /// Memory, and what the spool may take: less than configured when the disk is nearly full.
    bytes_max: AtomicU64,
    bytes: AtomicU64,
    spools: bool,
    ledger: Ledger,
}

struct State {
    memory: VecDeque<Frame>,
    memory_bytes: u64,
    spool: Option<Spool>,
    /// Taken and not yet answered, in the order of taking.
    window: BTreeMap<u64, Frame>,
    taken: u64,
    closed: bool,
    sent: Sent,
}

/// How far the stream has acknowledged the numbers of the newest run seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// The run.
    pub epoch: u32,
    /// Per shard that anything was sent of: events are acknowledged up to this number …
    pub shards: BTreeMap<u16, SentTo>,
    /// Events of earlier runs that were acknowledged.
    pub earlier: u64,
}

/// How far one shard is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentTo {
    /// Number after the last acknowledged event.
    pub position: u64,
    /// Numbers below it that were given to events which were then dropped.
    pub skipped: u64,
}

impl Sent {
    /// Batches of a shard are acknowledged in order, so a number that is passed over was dropped.
    fn note(&mut self, frame: &Frame) {
        if frame.epoch > self.epoch {
            // What was counted so far is now an earlier run.
            self.earlier += self.shards.values().map(|to| to.position - to.skipped).sum::<u64>();
            self.shards.clear();
            self.epoch = frame.epoch;
        }
        if frame.epoch < self.epoch {
            self.earlier += frame.events;
            return;
        }
        let to = self.shards.entry(frame.shard).or_default();
        to.skipped += frame.first_sequence.saturating_sub(to.position);
        to.position = to.position.max(frame.first_sequence + frame.events);
    }
}

/// A batch that was taken, by its order of taking.
#[derive(Debug)]
pub struct Taken {
    /// Give it back to [`Outbox::acknowledged`] or [`Outbox::rejected`].
    pub order: u64,
    /// The batch; the outbox keeps it too until it is answered.
    pub frame: Frame,
}

impl Outbox {
    /// An outbox with so much memory and, behind it, a spool with what an earlier run left.
    pub fn new(memory_bytes_max: u64, spool: Option<Spool>, ledger: Ledger) -> Arc<Self> {
        if let Some(spool) = &spool {
            let recovered = spool.events();
            ledger.produced(&ledger.collector("spool"), recovered);
            ledger.enter(Place::Spool, recovered);
        }
        let state = State {
            memory: VecDeque::new(),
            memory_bytes: 0,
            spool,
            window: BTreeMap::new(),
            taken: 0,
            closed: false,
            sent: Sent::default(),
        };
        let outbox = Self {
            bytes_max: AtomicU64::new(0),
            spools: state.spool.is_some(),
            state: Mutex::new(state),
            changed: Notify::new(),
            memory_bytes_max,
            bytes: AtomicU64::new(0),
            ledger,
        };
        outbox.measure(&outbox.lock());
        Arc::new(outbox)
    }

    /// True when what is left at the end of a run is kept.
    pub fn has_spool(&self) -> bool {
        self.spools
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may wait: as configured, or what the disk still takes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    /// How far the stream has acknowledged.
    pub fn sent(&self) -> Sent {
        self.lock().sent.clone()
    }

    /// Why an event of this severity must not enter now; `None` when it may. `pending_bytes` are in batches
    /// that are still being filled and will come.
    pub fn sheds(&self, severity: EventSeverity, pending_bytes: u64) -> Option<DropReason> {
        let used = self.bytes.load(Ordering::Relaxed) + pending_bytes;
        let fill = used.saturating_mul(1000) / self.bytes_max().max(1);
        match severity {
            EventSeverity::Debug | EventSeverity::Info if fill >= SHED_INFO_PERMILLE => {
                Some(DropReason::ShedInfo)
            }
            EventSeverity::Warning if fill >= SHED_WARNING_PERMILLE => Some(DropReason::ShedWarning),
            EventSeverity::Error if fill >= SHED_ERROR_PERMILLE => Some(DropReason::ShedError),
            _ => None,
        }
    }

    /// Takes a finished batch; its events move from [`Place::Batch`]. Without room they are dropped and counted.
    pub fn push(&self, frame: Frame) {
        let mut state = self.lock();
        let size = frame.payload.len() as u64;
        // What is on disk is newer than what is in memory: once there is a spool, all goes behind it.
        let spooling = state.spool.as_ref().is_some_and(|s| !s.is_empty());
        if !spooling && (state.memory.is_empty() || state.memory_bytes + size <= self.memory_bytes_max) {
            self.ledger.transfer(Place::Batch, Place::Memory, frame.events);
            state.memory_bytes += size;
            state.memory.push_back(frame);
        } else {
            self.push_spool(&mut state, &frame);
        }
        self.measure(&state);
        drop(state);
        self.changed.notify_one();
    }

    /// The next batch, when there is one; its events move to [`Place::Window`].
    pub fn try_next(&self) -> Option<Taken> {
        let mut state = self.lock();
        let frame = if let Some(frame) = state.memory.pop_front() {
            state.memory_bytes -= frame.payload.len() as u64;
            self.ledger.transfer(Place::Memory, Place::Window, frame.events);
            Some(frame)
        } else {
            let spool = state.spool.as_mut()?;
            let frame = spool.next();
            let lost = spool.take_lost_events();
            self.ledger.leave(Place::Spool, lost);
            self.ledger.dropped(DropReason::SpoolIo, lost);
            if let Some(frame) = &frame {
                self.ledger.transfer(Place::Spool, Place::Window, frame.events);
            }
            frame
        };
        self.measure(&state);
        let frame = frame?;
        let order = state.taken;
        state.taken += 1;
        state.window.insert(order, frame.clone());
        Some(Taken { order, frame })
    }

    /// The next batch, waiting for one; `None` when the outbox is closed and empty.
    pub async fn next(&self) -> Option<Taken> {
        loop {
            let changed = self.changed.notified();
            if let Some(taken) = self.try_next() {
                return Some(taken);
            }
            if self.lock().closed {
                return None;
            }
            changed.await;
        }
    }

    /// The stream has taken a batch.
    pub fn acknowledged(&self, order: u64) {
        if let Some(frame) = self.answered(order, true) {
            self.ledger.leave(Place::Window, frame.events);
            self.ledger.published(frame.events);
        }
    }

    /// The stream will never take a batch.
    pub fn rejected(&self, order: u64) {
        if let Some(frame) = self.answered(order, false) {
            self.ledger.leave(Place::Window, frame.events);
            self.ledger.dropped(DropReason::Rejected, frame.events);
        }
    }

    /// Puts what was taken and not answered back in front: the one who took it is gone.
    pub fn take_back(&self) {
        let mut state = self.lock();
        while let Some((_, frame)) = state.window.pop_last() {
            self.ledger.transfer(Place::Window, Place::Memory, frame.events);
            state.memory_bytes += frame.payload.len() as u64;
            state.memory.push_front(frame);
        }
        self.measure(&state);
    }

    /// No more batches will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// At the end of a run: writes what was sent without answer, and what waits in memory, to the spool.
    /// Gives the number of events that are on disk then; without a spool they are dropped and counted.
    ///
    /// # Errors
    /// When the disk refuses; the events in memory are dropped and counted.
    pub fn settle(&self) -> Result<u64, SpoolError> {
        self.take_back();
        let mut state = self.lock();
        let unsent: Vec<Frame> = state.memory.drain(..).collect();
        state.memory_bytes = 0;
        let settled = match state.spool.as_mut() {
            Some(spool) => spool.settle(&unsent),
            None => Ok(()),
        };
        let events: u64 = unsent.iter().map(|f| f.events).sum();
        let kept = state.spool.is_some() && settled.is_ok();
        self.ledger.leave(Place::Memory, events);
        if kept {
            self.ledger.enter(Place::Spool, events);
        } else {
            self.ledger.dropped(DropReason::BacklogFull, events);
        }
        let waiting = state.spool.as_ref().map_or(0, Spool::events);
        settled.map(|()| if kept { waiting + events } else { 0 })
    }

    fn push_spool(&self, state: &mut State, frame: &Frame) {
        if let Some(spool) = state.spool.as_mut() {
            spool.look_at_disk();
        }
        let reason = match state.spool.as_mut() {
            Some(spool) if spool.has_room(frame.payload.len()) => {
                match spool.append(&frame.payload, frame.events) {
                    Ok(()) => {
                        self.ledger.transfer(Place::Batch, Place::Spool, frame.events);
                        return;
                    }
                    Err(error) => {
                        tracing::error!(%error, events = frame.events, "cannot spool a batch");
                        DropReason::SpoolIo
                    }
                }
            }
            _ => DropReason::BacklogFull,
        };
        self.ledger.leave(Place::Batch, frame.events);
        self.ledger.dropped(reason, frame.events);
    }

    fn answered(&self, order: u64, taken: bool) -> Option<Frame> {
        let mut state = self.lock();
        let frame = state.window.remove(&order)?;
        if taken {
            state.sent.note(&frame);
        }
        if let (Some(number), Some(spool)) = (frame.spool_file, state.spool.as_mut()) {
            spool.acknowledge(number);
        }
        self.measure(&state);
        Some(frame)
    }

    fn measure(&self, state: &State) {
        let spooled = state.spool.as_ref().map_or(0, Spool::bytes);
        self.bytes.store(state.memory_bytes + spooled, Ordering::Relaxed);
        let spool_max = state.spool.as_ref().map_or(0, Spool::bytes_max);
        self.bytes_max.store(self.memory_bytes_max + spool_max, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
