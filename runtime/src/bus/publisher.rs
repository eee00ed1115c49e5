//! Many messages in flight, in order, within a window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::{Bus, BusError, Headers, PublishAck};
use crate::shutdown::Shutdown;

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Subject.
    pub subject: String,
    /// De-duplication id; one is made when `None`.
    pub msg_id: Option<String>,
    /// Headers.
    pub headers: Headers,
    /// Bytes.
    pub payload: Bytes,
}

/// How a submitted message ended.
#[derive(Debug)]
pub struct PublishReport {
    /// Number that `submit` gave, from 0.
    pub ticket: u64,
    /// Stored, or why not.
    pub result: Result<PublishAck, BusError>,
}

/// The message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TrySubmitError {
    /// The window is full.
    #[error("the publish window is full")]
    Full(Outgoing),
    /// The publisher was shut down.
    #[error("the publisher is closed")]
    Closed(Outgoing),
}

/// Takes messages. Dropping it means that there are no more: the reports end after the last one.
#[derive(Debug)]
pub struct Publisher {
    queue: mpsc::Sender<(u64, Outgoing)>,
    next_ticket: u64,
    outstanding: Arc<AtomicUsize>,
}

/// Gives one report for each message, in the order of submission. Must be read: reports that no one
/// takes fill the window.
#[derive(Debug)]
pub struct PublishReports {
    reports: mpsc::Receiver<PublishReport>,
}

impl Bus {
    /// A publisher with at most `window` messages in flight, as many waiting to be sent, and as many
    /// unread reports. Messages are sent in the order of submission; after a repetition the order
    /// in the stream may differ. When `shutdown` triggers, what is not yet acknowledged is reported
    /// as [`BusError::Cancelled`].
    ///
    /// # Panics
    /// When `window` is 0.
    pub fn publisher(&self, window: usize, shutdown: Shutdown) -> (Publisher, PublishReports) {
        assert!(window > 0, "a publish window of 0 lets nothing through");
        let (queue, submitted) = mpsc::channel(window);
        let (report, reports) = mpsc::channel(window);
        let outstanding = Arc::new(AtomicUsize::new(0));
        let runner = Runner {
            bus: self.clone(),
            window,
            submitted,
            report,
            in_flight: FuturesOrdered::new(),
            tickets: VecDeque::new(),
            unreported: None,
            outstanding: Arc::clone(&outstanding),
            shutdown,
        };
        tokio::spawn(runner.run());
        (Publisher { queue, next_ticket: 0, outstanding }, PublishReports { reports })
    }
}

impl Publisher {
    /// Submits, waiting while the window is full; gives the message's ticket.
    ///
    /// # Errors
    /// [`BusError::Closed`] after a shutdown.
    pub async fn submit(&mut self, outgoing: Outgoing) -> Result<u64, BusError> {
        let permit = self.queue.reserve().await.map_err(|_| BusError::Closed)?;
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        permit.send((self.next_ticket, outgoing));
        Ok(self.take_ticket())
    }

    /// [`Publisher::submit`] for a thread outside tokio.
    ///
    /// # Errors
    /// [`BusError::Closed`] after a shutdown.
    pub fn submit_blocking(&mut self, outgoing: Outgoing) -> Result<u64, BusError> {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        if self.queue.blocking_send((self.next_ticket, outgoing)).is_err() {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
            return Err(BusError::Closed);
        }
        Ok(self.take_ticket())
    }

    /// Submits if the window has room now.
    ///
    /// # Errors
    /// [`TrySubmitError`] with the message.
    pub fn try_submit(&mut self, outgoing: Outgoing) -> Result<u64, TrySubmitError> {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let result = self.queue.try_send((self.next_ticket, outgoing));
        match result {
            Ok(()) => Ok(self.take_ticket()),
            Err(error) => {
                self.outstanding.fetch_sub(1, Ordering::Relaxed);
                Err(match error {
                    mpsc::error::TrySendError::Full((_, back)) => TrySubmitError::Full(back),
                    mpsc::error::TrySendError::Closed((_, back)) => TrySubmitError::Closed(back),
                })
            }
        }
    }

    /// Messages submitted whose end is not yet known.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    fn take_ticket(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }
}

impl PublishReports {
    /// The next report; `None` when the publisher is dropped and everything is reported.
    pub async fn next(&mut self) -> Option<PublishReport> {
        self.reports.recv().await
    }

    /// [`PublishReports::next`] for a thread outside tokio.
    pub fn next_blocking(&mut self) -> Option<PublishReport> {
        self.reports.blocking_recv()
    }

