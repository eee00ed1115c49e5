//! A cause as data.

use std::time::Duration;

use serde::Deserialize;
use smol_str::SmolStr;
use tapio_runtime::config::HumanDuration;
use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::{Severity, SignalKind};

use super::cases::{Case, CaseEntity};
use super::predicate::Predicate;
use super::template::Template;

/// One cause: where it sits, what it makes visible, what speaks against it, how to tell it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// `<category>.<name>`.
    pub id: SmolStr,
    /// One line; the first template that has all its data is used.
    pub title: Vec<Template>,
    /// Kinds of entities it can sit on; `workload` stands for every kind of owner of pods.
    pub sits_on: Vec<SmolStr>,
    /// Probability of this cause on such an entity, once one of its symptoms is seen and nothing else is known.
    pub prior: f64,
    /// Changes that raise the prior.
    #[serde(default)]
    pub changes: Vec<ChangePrior>,
    /// What it makes visible.
    pub symptoms: Vec<SymptomSpec>,
    /// What speaks against it.
    #[serde(default)]
    pub refuted_by: Vec<RefuterSpec>,
    /// What speaks against it the more, the more of it there is.
    #[serde(default)]
    pub tempered_by: Vec<TemperSpec>,
    /// Confidence that is stated at most while none of its felt symptoms is there: it may be so, and harm nobody.
    pub unfelt_max: Option<f64>,
    /// How to tell it.
    pub story: StorySpec,
    /// What to do.
    #[serde(default)]
    pub actions: Vec<ActionSpec>,
    /// Who suffers.
    pub impact: ImpactSpec,
    /// Where to read more.
    #[serde(default)]
    pub references: Vec<String>,
    /// Entities of the cases, by short name.
    #[serde(default)]
    pub entities: std::collections::BTreeMap<String, CaseEntity>,
    /// Its own tests.
    pub cases: Vec<Case>,
    /// File it was read from.
    #[serde(skip)]
    pub file: SmolStr,
    /// What the file says.
    #[serde(skip)]
    pub source: std::sync::Arc<str>,
}

/// Where a signal is, seen from the seat of the cause, over typed edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// On the seat itself or anything inside of it (pods and containers of a workload, processes of a cgroup).
    #[serde(rename = "self")]
    Itself,
    /// On something that calls or connects to the seat; a signal about an edge must be about the edge to the seat.
    Caller,
    /// On something that reaches the seat over several calls.
    Upstream,
    /// On something the seat calls or connects to; where signals on the seat that the cause requires have an other end, on that.
    Callee,
    /// On the machine the seat runs on.
    Node,
    /// On something that runs on the seat (a machine).
    Hosted,
    /// On something that mounts the seat (a ConfigMap, a Secret, a claim), reads its variables from it, or is limited by it
    /// (a NetworkPolicy).
    Mounter,
    /// On something the seat mounts or reads its variables from.
    Mounted,
}

/// A signal that the cause makes visible.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymptomSpec {
    /// Kind of the signal.
    pub signal: SignalKind,
    /// Where.
    pub on: Relation,
    /// Probability that it shows, given the cause.
    pub probability: f64,
    /// Name in templates; default is none.
    #[serde(rename = "as")]
    pub name: Option<SmolStr>,
    /// The cause is not considered without it.
    #[serde(default)]
    pub required: bool,
    /// One of several ways in which the cause shows where it sits: it lives by the clearest of them.
    #[serde(default)]
    pub vital: bool,
    /// Who asks something of the seat feels it: requests take longer, fail or go another way.
    #[serde(default)]
    pub felt: bool,
    /// Only who saw how it was before can tell of it (something is gone, or fits no longer): lists cannot.
    #[serde(default)]
    pub watched: bool,
    /// How telling it is by itself; 1 is a clear deviation.
    #[serde(default = "one")]
    pub weight: f64,
    /// Must hold for the signal.
    pub when: Option<Predicate>,
    /// Onset relative to the cause's first sign (or to the signal named by `after`): from, to.
    pub lag: Option<(SignedDuration, SignedDuration)>,
    /// Only when one of these has been seen on the seat; `lag` is then relative to the nearest one.
    #[serde(default)]
    pub after: Vec<SignalKind>,
    /// Its absence counts against the cause, once we would have been able to see it.
    pub absence: Option<Absence>,
}

fn one() -> f64 {
    1.0
}

