//! The hand-over from a collector to the node thread: one bounded SPSC ring per collector.
//!
//! A sink may be cloned within its collector (a server with many requests); the clones take turns as the
//! ring's one producer. Full is backpressure: `send` waits, `try_send` gives the events back. The limit is
//! in events as well as in batches, so that memory is bounded whatever the size of a batch.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::{self, Receiver, Sender, TrySendError};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tokio::sync::Notify;

use crate::ledger::{DropReason, Ledger, Place};

/// Batches a collector's ring holds.
pub const SINK_BATCHES_MAX: usize = 1024;
/// Events a collector's ring holds; one larger batch is taken when the ring is empty.
pub const SINK_EVENTS_MAX: u64 = 65_536;

/// The node agent has stopped; the events are counted as dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node agent has stopped and takes no more events")]
pub struct Closed;

/// The ring has no room (or the agent has stopped): try again later, or refuse the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node agent has a backlog and takes no events now")]
pub struct Full;

/// Where a collector puts its events. Clones share the ring.
#[derive(Clone)]
pub struct EventSink(Arc<Shared>);

struct Shared {
    sender: Mutex<Sender<Vec<UnifiedEvent>>>,
    queued_events: AtomicU64,
    closed: AtomicBool,
    room: Notify,
    wake: Arc<Wake>,
    ledger: Ledger,
    produced: Counter,
}

/// The node thread's end of a sink.
pub struct Intake {
    name: Arc<str>,
    receiver: Receiver<Vec<UnifiedEvent>>,
    shared: Arc<Shared>,
}

/// Makes the two ends for one collector. `wake` is what the reading thread waits on.
pub fn channel(
    name: &str,
    wake: &Arc<Wake>,
    ledger: &Ledger,
    clock: SharedClock,
    metrics: &Metrics,
) -> (EventSink, Intake) {
    let (sender, receiver) = ring::ring(&format!("agent-{name}"), SINK_BATCHES_MAX, clock, metrics);
    let shared = Arc::new(Shared {
        sender: Mutex::new(sender),
        queued_events: AtomicU64::new(0),
        closed: AtomicBool::new(false),
        room: Notify::new(),
        wake: Arc::clone(wake),
        ledger: ledger.clone(),
        produced: ledger.collector(name),
    });
    (EventSink(Arc::clone(&shared)), Intake { name: name.into(), receiver, shared })
}

enum Refusal {
    Full(Vec<UnifiedEvent>),
    Closed(Vec<UnifiedEvent>),
}

impl EventSink {
    /// Hands events over, waiting for room. An empty batch is nothing.
    ///
    /// # Errors
    /// [`Closed`] when the agent has stopped: the events are dropped and counted.
    pub async fn send(&self, events: Vec<UnifiedEvent>) -> Result<(), Closed> {
        let mut events = events;
        loop {
            let room = self.0.room.notified();
            tokio::pin!(room);
            // Announced before the attempt, so that room made in between is not missed.
            room.as_mut().enable();
            match self.push(events) {
                Ok(()) => return Ok(()),
                Err(Refusal::Full(back)) => events = back,
                Err(Refusal::Closed(back)) => {
                    self.0.ledger.produced(&self.0.produced, back.len() as u64);
                    self.0.ledger.dropped(DropReason::IntakeClosed, back.len() as u64);
                    return Err(Closed);
                }
            }
            room.await;
        }
    }

    /// [`EventSink::send`] for a thread outside of the async runtime.
    ///
    /// # Errors
    /// As [`EventSink::send`].
    pub fn send_blocking(&self, events: Vec<UnifiedEvent>) -> Result<(), Closed> {
        futures::executor::block_on(self.send(events))
    }

    /// Hands events over when there is room for all of them now.
    ///
    /// # Errors
    /// [`Full`] and the events, of which none was taken.
    pub fn try_send(&self, events: Vec<UnifiedEvent>) -> Result<(), (Full, Vec<UnifiedEvent>)> {
        self.push(events).map_err(|refusal| match refusal {
            Refusal::Full(events) | Refusal::Closed(events) => (Full, events),
        })
    }

    /// Counts events that were lost before the collector could see them.
    pub fn lost(&self, reason: DropReason, count: u64) {
        self.0.ledger.produced(&self.0.produced, count);
        self.0.ledger.dropped(reason, count);
    }

