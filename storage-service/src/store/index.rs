//! Which index keys the newest revision of a finding has.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::Finding;

use super::embedding::Embedding;
use super::keys::{self, Position, Role};

/// Entities of one finding under which it can be found; the rest of a longer chain is not indexed.
const ENTITIES_INDEXED_MAX: usize = 64;
/// Levels of a cause id (`category.name`) under which it can be found.
const CAUSE_DEPTH_MAX: usize = 4;

/// All index keys of a finding, each once, with what stands under them. A function of the finding alone.
pub(super) fn entries_of(finding: &Finding) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut entries: BTreeMap<_, _> = keys_of(finding).map(|key| (key, Vec::new())).collect();
    entries.insert(embedding_key(finding), Embedding::of(finding).to_bytes());
    entries
}

/// The keys of [`entries_of`].
pub(super) fn all_keys_of(finding: &Finding) -> impl Iterator<Item = Vec<u8>> {
    keys_of(finding).chain([embedding_key(finding)])
}

fn embedding_key(finding: &Finding) -> Vec<u8> {
    [&keys::embeddings()[..], &Position::of(finding).to_bytes()].concat()
}

fn keys_of(finding: &Finding) -> impl Iterator<Item = Vec<u8>> {
    let mut prefixes = BTreeSet::from([keys::by_time(), keys::by_severity(finding.severity)]);
    if let Some(root) = &finding.root_cause {
        prefixes.insert(keys::by_cause(&root.cause));
        let dots = root.cause.match_indices('.').take(CAUSE_DEPTH_MAX);
        prefixes.extend(dots.map(|(dot, _)| keys::by_cause(&root.cause[..dot])));
        prefixes.extend(keys::terms(&root.entity.name).map(|t| keys::by_entity(Role::RootCause, &t)));
    }
    let chain: BTreeSet<_> = finding.chain.iter().map(|link| &link.entity.name).collect();
    let suspect = finding.suspect().map(|entity| &entity.name).filter(|name| !chain.contains(name));
    for name in suspect.into_iter().chain(chain.iter().copied()).take(ENTITIES_INDEXED_MAX) {
        prefixes.extend(keys::terms(name).map(|term| keys::by_entity(Role::Chain, &term)));
    }
    if finding.foretold().next().is_some() {
        prefixes.insert(keys::by_prediction());
    }
    let position = Position::of(finding).to_bytes();
    prefixes.into_iter().map(move |prefix| [&prefix[..], &position].concat())
}
