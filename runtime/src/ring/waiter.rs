//! Where one side of a ring waits for the other: a thread or a task, the same way.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

/// Tries before a thread gives its core away. Small: on two cores a spinning thread may be what the
/// other side waits for.
const SPINS: u32 = 64;

/// One waiting place. At most one thread or task waits at a time.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    waiting: AtomicBool,
    waker: AtomicWaker,
}

impl Waiter {
    /// Announces that `waker` is about to wait. The caller must look once more before it does:
    /// the fence pairs with the one in [`Waiter::wake`], so that either the other side sees the
    /// announcement or the caller sees what the other side did.
    pub(super) fn announce(&self, waker: &Waker) {
        self.waker.register(waker);
        self.waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Wakes whoever waits. Call after the change that it waits for.
    pub(super) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    #[cfg(test)]
    pub(super) fn is_waited_on(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Runs `attempt` until it gives a value or `deadline` has passed: spins, then parks.
    pub(super) fn block_until<R>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        for _ in 0..SPINS {
            if let Some(result) = attempt() {
                return Some(result);
            }
            std::hint::spin_loop();
        }
        with_thread_waker(|waker| {
            loop {
                self.announce(waker);
                if let Some(result) = attempt() {
                    return Some(result);
                }
                let Some(deadline) = deadline else {
                    thread::park();
                    continue;
                };
                let left: Duration = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                thread::park_timeout(left);
            }
        })
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

fn with_thread_waker<R>(run: impl FnOnce(&Waker) -> R) -> R {
    thread_local! {
        static WAKER: OnceCell<Waker> = const { OnceCell::new() };
    }
    WAKER.with(|cell| run(cell.get_or_init(|| Waker::from(Arc::new(Unpark(thread::current()))))))
}
