//! Injected time. Production uses [`SystemClock`]; replay and tests use [`ManualClock`].

use std::collections::BinaryHeap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};

/// A source of time. Wall time may jump; monotonic time never goes back.
pub trait Clock: Send + Sync + 'static {
    /// Wall time, nanoseconds since the Unix epoch.
    fn now_unix_nanos(&self) -> u64;
    /// Time since the clock was made.
    fn monotonic(&self) -> Duration;
    /// Completes when [`Clock::monotonic`] has advanced by `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A clock shared by the parts of one process.
pub type SharedClock = Arc<dyn Clock>;

/// The time of the machine.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The same, ready to be passed around.
    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_unix_nanos(&self) -> u64 {
        // A machine set before 1970 reads as the epoch itself: a wrong clock must not panic.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Time that moves only when told to. Clones share one time.
#[derive(Debug, Clone)]
pub struct ManualClock {
    state: Arc<Mutex<ManualState>>,
    sleepers: watch::Sender<usize>,
}

#[derive(Debug)]
struct ManualState {
    start_unix_nanos: u64,
    elapsed: Duration,
    sleepers: BinaryHeap<Sleeper>,
    next_id: u64,
}

#[derive(Debug)]
struct Sleeper {
    due: Duration,
    id: u64,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl Eq for Sleeper {}
impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Reversed: the heap gives the sleeper that is due first.
        (other.due, other.id).cmp(&(self.due, self.id))
    }
}

impl ManualClock {
    /// A clock that stands at `start_unix_nanos`.
    pub fn new(start_unix_nanos: u64) -> Self {
        let state = ManualState {
            start_unix_nanos,
            elapsed: Duration::ZERO,
            sleepers: BinaryHeap::new(),
            next_id: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), sleepers: watch::Sender::new(0) }
    }

    /// The same clock as a trait object.
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }

    /// Moves time forward and wakes every sleeper that is due, earliest first.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.lock();
        state.elapsed += duration;
        while state.sleepers.peek().is_some_and(|first| first.due <= state.elapsed) {
            let due = state.sleepers.pop().expect("peeked");
            // A sleeper that was dropped meanwhile is no one to wake.
            let _ = due.wake.send(());
        }
        self.sleepers.send_replace(state.sleepers.len());
    }

    /// Moves wall time forward to `unix_nanos`; earlier times change nothing.
    pub fn advance_to_unix_nanos(&self, unix_nanos: u64) {
        let delta = unix_nanos.saturating_sub(self.now_unix_nanos());
        self.advance(Duration::from_nanos(delta));
    }

    /// How many sleeps are pending (a dropped sleep counts until it would have been due).
    pub fn sleepers(&self) -> usize {
        self.lock().sleepers.len()
    }

    /// Waits until at least `count` sleeps are pending.
    pub async fn wait_for_sleepers(&self, count: usize) {
        let mut receiver = self.sleepers.subscribe();
        // The sender lives in self: waiting cannot fail.
        let _ = receiver.wait_for(|pending| *pending >= count).await;
    }

    fn lock(&self) -> MutexGuard<'_, ManualState> {
        self.state.lock().expect("manual clock lock")
    }
}

impl Clock for ManualClock {
    fn now_unix_nanos(&self) -> u64 {
        let state = self.lock();
        let elapsed_nanos = u64::try_from(state.elapsed.as_nanos()).unwrap_or(u64::MAX);
        state.start_unix_nanos.saturating_add(elapsed_nanos)
    }

    fn monotonic(&self) -> Duration {
        self.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if duration.is_zero() {
            return Box::pin(std::future::ready(()));
        }
        let (wake, woken) = oneshot::channel();
        let mut state = self.lock();
        let (due, id) = (state.elapsed + duration, state.next_id);
        state.next_id += 1;
        state.sleepers.push(Sleeper { due, id, wake });
        self.sleepers.send_replace(state.sleepers.len());
        Box::pin(async move {
            // An error means the clock itself is gone: nothing will ever move it again.
            if woken.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn manual_time_moves_only_when_told_and_wakes_in_order() {
        let clock = ManualClock::new(1_000);
        let late = clock.sleep(Duration::from_secs(5));
        let early = clock.sleep(Duration::from_secs(1));
        clock.wait_for_sleepers(2).await;
        assert_eq!(clock.now_unix_nanos(), 1_000);
        clock.advance(Duration::from_secs(1));
        early.await;
        assert_eq!(clock.sleepers(), 1);
        assert_eq!(clock.now_unix_nanos(), 1_000_001_000);
        let mut late = std::pin::pin!(late);
        assert!(futures::poll!(late.as_mut()).is_pending());
        clock.advance_to_unix_nanos(1_000 + 5_000_000_000);
        late.await;
        clock.advance_to_unix_nanos(5);
        assert_eq!(clock.monotonic(), Duration::from_secs(5), "time never goes back");
    }

    #[tokio::test]
    async fn system_time_is_after_2020_and_monotonic() {
        let clock = SystemClock::new();
        assert!(clock.now_unix_nanos() > 1_577_836_800_000_000_000);
        let before = clock.monotonic();
        clock.sleep(Duration::from_millis(2)).await;
        assert!(clock.monotonic() >= before + Duration::from_millis(2));
    }
}
