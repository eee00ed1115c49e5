//! Findings as they become durable (or are held as open), to everyone who follows.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::telemetry::Metrics;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use crate::store::StoredFinding;

/// Findings kept for subscribers that are behind; one that is further behind is dropped.
pub const BACKLOG_FINDINGS: usize = 256;

/// Fan-out of stored findings. Clones share it.
#[derive(Clone)]
pub struct Live {
    sender: broadcast::Sender<Arc<StoredFinding>>,
    places: Arc<Semaphore>,
    subscribers: Gauge,
    dropped: Counter,
}

/// One subscriber's view, with its place.
pub struct Follower {
    receiver: broadcast::Receiver<Arc<StoredFinding>>,
    live: Live,
    _place: OwnedSemaphorePermit,
}

/// Why a subscription ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The subscriber did not read fast enough and missed so many.
    Slow(u64),
    /// The service stops.
    Closed,
}

impl Live {
    /// For so many subscribers at a time.
    pub fn new(subscribers_max: usize, metrics: &Metrics) -> Self {
        let live = Self {
            sender: broadcast::Sender::new(BACKLOG_FINDINGS),
            places: Arc::new(Semaphore::new(subscribers_max)),
            subscribers: Gauge::default(),
            dropped: Counter::default(),
        };
        metrics.register("storage_subscribers", "Live subscribers", live.subscribers.clone());
        metrics.register(
            "storage_subscribers_dropped",
            "Subscribers dropped because they were too slow",
            live.dropped.clone(),
        );
        live
    }

    /// Gives a finding that is durable, or held as open, to everyone. No one there is fine.
    pub fn publish(&self, stored: Arc<StoredFinding>) {
        let _ = self.sender.send(stored);
    }

    /// A new subscriber, who gets what is published from now on; `None` when all places are taken.
    pub fn follow(&self) -> Option<Follower> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.subscribers.inc();
        let receiver = self.sender.subscribe();
        Some(Follower { receiver, live: self.clone(), _place: place })
    }
}

impl Follower {
    /// The next finding.
    pub async fn next(&mut self) -> Result<Arc<StoredFinding>, Ended> {
        self.receiver.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(missed) => {
                self.live.dropped.inc();
                Ended::Slow(missed)
            }
            broadcast::error::RecvError::Closed => Ended::Closed,
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.live.subscribers.dec();
    }
}
