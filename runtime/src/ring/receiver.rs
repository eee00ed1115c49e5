//! The consumer end.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use ringbuf::HeapCons;
use ringbuf::traits::Consumer;

use super::{Item, Shared};

/// Nothing could be received now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TryRecvError {
    /// Nothing is in the ring.
    #[error("ring is empty")]
    Empty,
    /// Nothing is in the ring and nothing will be.
    #[error("ring is closed: its sender is gone")]
    Closed,
}

/// Nothing could be received in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvTimeoutError {
    /// The time is over.
    #[error("ring stayed empty")]
    Timeout,
    /// Nothing is in the ring and nothing will be.
    #[error("ring is closed: its sender is gone")]
    Closed,
}

/// The end that receives. Dropping it makes every send fail.
pub struct Receiver<T> {
    consumer: HeapCons<Item<T>>,
    pub(super) shared: Arc<Shared>,
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

impl<T: Send> Receiver<T> {
    pub(super) fn new(consumer: HeapCons<Item<T>>, shared: Arc<Shared>) -> Self {
        Self { consumer, shared }
    }

    /// Receives, waiting as long as it takes; `None` when the ring is closed and drained. Blocks
    /// the thread.
    pub fn recv(&mut self) -> Option<Item<T>> {
        self.recv_until(None).ok()
    }

    /// Receives if something is there now.
    ///
    /// # Errors
    /// [`TryRecvError`].
    pub fn try_recv(&mut self) -> Result<Item<T>, TryRecvError> {
        // The order matters: what was sent before the close is seen after it.
        let closed = self.shared.sender_gone.load(Ordering::Acquire);
        match self.consumer.try_pop() {
            Some(item) => {
                self.count_received(1);
                Ok(item)
            }
            None if closed => Err(TryRecvError::Closed),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Receives, waiting at most `timeout` of real time. Blocks the thread.
    ///
    /// # Errors
    /// [`RecvTimeoutError`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Item<T>, RecvTimeoutError> {
        self.recv_until(Some(Instant::now() + timeout))
    }

    /// Receives, waiting as a task; `None` when the ring is closed and drained. Cancelling it loses
    /// nothing.
    pub async fn recv_async(&mut self) -> Option<Item<T>> {
        poll_fn(|context| {
            for announced in [false, true] {
                if announced {
                    self.shared.not_empty.announce(context.waker());
                }
                match self.try_recv() {
                    Ok(item) => return Poll::Ready(Some(item)),
                    Err(TryRecvError::Closed) => return Poll::Ready(None),
                    Err(TryRecvError::Empty) => {}
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Appends what is there now, at most `max` items, with one wake-up of the sender; gives their
    /// number, 0 when the ring is empty (closed or not).
    pub fn recv_batch(&mut self, out: &mut Vec<Item<T>>, max: usize) -> usize {
        let before = out.len();
        out.extend(self.consumer.pop_iter().take(max));
        let count = out.len() - before;
        if count > 0 {
            self.count_received(count as u64);
        }
        count
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Item<T>, RecvTimeoutError> {
        let shared = Arc::clone(&self.shared);
        let outcome = shared.not_empty.block_until(deadline, || match self.try_recv() {
            Ok(item) => Some(Ok(item)),
            Err(TryRecvError::Closed) => Some(Err(RecvTimeoutError::Closed)),
            Err(TryRecvError::Empty) => None,
        });
        outcome.unwrap_or(Err(RecvTimeoutError::Timeout))
    }

    fn count_received(&self, count: u64) {
        // Single writer: a load and a store are one addition.
        let received = &self.shared.counts.received;
        received.store(received.load(Ordering::Relaxed) + count, Ordering::Release);
        self.shared.not_full.wake();
    }
}

impl<T> Receiver<T> {
    /// Items in the ring now.
    pub fn depth(&self) -> usize {
        usize::try_from(self.shared.counts.depth()).unwrap_or(usize::MAX)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        self.shared.not_full.wake();
    }
}
