//! Answers questions from the store, off the async threads and a bounded number at a time.

use std::sync::Arc;

use tapio_runtime::supervise::ActorSlot;
use tapio_schemas::FindingId;
use tapio_schemas::learning::Feedback;
use tokio::sync::Semaphore;

use super::feedback::{FeedbackQuestion, name};
use super::question::{Checked, entity};
use super::{ApiError, ListQuestion};
use crate::cell::StoreCell;
use crate::condition::Condition;
use crate::freshness::{ClusterFreshness, Freshness};
use crate::learning::LearntCause;
use crate::open::OpenFindings;
use crate::store::{Filter, Page, PageSize, Position, Store, StoreError, StoredFinding};
use crate::view;
use crate::writer::{Learn, Writer};

/// Questions read from disk at a time; more wait.
const READS_AT_ONCE_MAX: usize = 16;
/// Bytes of documents in one answer. Titles and stories stand beside the documents, so an answer may
/// have twice as many; gRPC clients take 4 MiB by default.
pub const PAGE_BYTES_MAX: usize = 3 << 19;

/// Similar findings in an answer that does not say how many.
const SIMILAR_DEFAULT: usize = 3;
/// Most similar findings in an answer.
const SIMILAR_MAX: usize = 20;

/// Reads the store, what is open beside it, and how far the correlators are. Clones share it.
#[derive(Clone)]
pub struct Answers {
    cell: StoreCell,
    open: OpenFindings,
    freshness: Freshness,
    condition: Condition,
    writer: ActorSlot<Writer>,
    reads: Arc<Semaphore>,
}

/// A finding with what was said of it.
#[derive(Debug, Clone)]
pub struct Told {
    /// The finding.
    pub stored: Arc<StoredFinding>,
    /// What was said of it.
    pub feedback: Option<Feedback>,
}

/// Part of a list and the token for the rest.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// Newest first.
    pub findings: Vec<Arc<StoredFinding>>,
    /// Empty at the end.
    pub next_page_token: String,
    /// How far the correlators are.
    pub freshness: Vec<ClusterFreshness>,
    /// What the store itself may lack, in words.
    pub gaps: Vec<String>,
    /// Of an entity of which there is no finding of any kind: whether the correlators know of it; `None` when less was asked
    /// for, or when nobody can tell.
    pub heard: Option<bool>,
}

impl Answers {
    /// Answers from this store.
    pub fn new(
        cell: StoreCell,
        open: OpenFindings,
        freshness: Freshness,
        condition: Condition,
        writer: ActorSlot<Writer>,
    ) -> Self {
        let reads = Arc::new(Semaphore::new(READS_AT_ONCE_MAX));
        Self { cell, open, freshness, condition, writer, reads }
    }

