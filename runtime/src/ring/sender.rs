//! The producer end.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use ringbuf::HeapProd;
use ringbuf::traits::Producer;

use super::{Item, Shared};

/// The receiver is gone; the item comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring is closed: its receiver is gone")]
pub struct Closed<T>(pub T);

/// The item could not be taken now; it comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// No room, or none in time.
    #[error("ring is full")]
    Full(T),
    /// The receiver is gone.
    #[error("ring is closed: its receiver is gone")]
    Closed(T),
}

// By hand, so that items need not be printable.
impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// The end that sends. Dropping it closes the ring.
pub struct Sender<T> {
    producer: HeapProd<Item<T>>,
    shared: Arc<Shared>,
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

impl<T: Send> Sender<T> {
    pub(super) fn new(producer: HeapProd<Item<T>>, shared: Arc<Shared>) -> Self {
        Self { producer, shared }
    }

    /// Sends, waiting as long as it takes for room. Blocks the thread.
    ///
    /// # Errors
    /// [`Closed`] with the item when the receiver is gone.
    pub fn send(&mut self, value: T) -> Result<(), Closed<T>> {
        match self.send_until(value, None) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(value) | TrySendError::Full(value)) => Err(Closed(value)),
        }
    }

    /// Sends if there is room now.
    ///
    /// # Errors
    /// [`TrySendError`] with the item.
    pub fn try_send(&mut self, value: T) -> Result<(), TrySendError<T>> {
        let item = Item { value, enqueued_nanos: self.shared.now_nanos() };
        self.push(item).map_err(|error| match error {
            TrySendError::Full(item) => TrySendError::Full(item.value),
            TrySendError::Closed(item) => TrySendError::Closed(item.value),
        })
    }

    /// Sends, waiting at most `timeout` of real time for room. Blocks the thread.
    ///
    /// # Errors
    /// [`TrySendError`] with the item; `Full` when the time is over.
    pub fn send_timeout(&mut self, value: T, timeout: Duration) -> Result<(), TrySendError<T>> {
        self.send_until(value, Some(Instant::now() + timeout))
    }

    /// Sends, waiting as a task for room. Cancelling it drops the item.
    ///
    /// # Errors
    /// [`Closed`] with the item when the receiver is gone.
    pub async fn send_async(&mut self, value: T) -> Result<(), Closed<T>> {
        let enqueued_nanos = self.shared.now_nanos();
        let mut pending = Some(Item { value, enqueued_nanos });
        let mut waited = false;
        let result = poll_fn(|context| {
            for announced in [false, true] {
                if announced {
                    waited = true;
                    self.shared.not_full.announce(context.waker());
                }
                match self.push(pending.take().expect("an item until it is sent")) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(TrySendError::Closed(item)) => return Poll::Ready(Err(Closed(item.value))),
                    Err(TrySendError::Full(item)) => pending = Some(item),
                }
            }
            Poll::Pending
        })
        .await;
        if waited {
            self.count_blocked(enqueued_nanos);
        }
        result
    }

    /// Closes the ring: the receiver gets what is in it, then the end.
    pub fn close(self) {}

    fn send_until(&mut self, value: T, deadline: Option<Instant>) -> Result<(), TrySendError<T>> {
        let enqueued_nanos = self.shared.now_nanos();
        let mut pending = match self.push(Item { value, enqueued_nanos }) {
            Err(TrySendError::Full(item)) => Some(item),
            Err(TrySendError::Closed(item)) => return Err(TrySendError::Closed(item.value)),
            Ok(()) => return Ok(()),
        };
        let shared = Arc::clone(&self.shared);
        let outcome = shared.not_full.block_until(deadline, || {
            match self.push(pending.take().expect("an item until it is sent")) {
                Ok(()) => Some(Ok(())),
                Err(TrySendError::Closed(item)) => Some(Err(TrySendError::Closed(item.value))),
                Err(TrySendError::Full(item)) => {
                    pending = Some(item);
                    None
                }
            }
        });
        self.count_blocked(enqueued_nanos);
        outcome.unwrap_or_else(|| {
            Err(TrySendError::Full(pending.take().expect("an item that was not sent").value))
        })
    }

    fn push(&mut self, item: Item<T>) -> Result<(), TrySendError<Item<T>>> {
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            return Err(TrySendError::Closed(item));
        }
        self.producer.try_push(item).map_err(TrySendError::Full)?;
        // Single writer: a load and a store are one increment.
        let sent = &self.shared.counts.sent;
        sent.store(sent.load(Ordering::Relaxed) + 1, Ordering::Release);
        self.shared.not_empty.wake();
        Ok(())
    }

    fn count_blocked(&self, since_nanos: u64) {
        let blocked = self.shared.now_nanos().saturating_sub(since_nanos);
        self.shared.counts.blocked_nanos.fetch_add(blocked, Ordering::Relaxed);
    }
}

impl<T> Sender<T> {
    /// Items in the ring now.
    pub fn depth(&self) -> usize {
        usize::try_from(self.shared.counts.depth()).unwrap_or(usize::MAX)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.sender_gone.store(true, Ordering::Release);
        self.shared.not_empty.wake();
    }
}
