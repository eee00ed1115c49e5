//! A pattern's own tests: signals in, verdict out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use smol_str::SmolStr;
use tapio_schemas::finding::Status;
use tapio_schemas::signal::{EdgeKind, Fact, Forecast};
use tapio_schemas::wire::SignalSection;
use tapio_schemas::{Attribute, AttributeValue, EntityRef, Score, Signal, SignalKind, TraceId, UnixNanos};

use super::pattern::SignedDuration;
use crate::services::ServiceState;

/// Any moment will do; cases count from here.
pub const CASE_START: UnixNanos = UnixNanos(1_767_225_600_000_000_000);

/// An entity of a case.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaseEntity {
    namespace: SmolStr,
    workload_kind: SmolStr,
    workload: SmolStr,
    pod: SmolStr,
    container: SmolStr,
    service: SmolStr,
    node: SmolStr,
    unit: SmolStr,
    cgroup: SmolStr,
    object_kind: SmolStr,
    object: SmolStr,
}

impl CaseEntity {
    /// As an event would carry it.
    pub fn to_ref(&self) -> EntityRef {
        let own = self.clone();
        EntityRef {
            cluster: "case".into(),
            namespace: own.namespace,
            workload_kind: own.workload_kind,
            workload: own.workload,
            pod: own.pod,
            container: own.container,
            service: own.service,
            node: own.node,
            unit: own.unit,
            cgroup: own.cgroup,
            object_kind: own.object_kind,
            object: own.object,
            ..EntityRef::default()
        }
        .sealed()
    }
}

/// A signal of a case, times relative to its start.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseSignal {
    signal: SignalKind,
    on: String,
    peer: Option<String>,
    at: SignedDuration,
    until: Option<SignedDuration>,
    #[serde(default)]
    ended: bool,
    #[serde(default = "certain")]
    strength: f64,
    #[serde(default = "once")]
    count: u64,
    #[serde(default)]
    trace: u64,
    /// What was measured.
    #[serde(default)]
    observed: f64,
    /// The process, of what the kernel tells.
    #[serde(default)]
    pid: u32,
    /// Earliest, best, latest.
    forecast: Option<(SignedDuration, SignedDuration, SignedDuration)>,
    #[serde(default)]
    attributes: BTreeMap<String, AttributeValue>,
}

fn certain() -> f64 {
    1.0
}

fn once() -> u64 {
    1
}

/// What the service model of stage two knows of a service when the case is judged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseState {
    of: String,
    at: SignedDuration,
    /// Edges to and from it with recent calls, and those on which calls take longer.
    #[serde(default)]
    edges: u32,
    #[serde(default)]
    edges_slow: u32,
    /// When its processor was last measured and not saturated.
    cpu_normal_at: Option<SignedDuration>,
}

/// The verdict wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expectation {
    /// Root cause; absent = there must be none.
    pub cause: Option<SmolStr>,
    /// Short name of its entity.
    pub seat: Option<String>,
    /// Status.
    pub status: Option<Status>,
    /// Confidence is above this.
    pub above: Option<f64>,
    /// Confidence is at most this.
    pub at_most: Option<f64>,
    /// Number of findings; default 1.
    pub findings: Option<usize>,
    /// One of the findings is as expected; else all are.
    pub among: bool,
    /// There is a prediction with this outcome.
    pub prediction: Option<SmolStr>,
    /// A cause that must be among the refuted or weaker hypotheses.
    pub not: Option<SmolStr>,
    /// Of that cause, or without one of the root cause, it is told in these words what speaks against it.
    pub because: Option<String>,
    /// The story has these words.
    pub says: Option<String>,
    /// The story does not have these words.
    pub silent: Option<String>,
    /// Number of links in the chain.
    pub chain: Option<usize>,
}

