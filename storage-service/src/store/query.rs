//! Questions: get, list by pages, why.

use std::sync::Arc;

use tapio_schemas::finding::Status;
use tapio_schemas::{Entity, Finding, FindingId, Severity, SmolStr, UnixNanos};

use super::keys::{self, Position, Role};
use super::record::StoredFinding;
use super::scan::{Newest, Window};
use super::{Store, StoreError};

/// Findings looked at for one page; a page that ends here may be short and has a cursor.
pub const SCANNED_PER_PAGE_MAX: usize = 10_000;

/// What to list. The default is everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Updated at or after.
    pub since: UnixNanos,
    /// Updated before.
    pub until: Option<UnixNanos>,
    /// Has this entity as root cause or in its chain.
    pub entity: Option<Entity>,
    /// Cause id or category.
    pub cause: Option<SmolStr>,
    /// At least as bad.
    pub min_severity: Option<Severity>,
    /// Where it stands.
    pub status: Option<Status>,
    /// Has a prediction.
    pub with_prediction: bool,
}

/// How much of an answer at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    /// Findings, at least 1.
    pub findings: usize,
    /// Bytes of their documents; the first one is given whatever its size.
    pub bytes: usize,
}

/// Part of an answer.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Newest first; the newest revision of each.
    pub findings: Vec<Arc<StoredFinding>>,
    /// Where to go on; `None` at the end.
    pub next: Option<Position>,
}

impl Filter {
    /// True when a finding is wanted.
    pub fn accepts(&self, finding: &Finding) -> bool {
        let cause = |want: &SmolStr| {
            finding.root_cause.as_ref().is_some_and(|root| {
                let rest = root.cause.strip_prefix(want.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        finding.updated_at >= self.since
            && self.until.is_none_or(|until| finding.updated_at < until)
            && self.entity.as_ref().is_none_or(|entity| finding.mentions(entity))
            && self.cause.as_ref().is_none_or(cause)
            && self.min_severity.is_none_or(|least| finding.severity >= least)
            && self.status.is_none_or(|status| finding.status == status)
            && (!self.with_prediction || finding.foretold().next().is_some())
    }

    /// The narrowest index that has every wanted finding.
    fn index_parts(&self) -> Vec<Vec<u8>> {
        if let Some(entity) = &self.entity {
            let term = keys::query_term(&entity.name);
            return [Role::RootCause, Role::Chain].map(|role| keys::by_entity(role, term)).into();
        }
        if let Some(cause) = &self.cause {
            return vec![keys::by_cause(cause)];
        }
        if self.with_prediction {
            return vec![keys::by_prediction()];
        }
        match self.min_severity {
            None | Some(Severity::Info) => vec![keys::by_time()],
            Some(least) => {
                let wanted = Severity::ALL.iter().filter(|severity| **severity >= least);
                wanted.map(|severity| keys::by_severity(*severity)).collect()
            }
        }
    }
}

impl Store {
    /// One finding; `None` for the revision means the newest.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Corrupt`].
    pub fn get(
        &self,
        id: FindingId,
        revision: Option<u32>,
    ) -> Result<Option<Arc<StoredFinding>>, StoreError> {
        let revision = match revision {
            Some(revision) => revision,
            None => match self.latest_revision(id)? {
                Some(revision) => revision,
                None => return Ok(None),
            },
        };
        self.load(id, revision)
    }

    /// Findings that match, newest first, from below `after`.
    ///
    /// # Errors
    /// [`StoreError::Read`]. A record that does not decode is left out, counted and logged.
    pub fn list(&self, filter: &Filter, after: Option<Position>, size: PageSize) -> Result<Page, StoreError> {
        let window = Window { since: filter.since, until: filter.until, before: after };
        let mut newest = Newest::open(&self.db, &filter.index_parts(), window)?;
        let mut page = Page::default();
        let (mut last, mut bytes) = (None, 0);
        for _ in 0..SCANNED_PER_PAGE_MAX {
            let Some(position) = newest.next()? else { return Ok(page) };
            if page.findings.len() == size.findings {
                page.next = last;
                return Ok(page);
            }
            if let Some(stored) = self.load_current(position)?
                && filter.accepts(&stored.finding)
            {
                bytes += stored.json.len();
                if bytes > size.bytes && !page.findings.is_empty() {
                    page.next = last;
                    return Ok(page);
                }
                page.findings.push(stored);
            }
            last = Some(position);
        }
        page.next = last;
        Ok(page)
    }

    /// The newest finding whose root cause is on the entity, else the newest that has it in its chain.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn why(&self, entity: &Entity) -> Result<Option<Arc<StoredFinding>>, StoreError> {
        let term = keys::query_term(&entity.name);
        for role in [Role::RootCause, Role::Chain] {
            let window = Window { since: UnixNanos(0), until: None, before: None };
            let mut newest = Newest::open(&self.db, &[keys::by_entity(role, term)], window)?;
            for _ in 0..SCANNED_PER_PAGE_MAX {
                let Some(position) = newest.next()? else { break };
                let Some(stored) = self.load_current(position)? else { continue };
                let finding = &stored.finding;
                let named = match role {
                    Role::RootCause => {
                        finding.root_cause.as_ref().is_some_and(|root| entity.matches(&root.entity))
                    }
                    Role::Chain => finding.mentions(entity),
                };
                if named {
                    return Ok(Some(stored));
                }
            }
        }
        Ok(None)
    }

    /// The finding an index entry points to, unless the writer moved it meanwhile.
    pub(super) fn load_current(&self, position: Position) -> Result<Option<Arc<StoredFinding>>, StoreError> {
        match self.get(position.id, None) {
            Ok(Some(stored)) if stored.finding.updated_at == position.updated_at => Ok(Some(stored)),
            Ok(_) => Ok(None),
            Err(error @ StoreError::Corrupt { .. }) => {
                self.metrics.unreadable.inc();
                tracing::error!(%error, "a stored finding is left out of an answer");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
