//! The hand-over between two threads: a bounded single-producer single-consumer ring over `ringbuf`
//! with what `ringbuf` leaves out: waiting, waking, closing and measuring.
//!
//! Full is backpressure, never a drop: `send` waits, `try_send` gives the item back. Dropping the
//! sender closes the ring, and the receiver drains it before it sees the end. Timeouts are real
//! time, because they bound a parked thread; stamps are the injected clock's.

mod metrics;
mod receiver;
mod sender;
mod waiter;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringbuf::HeapRb;
use ringbuf::traits::Split;

use crate::clock::SharedClock;
use crate::telemetry::Metrics;

pub use receiver::{Receiver, RecvTimeoutError, TryRecvError};
pub use sender::{Closed, Sender, TrySendError};

use metrics::RingMetrics;
use waiter::Waiter;

/// A value and when it was put into the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<T> {
    /// What was sent.
    pub value: T,
    /// [`Clock::monotonic`](crate::clock::Clock::monotonic) of the moment it entered, in
    /// nanoseconds.
    pub enqueued_nanos: u64,
}

/// Makes a ring of `capacity` items. `name` labels its metrics: `tapio_ring_depth`,
/// `tapio_ring_sent_total`, `tapio_ring_received_total`, `tapio_ring_discarded_total`,
/// `tapio_ring_send_blocked_nanoseconds_total`.
///
/// # Panics
/// When `capacity` is 0: a ring that can hold nothing is a bug of the caller.
pub fn ring<T: Send>(
    name: &str,
    capacity: usize,
    clock: SharedClock,
    metrics: &Metrics,
) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "ring `{name}` must hold at least one item");
    let shared = Arc::new(Shared {
        clock,
        sender_gone: AtomicBool::new(false),
        receiver_gone: AtomicBool::new(false),
        not_empty: Waiter::default(),
        not_full: Waiter::default(),
        counts: Arc::new(Counts::default()),
        metrics: RingMetrics::register(name, metrics),
    });
    shared.metrics.observe(&shared.counts, metrics);
    let (producer, consumer) = HeapRb::new(capacity).split();
    (Sender::new(producer, Arc::clone(&shared)), Receiver::new(consumer, shared))
}

/// What both ends share beside the items.
struct Shared {
    clock: SharedClock,
    sender_gone: AtomicBool,
    receiver_gone: AtomicBool,
    /// The receiver waits here.
    not_empty: Waiter,
    /// The sender waits here.
    not_full: Waiter,
    counts: Arc<Counts>,
    metrics: RingMetrics,
}

/// Each counter is written by one side only; the depth is their difference.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    blocked_nanos: AtomicU64,
}

impl Counts {
    fn depth(&self) -> u64 {
        // Received is read first: a concurrent send can only make the depth too large, never negative.
        let received = self.received.load(Ordering::Acquire);
        self.sent.load(Ordering::Acquire).saturating_sub(received)
    }
}

impl Shared {
    fn now_nanos(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Both ends are gone: what was sent and not received dies with the ring, and is counted.
        self.metrics.finish(&self.counts);
    }
}

#[cfg(test)]
mod tests;
