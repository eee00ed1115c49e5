//! Patterns of the user's own, from a directory such as a mounted ConfigMap, without a restart: the directory is looked at
//! every [`LOOK_EVERY`], and what has changed counts from the next decision on. A file that is wrong is rejected by itself,
//! with its line and the reason; what it said before no longer counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tokio::sync::watch;

use crate::model::{Model, ModelError};

/// Time between two looks at the directory.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Rejected files that are told in answers; the log has all.
const REJECTED_TOLD_MAX: usize = 4;

/// What is decided with.
#[derive(Debug, Clone)]
pub struct Patterns {
    /// The patterns of the program and the user's own over them.
    pub model: Arc<Model>,
    /// Own ones that count.
    pub own: usize,
    /// Why others do not, in words: file, line, reason.
    pub rejected: Vec<String>,
}

impl Patterns {
    /// Without any of the user's own.
    pub fn of(model: Arc<Model>) -> Self {
        Self { model, own: 0, rejected: Vec::new() }
    }

    /// What an answer has to say of them.
    pub fn gaps(&self) -> impl Iterator<Item = String> + '_ {
        self.rejected.iter().take(REJECTED_TOLD_MAX).map(|why| format!("a pattern is rejected: {why}"))
    }
}

/// A directory with patterns.
#[derive(Debug, Clone)]
pub struct OwnPatterns {
    directory: PathBuf,
    base: Arc<Model>,
}

#[derive(Debug, Clone)]
struct OwnMetrics {
    own: Gauge,
    rejected: Gauge,
}

impl OwnPatterns {
    /// Patterns of `directory` over those of `base`: one for the same cause takes the place of the other.
    pub fn new(directory: &Path, base: Arc<Model>) -> Self {
        Self { directory: directory.to_owned(), base }
    }

    /// Reads the directory. Never fails: what cannot be read is rejected.
    pub fn read(&self) -> Patterns {
        let (model, own, errors) = self.base.with_dir(&self.directory);
        let rejected = errors.iter().map(ModelError::to_string).collect();
        Patterns { model: Arc::new(model), own, rejected }
    }

    /// Looks at the directory until the context is shut down, and tells what has changed.
    ///
    /// # Errors
    /// When a thread that reads cannot be had.
    pub async fn run(
        self,
        patterns: watch::Sender<Patterns>,
        metrics: Metrics,
        context: WorkerContext,
    ) -> WorkerResult {
        let metrics = OwnMetrics {
            own: metrics.shared("correlator_own_patterns", "Patterns of the user's own that count"),
            rejected: metrics.shared(
                "correlator_rejected_patterns",
                "Files of the patterns directory that are rejected; the log says why",
            ),
        };
        metrics.set(&patterns.borrow());
        loop {
            tokio::select! {
                () = context.shutdown.wait() => return Ok(()),
                () = context.clock.sleep(LOOK_EVERY) => {}
            }
            context.progress.tick();
            let own = self.clone();
            let read = tokio::task::spawn_blocking(move || own.read()).await?;
            let is_new = patterns.send_if_modified(|known| {
                let is_new = !is_same(known, &read);
                if is_new {
                    *known = read.clone();
                }
                is_new
            });
            if is_new {
                log(&self.directory, &read);
                metrics.set(&read);
            }
        }
    }
}

impl OwnMetrics {
    fn set(&self, patterns: &Patterns) {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.own.set(signed(patterns.own));
        self.rejected.set(signed(patterns.rejected.len()));
    }
}

/// Says what was read, and each file that is wrong.
pub fn log(directory: &Path, patterns: &Patterns) {
    tracing::info!(directory = %directory.display(), own = patterns.own, "patterns are read");
    for why in &patterns.rejected {
        tracing::error!(why, "a pattern is rejected");
    }
}

fn is_same(one: &Patterns, other: &Patterns) -> bool {
    let sources = |patterns: &Patterns| -> Vec<Arc<str>> {
        patterns.model.patterns().iter().map(|pattern| Arc::clone(&pattern.source)).collect()
    };
    one.rejected == other.rejected && sources(one) == sources(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern of the program under another id.
    fn pattern(id: &str) -> String {
        let model = Model::builtin().unwrap();
        let known = model.pattern("quota.exceeded").unwrap();
        known.source.replace("quota.exceeded", id)
    }

    #[test]
    fn a_broken_file_is_rejected_with_its_line_and_the_rest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let base = Arc::new(Model::builtin().unwrap());
        let before = base.patterns().len();
        std::fs::write(dir.path().join("good.yaml"), pattern("quota.of_ours")).unwrap();
        std::fs::write(dir.path().join("bad.yaml"), format!("{}\nsurprise: 1\n", pattern("quota.bad")))
            .unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no pattern").unwrap();
        let own = OwnPatterns::new(dir.path(), base);
        let read = own.read();
        assert_eq!((read.own, read.rejected.len(), read.model.patterns().len()), (1, 1, before + 1));
        assert!(read.model.pattern("quota.of_ours").is_some());
        let why = &read.rejected[0];
        assert!(why.contains("bad.yaml:") && why.contains("surprise"), "{why}");
        assert_eq!(read.gaps().count(), 1);
        assert!(is_same(&read, &own.read()));
        // Mended, and the other taken away.
        std::fs::write(dir.path().join("bad.yaml"), pattern("quota.bad")).unwrap();
        std::fs::remove_file(dir.path().join("good.yaml")).unwrap();
        let mended = own.read();
        assert!(!is_same(&read, &mended));
        assert!(mended.rejected.is_empty() && mended.model.pattern("quota.of_ours").is_none());
        assert!(mended.model.pattern("quota.bad").is_some());
    }

    #[test]
    fn two_files_for_one_cause_and_a_directory_that_is_not_there_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let base = Arc::new(Model::builtin().unwrap());
        std::fs::write(dir.path().join("a.yaml"), pattern("quota.of_ours")).unwrap();
        std::fs::write(dir.path().join("b.yaml"), pattern("quota.of_ours")).unwrap();
        let read = OwnPatterns::new(dir.path(), Arc::clone(&base)).read();
        assert_eq!(read.own, 1);
        assert!(
            read.rejected[0].contains("b.yaml") && read.rejected[0].contains("defined twice"),
            "{:?}",
            read.rejected
        );
        let nowhere = OwnPatterns::new(&dir.path().join("nowhere"), base).read();
        assert!(nowhere.rejected[0].contains("nowhere"), "{:?}", nowhere.rejected);
    }

    #[test]
    fn a_pattern_of_the_program_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let base = Arc::new(Model::builtin().unwrap());
        std::fs::write(dir.path().join("mine.yaml"), pattern("quota.exceeded")).unwrap();
        let read = OwnPatterns::new(dir.path(), Arc::clone(&base)).read();
        assert_eq!((read.own, read.model.patterns().len()), (1, base.patterns().len()));
        assert!(read.model.pattern("quota.exceeded").unwrap().file.ends_with("mine.yaml"));
    }
}
