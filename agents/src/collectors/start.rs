//! Starts the configured collectors. One that cannot work says so in its state and leaves the others alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{RestartPolicy, SuperviseError, Supervision};
use tapio_schemas::ids::ProducerId;

use super::status::{CollectorState, CollectorStates};
use super::{cgroup, ebpf};
use crate::attribution::{Attribution, Hierarchies};
use crate::config::AgentConfig;
use crate::node::{AgentError, AgentParts};
use crate::sink::EventSink;

/// One sink per collector.
pub struct Sinks {
    ebpf: EventSink,
    cgroup: EventSink,
}

impl Sinks {
    /// Opens all of them; those of disabled collectors stay empty.
    pub fn open(open: &mut dyn FnMut(&str) -> EventSink) -> Self {
        Self { ebpf: open("ebpf"), cgroup: open("cgroup") }
    }
}

/// What collectors share.
#[derive(Clone, Copy)]
pub struct Wiring<'a> {
    /// Configuration of the agent.
    pub config: &'a AgentConfig,
    /// Parts of the process.
    pub parts: &'a AgentParts,
    /// Resolves control groups.
    pub attribution: &'a Arc<Attribution>,
    /// Where collectors report.
    pub states: &'a CollectorStates,
    /// Seed of event ids; differs from run to run.
    pub run: ProducerId,
}

/// Running collectors.
#[derive(Clone)]
pub struct Collectors {
    states: CollectorStates,
}

impl Collectors {
    /// What each collector says of itself.
    pub fn states(&self) -> BTreeMap<String, CollectorState> {
        self.states.all()
    }
}

/// Resolves control groups below `cgroup.root`; without any, everything is the node's.
pub fn attribution(config: &AgentConfig, node: &str, clock: &SharedClock) -> Arc<Attribution> {
    let trees = Hierarchies::discover(&config.cgroup.root).ok();
    Attribution::new(&config.cluster, node, trees, None, clock.clone())
}

/// Starts all.
///
/// # Errors
/// Only what must stop the agent: a dead supervisor, a port in use.
pub async fn start(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sinks: Sinks,
) -> Result<Collectors, AgentError> {
    start_cgroup(wiring, supervision, sinks.cgroup).await?;
    start_ebpf(wiring, supervision, sinks.ebpf).await?;
    Ok(Collectors { states: wiring.states.clone() })
}

async fn start_cgroup(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<(), SuperviseError> {
    let config = wiring.config.cgroup.clone();
    if !config.enabled {
        wiring.states.set("cgroup", CollectorState::Disabled("cgroup.enabled is false".to_owned()));
        return Ok(());
    }
    if wiring.attribution.trees().is_none() {
        let reason = match Hierarchies::discover(&config.root) {
            Err(error) => error.to_string(),
            Ok(_) => {
                format!("control groups below {} appeared late, restart the agent", config.root.display())
            }
        };
        wiring.states.set("cgroup", CollectorState::Degraded(reason));
        return Ok(());
    }
    let (attribution, clock) = (Arc::clone(wiring.attribution), wiring.parts.clock.clone());
    supervision
        .add_task("agent-cgroup", RestartPolicy::default(), move |context| {
            cgroup::run(config.clone(), Arc::clone(&attribution), clock.clone(), sink.clone(), context)
        })
        .await?;
    wiring.states.set("cgroup", CollectorState::Running);
    Ok(())
}

async fn start_ebpf(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<(), SuperviseError> {
    if !wiring.config.ebpf.enabled {
        wiring.states.set("ebpf", CollectorState::Disabled("ebpf.enabled is false".to_owned()));
        return Ok(());
    }
    let config = wiring.config.ebpf.to_bpf();
    // Here and not in the thread, so that nothing that happens after the start is missed.
    let for_load = config.clone();
    let loaded = match tokio::task::spawn_blocking(move || ebpf::load(&for_load)).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => {
            wiring.states.set("ebpf", CollectorState::Degraded(error.to_string()));
            return Ok(());
        }
        Err(panic) => {
            wiring.states.set("ebpf", CollectorState::Degraded(format!("loading failed: {panic}")));
            return Ok(());
        }
    };
    let state = ebpf::state_of(&loaded);
    let parts = ebpf::Parts {
        config,
        loaded: Arc::new(Mutex::new(Some(loaded))),
        attribution: Arc::clone(wiring.attribution),
        clock: wiring.parts.clock.clone(),
        sink,
        producer: wiring.run,
        metrics: wiring.parts.metrics.clone(),
    };
    let policy = RestartPolicy::default();
    supervision.add_thread("agent-ebpf", policy, move |context| ebpf::run(&parts, &context)).await?;
    wiring.states.set("ebpf", state);
    Ok(())
}
