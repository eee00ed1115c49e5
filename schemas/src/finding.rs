//! A finding: a story with evidence, as published on `tapio.v1.insights.>` and stored.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::entity::Entity;
use crate::ids::{FindingId, GroupId, Score, UnixNanos};
use crate::vocabulary::vocabulary;

/// Value of [`Finding::schema`].
pub const FINDING_SCHEMA: &str = "tapio.finding/v1";
/// Findings with a confidence above this are persisted.
pub const PERSIST_CONFIDENCE_ABOVE: f64 = 0.7;

vocabulary! {
    /// How bad it is.
    pub enum Severity: u8 {
        Info = 1 => "info",
        Warning = 2 => "warning",
        Error = 3 => "error",
        Critical = 4 => "critical",
    }
}

vocabulary! {
    /// Where the incident stands.
    pub enum Status: u8 {
        /// It is going on.
        Active = 1 => "active",
        /// It is over.
        Recovered = 2 => "recovered",
        /// Nothing is wrong.
        Healthy = 3 => "healthy",
        /// Something is wrong, but the evidence does not single out a cause.
        NotProvable = 4 => "not_provable",
        /// It turned out to be part of another incident, which goes on under its own id.
        Superseded = 5 => "superseded",
    }
}

/// What broke, why, what is next, what to do. Field order is the order of the published JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Always [`FINDING_SCHEMA`].
    pub schema: SmolStr,
    /// Stable over all revisions of one incident.
    pub id: FindingId,
    /// 1, 2, …: grows when the content changes.
    pub revision: u32,
    /// Where it stands.
    pub status: Status,
    /// The finding that tells the rest, when this one is `superseded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<FindingId>,
    /// Cluster.
    pub cluster: SmolStr,
    /// How bad.
    pub severity: Severity,
    /// One line.
    pub title: String,
    /// A few sentences, each backed by evidence.
    pub story: String,
    /// Event time at which Tapio opened it.
    pub opened_at: UnixNanos,
    /// First evidence that something was wrong.
    pub first_bad_at: UnixNanos,
    /// Last evidence.
    pub updated_at: UnixNanos,
    /// Watermark at which this revision was made.
    pub emitted_at: UnixNanos,
    /// Calibrated probability that the root cause is right.
    pub confidence: Score,
    /// Why; `None` when not provable.
    pub root_cause: Option<RootCause>,
    /// What was weighed, most probable first.
    pub hypotheses: Vec<Hypothesis>,
    /// What happened, in time order.
    pub chain: Vec<ChainLink>,
    /// What failing containers of it said last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<LastWords>,
    /// Who suffers.
    pub impact: Impact,
    /// What comes next where the cause is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// What comes next elsewhere: callers that suffer, budgets that are used up. Each names its entity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predictions: Vec<Prediction>,
    /// What to do.
    pub actions: Vec<Action>,
    /// What the evidence is about.
    pub semantic_group: SemanticGroup,
    /// How complete the evidence is.
    pub freshness: Freshness,
}

/// The cause and its seat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootCause {
    /// Where.
    pub entity: Entity,
    /// `<category>.<name>`.
    pub cause: SmolStr,
    /// Event and signal ids.
    pub evidence: Vec<String>,
}

/// A cause that was weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hypothesis {
    /// Where.
    pub entity: Entity,
    /// Cause id.
    pub cause: SmolStr,
    /// Posterior probability.
    pub probability: Score,
    /// What it explains: signal kinds with entity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explains: Vec<String>,
    /// What it would have needed to see and did not.
    #[serde(default)]
    pub missing: Vec<String>,
    /// What speaks against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refuted_by: Vec<String>,
}

/// One step of the story.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChainLink {
    /// When.
    pub at: UnixNanos,
    /// Where.
    pub entity: Entity,
    /// Signal kind.
    pub signal: SmolStr,
    /// In words.
    pub says: String,
    /// Event ids.
    pub evidence: Vec<String>,
}

/// The last lines of a container that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastWords {
    /// Namespace of its pod.
    pub namespace: SmolStr,
    /// Its pod.
    pub pod: SmolStr,
    /// Its name.
    pub container: SmolStr,
    /// When they were read, soon after it ended.
    pub at: UnixNanos,
    /// Oldest first; secrets are masked, lines alike but for numbers are told once, the last one with the count.
    pub lines: Vec<String>,
}

