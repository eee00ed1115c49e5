//! The causal model as data: which cause, on which kind of entity, explains which signals on related entities.
//!
//! Patterns are YAML files, one cause each. They are checked when they are loaded: unknown keys, predicates that do not
//! compile, templates that name nothing and impossible numbers are errors that name file and line.

mod builtin;
mod cases;
mod error;
mod lint;
mod page;
mod pattern;
mod predicate;
mod template;
mod tiers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use cases::{Case, CaseEntity, CaseSignal, Expectation};
pub use error::ModelError;
pub use page::{document, page, reference};
pub use pattern::{
    Absence, ActionSpec, ChangePrior, ImpactSpec, Pattern, RefuterSpec, Relation, Share, SignedDuration,
    StorySpec, SymptomSpec, TemperSpec, is_workload, sits_on,
};
pub use predicate::{Facts, Predicate};
pub use template::{
    Template, TemplateValue, bytes, clock_time, date_time, duration, on_one_line, percent, plain,
};
pub use tiers::Tiers;

use builtin::BUILTIN;

use crate::calibration::Calibration;

/// Largest pattern file that is read, bytes.
pub const PATTERN_BYTES_MAX: u64 = 256 * 1024;
/// Most patterns in one model.
pub const PATTERNS_MAX: usize = 1024;

fn unreadable(what: &Path, source: std::io::Error) -> ModelError {
    ModelError::Read { path: what.to_owned(), source }
}

/// Every `*.yaml` and `*.yml` of a directory, by name.
///
/// # Errors
/// When the directory cannot be read.
pub fn files_of(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|e| unreadable(directory, e))? {
        let file = entry.map_err(|e| unreadable(directory, e))?.path();
        if file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// All patterns, in the order of their cause ids.
#[derive(Debug)]
pub struct Model {
    patterns: Vec<Arc<Pattern>>,
    calibration: Calibration,
}

impl Model {
    /// The patterns that come with the program, and the calibration that belongs to them.
    pub fn builtin() -> Result<Self, ModelError> {
        let calibration = Calibration::builtin().map_err(|e| ModelError::yaml("calibration.yaml", &e))?;
        Ok(Self { calibration, ..Self::parse(BUILTIN.iter().copied())? })
    }

    /// Every `*.yaml` of a directory.
    pub fn load_dir(path: &Path) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        for file in files_of(path)? {
            let bytes = std::fs::metadata(&file).map_err(|e| unreadable(&file, e))?.len();
            if bytes > PATTERN_BYTES_MAX {
                return Err(ModelError::TooLarge { path: file, bytes, bytes_max: PATTERN_BYTES_MAX });
            }
            let text = std::fs::read_to_string(&file).map_err(|e| unreadable(&file, e))?;
            files.push((file.display().to_string(), text));
        }
        if files.is_empty() {
            return Err(ModelError::Empty { path: path.to_owned() });
        }
        Self::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Patterns from (file name, text) pairs.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ModelError> {
        let mut patterns: Vec<Arc<Pattern>> = Vec::new();
        for (file, text) in files {
            let pattern = Self::parse_one(file, text)?;
            if patterns.iter().any(|p| p.id == pattern.id) {
                let reason = format!("cause `{}` is defined twice; keep one", pattern.id);
                return Err(ModelError::lint(file, text, lint::Fault { key: "id", reason }));
            }
            patterns.push(Arc::new(pattern));
        }
        if patterns.len() > PATTERNS_MAX {
            return Err(ModelError::TooMany { count: patterns.len(), count_max: PATTERNS_MAX });
        }
        patterns.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Self { patterns, calibration: Calibration::IDENTITY })
    }

    /// One pattern, checked.
    ///
    /// # Errors
    /// [`ModelError::Invalid`], with file, line and reason.
    pub fn parse_one(file: &str, text: &str) -> Result<Pattern, ModelError> {
        if text.len() as u64 > PATTERN_BYTES_MAX {
            let (path, bytes) = (file.into(), text.len() as u64);
            return Err(ModelError::TooLarge { path, bytes, bytes_max: PATTERN_BYTES_MAX });
        }
        let mut pattern: Pattern = serde_norway::from_str(text).map_err(|e| ModelError::yaml(file, &e))?;
        lint::check(&pattern).map_err(|reason| ModelError::lint(file, text, reason))?;
        (pattern.file, pattern.source) = (file.into(), text.into());
        Ok(pattern)
    }

    /// This model with another pattern: it takes the place of the one of the same cause, when there is one.
    #[must_use]
    pub fn with(&self, pattern: Arc<Pattern>) -> Self {
        let mut patterns = self.patterns.clone();
        match patterns.binary_search_by(|known| known.id.cmp(&pattern.id)) {
            Ok(at) => patterns[at] = pattern,
            Err(at) => patterns.insert(at, pattern),
        }
        Self { patterns, calibration: self.calibration }
    }

    /// This model with the patterns of a directory over its own, how many these are, and what is wrong with others: each
    /// file counts or is rejected by itself.
    pub fn with_dir(&self, directory: &Path) -> (Self, usize, Vec<ModelError>) {
        let files = match files_of(directory) {
            Ok(files) => files,
            Err(error) => return (Self { patterns: self.patterns.clone(), ..*self }, 0, vec![error]),
        };
        let (mut own, mut errors) = (BTreeMap::new(), Vec::new());
        for file in files {
            match Self::read_one(&file) {
                Ok(pattern) if own.contains_key(&pattern.id) => {
                    let reason = format!("cause `{}` is defined twice; keep one", pattern.id);
                    let name = file.display().to_string();
                    errors.push(ModelError::lint(&name, &pattern.source, lint::Fault { key: "id", reason }));
                }
                Ok(_) if self.patterns.len() + own.len() >= PATTERNS_MAX => {
                    errors.push(ModelError::TooMany { count: PATTERNS_MAX + 1, count_max: PATTERNS_MAX });
                }
                Ok(pattern) => drop(own.insert(pattern.id.clone(), Arc::new(pattern))),
                Err(error) => errors.push(error),
            }
        }
        let count = own.len();
        let mut model = Self { patterns: self.patterns.clone(), ..*self };
        for pattern in own.into_values() {
            model = model.with(pattern);
        }
        (model, count, errors)
    }

    fn read_one(file: &Path) -> Result<Pattern, ModelError> {
        let bytes = std::fs::metadata(file).map_err(|e| unreadable(file, e))?.len();
        if bytes > PATTERN_BYTES_MAX {
            return Err(ModelError::TooLarge { path: file.to_owned(), bytes, bytes_max: PATTERN_BYTES_MAX });
        }
        let text = std::fs::read_to_string(file).map_err(|e| unreadable(file, e))?;
        Self::parse_one(&file.display().to_string(), &text)
    }

    /// The patterns, by cause id.
    pub fn patterns(&self) -> &[Arc<Pattern>] {
        &self.patterns
    }

    /// What is stated for a raw confidence: the identity, unless these are the patterns that it was fitted with.
    pub fn calibration(&self) -> Calibration {
        self.calibration
    }

    /// The pattern of a cause.
    pub fn pattern(&self, cause: &str) -> Option<&Pattern> {
        self.patterns.iter().find(|p| p.id == cause).map(Arc::as_ref)
    }
}
