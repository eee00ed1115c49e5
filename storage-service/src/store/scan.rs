//! Walks several index ranges as one, newest first.

use tapio_schemas::UnixNanos;

use super::error::StoreError;
use super::keys::Position;

/// Part of an index: from `since` (inclusive) to below `until` and below `before`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) since: UnixNanos,
    pub(super) until: Option<UnixNanos>,
    pub(super) before: Option<Position>,
}

/// Positions of several index parts in descending order, each once.
pub(super) struct Newest {
    sources: Vec<Source>,
    last: Option<Position>,
}

struct Source {
    iter: std::iter::Rev<sled::Iter>,
    head: Option<Position>,
}

impl Newest {
    pub(super) fn open(tree: &sled::Tree, prefixes: &[Vec<u8>], window: Window) -> Result<Self, StoreError> {
        let mut sources = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            let from = [&prefix[..], &window.since.0.to_be_bytes()].concat();
            let to = upper_bound(prefix, window);
            if from >= to {
                continue;
            }
            let mut source = Source { iter: tree.range(from..to).rev(), head: None };
            source.advance()?;
            sources.push(source);
        }
        Ok(Self { sources, last: None })
    }

    /// The next position.
    pub(super) fn next(&mut self) -> Result<Option<Position>, StoreError> {
        loop {
            let newest = self.sources.iter_mut().max_by_key(|source| source.head);
            let Some(source) = newest else { return Ok(None) };
            let Some(position) = source.head else { return Ok(None) };
            source.advance()?;
            if self.last != Some(position) {
                self.last = Some(position);
                return Ok(Some(position));
            }
        }
    }
}

impl Source {
    fn advance(&mut self) -> Result<(), StoreError> {
        self.head = match self.iter.next() {
            Some(item) => Some(Position::from_key(&item.map_err(StoreError::Read)?.0)?),
            None => None,
        };
        Ok(())
    }
}

/// Exclusive. A bare time sorts before every position of that time.
fn upper_bound(prefix: &[u8], window: Window) -> Vec<u8> {
    let until = window.until.map(|until| [prefix, &until.0.to_be_bytes()].concat());
    let before = window.before.map(|before| [prefix, &before.to_bytes()].concat());
    // Longer than any position, so above all of them.
    let end = || [prefix, &[0xff; 25]].concat();
    [until, before].into_iter().flatten().min().unwrap_or_else(end)
}
