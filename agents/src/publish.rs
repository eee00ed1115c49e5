//! From the outbox into the stream, in order per shard.
//!
//! One batch of a shard is in flight at a time, all shards side by side: a repetition after a lost
//! connection then cannot overtake or be overtaken within its shard, and with up to 1024 events in a batch
//! the round trip is no limit. The bus repeats for ever; only an end of the agent stops it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tapio_runtime::bus::{Bus, BusError, Headers, Outgoing, PublishReport, PublishReports, Publisher};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_schemas::names::{SHARD_COUNT, events_subject};

use crate::outbox::{Outbox, Taken};

/// How long a stopping agent goes on publishing before it leaves the rest to the spool.
pub const DRAIN_PUBLISH_MAX: Duration = Duration::from_secs(5);
/// While the connection is away, a stopping agent with a spool waits only this long.
const DRAIN_AWAY_MAX: Duration = Duration::from_millis(500);

/// What a publisher needs; its factory clones it.
#[derive(Clone)]
pub struct PublishParts {
    /// The bus.
    pub bus: Bus,
    /// Where batches come from.
    pub outbox: Arc<Outbox>,
    /// Cluster, for the subject.
    pub cluster: Arc<str>,
    /// Batches taken from the outbox and not answered.
    pub window: usize,
}

/// Publishes until the agent stops and the outbox is empty, or time is over; then settles the outbox.
///
/// # Errors
/// When the bus is closed under it, or the rest cannot be spooled.
pub async fn run(parts: PublishParts, context: WorkerContext) -> WorkerResult {
    // A predecessor that died leaves its batches unanswered.
    parts.outbox.take_back();
    let cancel = Shutdown::new();
    let (publisher, mut reports) = parts.bus.publisher(usize::from(SHARD_COUNT), cancel.clone());
    let mut lanes = Lanes::new(publisher, &parts);
    let mut drained = false;
    let stop = stop_time(&parts, &context);
    tokio::pin!(stop);
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    loop {
        let room = lanes.held < parts.window && !drained;
        tokio::select! {
            biased;
            Some(report) = reports.next() => lanes.answer(report, &parts.outbox)?,
            taken = parts.outbox.next(), if room => match taken {
                Some(taken) => lanes.add(taken)?,
                None => drained = true,
            },
            () = &mut stop => break,
            _ = beat.tick() => {}
        }
        context.progress.tick();
        if drained && lanes.held == 0 {
            break;
        }
    }
    cancel.trigger();
    lanes.last_answers(&mut reports, &parts.outbox).await;
    let left = parts.outbox.settle()?;
    if left > 0 {
        tracing::info!(events = left, "left in the spool for the next start");
    }
    Ok(())
}

/// Ends when the agent has been asked to stop and may not wait longer for the stream.
async fn stop_time(parts: &PublishParts, context: &WorkerContext) {
    context.shutdown.wait().await;
    parts.outbox.close();
    let mut state = parts.bus.watch_state();
    let connected =
        |s: &tapio_runtime::bus::ConnectionState| *s == tapio_runtime::bus::ConnectionState::Connected;
    let away = async {
        loop {
            if state.wait_for(|s| !connected(s)).await.is_err() {
                return;
            }
            let back = tokio::time::timeout(DRAIN_AWAY_MAX, state.wait_for(connected)).await;
            if !matches!(back, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        () = tokio::time::sleep(DRAIN_PUBLISH_MAX) => {}
        () = away, if parts.outbox.has_spool() => {}
    }
}

/// One queue per shard, its head in flight.
struct Lanes {
    publisher: Publisher,
    subjects: Vec<String>,
    waiting: Vec<VecDeque<Taken>>,
    busy: Vec<bool>,
    /// In the order of submission, which is the order of reports.
    submitted: VecDeque<Taken>,
    held: usize,
}

impl Lanes {
    fn new(publisher: Publisher, parts: &PublishParts) -> Self {
        Self {
            publisher,
            subjects: (0..SHARD_COUNT).map(|shard| events_subject(&parts.cluster, shard)).collect(),
            waiting: (0..SHARD_COUNT).map(|_| VecDeque::new()).collect(),
            busy: vec![false; usize::from(SHARD_COUNT)],
            submitted: VecDeque::new(),
            held: 0,
        }
    }

    fn add(&mut self, taken: Taken) -> Result<(), BusError> {
        let shard = usize::from(taken.frame.shard);
        self.held += 1;
        self.waiting[shard].push_back(taken);
        self.advance(shard)
    }

    fn answer(&mut self, report: PublishReport, outbox: &Outbox) -> Result<(), BusError> {
        let Some(taken) = self.submitted.pop_front() else { return Ok(()) };
        let shard = usize::from(taken.frame.shard);
        match report.result {
            Ok(_) => outbox.acknowledged(taken.order),
            Err(error @ (BusError::TooLarge { .. } | BusError::Subject { .. })) => {
                tracing::error!(%error, events = taken.frame.events, "a batch is lost");
                outbox.rejected(taken.order);
            }
            // The bus is gone: the outbox still has the batch.
            Err(error) => return Err(error),
        }
        self.held -= 1;
        self.busy[shard] = false;
        self.advance(shard)
    }

    /// What was acknowledged until the publisher was cancelled; the rest stays in the outbox.
    async fn last_answers(self, reports: &mut PublishReports, outbox: &Outbox) {
        drop(self.publisher);
        for taken in self.submitted {
            match reports.next().await {
                Some(PublishReport { result: Ok(_), .. }) => outbox.acknowledged(taken.order),
                Some(_) => {}
                None => return,
            }
        }
    }

    fn advance(&mut self, shard: usize) -> Result<(), BusError> {
        if self.busy[shard] {
            return Ok(());
        }
        let Some(taken) = self.waiting[shard].pop_front() else { return Ok(()) };
        let outgoing = Outgoing {
            subject: self.subjects[shard].clone(),
            msg_id: Some(taken.frame.msg_id.clone()),
            headers: Headers::new(),
            payload: taken.frame.payload.clone(),
        };
        // At most one per shard is submitted, and the publisher holds one per shard: never full.
        self.publisher.try_submit(outgoing).map_err(|_| BusError::Closed)?;
        self.busy[shard] = true;
        self.submitted.push_back(taken);
        Ok(())
    }
}
