//! A live subscription: the known findings when wanted, then each one as it becomes durable, or, while
//! it is open and not sure enough for the disk, as it comes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::proto::v1::SubscribeRequest;
use tapio_schemas::{Entity, FindingId, Severity};
use tonic::Status;

use super::ApiError;
use super::answers::Answers;
use super::question::{entity, optional, word};
use crate::live::{Ended, Follower};
use crate::store::{Filter, PageSize, StoredFinding};

/// Stored findings sent first: the newest ones.
const STORED_FINDINGS_MAX: usize = 1000;
/// ... and their bytes, which are held until the subscriber has read them.
const STORED_BYTES_MAX: usize = 16 << 20;

/// One subscriber.
pub(super) struct Subscription {
    follower: Follower,
    filter: Filter,
    stored: VecDeque<Arc<StoredFinding>>,
    /// What was sent from the store: it may come again live.
    sent: HashMap<FindingId, u32>,
    shutdown: Shutdown,
}

/// What the request asks for.
pub(super) struct Wanted {
    entity: Option<Entity>,
    min_severity: Option<Severity>,
    include_stored: bool,
}

impl Wanted {
    pub(super) fn check(request: &SubscribeRequest) -> Result<Self, ApiError> {
        Ok(Self {
            entity: optional("entity", &request.entity, entity)?,
            min_severity: optional("min_severity", &request.min_severity, word)?,
            include_stored: request.include_stored,
        })
    }
}

impl Subscription {
    /// The follower is there before the store is read, so nothing falls in between.
    pub(super) async fn open(
        answers: &Answers,
        follower: Follower,
        wanted: Wanted,
        shutdown: Shutdown,
    ) -> Result<Self, ApiError> {
        let filter = Filter { entity: wanted.entity, min_severity: wanted.min_severity, ..Filter::default() };
        let mut stored = VecDeque::new();
        if wanted.include_stored {
            let filter = filter.clone();
            let size = PageSize { findings: STORED_FINDINGS_MAX, bytes: STORED_BYTES_MAX };
            let page = answers.page(filter, None, size).await?;
            stored.extend(page.findings.into_iter().rev());
        }
        let sent = stored.iter().map(|s| (s.finding.id, s.finding.revision)).collect();
        Ok(Self { follower, filter, stored, sent, shutdown })
    }

    /// The next finding, oldest first; an error is the last item.
    pub(super) async fn next(&mut self) -> Result<Arc<StoredFinding>, Status> {
        if let Some(stored) = self.stored.pop_front() {
            return Ok(stored);
        }
        loop {
            let next = tokio::select! {
                biased;
                () = self.shutdown.wait() => Err(Ended::Closed),
                next = self.follower.next() => next,
            };
            match next {
                Ok(stored) if self.is_new(&stored) => return Ok(stored),
                Ok(_) => {}
                Err(Ended::Closed) => return Err(Status::unavailable("the service stops; connect again")),
                Err(Ended::Slow(missed)) => {
                    return Err(Status::resource_exhausted(format!(
                        "the subscriber was too slow and missed {missed} findings; \
                         subscribe again with include_stored"
                    )));
                }
            }
        }
    }

    fn is_new(&mut self, stored: &StoredFinding) -> bool {
        let (id, revision) = (stored.finding.id, stored.finding.revision);
        let seen = self.sent.get(&id).is_some_and(|sent| revision <= *sent);
        !seen && self.filter.accepts(&stored.finding)
    }
}
