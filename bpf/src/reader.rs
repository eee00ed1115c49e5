//! Reads the ring without polling: one thread sleeps until the kernel has a record or somebody wakes it.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::Timespec,
};

use crate::{
    clock::BootClock,
    decode::{DecodeError, decode},
    error::BpfError,
    record::RawRecord,
};

/// Records still read after the reader was closed. A ring that programs keep filling would never be empty.
pub const CLOSE_DRAIN_MAX: usize = 65_536;

/// What a call of [`RingReader::next_batch`] brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// So many records were added, at least one.
    Records(usize),
    /// None: the wait was over, or [`RingWaker::wake`] was called.
    Idle,
    /// None, and none will come: [`RingWaker::close`] was called and the ring is drained.
    Closed,
}

/// Records that came out of the ring and could not be decoded, by reason.
#[derive(Debug, Default)]
pub struct DecodeFailures {
    too_short: AtomicU64,
    unknown_kind: AtomicU64,
    wrong_length: AtomicU64,
    unknown_value: AtomicU64,
}

impl DecodeFailures {
    /// Reason and count, for every reason.
    pub fn by_reason(&self) -> [(&'static str, u64); 4] {
        [
            ("too_short", self.too_short.load(Ordering::Relaxed)),
            ("unknown_kind", self.unknown_kind.load(Ordering::Relaxed)),
            ("wrong_length", self.wrong_length.load(Ordering::Relaxed)),
            ("unknown_value", self.unknown_value.load(Ordering::Relaxed)),
        ]
    }

    fn count(&self, error: &DecodeError) {
        let counter = match error {
            DecodeError::TooShort { .. } => &self.too_short,
            DecodeError::UnknownKind(_) => &self.unknown_kind,
            DecodeError::WrongLength { .. } => &self.wrong_length,
            DecodeError::UnknownValue { .. } => &self.unknown_value,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Wakes or closes a reader from another thread.
#[derive(Debug, Clone)]
pub struct RingWaker(Arc<WakeState>);

#[derive(Debug)]
struct WakeState {
    event: OwnedFd,
    closed: AtomicBool,
}

impl RingWaker {
    /// Makes a waiting or the next [`RingReader::next_batch`] return.
    pub fn wake(&self) {
        // The only error there can be is a counter at its maximum, which means the reader is being woken already.
        let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
    }

    /// Lets the reader drain what is in the ring and then end.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.wake();
    }
}

/// The consumer of the ring.
pub struct RingReader {
    ring: RingBuf<MapData>,
    waker: RingWaker,
    clock: BootClock,
    failures: Arc<DecodeFailures>,
    drained_after_close: usize,
}

impl fmt::Debug for RingReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingReader").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl RingReader {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Result<Self, BpfError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| BpfError::Reader { syscall: "eventfd", source: error.into() })?;
        Ok(Self {
            ring,
            waker: RingWaker(Arc::new(WakeState { event, closed: AtomicBool::new(false) })),
            clock: BootClock::measure(),
            failures: Arc::default(),
            drained_after_close: 0,
        })
    }

    /// A handle for other threads.
    pub fn waker(&self) -> RingWaker {
        self.waker.clone()
    }

    /// The count of records that could not be decoded, to be read while the reader runs elsewhere.
    pub fn failures(&self) -> Arc<DecodeFailures> {
        Arc::clone(&self.failures)
    }

    /// Adds up to `max` records to `out`, as many as there are. With none it sleeps until one comes, it is woken, or
    /// `wait` is over (`None` = no limit).
    ///
    /// # Errors
    /// When the kernel refuses to wait on the ring.
    pub fn next_batch(
        &mut self,
        out: &mut Vec<RawRecord>,
        max: usize,
        wait: Option<Duration>,
    ) -> Result<Batch, BpfError> {
        loop {
            let closed = self.waker.0.closed.load(Ordering::Acquire);
            let count = self.drain(out, max);
            if closed {
                self.drained_after_close += count;
                let done = count == 0 || self.drained_after_close > CLOSE_DRAIN_MAX;
                return Ok(if done { Batch::Closed } else { Batch::Records(count) });
            }
            if count > 0 {
                return Ok(Batch::Records(count));
            }
            match self.wait(wait)? {
                Woken::Ring => {}
                Woken::Waker if self.waker.0.closed.load(Ordering::Acquire) => {}
                Woken::Waker | Woken::Time => return Ok(Batch::Idle),
            }
        }
    }

    fn drain(&mut self, out: &mut Vec<RawRecord>, max: usize) -> usize {
        self.clock.refresh();
        let before = out.len();
        while out.len() - before < max {
            let Some(bytes) = self.ring.next() else { break };
            match decode(&bytes, &self.clock) {
                Ok(record) => out.push(record),
                Err(error) => {
                    self.failures.count(&error);
                    tracing::debug!(%error, "record from the ring left out");
                }
            }
        }
        out.len() - before
    }

    fn wait(&self, wait: Option<Duration>) -> Result<Woken, BpfError> {
        let timeout = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let failed = |syscall| {
            move |error: rustix::io::Errno| BpfError::Reader { syscall, source: io::Error::from(error) }
        };
        let event = &self.waker.0.event;
        let mut descriptors = [
            PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(0) => return Ok(Woken::Time),
            Ok(_) => {}
            // A signal came: look at the ring and sleep again.
            Err(rustix::io::Errno::INTR) => return Ok(Woken::Ring),
            Err(error) => return Err(failed("poll")(error)),
        }
        if !descriptors[1].revents().contains(PollFlags::IN) {
            return Ok(Woken::Ring);
        }
        match rustix::io::read(event, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(Woken::Waker),
            Err(error) => Err(failed("read of the wake event")(error)),
        }
    }
}

enum Woken {
    Ring,
    Waker,
    Time,
}