/// One test of a pattern.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Signals.
    pub signals: Vec<CaseSignal>,
    /// What is known of services.
    #[serde(default)]
    pub states: Vec<CaseState>,
    /// Who calls whom (short names).
    #[serde(default)]
    pub calls: Vec<(String, String)>,
    /// Who mounts what, or reads its variables from it (short names).
    #[serde(default)]
    pub mounts: Vec<(String, String)>,
    /// What limits whom (short names).
    #[serde(default)]
    pub limits: Vec<(String, String)>,
    /// Moment at which the verdict is taken.
    pub at: SignedDuration,
    /// The verdict.
    pub expect: Expectation,
}

fn moment(offset: SignedDuration) -> UnixNanos {
    UnixNanos(CASE_START.0.saturating_add_signed(offset.0))
}

impl Case {
    /// What stage one would have said. Errors name the entity that is not declared.
    pub fn section(&self, entities: &BTreeMap<String, CaseEntity>) -> Result<SignalSection, String> {
        let shared: BTreeMap<&str, Arc<EntityRef>> =
            entities.iter().map(|(name, entity)| (name.as_str(), Arc::new(entity.to_ref()))).collect();
        let find = |name: &str| {
            shared.get(name).cloned().ok_or_else(|| format!("case `{}`: no entity `{name}`", self.name))
        };
        let signals: Result<Vec<Signal>, String> = self.signals.iter().map(|s| s.to_signal(&find)).collect();
        let calls = self.calls.iter().map(|edge| (EdgeKind::Calls, edge));
        let mounts = self.mounts.iter().map(|edge| (EdgeKind::Mounts, edge));
        let limits = self.limits.iter().map(|edge| (EdgeKind::Limits, edge));
        let facts: Result<Vec<Fact>, String> = calls
            .chain(mounts)
            .chain(limits)
            .map(|(edge, (from, to))| {
                let (from, to) = (find(from)?.owner(), find(to)?.owner());
                Ok(Fact { at: CASE_START, edge, from, to, gone: false })
            })
            .collect();
        Ok(SignalSection { signals: signals?, facts: facts?, ..SignalSection::default() })
    }

    /// What stage two would know. Errors name the entity that is not declared.
    pub fn states(&self, entities: &BTreeMap<String, CaseEntity>) -> Result<Vec<ServiceState>, String> {
        let to_state = |state: &CaseState| {
            let entity = entities.get(&state.of);
            let entity = entity.ok_or_else(|| format!("case `{}`: no entity `{}`", self.name, state.of))?;
            Ok(ServiceState {
                at: moment(state.at),
                service: entity.to_ref().owner(),
                edges: state.edges,
                edges_slow: state.edges_slow,
                cpu_normal_at: state.cpu_normal_at.map(moment),
            })
        };
        self.states.iter().map(to_state).collect()
    }

    /// Moment at which the verdict is taken.
    pub fn verdict_at(&self) -> UnixNanos {
        moment(self.at)
    }
}

fn scenario(sign: SignalKind) -> &'static str {
    match sign {
        SignalKind::DiskGrowth => "disk_full",
        SignalKind::CertificateExpiring => "certificate_expired",
        _ => "oom_kill",
    }
}

impl CaseSignal {
    fn to_signal(&self, find: &dyn Fn(&str) -> Result<Arc<EntityRef>, String>) -> Result<Signal, String> {
        let entity = find(&self.on)?;
        let peer = self.peer.as_deref().map(|name| find(name).map(|e| e.owner())).transpose()?;
        let mut signal = Signal::new(self.signal, entity, peer, moment(self.at));
        signal.last_seen = moment(self.until.unwrap_or(self.at));
        signal.revision = 1;
        signal.ended = self.ended;
        signal.strength = Score::clamped(self.strength);
        signal.count = self.count;
        signal.pid = self.pid;
        signal.observed = self.observed;
        signal.trace_id = TraceId(u128::from(self.trace));
        signal.forecast = self.forecast.map(|(earliest, at, latest)| Forecast {
            scenario: scenario(self.signal).into(),
            probability: Score::clamped(0.9),
            at: moment(at),
            earliest: moment(earliest),
            latest: moment(latest),
        });
        signal.attributes = self
            .attributes
            .iter()
            .map(|(key, value)| Attribute { key: SmolStr::new(key), value: value.clone() })
            .collect();
        Ok(signal)
    }
}
