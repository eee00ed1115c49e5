//! The writer: one actor on a thread of its own, the only one that changes the store.

use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, WrapFuture,
};
use tapio_runtime::supervise::WorkerContext;
use tapio_schemas::learning::Feedback;

use crate::cell::StoreCell;
use crate::condition::Condition;
use crate::learning::Learnt;
use crate::live::Live;
use crate::open::OpenFindings;
use crate::store::{Incoming, Limits, PutReport, Store, StoreError};

/// Batches that may wait; senders wait beyond it.
const MAILBOX_BATCHES: usize = 4;
/// An idle writer shows at least this often that it lives.
const TICK_PERIOD: Duration = Duration::from_secs(2);
/// Steps of the retention between two batches.
const RETENTION_STEPS_MAX: usize = 8;

/// Makes findings durable. The answer comes when they are on disk.
#[derive(Debug, Message)]
#[rtype(result = "Result<PutReport, StoreError>")]
pub struct Persist {
    /// The batch.
    pub findings: Vec<Incoming>,
}

/// Makes an outcome durable: what somebody said of a finding, or that what was learnt is to be forgotten.
#[derive(Debug, Message)]
#[rtype(result = "Result<u32, StoreError>")]
pub enum Learn {
    /// What was said.
    Feedback(Box<Feedback>),
    /// What to forget, up to now; an empty name stands for all. The answer is how many causes it concerned.
    Forget {
        /// Cluster.
        cluster: String,
        /// Cause.
        cause: String,
    },
}

/// What the writer works on.
#[derive(Clone)]
pub struct WriterParts {
    /// The disk.
    pub cell: StoreCell,
    /// What is open and not on it.
    pub open: OpenFindings,
    /// Who follows.
    pub live: Live,
    /// Where failures are told.
    pub condition: Condition,
    /// Who publishes the priors.
    pub learnt: Learnt,
}

/// The actor.
pub struct Writer {
    parts: WriterParts,
    limits: Limits,
    retention_interval: Duration,
    retention_at: Duration,
    context: WorkerContext,
}

impl Writer {
    /// A writer of this generation. After a panic of the one before, the store is opened again.
    pub fn new(
        parts: WriterParts,
        limits: Limits,
        retention_interval: Duration,
        context: WorkerContext,
    ) -> Self {
        if context.generation > 1 {
            parts.cell.distrust();
        }
        let retention_at = context.clock.monotonic();
        Self { parts, limits, retention_interval, retention_at, context }
    }

    fn persist(&mut self, findings: Vec<Incoming>) -> Result<PutReport, StoreError> {
        let WriterParts { cell, open, live, .. } = &self.parts;
        let store = cell.healthy()?;
        let report = store.put(findings, cell.now())?;
        for stored in &report.stored {
            open.settle(stored.finding.id, stored.finding.revision);
            live.publish(Arc::clone(stored));
        }
        for unsure in &report.unsure {
            if open.observe(unsure) {
                live.publish(Arc::clone(unsure));
            }
        }
        if report.scored {
            self.parts.learnt.changed();
        }
        if store.totals()?.bytes > self.limits.bytes_max {
            self.retention_at = self.context.clock.monotonic();
        }
        Ok(report)
    }

    fn learn(&mut self, learn: Learn) -> Result<u32, StoreError> {
        let store = self.parts.cell.healthy()?;
        let concerned = match learn {
            Learn::Feedback(feedback) => store.put_feedback(&feedback).map(|()| 1)?,
            Learn::Forget { cluster, cause } => {
                store.forget_learnt(&cluster, &cause, self.parts.cell.now())?
            }
        };
        self.parts.learnt.changed();
        Ok(concerned)
    }

    /// Also opens a failed store again, when there is nothing else to do.
    fn enforce_when_due(&mut self) -> Result<(), StoreError> {
        let store = self.parts.cell.healthy()?;
        self.enforce(&store)?;
        // What the retention removed may have made room.
        store.refuse_without_room(0)
    }

    fn enforce(&mut self, store: &Store) -> Result<(), StoreError> {
        let now = self.context.clock.monotonic();
        if now < self.retention_at {
            return Ok(());
        }
        for _ in 0..RETENTION_STEPS_MAX {
            if !store.enforce(self.limits, self.parts.cell.now())?.more {
                self.retention_at = now + self.retention_interval;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Shows the outcome of work on the store in the health of the component.
    fn report<T>(&self, outcome: &Result<T, StoreError>) {
        match outcome {
            Ok(_) => {
                self.context.progress.recover();
                self.parts.condition.mend();
            }
            Err(error) => {
                tracing::error!(%error, "the store does not take findings; they stay in the stream");
                self.context.progress.tick();
                self.context.progress.fail(error.to_string());
                self.parts.condition.fail(&error.to_string());
            }
        }
    }

    fn arm_tick(&self, actor: &mut Context<Self>) {
        let pause = self.context.clock.sleep(TICK_PERIOD).into_actor(self);
        actor.spawn(pause.map(|(), writer, actor| {
            let outcome = writer.enforce_when_due();
            writer.report(&outcome);
            writer.arm_tick(actor);
        }));
    }
}

impl Actor for Writer {
    type Context = Context<Self>;

    fn started(&mut self, actor: &mut Context<Self>) {
        actor.set_mailbox_capacity(MAILBOX_BATCHES);
        self.context.progress.tick();
        self.arm_tick(actor);
        let shutdown = self.context.shutdown.clone();
        let stop = async move { shutdown.wait().await }.into_actor(self);
        actor.spawn(stop.map(|(), _, actor| actor.stop()));
    }
}

impl Handler<Persist> for Writer {
    type Result = MessageResult<Persist>;

    fn handle(&mut self, persist: Persist, _actor: &mut Context<Self>) -> Self::Result {
        let outcome = self.persist(persist.findings);
        self.report(&outcome);
        if outcome.is_ok() {
            let enforced = self.enforce_when_due();
            self.report(&enforced);
        }
        MessageResult(outcome)
    }
}

impl Handler<Learn> for Writer {
    type Result = MessageResult<Learn>;

    fn handle(&mut self, learn: Learn, _actor: &mut Context<Self>) -> Self::Result {
        let outcome = self.learn(learn);
        self.report(&outcome);
        MessageResult(outcome)
    }
}
