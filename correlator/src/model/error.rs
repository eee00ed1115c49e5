//! What can be wrong with a model.

use std::path::PathBuf;

use super::lint::Fault;

/// A model that cannot be used: which file, which line, why.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or directory that cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory without patterns.
    #[error("no pattern (*.yaml) in {path}; give the directory that holds them", path = path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A file that is too large to be a pattern.
    #[error("{path} has {bytes} bytes, a pattern has {bytes_max} at most", path = path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Limit.
        bytes_max: u64,
    },
    /// Too many patterns.
    #[error("{count} patterns, a model has {count_max} at most")]
    TooMany {
        /// How many.
        count: usize,
        /// Limit.
        count_max: usize,
    },
    /// A file that is not a pattern.
    #[error("{file}:{line}: {reason}")]
    Invalid {
        /// Which.
        file: String,
        /// Line, from 1; 0 when unknown.
        line: usize,
        /// Why, and what to do.
        reason: String,
    },
}

impl ModelError {
    pub(crate) fn yaml(file: &str, error: &serde_norway::Error) -> Self {
        let line = error.location().map_or(0, |l| l.line());
        Self::Invalid { file: file.to_owned(), line, reason: error.to_string() }
    }

    /// A fault found after reading: the line is the first one that has the fault's key.
    pub(super) fn lint(file: &str, text: &str, fault: Fault) -> Self {
        let key = format!("{}:", fault.key);
        let named =
            text.lines().position(|l| l.trim_start().starts_with(&key) || l.contains(&format!(" {key}")));
        let line = named.or_else(|| text.lines().position(|l| l.contains(fault.key))).map_or(0, |at| at + 1);
        Self::Invalid { file: file.to_owned(), line, reason: fault.reason }
    }
}
