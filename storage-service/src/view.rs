//! What is known of the findings: the disk, and above it the open ones in memory.

use std::cmp::Reverse;
use std::sync::Arc;

use tapio_schemas::finding::Status;
use tapio_schemas::{Entity, Finding, FindingId};

use crate::open::OpenFindings;
use crate::store::{Filter, Page, PageSize, Position, Store, StoreError, StoredFinding};

/// One finding; `None` for the revision means the newest.
///
/// # Errors
/// As [`Store::get`].
pub fn get(
    store: &Store,
    open: &OpenFindings,
    id: FindingId,
    revision: Option<u32>,
) -> Result<Option<Arc<StoredFinding>>, StoreError> {
    let held = open.get(id).filter(|held| revision.is_none_or(|wanted| held.finding.revision == wanted));
    let stored = store.get(id, revision)?;
    Ok(match (held, stored) {
        (Some(held), Some(stored)) if stored.finding.revision >= held.finding.revision => Some(stored),
        (Some(held), _) => Some(held),
        (None, stored) => stored,
    })
}

/// Findings that match, newest first, from below `after`.
///
/// # Errors
/// As [`Store::list`].
pub fn list(
    store: &Store,
    open: &OpenFindings,
    filter: &Filter,
    after: Option<Position>,
    size: PageSize,
) -> Result<Page, StoreError> {
    let held = newer_than_stored(store, open.list(filter, after))?;
    let mut page = store.list(filter, after, size)?;
    if open.is_empty() {
        return Ok(page);
    }
    page.findings.retain(|stored| {
        open.get(stored.finding.id).is_none_or(|held| held.finding.revision <= stored.finding.revision)
    });
    // What lies below the end of this page belongs to a later one.
    let end = page.next;
    let here = |stored: &Arc<StoredFinding>| end.is_none_or(|end| Position::of(&stored.finding) >= end);
    page.findings.extend(held.into_iter().filter(here));
    page.findings.sort_by_key(|stored| Reverse(Position::of(&stored.finding)));
    cut(&mut page, size);
    Ok(page)
}

/// The finding that says most about an entity: one that goes on before one that is over, one whose
/// root cause it is before one that has it in its chain, then the newest.
///
/// # Errors
/// As [`Store::list`].
pub fn why(
    store: &Store,
    open: &OpenFindings,
    entity: &Entity,
) -> Result<Option<Arc<StoredFinding>>, StoreError> {
    let filter = Filter { entity: Some(entity.clone()), ..Filter::default() };
    let held = newer_than_stored(store, open.list(&filter, None))?;
    let mut candidates = held;
    if let Some(stored) = store.why(entity)? {
        let superseded =
            open.get(stored.finding.id).is_some_and(|held| held.finding.revision > stored.finding.revision);
        if !superseded {
            candidates.push(stored);
        }
    }
    let rank = |stored: &Arc<StoredFinding>| {
        let finding: &Finding = &stored.finding;
        let goes_on = matches!(finding.status, Status::Active | Status::NotProvable);
        let is_cause = finding.root_cause.as_ref().is_some_and(|root| entity.matches(&root.entity));
        (goes_on, is_cause, Position::of(finding))
    };
    Ok(candidates.into_iter().max_by_key(rank))
}

/// The writer puts a finding on disk before it lets go of it here; meanwhile it must not come twice.
fn newer_than_stored(
    store: &Store,
    mut held: Vec<Arc<StoredFinding>>,
) -> Result<Vec<Arc<StoredFinding>>, StoreError> {
    let mut failed = None;
    held.retain(|held| match store.latest_revision(held.finding.id) {
        Ok(latest) => latest.is_none_or(|latest| latest < held.finding.revision),
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    failed.map_or(Ok(held), Err)
}

/// Ends the page where it is full.
fn cut(page: &mut Page, size: PageSize) {
    let mut bytes = 0;
    let fits = page.findings.iter().take(size.findings).take_while(|stored| {
        let first = bytes == 0;
        bytes += stored.json.len();
        first || bytes <= size.bytes
    });
    let count = fits.count();
    if count < page.findings.len() {
        page.findings.truncate(count);
        page.next = page.findings.last().map(|last| Position::of(&last.finding));
    }
}
