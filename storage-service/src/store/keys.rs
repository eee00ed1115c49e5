//! Keys. One ordered key space; the first byte names the part. Numbers are big endian and texts end
//! with a terminator that sorts below every continuation, so that byte order is the order we mean.

use tapio_schemas::{Finding, FindingId, Severity, SmolStr, UnixNanos};

use super::error::StoreError;

/// Facts about the store itself.
const META: u8 = b'm';
/// `id revision → record`.
const RECORD: u8 = b'f';
/// `id → newest revision`.
const LATEST: u8 = b'l';
/// `stored_at id revision`, for the retention.
const STORED: u8 = b'r';
/// `time id` of newest revisions.
const BY_TIME: u8 = b't';
/// `role term time id` of newest revisions.
const BY_ENTITY: u8 = b'e';
/// `cause-or-category time id` of newest revisions.
const BY_CAUSE: u8 = b'c';
/// `severity time id` of newest revisions.
const BY_SEVERITY: u8 = b's';
/// `time id → embedding` of newest revisions.
const EMBEDDING: u8 = b'v';
/// `time id` of newest revisions with a prediction.
const BY_PREDICTION: u8 = b'p';

/// The parts that are derived from the records and can be built again.
pub(super) const DERIVED: [u8; 8] =
    [LATEST, STORED, BY_TIME, BY_ENTITY, BY_CAUSE, BY_SEVERITY, EMBEDDING, BY_PREDICTION];
/// Bytes of a [`Position`] at the end of every index key.
const POSITION_BYTES: usize = 24;
/// Longer terms are cut; what they find is compared in full anyway.
const TERM_BYTES_MAX: usize = 256;

/// How a finding names an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// As its root cause.
    RootCause = 0,
    /// In its chain.
    Chain = 1,
}

/// Place of a finding in the order of answers: by time of its last evidence, then id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Last evidence of the newest revision.
    pub updated_at: UnixNanos,
    /// Finding.
    pub id: FindingId,
}

impl Position {
    /// Where a finding stands.
    pub fn of(finding: &Finding) -> Self {
        Self { updated_at: finding.updated_at, id: finding.id }
    }

    /// 24 bytes that sort as the position does.
    pub(super) fn to_bytes(self) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        bytes[..8].copy_from_slice(&self.updated_at.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.id.0.to_be_bytes());
        bytes
    }

    /// From the end of an index key.
    pub(super) fn from_key(key: &[u8]) -> Result<Self, StoreError> {
        let start = key.len().checked_sub(POSITION_BYTES).ok_or_else(|| unknown(key))?;
        let (time, id) = key[start..].split_at(8);
        Ok(Self {
            updated_at: UnixNanos(u64::from_be_bytes(time.try_into().map_err(|_| unknown(key))?)),
            id: FindingId(u128::from_be_bytes(id.try_into().map_err(|_| unknown(key))?)),
        })
    }
}

