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
    /// Each with how many of those before it must be stored first.
    waiting: VecDeque<(u64, Outgoing)>,
    after: u64,
    said: u64,
    acknowledged: u64,
}

impl<O: Outlet> Outbox<O> {
    /// Nothing said yet.
    pub fn new(outlet: O) -> Self {
        Self { outlet, waiting: VecDeque::new(), after: 0, said: 0, acknowledged: 0 }
    }

    /// Says something: it goes out after all that was said before.
    pub fn say(&mut self, outgoing: Outgoing) {
        self.said += 1;
        self.waiting.push_back((self.after, outgoing));
    }

    /// What is said from here on goes out once everything said before is stored: what is repeated on its way is overtaken
    /// by what follows, and must not be when that speaks of a later time.
    pub fn settle_first(&mut self) {
        self.after = self.said;
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
        while let Some((after, outgoing)) = self.waiting.pop_front() {
            if self.acknowledged < after {
                self.waiting.push_front((after, outgoing));
                break;
            }
            match self.outlet.try_submit(outgoing) {
                Ok(()) => {}
                Err(TrySubmitError::Full(back)) => {
                    self.waiting.push_front((after, back));
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Keeps what is under way; ends it when told to.
    #[derive(Default, Clone)]
    struct Kept(Rc<RefCell<(Vec<String>, usize)>>);

    impl Outlet for Kept {
        fn try_submit(&mut self, outgoing: Outgoing) -> Result<(), TrySubmitError> {
            self.0.borrow_mut().0.push(outgoing.subject);
            Ok(())
        }

        fn try_end(&mut self) -> Option<Result<(), BusError>> {
            let stored = &mut self.0.borrow_mut().1;
            *stored = stored.checked_sub(1)?;
            Some(Ok(()))
        }

        fn stamp(&self, headers: Headers) -> Headers {
            headers
        }

        fn tell(&self, _subject: &str, _payload: Bytes) -> Result<(), Untold> {
            Ok(())
        }
    }

    #[test]
    fn what_is_to_settle_first_is_overtaken_by_nothing() {
        let kept = Kept::default();
        let mut outbox = Outbox::new(kept.clone());
        let say = |outbox: &mut Outbox<Kept>, subject: &str| {
            let (headers, payload) = (Headers::new(), Bytes::new());
            outbox.say(Outgoing { subject: subject.to_owned(), msg_id: None, headers, payload });
        };
        for subject in ["a", "b"] {
            say(&mut outbox, subject);
        }
        outbox.settle_first();
        say(&mut outbox, "c");
        let mut sent = |stored: usize| {
            kept.0.borrow_mut().1 = stored;
            outbox.turn().expect("nothing is refused");
            (kept.0.borrow().0.concat(), outbox.is_clear(), outbox.is_settled())
        };
        assert_eq!(sent(0), ("ab".to_owned(), false, false));
        assert_eq!(sent(1), ("ab".to_owned(), false, false));
        assert_eq!(sent(1), ("abc".to_owned(), true, false));
        assert_eq!(sent(1), ("abc".to_owned(), true, true));
    }
}
