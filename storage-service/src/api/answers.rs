//! Answers questions from the store, off the async threads and a bounded number at a time.

use std::sync::Arc;

use tapio_schemas::FindingId;
use tokio::sync::Semaphore;

use super::question::{Checked, entity};
use super::{ApiError, ListQuestion};
use crate::cell::StoreCell;
use crate::store::{Page, PageSize, Store, StoreError, StoredFinding};

/// Questions read from disk at a time; more wait.
const READS_AT_ONCE_MAX: usize = 16;
/// Bytes of documents in one answer. Titles and stories stand beside the documents, so an answer may
/// have twice as many; gRPC clients take 4 MiB by default.
pub const PAGE_BYTES_MAX: usize = 3 << 19;

/// Reads the store. Clones share it.
#[derive(Clone)]
pub struct Answers {
    cell: StoreCell,
    reads: Arc<Semaphore>,
}

/// Part of a list and the token for the rest.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// Newest first.
    pub findings: Vec<Arc<StoredFinding>>,
    /// Empty at the end.
    pub next_page_token: String,
}

impl Answers {
    /// Answers from this store.
    pub fn new(cell: StoreCell) -> Self {
        Self { cell, reads: Arc::new(Semaphore::new(READS_AT_ONCE_MAX)) }
    }

    /// A page of findings.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn list(&self, question: &ListQuestion, bytes_max: usize) -> Result<ListAnswer, ApiError> {
        let checked: Checked = question.check()?;
        let (filter, after) = (checked.filter.clone(), checked.after);
        let size = PageSize { findings: checked.page_findings, bytes: bytes_max };
        let page: Page = self.read(move |store| store.list(&filter, after, size)).await?;
        Ok(ListAnswer { next_page_token: checked.token(page.next), findings: page.findings })
    }

    /// One finding; revision zero means the newest.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get(&self, id: &str, revision: u32) -> Result<Arc<StoredFinding>, ApiError> {
        let id: FindingId = id.parse().map_err(|error| ApiError::invalid("id", error))?;
        let wanted = Some(revision).filter(|revision| *revision > 0);
        let found = self.read(move |store| store.get(id, wanted)).await?;
        found.ok_or_else(|| {
            ApiError::NotFound(match wanted {
                None => format!("no finding {id}"),
                Some(revision) => format!("no revision {revision} of finding {id}"),
            })
        })
    }

    /// The newest finding about an entity.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn why(&self, text: &str) -> Result<Arc<StoredFinding>, ApiError> {
        let wanted = entity("entity", text)?;
        let found = self.read(move |store| store.why(&wanted)).await?;
        found.ok_or_else(|| ApiError::NotFound(format!("no finding mentions {text}")))
    }

    pub(super) async fn read<T: Send + 'static>(
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
