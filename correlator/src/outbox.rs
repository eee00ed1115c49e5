//! The way out of a worker: what is said goes out in order, through a window of messages without acknowledgement.

use std::collections::VecDeque;

use bytes::Bytes;
use tapio_runtime::bus::{
    Bus, BusError, Fence, Headers, Outgoing, PublishReports, Publisher, TrySubmitError, Untold,
};
use tapio_runtime::shutdown::Shutdown;

/// Takes messages for the bus, and tells of each how it ended.
pub trait Outlet {
    /// Takes a message, unless too many are under way.
    ///
    /// # Errors
    /// The message, when there is no room or the bus is closed.
    fn try_submit(&mut self, outgoing: Outgoing) -> Result<(), TrySubmitError>;

    /// How the oldest message ended of which that was not told yet: stored, or refused for good. `None`: not known yet.
    fn try_end(&mut self) -> Option<Result<(), BusError>>;

    /// The headers of a message that is stored only while its sender is the owner.
    fn stamp(&self, headers: Headers) -> Headers;

    /// Tells whoever listens now, at most once and past all that waits.
    ///
    /// # Errors
    /// [`Untold`].
    fn tell(&self, subject: &str, payload: Bytes) -> Result<(), Untold>;
}

/// A window of outstanding acknowledgements on the bus.
pub struct BusOutlet {
    bus: Bus,
    publisher: Publisher,
    reports: PublishReports,
    fence: Option<Fence>,
}

impl BusOutlet {
    /// With at most `window` messages under way. It is not stopped: what was said is sent before it ends.
    pub fn new(bus: &Bus, window: usize, fence: Option<Fence>) -> Self {
        let (publisher, reports) = bus.publisher(window, Shutdown::new());
        Self { bus: bus.clone(), publisher, reports, fence }
    }
}

impl Outlet for BusOutlet {
    fn try_submit(&mut self, outgoing: Outgoing) -> Result<(), TrySubmitError> {
        self.publisher.try_submit(outgoing).map(|_| ())
    }

    fn try_end(&mut self) -> Option<Result<(), BusError>> {
        self.reports.try_next().map(|report| report.result.map(|_| ()))
    }

    fn stamp(&self, headers: Headers) -> Headers {
        match &self.fence {
            Some(fence) => fence.stamp(headers),
            None => headers,
        }
    }

    fn tell(&self, subject: &str, payload: Bytes) -> Result<(), Untold> {
        self.bus.tell(subject, payload)
    }
}

/// What a worker says. It takes no new work while something waits here, so what waits is what one piece of work said.
pub struct Outbox<O> {
    outlet: O,
    waiting: VecDeque<Outgoing>,
    said: u64,
    acknowledged: u64,
}

impl<O: Outlet> Outbox<O> {
    /// Nothing said yet.
    pub fn new(outlet: O) -> Self {
        Self { outlet, waiting: VecDeque::new(), said: 0, acknowledged: 0 }
    }

    /// Says something: it goes out after all that was said before.
    pub fn say(&mut self, outgoing: Outgoing) {
        self.said += 1;
        self.waiting.push_back(outgoing);
    }

    /// Sends what there is room for, and takes in what is known of what was sent.
    ///
    /// # Errors
    /// The end of a message that can never be stored.
    pub fn turn(&mut self) -> Result<(), BusError> {
        while let Some(end) = self.outlet.try_end() {
            end?;
            self.acknowledged += 1;
        }
        while let Some(outgoing) = self.waiting.pop_front() {
            match self.outlet.try_submit(outgoing) {
                Ok(()) => {}
                Err(TrySubmitError::Full(back)) => {
                    self.waiting.push_front(back);
                    break;
                }
                Err(TrySubmitError::Closed(_)) => return Err(BusError::Closed),
            }
        }
        Ok(())
    }

    /// Everything said is on its way.
    pub fn is_clear(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Everything said is stored.
    pub fn is_settled(&self) -> bool {
        self.acknowledged == self.said
    }

    /// How many messages were said.
    pub fn said(&self) -> u64 {
        self.said
    }

    /// How many of them, from the first on, are stored.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The headers of a message that is stored only while its sender is the owner.
    pub fn stamp(&self, headers: Headers) -> Headers {
        self.outlet.stamp(headers)
    }

    /// Tells whoever listens now, at most once and past all that waits.
    ///
    /// # Errors
    /// [`Untold`].
    pub fn tell(&self, subject: &str, payload: Bytes) -> Result<(), Untold> {
        self.outlet.tell(subject, payload)
    }
}

impl Outbox<BusOutlet> {
    /// Waits on the thread until the end of one more message is known. False when none will ever be.
    ///
    /// # Errors
    /// As [`Outbox::turn`].
    pub fn wait(&mut self) -> Result<bool, BusError> {
        let Some(report) = self.outlet.reports.next_blocking() else { return Ok(false) };
        report.result?;
        self.acknowledged += 1;
        Ok(true)
    }
}