/// When the absence of a symptom counts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absence {
    /// Not before this long after the first sign.
    pub after: HumanDuration,
    /// Condition under which we would have seen it.
    pub when: Option<Predicate>,
}

/// A change that raises the prior.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangePrior {
    /// Kind of the change.
    pub signal: SignalKind,
    /// Where.
    pub on: Relation,
    /// Name in templates; default is none (`change` is the last one of all).
    #[serde(rename = "as")]
    pub name: Option<SmolStr>,
    /// Within this long before the first sign.
    pub within: HumanDuration,
    /// Factor on the odds.
    pub factor: f64,
}

/// A signal that speaks against the cause.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefuterSpec {
    /// Kind.
    pub signal: SignalKind,
    /// Where.
    pub on: Relation,
    /// Must hold for the signal.
    pub when: Option<Predicate>,
    /// Onset relative to the cause's first sign.
    pub lag: Option<(SignedDuration, SignedDuration)>,
    /// Factor on the likelihood, below 1.
    pub factor: f64,
    /// Why, in words.
    pub says: Template,
}

/// A share that speaks against the cause: a factor to its power.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemperSpec {
    /// Of what.
    pub share: Share,
    /// Factor on the odds when it is all, below 1.
    pub factor: f64,
    /// Why, in words; `{share}` is the share.
    pub says: Template,
}

/// Shares that are known of a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Of its edges with recent calls, those on which they are under way as long as ever.
    CallsNormal,
}

/// How to tell it. Of `what` and `next` the first sentence that has its data is used; of `why` every one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorySpec {
    /// What happened.
    pub what: Vec<Template>,
    /// Why.
    #[serde(default)]
    pub why: Vec<Template>,
    /// Said only when no refuter of the cause has been seen.
    #[serde(default)]
    pub unopposed: Vec<Template>,
    /// What comes next.
    #[serde(default)]
    pub next: Vec<Template>,
}

/// What to do.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionSpec {
    /// In words.
    pub title: Template,
    /// `low`, `medium` or `high`.
    pub risk: SmolStr,
    /// Command.
    pub command: Template,
    /// Command that undoes it.
    pub undo: Option<Template>,
    /// Only when this holds (of `seat`).
    pub when: Option<Predicate>,
}

/// Who suffers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImpactSpec {
    /// Once something has failed; one step below before that.
    pub severity: Severity,
    /// 0..=1, when nothing is known about its callers.
    pub business_impact: f64,
    /// 0..=1: risk that a caller fails too.
    pub cascade_risk: f64,
}

/// A duration that may be negative: `-30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct SignedDuration(pub i64);

impl TryFrom<String> for SignedDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.as_str()),
        };
        let duration: HumanDuration =
            digits.parse().map_err(|_| format!("`{text}` is not a duration; write 30s or -5s"))?;
        let nanos = i64::try_from(Duration::from(duration).as_nanos())
            .map_err(|_| format!("`{text}` is longer than 292 years"))?;
        Ok(Self(sign * nanos))
    }
}

/// True when a cause that sits on `classes` can sit on `entity`.
pub fn sits_on(classes: &[SmolStr], entity: &Entity) -> bool {
    classes.iter().any(
        |class| {
            if class == "workload" { is_workload(&entity.kind) } else { *class == entity.kind }
        },
    )
}

/// Kinds that own no pods: what Tapio itself names, and the objects of Kubernetes that stand beside workloads.
const NO_WORKLOADS: [&str; 36] = [
    kinds::CLUSTER,
    kinds::NODE,
    kinds::NAMESPACE,
    kinds::POD,
    kinds::CONTAINER,
    kinds::SERVICE,
    kinds::SYSTEMD_UNIT,
    kinds::CGROUP,
    kinds::EXTERNAL,
    "ConfigMap",
    "Secret",
    "ServiceAccount",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "StorageClass",
    "VolumeAttachment",
    "ResourceQuota",
    "Component",
    "LimitRange",
    "NetworkPolicy",
    "Ingress",
    "Endpoints",
    "EndpointSlice",
    "Lease",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "PriorityClass",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "IngressClass",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "APIService",
];

/// True for kinds that own pods; a kind nobody knows may (a custom resource with an operator).
pub fn is_workload(kind: &str) -> bool {
    !kind.is_empty() && !NO_WORKLOADS.contains(&kind)
}