/// Who suffers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Impact {
    /// 0..=1.
    pub business_impact: Score,
    /// A customer notices.
    pub customer_facing: bool,
    /// An objective is touched.
    pub slo_impact: bool,
    /// Risk that callers fail too.
    pub cascade_risk: Score,
    /// Share of requests that failed, 0..=1.
    pub requests_affected: Score,
    /// Who calls the root cause.
    pub callers: Vec<String>,
}

/// Scenario of a [`Prediction`]: the error budget of a service is used up.
pub const SCENARIO_BUDGET: &str = "error_budget_used_up";
/// Scenario of a [`Prediction`]: a caller will show symptoms of the fault of what it calls.
pub const SCENARIO_CASCADE_CALL: &str = "cascade_call";
/// Scenario of a [`Prediction`]: … of what it is connected to.
pub const SCENARIO_CASCADE_CONNECTION: &str = "cascade_connection";

/// What comes next, with an interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Of what, when it is not the entity of the finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
    /// `oom_kill`, …
    pub scenario: SmolStr,
    /// How probable.
    pub probability: Score,
    /// Best estimate.
    pub at: UnixNanos,
    /// Earliest and latest (90 %).
    pub interval: (UnixNanos, UnixNanos),
    /// `pending` until it is scored: `hit` (it came within the interval), `early` (before it), `miss` (later or not at
    /// all), `not_due` (what it rested on went away before its time).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<SmolStr>,
}

impl Prediction {
    /// Whether it came, as the stated probability counts it: `None` while that is open, or when what it rested on went away
    /// and the probability was about its going on. That of a budget is about errors that may stop.
    pub fn came(&self) -> Option<bool> {
        match self.outcome.as_deref()? {
            "hit" | "early" => Some(true),
            "miss" => Some(false),
            "not_due" if self.scenario == SCENARIO_BUDGET => Some(false),
            _ => None,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// In words.
    pub title: String,
    /// `low`, `medium`, `high`.
    pub risk: SmolStr,
    /// Command.
    pub command: String,
    /// Command that undoes it; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub undo: String,
}

/// Events of one trace or lineage that share a meaning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SemanticGroup {
    /// Id.
    pub id: GroupId,
    /// `memory_pressure_cascade`, `network_connectivity`, `rollout`, `pod_startup`, `service_failure`, …
    #[serde(rename = "type")]
    pub group_type: SmolStr,
    /// What is going on.
    pub intent: SmolStr,
}

/// How complete the evidence is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Freshness {
    /// Event time up to which everything is known.
    pub watermark: UnixNanos,
    /// Holes, in words.
    pub gaps: Vec<String>,
}

impl Finding {
    /// De-duplication id on the bus.
    pub fn message_id(&self) -> String {
        format!("{}-{}", self.id, self.revision)
    }

    /// Subject it is published on: that of the root cause's entity, else of the first link.
    pub fn subject(&self) -> String {
        let nobody = Entity::default();
        crate::names::insight_subject(self.severity, &self.cluster, self.entity().unwrap_or(&nobody))
    }

    /// The entity it is about.
    pub fn entity(&self) -> Option<&Entity> {
        self.root_cause.as_ref().map(|r| &r.entity).or_else(|| self.chain.first().map(|l| &l.entity))
    }

    /// All that is foretold.
    pub fn foretold(&self) -> impl Iterator<Item = &Prediction> {
        self.prediction.iter().chain(&self.predictions)
    }

    /// Where the cause is thought to be while none is proven.
    pub fn suspect(&self) -> Option<&Entity> {
        self.hypotheses.first().map(|likely| &likely.entity).filter(|_| self.root_cause.is_none())
    }

    /// What it tells of: the root cause, or what is thought to be it, and everything in the chain.
    pub fn entities(&self) -> impl Iterator<Item = &Entity> {
        let root = self.root_cause.as_ref().map(|root| &root.entity);
        root.or(self.suspect()).into_iter().chain(self.chain.iter().map(|link| &link.entity))
    }

    /// True when `query` names one of its [`Self::entities`].
    pub fn mentions(&self, query: &Entity) -> bool {
        self.entities().any(|entity| query.matches(entity))
    }
}
