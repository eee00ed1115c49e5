//! The causal model as data: which cause, on which kind of entity, explains which signals on related entities.
//!
//! Patterns are YAML files, one cause each. They are checked when they are loaded: unknown keys, predicates that do not
//! compile, templates that name nothing and impossible numbers are errors that name file and line.

mod cases;
mod error;
mod lint;
mod pattern;
mod predicate;
mod template;

use std::path::Path;

pub use cases::{Case, CaseEntity, CaseSignal, Expectation};
pub use error::ModelError;
pub use pattern::{
    Absence, ActionSpec, ChangePrior, ImpactSpec, Pattern, RefuterSpec, Relation, Share, SignedDuration,
    StorySpec, SymptomSpec, TemperSpec, is_workload, sits_on,
};
pub use predicate::{Facts, Predicate};
pub use template::{Template, TemplateValue, bytes, clock_time, duration};

use crate::calibration::Calibration;

/// Largest pattern file that is read, bytes.
pub const PATTERN_BYTES_MAX: u64 = 256 * 1024;
/// Most patterns in one model.
pub const PATTERNS_MAX: usize = 1024;

/// The patterns that are part of the program.
const BUILTIN: &[(&str, &str)] = &[
    ("admission.webhook_unavailable.yaml", include_str!("../../patterns/admission.webhook_unavailable.yaml")),
    ("memory.leak.yaml", include_str!("../../patterns/memory.leak.yaml")),
    ("memory.limit_exceeded.yaml", include_str!("../../patterns/memory.limit_exceeded.yaml")),
    ("memory.child_killed.yaml", include_str!("../../patterns/memory.child_killed.yaml")),
    ("code.crash_signal.yaml", include_str!("../../patterns/code.crash_signal.yaml")),
    ("code.crash_exit.yaml", include_str!("../../patterns/code.crash_exit.yaml")),
    ("code.changed_behaviour.yaml", include_str!("../../patterns/code.changed_behaviour.yaml")),
    ("code.not_answering.yaml", include_str!("../../patterns/code.not_answering.yaml")),
    ("code.request_errors.yaml", include_str!("../../patterns/code.request_errors.yaml")),
    ("dependency.refused.yaml", include_str!("../../patterns/dependency.refused.yaml")),
    ("dependency.unresponsive.yaml", include_str!("../../patterns/dependency.unresponsive.yaml")),
    ("network.packet_loss.yaml", include_str!("../../patterns/network.packet_loss.yaml")),
    ("cpu.contention.yaml", include_str!("../../patterns/cpu.contention.yaml")),
    ("network.delay.yaml", include_str!("../../patterns/network.delay.yaml")),
    ("cpu.throttling.yaml", include_str!("../../patterns/cpu.throttling.yaml")),
    ("runtime.unit_failed.yaml", include_str!("../../patterns/runtime.unit_failed.yaml")),
    ("config.changed.yaml", include_str!("../../patterns/config.changed.yaml")),
    ("config.missing_reference.yaml", include_str!("../../patterns/config.missing_reference.yaml")),
    ("image.pull_failed.yaml", include_str!("../../patterns/image.pull_failed.yaml")),
    ("node.not_ready.yaml", include_str!("../../patterns/node.not_ready.yaml")),
    ("storage.claim_pending.yaml", include_str!("../../patterns/storage.claim_pending.yaml")),
    ("scheduling.unschedulable.yaml", include_str!("../../patterns/scheduling.unschedulable.yaml")),
    ("probe.kills_healthy.yaml", include_str!("../../patterns/probe.kills_healthy.yaml")),
    ("quota.exceeded.yaml", include_str!("../../patterns/quota.exceeded.yaml")),
    ("tapio.disk_full.yaml", include_str!("../../patterns/tapio.disk_full.yaml")),
    ("tapio.falling_behind.yaml", include_str!("../../patterns/tapio.falling_behind.yaml")),
    ("tapio.losing_events.yaml", include_str!("../../patterns/tapio.losing_events.yaml")),
    ("tapio.nats_away.yaml", include_str!("../../patterns/tapio.nats_away.yaml")),
    ("tapio.short_of_memory.yaml", include_str!("../../patterns/tapio.short_of_memory.yaml")),
    ("tapio.slow_batches.yaml", include_str!("../../patterns/tapio.slow_batches.yaml")),
    ("tapio.slow_stream.yaml", include_str!("../../patterns/tapio.slow_stream.yaml")),
    ("rollout.bad_image.yaml", include_str!("../../patterns/rollout.bad_image.yaml")),
];

/// All patterns, in the order of their cause ids.
#[derive(Debug)]
pub struct Model {
    patterns: Vec<Pattern>,
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
        let fault = |what: &Path, source| ModelError::Read { path: what.to_owned(), source };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| fault(path, e))? {
            let file = entry.map_err(|e| fault(path, e))?.path();
            if file.extension().is_none_or(|e| e != "yaml" && e != "yml") {
                continue;
            }
            let bytes = std::fs::metadata(&file).map_err(|e| fault(&file, e))?.len();
            if bytes > PATTERN_BYTES_MAX {
                return Err(ModelError::TooLarge { path: file, bytes, bytes_max: PATTERN_BYTES_MAX });
            }
            let text = std::fs::read_to_string(&file).map_err(|e| fault(&file, e))?;
            files.push((file.display().to_string(), text));
        }
        files.sort();
        if files.is_empty() {
            return Err(ModelError::Empty { path: path.to_owned() });
        }
        Self::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Patterns from (file name, text) pairs.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ModelError> {
        let mut patterns: Vec<Pattern> = Vec::new();
        for (file, text) in files {
            let pattern: Pattern = serde_norway::from_str(text).map_err(|e| ModelError::yaml(file, &e))?;
            lint::check(&pattern).map_err(|reason| ModelError::lint(file, text, reason))?;
            if patterns.iter().any(|p| p.id == pattern.id) {
                let reason = format!("cause `{}` is defined twice; keep one", pattern.id);
                return Err(ModelError::lint(file, text, lint::Fault { key: "id", reason }));
            }
            patterns.push(pattern);
        }
        if patterns.len() > PATTERNS_MAX {
            return Err(ModelError::TooMany { count: patterns.len(), count_max: PATTERNS_MAX });
        }
        patterns.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Self { patterns, calibration: Calibration::IDENTITY })
    }

    /// The patterns, by cause id.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// What is stated for a raw confidence: the identity, unless these are the patterns that it was fitted with.
    pub fn calibration(&self) -> Calibration {
        self.calibration
    }

    /// The pattern of a cause.
    pub fn pattern(&self, cause: &str) -> Option<&Pattern> {
        self.patterns.iter().find(|p| p.id == cause)
    }
}