    /// Tells when the store fails and when it is mended.
    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// A page of findings.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn list(&self, question: &ListQuestion, bytes_max: usize) -> Result<ListAnswer, ApiError> {
        let checked: Checked = question.check()?;
        let (filter, after) = (checked.filter.clone(), checked.after);
        let size = PageSize { findings: checked.page_findings, bytes: bytes_max };
        // Read first: what is judged up to there is then in the store or on its way.
        let freshness = self.freshness.read().await;
        let page = self.page(filter, after, size).await?;
        let heard = if page.findings.is_empty() && after.is_none() && question.is_of_an_entity_alone() {
            self.freshness.has_heard_of(&freshness, &question.entity).await
        } else {
            None
        };
        Ok(ListAnswer {
            next_page_token: checked.token(page.next),
            findings: page.findings,
            freshness,
            gaps: self.gaps(),
            heard,
        })
    }

    /// A page of findings, newest first.
    pub(super) async fn page(
        &self,
        filter: Filter,
        after: Option<Position>,
        size: PageSize,
    ) -> Result<Page, ApiError> {
        let open = self.open.clone();
        self.read(move |store| view::list(store, &open, &filter, after, size)).await
    }

    fn gaps(&self) -> Vec<String> {
        let mut gaps = self.condition.gaps();
        let left_out = self.open.left_out();
        if left_out > 0 {
            gaps.push(format!("at least {left_out} open findings are left out: there are too many to hold"));
        }
        gaps
    }

    /// One finding; revision zero means the newest.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get(&self, id: &str, revision: u32) -> Result<Told, ApiError> {
        let id: FindingId = id.parse().map_err(|error| ApiError::invalid("id", error))?;
        let wanted = Some(revision).filter(|revision| *revision > 0);
        let open = self.open.clone();
        let found = self.read(move |store| tell(store, view::get(store, &open, id, wanted)?)).await?;
        found.ok_or_else(|| {
            ApiError::NotFound(match wanted {
                None => format!("no finding {id}"),
                Some(revision) => format!("no revision {revision} of finding {id}"),
            })
        })
    }

    /// The finding that says most about an entity.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn why(&self, text: &str) -> Result<Told, ApiError> {
        let wanted = entity("entity", text)?;
        let open = self.open.clone();
        let found = self.read(move |store| tell(store, view::why(store, &open, &wanted)?)).await?;
        found.ok_or_else(|| ApiError::NotFound(format!("no finding mentions {text}")))
    }

    /// Keeps what was said of a finding.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn give_feedback(&self, question: FeedbackQuestion) -> Result<Feedback, ApiError> {
        let said = question.check()?;
        let stored = self.get(&question.id, 0).await?.stored;
        let feedback = said.about(&stored.finding, self.cell.now())?;
        self.write(Learn::Feedback(Box::new(feedback.clone()))).await?;
        Ok(feedback)
    }

    /// What outcomes say of the causes of a cluster; of all for an empty name.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn causes(&self, cluster: &str) -> Result<Vec<LearntCause>, ApiError> {
        let mut learnt = self.read(Store::learnt).await?;
        learnt.retain(|learnt| cluster.is_empty() || learnt.cluster == cluster);
        Ok(learnt)
    }

    /// Forgets what was learnt; returns how many causes it concerned.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn forget_learnt(&self, cluster: &str, cause: &str) -> Result<u32, ApiError> {
        name("cluster", cluster)?;
        name("cause", cause)?;
        self.write(Learn::Forget { cluster: cluster.to_owned(), cause: cause.to_owned() }).await
    }

    /// The past findings that are most like one, with what was said of them.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn similar(&self, id: &str, limit: u32) -> Result<Vec<(f64, Told)>, ApiError> {
        let limit = match limit as usize {
            0 => SIMILAR_DEFAULT,
            limit if limit <= SIMILAR_MAX => limit,
            _ => return Err(ApiError::invalid("limit", format!("at most {SIMILAR_MAX}"))),
        };
        let stored = self.get(id, 0).await?.stored;
        let find = move |store: &Store| {
            let similar = store.similar(&stored.finding, limit)?.into_iter();
            similar.map(|s| Ok((s.similarity, told(store, s.stored)?))).collect()
        };
        self.read(find).await
    }

    /// Through the one writer.
    async fn write(&self, learn: Learn) -> Result<u32, ApiError> {
        let writer = self.writer.wait().await;
        match writer.send(learn).await {
            Ok(written) => Ok(written?),
            Err(error) => Err(ApiError::Unavailable(format!("the writer is gone: {error}"))),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.reads).acquire_owned().await;
        let cell = self.cell.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            run(&*cell.get()?)
        });
        match reading.await {
            Ok(outcome) => Ok(outcome?),
            Err(error) => Err(ApiError::Unavailable(error.to_string())),
        }
    }
}

fn tell(store: &Store, found: Option<Arc<StoredFinding>>) -> Result<Option<Told>, StoreError> {
    found.map(|stored| told(store, stored)).transpose()
}

fn told(store: &Store, stored: Arc<StoredFinding>) -> Result<Told, StoreError> {
    let feedback = store.feedback(stored.finding.id)?;
    Ok(Told { stored, feedback })
}