    /// A report that is there now.
    pub fn try_next(&mut self) -> Option<PublishReport> {
        self.reports.try_recv().ok()
    }
}

type Settled = Result<PublishAck, BusError>;

/// The task behind a publisher.
struct Runner {
    bus: Bus,
    window: usize,
    submitted: mpsc::Receiver<(u64, Outgoing)>,
    report: mpsc::Sender<PublishReport>,
    in_flight: FuturesOrdered<BoxFuture<'static, Settled>>,
    /// Ticket and subject of each future in flight, oldest first.
    tickets: VecDeque<(u64, String)>,
    /// A report that has no room yet; kept here so that a shutdown cannot lose it.
    unreported: Option<PublishReport>,
    outstanding: Arc<AtomicUsize>,
    shutdown: Shutdown,
}

impl Runner {
    async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let finished = tokio::select! {
            biased;
            () = self.pump() => true,
            () = shutdown.wait() => false,
        };
        if !finished {
            self.cancel().await;
        }
    }

    async fn pump(&mut self) {
        loop {
            let room = self.in_flight.len() < self.window;
            tokio::select! {
                biased;
                Some(result) = self.in_flight.next() => self.settled(result).await,
                next = self.submitted.recv(), if room => match next {
                    Some((ticket, outgoing)) => self.launch(ticket, outgoing).await,
                    None => break,
                },
            }
        }
        while let Some(result) = self.in_flight.next().await {
            self.settled(result).await;
        }
    }

    /// The first attempt is made here, one after the other, so that messages leave in order; the
    /// wait for the acknowledgement and repetitions run side by side.
    async fn launch(&mut self, ticket: u64, mut outgoing: Outgoing) {
        self.bus.inner.metrics.outstanding(1);
        self.tickets.push_back((ticket, outgoing.subject.clone()));
        if let Err(error) = self.bus.prepare(&mut outgoing) {
            self.in_flight.push_back(Box::pin(std::future::ready(Err(error))));
            return;
        }
        let bus = self.bus.clone();
        if let Some(lane) = self.bus.lane(&outgoing.headers) {
            self.in_flight.push_back(take_turns(bus, lane, outgoing).await);
            return;
        }
        let first = self.bus.send_once(&outgoing).await;
        self.in_flight
            .push_back(Box::pin(async move { bus.settle(outgoing, first, &mut String::new()).await }));
    }

    async fn settled(&mut self, result: Settled) {
        let (ticket, _) = self.tickets.pop_front().expect("a ticket for every future");
        self.bus.inner.metrics.outstanding(-1);
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        self.unreported = Some(PublishReport { ticket, result });
        self.deliver_report().await;
    }

    async fn deliver_report(&mut self) {
        // An error means that no one reads the reports any more: the messages still go out.
        if self.unreported.is_some()
            && let Ok(room) = self.report.reserve().await
            && let Some(report) = self.unreported.take()
        {
            room.send(report);
        }
    }

    /// Reports everything that has no end yet: what was launched, then what was not.
    async fn cancel(mut self) {
        self.submitted.close();
        self.deliver_report().await;
        let launched = std::mem::take(&mut self.tickets);
        self.bus.inner.metrics.outstanding(-(launched.len() as i64));
        let mut open: Vec<_> = launched.into();
        while let Ok((ticket, outgoing)) = self.submitted.try_recv() {
            open.push((ticket, outgoing.subject));
        }
        for (ticket, subject) in open {
            self.bus.inner.metrics.failure("cancelled");
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
            let result = Err(BusError::Cancelled { subject });
            let _ = self.report.send(PublishReport { ticket, result }).await;
        }
    }
}

/// Queues the message on its lane now, so that the order of submission is kept, and sends it in a task of its own: it
/// must not keep the lane from others while no one reads our reports.
async fn take_turns(bus: Bus, lane: Arc<Semaphore>, outgoing: Outgoing) -> BoxFuture<'static, Settled> {
    let subject = outgoing.subject.clone();
    let mut turn = Box::pin(lane.acquire_owned());
    let at_once = futures::poll!(turn.as_mut());
    let task = tokio::spawn(async move {
        let turn = match at_once {
            Poll::Ready(turn) => turn,
            Poll::Pending => turn.await,
        };
        let _turn = turn.map_err(|_| BusError::Closed)?;
        let first = bus.send_once(&outgoing).await;
        bus.settle(outgoing, first, &mut String::new()).await
    });
    let task = AbortOnDropHandle::new(task);
    Box::pin(async move { task.await.unwrap_or(Err(BusError::Cancelled { subject })) })
}
