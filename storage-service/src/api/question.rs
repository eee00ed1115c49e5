//! From the text of a request to a question the store understands. Everything is checked here.

use serde::Deserialize;
use tapio_schemas::proto::v1::ListFindingsRequest;
use tapio_schemas::{Entity, FindingId, SmolStr, UnixNanos};

use super::ApiError;
use crate::store::{Filter, Position};

/// Findings per page when the request does not say.
const PAGE_FINDINGS_DEFAULT: usize = 100;
/// Most findings per page.
const PAGE_FINDINGS_MAX: usize = 1000;
/// Longest text in a request, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// A request to list, before it is checked. As JSON: all keys optional, times as RFC 3339 or
/// nanoseconds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuestion {
    /// Updated at or after.
    pub since: UnixNanos,
    /// Updated before; zero for no end.
    pub until: UnixNanos,
    /// `name`, `kind/name` or `namespace/kind/name`.
    pub entity: String,
    /// Cause id or category.
    pub cause: String,
    /// Lowest severity.
    pub min_severity: String,
    /// Where it stands.
    pub status: String,
    /// Only findings with a prediction.
    pub with_prediction: bool,
    /// At most so many; zero for 100.
    pub page_size: u32,
    /// From the answer before.
    pub page_token: String,
}

impl ListQuestion {
    /// Whether it asks for all that is known of an entity: no answer then means that there is no finding of it.
    pub(super) fn is_of_an_entity_alone(&self) -> bool {
        let others = [&self.cause, &self.min_severity, &self.status];
        let in_time = self.since == UnixNanos(0) && self.until == UnixNanos(0);
        !self.entity.is_empty() && others.iter().all(|it| it.is_empty()) && in_time && !self.with_prediction
    }
}

/// A checked request to list.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) filter: Filter,
    pub(super) after: Option<Position>,
    pub(super) page_findings: usize,
    fingerprint: u64,
}

impl From<ListFindingsRequest> for ListQuestion {
    fn from(request: ListFindingsRequest) -> Self {
        Self {
            since: UnixNanos(request.since_unix_nano),
            until: UnixNanos(request.until_unix_nano),
            entity: request.entity,
            cause: request.cause,
            min_severity: request.min_severity,
            status: request.status,
            with_prediction: request.with_prediction,
            page_size: request.page_size,
            page_token: request.page_token,
        }
    }
}

impl ListQuestion {
    pub(super) fn check(&self) -> Result<Checked, ApiError> {
        short("cause", &self.cause)?;
        let filter = Filter {
            since: self.since,
            until: Some(self.until).filter(|until| until.0 > 0),
            entity: optional("entity", &self.entity, entity)?,
            cause: Some(SmolStr::new(&self.cause)).filter(|cause| !cause.is_empty()),
            min_severity: optional("min_severity", &self.min_severity, word)?,
            status: optional("status", &self.status, word)?,
            with_prediction: self.with_prediction,
        };
        if self.page_size as usize > PAGE_FINDINGS_MAX {
            return Err(ApiError::invalid("page_size", format!("at most {PAGE_FINDINGS_MAX}")));
        }
        let page_findings = match self.page_size {
            0 => PAGE_FINDINGS_DEFAULT,
            size => size as usize,
        };
        let mut checked = Checked { fingerprint: fingerprint(&filter), filter, after: None, page_findings };
        if !self.page_token.is_empty() {
            checked.after = Some(checked.position(&self.page_token)?);
        }
        Ok(checked)
    }
}

impl Checked {
    /// The place and the fingerprint of the filter, in hexadecimal.
    pub(super) fn token(&self, next: Option<Position>) -> String {
        next.map_or_else(String::new, |position| {
            let (at, id) = (position.updated_at.0, position.id.0);
            format!("{at:016x}{id:032x}{:016x}", self.fingerprint)
        })
    }

    fn position(&self, token: &str) -> Result<Position, ApiError> {
        let part = |range: std::ops::Range<usize>| {
            let digits = token.get(range)?;
            let well_formed = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u128::from_str_radix(digits, 16).ok().filter(|_| well_formed)
        };
        let parts = (token.len() == 64).then(|| Some((part(0..16)?, part(16..48)?, part(48..64)?)));
        let Some((at, id, fingerprint)) = parts.flatten() else {
            return Err(ApiError::invalid("page_token", "it is not from an answer"));
        };
        if fingerprint != u128::from(self.fingerprint) {
            return Err(ApiError::invalid("page_token", "it belongs to a request with other filters"));
        }
        let updated_at = UnixNanos(u64::try_from(at).unwrap_or(u64::MAX));
        Ok(Position { updated_at, id: FindingId(id) })
    }
}

/// An entity query that names something.
pub(super) fn entity(field: &'static str, text: &str) -> Result<Entity, ApiError> {
    short(field, text)?;
    let entity = Entity::parse_query(text);
    if entity.name.trim_start_matches('/').is_empty() {
        let message = "expected `name`, `kind/name` or `namespace/kind/name`";
        return Err(ApiError::invalid(field, message));
    }
    Ok(entity)
}

/// A word of a closed vocabulary.
pub(super) fn word<W>(field: &'static str, text: &str) -> Result<W, ApiError>
where
    W: std::str::FromStr,
    W::Err: std::fmt::Display,
{
    text.parse().map_err(|error: W::Err| ApiError::invalid(field, error))
}

/// Empty means that nothing is asked.
pub(super) fn optional<T>(
    field: &'static str,
    text: &str,
    read: impl Fn(&'static str, &str) -> Result<T, ApiError>,
) -> Result<Option<T>, ApiError> {
    if text.is_empty() { Ok(None) } else { read(field, text).map(Some) }
}

/// Not too long.
pub(super) fn short(field: &'static str, text: &str) -> Result<(), ApiError> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(ApiError::invalid(field, format!("{} bytes are too long, at most {TEXT_BYTES_MAX}", text.len())))
}

/// FNV-1a over the filter: the same in every run, so that tokens outlive a restart.
fn fingerprint(filter: &Filter) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let text = format!("{filter:?}");
    text.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_place_and_only_with_its_filters() {
        let question = ListQuestion { cause: "memory".into(), ..ListQuestion::default() };
        let position = Position { updated_at: UnixNanos(7), id: FindingId(9) };
        let token = question.check().unwrap().token(Some(position));
        let again = ListQuestion { page_token: token.clone(), ..question };
        assert_eq!(again.check().unwrap().after, Some(position));
        let other = ListQuestion { page_token: token, cause: "cpu".into(), ..ListQuestion::default() };
        assert!(other.check().unwrap_err().to_string().contains("other filters"));
        for bad in ["x", &"é".repeat(32), &"+".repeat(64)] {
            let bad = ListQuestion { page_token: bad.to_owned(), ..ListQuestion::default() };
            assert!(matches!(bad.check(), Err(ApiError::Invalid { field: "page_token", .. })));
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let bad = |question: ListQuestion| match question.check() {
            Err(ApiError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let all = ListQuestion::default;
        assert_eq!(bad(ListQuestion { min_severity: "bad".into(), ..all() }), "min_severity");
        assert_eq!(bad(ListQuestion { status: "open".into(), ..all() }), "status");
        assert_eq!(bad(ListQuestion { page_size: 1001, ..all() }), "page_size");
        assert_eq!(bad(ListQuestion { entity: "pod/".into(), ..all() }), "entity");
        assert_eq!(bad(ListQuestion { cause: "c".repeat(513), ..all() }), "cause");
    }
}