    fn push(&self, events: Vec<UnifiedEvent>) -> Result<(), Refusal> {
        let shared = &*self.0;
        let count = events.len() as u64;
        if count == 0 {
            return Ok(());
        }
        {
            let mut sender = shared.sender.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.closed.load(Ordering::Acquire) {
                return Err(Refusal::Closed(events));
            }
            let queued = shared.queued_events.load(Ordering::Acquire);
            if queued > 0 && queued + count > SINK_EVENTS_MAX {
                return Err(Refusal::Full(events));
            }
            // Counted before the other thread can see them, so that its subtraction comes after.
            shared.queued_events.fetch_add(count, Ordering::AcqRel);
            shared.ledger.enter(Place::Ring, count);
            if let Err(error) = sender.try_send(events) {
                shared.queued_events.fetch_sub(count, Ordering::AcqRel);
                shared.ledger.leave(Place::Ring, count);
                return Err(match error {
                    TrySendError::Full(events) => Refusal::Full(events),
                    TrySendError::Closed(events) => Refusal::Closed(events),
                });
            }
            shared.ledger.produced(&shared.produced, count);
        }
        shared.wake.notify();
        Ok(())
    }
}

impl Intake {
    /// Name of the collector.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next batch, when there is one. The events are from now on the caller's to account for: they
    /// have moved to [`Place::Batch`].
    pub fn take(&mut self) -> Option<Vec<UnifiedEvent>> {
        let events = self.receiver.try_recv().ok()?.value;
        let count = events.len() as u64;
        self.shared.queued_events.fetch_sub(count, Ordering::AcqRel);
        self.shared.ledger.transfer(Place::Ring, Place::Batch, count);
        self.shared.room.notify_waiters();
        Some(events)
    }

    /// Takes no more; what is in the ring can still be taken.
    pub fn close(&self) {
        // Under the lock, so that no sender is between its check and its push.
        let sender = self.shared.sender.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.closed.store(true, Ordering::Release);
        drop(sender);
        self.shared.room.notify_waiters();
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a thread that reads many rings waits on.
#[derive(Default)]
pub struct Wake {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    /// Wakes the waiting thread, or lets its next wait return at once.
    pub fn notify(&self) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if !*pending {
            *pending = true;
            self.changed.notify_one();
        }
    }

    /// Waits for [`Wake::notify`], at most `timeout` of real time.
    pub fn wait(&self, timeout: Duration) {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut pending, _) = self
            .changed
            .wait_timeout_while(pending, timeout, |pending| !*pending)
            .unwrap_or_else(PoisonError::into_inner);
        *pending = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_runtime::clock::SystemClock;

    fn pair() -> (EventSink, Intake, Ledger) {
        let metrics = Metrics::new();
        let ledger = Ledger::new(&metrics);
        let (sink, intake) =
            channel("test", &Arc::new(Wake::default()), &ledger, SystemClock::shared(), &metrics);
        (sink, intake, ledger)
    }

    fn events(count: usize) -> Vec<UnifiedEvent> {
        vec![UnifiedEvent::default(); count]
    }

    #[test]
    fn full_gives_everything_back_and_counts_nothing() {
        let (sink, mut intake, ledger) = pair();
        sink.try_send(events(SINK_EVENTS_MAX as usize)).unwrap();
        let (Full, back) = sink.try_send(events(3)).unwrap_err();
        assert_eq!(back.len(), 3);
        assert_eq!(ledger.snapshot().produced, SINK_EVENTS_MAX);
        assert_eq!(intake.take().unwrap().len() as u64, SINK_EVENTS_MAX);
        sink.try_send(back).unwrap();
        assert_eq!(ledger.snapshot().produced, SINK_EVENTS_MAX + 3);
        assert!(ledger.snapshot().balances());
    }

    #[tokio::test]
    async fn a_waiting_sender_goes_on_when_there_is_room_and_fails_when_closed() {
        let (sink, mut intake, ledger) = pair();
        sink.send(events(SINK_EVENTS_MAX as usize)).await.unwrap();
        let (first, second) = (sink.clone(), sink.clone());
        let waiting = tokio::spawn(async move { first.send(events(5)).await });
        while !waiting.is_finished() {
            tokio::task::yield_now().await;
            intake.take();
        }
        waiting.await.unwrap().unwrap();
        intake.take();
        second.send(events(SINK_EVENTS_MAX as usize)).await.unwrap();
        let stuck = tokio::spawn(async move { second.send(events(2)).await });
        tokio::task::yield_now().await;
        intake.close();
        assert_eq!(stuck.await.unwrap(), Err(Closed));
        let after = ledger.snapshot();
        assert_eq!(after.dropped, vec![(DropReason::IntakeClosed, 2)]);
        assert!(after.balances(), "{after:?}");
        assert_eq!(intake.take().unwrap().len() as u64, SINK_EVENTS_MAX, "what was sent is still there");
    }
}
