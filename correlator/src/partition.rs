//! Who decides: one replica at a time owns the incidents of a cluster, by lease. The others stand by.

use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::lease::{Lease, LeaseConfig, LeaseEvent, LeaseEvents, Leases};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_schemas::names::lease_group;
use tokio::task::JoinHandle;

use crate::stage_two::StageTwoParts;

/// The one resource of the group.
const RESOURCE: &str = "incidents";
/// Time between two signs of life while standing by.
const STAND_BY: Duration = Duration::from_millis(250);

/// Runs stage two whenever this replica owns it.
#[derive(Clone)]
pub struct Partition {
    /// Stage two.
    pub parts: StageTwoParts,
}

/// A term of office.
struct Session {
    lease: Lease,
    stop: Shutdown,
    running: JoinHandle<WorkerResult>,
    released: bool,
}

impl Partition {
    /// Runs until the context is shut down (then the incidents are handed over) or stage two fails.
    ///
    /// # Errors
    /// What stage two ends with.
    pub async fn run(self, context: WorkerContext) -> WorkerResult {
        let parts = &self.parts;
        let group = lease_group(RESOURCE, &parts.config.cluster);
        let replica = parts.config.replica_name(parts.clock.now_unix_nanos());
        let config = LeaseConfig::new(group, replica, vec![RESOURCE.to_owned()]);
        let (leases, mut events) =
            Leases::join(&parts.bus, config, parts.clock.clone(), &parts.registry, Shutdown::new()).await?;
        let mut session = None;
        let result = self.follow(&leases, &mut events, &mut session, &context).await;
        // After a failure nothing more is decided, and the lease lapses.
        if let Some(session) = session {
            session.running.abort();
        }
        result
    }

    async fn follow(
        &self,
        leases: &Leases,
        events: &mut LeaseEvents,
        session: &mut Option<Session>,
        context: &WorkerContext,
    ) -> WorkerResult {
        let mut stand_by = tokio::time::interval(STAND_BY);
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                () = context.shutdown.wait(), if !leaving => {
                    leaving = true;
                    let leases = leases.clone();
                    tokio::spawn(async move { leases.leave().await });
                }
                event = events.next() => match event {
                    Some(event) => self.event(event, session, context),
                    None => return Ok(()),
                },
                ended = ended(session) => {
                    let Some(over) = session.take() else { continue };
                    ended?;
                    if !over.released {
                        return Err("stage two ended while it owned the incidents".into());
                    }
                    leases.released(&over.lease, Bytes::new()).await?;
                }
                _ = stand_by.tick() => if session.is_none() { context.progress.tick() },
            }
        }
    }

    fn event(&self, event: LeaseEvent, session: &mut Option<Session>, context: &WorkerContext) {
        match event {
            LeaseEvent::Acquired { lease, .. } => {
                tracing::info!(cluster = %self.parts.config.cluster, epoch = lease.epoch(), "deciding incidents");
                let stop = Shutdown::new();
                let context = WorkerContext { shutdown: stop.clone(), ..context.clone() };
                let running = tokio::spawn(self.parts.clone().run(context, lease.clone()));
                *session = Some(Session { lease, stop, running, released: false });
            }
            LeaseEvent::Release { .. } => {
                if let Some(session) = session {
                    session.released = true;
                    session.stop.trigger();
                }
            }
            LeaseEvent::Lost { lease } => {
                if let Some(session) = session.take_if(|session| session.lease.epoch() == lease.epoch()) {
                    tracing::warn!(epoch = lease.epoch(), "the lease of the incidents is lost");
                    session.running.abort();
                }
            }
        }
    }
}

/// The end of the session, for ever when there is none.
async fn ended(session: &mut Option<Session>) -> WorkerResult {
    match session {
        Some(session) => (&mut session.running).await.unwrap_or_else(|error| Err(error.into())),
        None => std::future::pending().await,
    }
}
