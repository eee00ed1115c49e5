//! Who this run of the agent is, for sequences and ids.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tapio_schemas::ids::ProducerId;
use xxhash_rust::xxh3::Xxh3;

/// The restart counter cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot keep the restart counter in {path}: {source}; check permissions and free space of the data directory"
)]
pub struct EpochError {
    path: PathBuf,
    source: io::Error,
}

/// Producer id of the agent of one machine.
pub fn producer(cluster: &str, node: &str) -> ProducerId {
    let mut hash = Xxh3::new();
    for part in ["agent", cluster, node] {
        hash.update(&(part.len() as u32).to_le_bytes());
        hash.update(part.as_bytes());
    }
    ProducerId(hash.digest())
}

/// Seed of event ids: differs from run to run, and from id to id for different `run`s.
pub fn run_id(producer: ProducerId, run: u32) -> ProducerId {
    let mut hash = Xxh3::with_seed(u64::from(run));
    hash.update(&producer.0.to_le_bytes());
    ProducerId(hash.digest())
}

/// A number larger than that of any earlier run: kept in `dir`, and at least the clock's seconds, so that a
/// lost directory does not take it back.
///
/// # Errors
/// When `dir` is given and cannot be written.
pub fn next_epoch(dir: Option<&Path>, now_unix_nanos: u64) -> Result<u32, EpochError> {
    let by_clock = u32::try_from(now_unix_nanos / 1_000_000_000).unwrap_or(u32::MAX);
    let Some(dir) = dir else { return Ok(later_in_this_process(by_clock)) };
    let path = dir.join("epoch");
    let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let epoch = last.map_or(by_clock, |last| by_clock.max(last.saturating_add(1)));
    let keep = || {
        fs::create_dir_all(dir)?;
        let part = path.with_extension("part");
        let mut file = File::create(&part)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    keep().map_err(|source| EpochError { path: path.clone(), source })?;
    Ok(epoch)
}

/// Without a directory, an agent that is built anew within the same second must not take the number of the one before:
/// its first batches would count as repeated.
fn later_in_this_process(by_clock: u32) -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let next = |last: u32| Some(by_clock.max(last.saturating_add(1)));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|last| last);
    by_clock.max(last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_within_a_second_without_a_directory() {
        let first = next_epoch(None, 5_000_000_000).unwrap();
        assert!(next_epoch(None, 5_900_000_000).unwrap() > first);
    }

    #[test]
    fn epochs_grow_even_when_the_clock_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |secs: u64| next_epoch(Some(dir.path()), secs * 1_000_000_000).unwrap();
        assert_eq!(at(100), 100);
        assert_eq!(at(100), 101);
        assert_eq!(at(50), 102);
        assert_eq!(at(500), 500);
        assert_ne!(producer("a", "bc"), producer("ab", "c"));
    }

    #[test]
    fn an_unusable_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = next_epoch(Some(file.path()), 1).unwrap_err().to_string();
        assert!(error.contains("restart counter") && error.contains("epoch"), "{error}");
    }
}
