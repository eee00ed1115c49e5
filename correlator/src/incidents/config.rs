//! Settings of stage two.

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;

/// Windows and limits of stage two. All times are event time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IncidentConfig {
    /// Time between the first signal of an incident and its first finding, so that what belongs together is told
    /// together. Default 1 s.
    pub settle: HumanDuration,
    /// Figures that merely drift (usage, counts, a forecast that moves within its interval) are told again after this
    /// long. Default 10 s.
    pub refresh: HumanDuration,
    /// While an incident goes on it is looked at this often, even when nothing new is said. Default 1 s; longer is cheaper, and
    /// for who is asked about the end alone.
    pub look: HumanDuration,
    /// A signal without a word for this long is over, even when nobody said so. Default 10 min.
    pub stale: HumanDuration,
    /// How long after recovery a new signal still belongs to the incident. Default 5 min.
    pub reopen: HumanDuration,
    /// How long a change (image, configuration) is remembered as a possible reason. Default 1 h.
    pub change_memory: HumanDuration,
    /// How long an edge of the entity graph outlives what it joined. Default 10 min.
    pub tombstone: HumanDuration,
    /// An edge nobody mentions for this long is forgotten. Default 30 min.
    pub edge_memory: HumanDuration,
    /// Signals known at one time. Default 4096; the longest silent are forgotten and counted.
    pub signals_max: usize,
    /// Signals, facts and tallies that wait for their time. Default 262144; the oldest are taken early and counted.
    pub pending_max: usize,
    /// Incidents followed at one time. Default 512; the longest recovered are forgotten and counted.
    pub incidents_max: usize,
    /// Edges of the entity graph. Default 131072; further ones are refused and counted.
    pub edges_max: usize,
    /// Call edges tallied. Default 8192; further ones are refused and counted.
    pub tallies_max: usize,
    /// Causes weighed exactly for one incident; the best ones by a greedy choice above. Default 16.
    pub candidates_max: usize,
    /// Links of a chain. Default 32: the first ones and the last ones.
    pub chain_max: usize,
    /// Findings below this confidence that nothing has failed for are not published. Default 0.3.
    pub publish_confidence_min: f64,
    /// A cause below this probability is not named as the root cause. Default 0.5.
    pub provable_min: f64,
    /// State confidence as often as it was right on labelled cases, instead of as inferred. Default true; false to see what
    /// a new fit is made from.
    pub calibrated: bool,
}

impl Default for IncidentConfig {
    fn default() -> Self {
        Self {
            settle: HumanDuration::from_secs(1),
            refresh: HumanDuration::from_secs(10),
            look: HumanDuration::from_secs(1),
            stale: HumanDuration::from_secs(600),
            reopen: HumanDuration::from_secs(300),
            change_memory: HumanDuration::from_secs(3600),
            tombstone: HumanDuration::from_secs(600),
            edge_memory: HumanDuration::from_secs(1800),
            signals_max: 4096,
            pending_max: 262_144,
            incidents_max: 512,
            edges_max: 131_072,
            tallies_max: 8192,
            candidates_max: 16,
            chain_max: 32,
            publish_confidence_min: 0.3,
            provable_min: 0.5,
            calibrated: true,
        }
    }
}

/// Nanoseconds of a setting.
pub(super) fn nanos(duration: HumanDuration) -> u64 {
    u64::try_from(duration.get().as_nanos()).unwrap_or(u64::MAX)
}