pub(super) fn meta(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

pub(super) fn records() -> [u8; 1] {
    [RECORD]
}

pub(super) fn records_of(id: FindingId) -> Vec<u8> {
    [&[RECORD][..], &id.0.to_be_bytes()].concat()
}

pub(super) fn record(id: FindingId, revision: u32) -> Vec<u8> {
    [&[RECORD][..], &id.0.to_be_bytes(), &revision.to_be_bytes()].concat()
}

/// Id and revision of a record's key.
pub(super) fn parse_record(key: &[u8]) -> Result<(FindingId, u32), StoreError> {
    match key.split_first() {
        Some((&RECORD, rest)) => parse_revision(rest).ok_or_else(|| unknown(key)),
        _ => Err(unknown(key)),
    }
}

pub(super) fn latest(id: FindingId) -> Vec<u8> {
    [&[LATEST][..], &id.0.to_be_bytes()].concat()
}

pub(super) fn stored(at: UnixNanos, id: FindingId, revision: u32) -> Vec<u8> {
    [&[STORED][..], &at.0.to_be_bytes(), &id.0.to_be_bytes(), &revision.to_be_bytes()].concat()
}

pub(super) fn stored_all() -> [u8; 1] {
    [STORED]
}

/// Time stored, id and revision of a retention key.
pub(super) fn parse_stored(key: &[u8]) -> Result<(UnixNanos, FindingId, u32), StoreError> {
    let parsed = key.strip_prefix(&[STORED]).and_then(|rest| {
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (id, revision) = parse_revision(rest)?;
        Some((UnixNanos(u64::from_be_bytes(*at)), id, revision))
    });
    parsed.ok_or_else(|| unknown(key))
}

fn parse_revision(bytes: &[u8]) -> Option<(FindingId, u32)> {
    let (id, rest) = bytes.split_first_chunk::<16>()?;
    let revision: [u8; 4] = rest.try_into().ok()?;
    Some((FindingId(u128::from_be_bytes(*id)), u32::from_be_bytes(revision)))
}

pub(super) fn by_time() -> Vec<u8> {
    vec![BY_TIME]
}

pub(super) fn embeddings() -> Vec<u8> {
    vec![EMBEDDING]
}

pub(super) fn by_prediction() -> Vec<u8> {
    vec![BY_PREDICTION]
}

pub(super) fn by_severity(severity: Severity) -> Vec<u8> {
    vec![BY_SEVERITY, severity as u8]
}

/// `cause` is a cause id or a category.
pub(super) fn by_cause(cause: &str) -> Vec<u8> {
    let mut key = vec![BY_CAUSE];
    push_term(&mut key, cause);
    key
}

/// `term` is one of [`terms`].
pub(super) fn by_entity(role: Role, term: &str) -> Vec<u8> {
    let mut key = vec![BY_ENTITY, role as u8];
    push_term(&mut key, term);
    key
}

/// The texts under which an entity's name can be asked for: the name without leading `/`, and the
/// pod of a `pod/container`. Follows what `Entity::matches` accepts.
pub(super) fn terms(name: &str) -> impl Iterator<Item = SmolStr> {
    let whole = query_term(name);
    let head = name.split('/').next().filter(|head| !head.is_empty() && *head != whole);
    [Some(SmolStr::new(whole)), head.map(SmolStr::new)].into_iter().flatten()
}

/// The text under which a query's name is looked up.
pub(super) fn query_term(name: &str) -> &str {
    name.trim_start_matches('/')
}

/// Zero bytes become `00 ff`, the end is `00 00`.
fn push_term(key: &mut Vec<u8>, term: &str) {
    for &byte in term.as_bytes().iter().take(TERM_BYTES_MAX) {
        key.push(byte);
        if byte == 0 {
            key.push(0xff);
        }
    }
    key.extend([0, 0]);
}

fn unknown(key: &[u8]) -> StoreError {
    StoreError::CorruptKey(key.iter().take(64).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn terms_sort_as_texts_and_none_is_a_prefix_of_another(a in "[\\x00a-c]{0,6}", b in "[\\x00a-c]{0,6}") {
            let (key_a, key_b) = (by_cause(&a), by_cause(&b));
            prop_assert_eq!(key_a.cmp(&key_b), a.cmp(&b));
            prop_assert!(a == b || !key_b.starts_with(&key_a));
        }

        #[test]
        fn positions_sort_as_they_should(a: (u64, u128), b: (u64, u128)) {
            let position = |(at, id)| Position { updated_at: UnixNanos(at), id: FindingId(id) };
            let (a, b) = (position(a), position(b));
            prop_assert_eq!(a.to_bytes().cmp(&b.to_bytes()), a.cmp(&b));
            prop_assert_eq!(Position::from_key(&a.to_bytes()).unwrap(), a);
        }

        #[test]
        fn retention_keys_sort_by_time_stored(a: (u64, u128, u32), b: (u64, u128, u32)) {
            let key = |(at, id, revision)| stored(UnixNanos(at), FindingId(id), revision);
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(parse_stored(&key(a)).unwrap(), (UnixNanos(a.0), FindingId(a.1), a.2));
        }
    }

    #[test]
    fn a_container_is_found_by_its_pod() {
        assert_eq!(terms("api-1/app").collect::<Vec<_>>(), ["api-1/app", "api-1"]);
        assert_eq!(terms("/demo/leak").collect::<Vec<_>>(), ["demo/leak"]);
        assert_eq!(terms("api").collect::<Vec<_>>(), ["api"]);
    }

    #[test]
    fn foreign_keys_are_errors() {
        assert!(parse_record(b"f123").is_err());
        assert!(parse_stored(b"x").is_err());
        assert!(Position::from_key(b"t").is_err());
    }
}
