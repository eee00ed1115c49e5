//! Starts the configured collectors. One that cannot work says so in its state and leaves the others alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{RestartPolicy, SuperviseError, Supervision};
use tapio_schemas::ids::ProducerId;

use super::audit::AuditReceiver;
use super::kubernetes::ends::FailureTeller;
use super::kubernetes::{KubernetesCollector, PodIndex};
use super::otlp::{Bounds, OtlpReceiver};
use super::sampling::Looks;
use super::status::{CollectorState, CollectorStates};
use super::{cgroup, ebpf, filesystem, network, pod_logs, sampling, scrape, systemd};
use crate::attribution::{Attribution, Hierarchies, PodLookup};
use crate::config::AgentConfig;
use crate::node::{AgentError, AgentParts};
use crate::sink::EventSink;

/// One sink per collector.
pub struct Sinks {
    ebpf: EventSink,
    cgroup: EventSink,
    otlp: EventSink,
    kubernetes: EventSink,
    systemd: EventSink,
    network: EventSink,
    filesystem: EventSink,
    pod_logs: EventSink,
    scrape: EventSink,
    audit: EventSink,
}

impl Sinks {
    /// Opens all of them; those of disabled collectors stay empty.
    pub fn open(open: &mut dyn FnMut(&str) -> EventSink) -> Self {
        Self {
            ebpf: open("ebpf"),
            cgroup: open("cgroup"),
            otlp: open("otlp"),
            kubernetes: open("kubernetes"),
            systemd: open("systemd"),
            network: open("network"),
            filesystem: open("filesystem"),
            pod_logs: open("pod_logs"),
            scrape: open("scrape"),
            audit: open("audit"),
        }
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
    /// What the Kubernetes collector fills and attribution asks.
    pub pods: &'a PodIndex,
    /// Name of this machine.
    pub node: &'a str,
    /// Where collectors report.
    pub states: &'a CollectorStates,
    /// Seed of event ids; differs from run to run.
    pub run: ProducerId,
}

/// Running collectors.
#[derive(Clone)]
pub struct Collectors {
    states: CollectorStates,
    otlp: Option<(SocketAddr, SocketAddr)>,
    audit: Option<SocketAddr>,
}

impl Collectors {
    /// Where OTLP is received over gRPC; `None` when it is disabled.
    pub fn otlp_grpc(&self) -> Option<SocketAddr> {
        self.otlp.map(|(grpc, _)| grpc)
    }

    /// Where OTLP is received over HTTP; `None` when it is disabled.
    pub fn otlp_http(&self) -> Option<SocketAddr> {
        self.otlp.map(|(_, http)| http)
    }

    /// Where audit events are received; `None` when it is disabled.
    pub fn audit(&self) -> Option<SocketAddr> {
        self.audit
    }

    /// What each collector says of itself.
    pub fn states(&self) -> BTreeMap<String, CollectorState> {
        self.states.all()
    }
}

/// Resolves control groups below `cgroup.root`; without any, everything is the node's.
pub fn attribution(
    config: &AgentConfig,
    node: &str,
    pods: &PodIndex,
    clock: &SharedClock,
) -> Arc<Attribution> {
    let trees = Hierarchies::discover(&config.cgroup.root).ok();
    // Without a cluster the index stays empty: an entity is then as complete as it will be.
    let pods: Option<Arc<dyn PodLookup>> =
        if config.kubernetes.enabled { Some(Arc::new(pods.clone())) } else { None };
    Attribution::new(&config.cluster, node, trees, pods, clock.clone())
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
    // The one that can fail goes first.
    let otlp = start_otlp(wiring, supervision, sinks.otlp).await?;
    let audit = start_audit(wiring, supervision, sinks.audit).await?;
    // Before the others, so that their first events find their pods.
    let failures = start_pod_logs(wiring, supervision, sinks.pod_logs).await?;
    start_kubernetes(wiring, supervision, sinks.kubernetes, failures).await?;
    start_cgroup(wiring, supervision, sinks.cgroup).await?;
    start_systemd(wiring, supervision, sinks.systemd).await?;
    start_network(wiring, supervision, sinks.network).await?;
    start_filesystem(wiring, supervision, sinks.filesystem).await?;
    start_scrape(wiring, supervision, sinks.scrape).await?;
    start_ebpf(wiring, supervision, sinks.ebpf).await?;
    Ok(Collectors { states: wiring.states.clone(), otlp, audit })
}

async fn start_otlp(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<Option<(SocketAddr, SocketAddr)>, AgentError> {
    let config = wiring.config.otlp.clone();
    if !config.enabled {
        wiring.states.set("otlp", CollectorState::Disabled("otlp.enabled is false".to_owned()));
        return Ok(None);
    }
    let bounds = Bounds {
        cluster: wiring.config.cluster.as_str().into(),
        age_max: wiring.config.age_max.get(),
        future_max: wiring.config.future_max.get(),
    };
    // Its drain, and a little to see that it is over.
    let stop_grace = config.drain.get() + Duration::from_secs(1);
    let (clock, metrics) = (wiring.parts.clock.clone(), &wiring.parts.metrics);
    // A port that is taken must not go unseen: whoever sends there would talk to someone else.
    let bound = OtlpReceiver::bind(config, bounds, sink, clock, metrics);
    let receiver =
        Arc::new(bound.map_err(|e| AgentError::Collector { collector: "otlp", source: Box::new(e) })?);
    let addresses = (receiver.grpc_addr(), receiver.http_addr());
    let policy = RestartPolicy { stop_grace, ..RestartPolicy::default() };
    supervision
        .add_task("agent-otlp", policy, move |context| {
            let receiver = Arc::clone(&receiver);
            async move { receiver.run(context).await }
        })
        .await?;
    wiring.states.set("otlp", CollectorState::Running);
    Ok(Some(addresses))
}

async fn start_audit(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<Option<SocketAddr>, AgentError> {
    let config = &wiring.config.audit;
    if config.listen.is_empty() {
        wiring.states.set("audit", CollectorState::Disabled("audit.listen is empty".to_owned()));
        return Ok(None);
    }
    let (clock, metrics) = (wiring.parts.clock.clone(), &wiring.parts.metrics);
    let bound = AuditReceiver::bind(config, &wiring.config.cluster, clock, sink, metrics).await;
    let receiver =
        Arc::new(bound.map_err(|e| AgentError::Collector { collector: "audit", source: Box::new(e) })?);
    let address = receiver.address();
    supervision
        .add_task("agent-audit", RestartPolicy::default(), move |context| {
            let receiver = Arc::clone(&receiver);
            async move { receiver.run(context).await }
        })
        .await?;
    wiring.states.set("audit", CollectorState::Running);
    Ok(Some(address))
}

/// Starts the reader of what failing containers said last; returns by whom it hears of them.
async fn start_pod_logs(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<Option<FailureTeller>, SuperviseError> {
    let config = wiring.config.pod_logs.clone();
    let reason = match &config {
        config if !config.enabled => Some("pod_logs.enabled is false".to_owned()),
        _ if !wiring.config.kubernetes.enabled => Some("kubernetes.enabled is false".to_owned()),
        config if !config.dir.is_dir() => Some(format!(
            "{} is not there: no kubelet runs here, or the directory is not mounted",
            config.dir.display()
        )),
        _ => None,
    };
    if let Some(reason) = reason {
        wiring.states.set("pod_logs", CollectorState::Disabled(reason));
        return Ok(None);
    }
    let (teller, failed) = FailureTeller::new(wiring.node, &wiring.parts.metrics);
    let parts = pod_logs::Parts {
        config,
        history: pod_logs::horizon(wiring.config.kubernetes.history.get(), wiring.config.age_max.get()),
        failed: Arc::new(tokio::sync::Mutex::new(failed)),
        clock: wiring.parts.clock.clone(),
        sink,
        states: wiring.states.clone(),
        metrics: wiring.parts.metrics.clone(),
    };
    supervision
        .add_task("agent-pod-logs", RestartPolicy::default(), move |context| {
            pod_logs::run(parts.clone(), context)
        })
        .await?;
    Ok(Some(teller))
}

async fn start_kubernetes(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
    failures: Option<FailureTeller>,
) -> Result<(), SuperviseError> {
    let (config, pods) = (wiring.config.kubernetes.clone(), wiring.pods.clone());
    let (cluster, metrics) = (&wiring.config.cluster, &wiring.parts.metrics);
    let collector = match KubernetesCollector::connect(config, cluster, wiring.node, pods, sink, metrics)
        .await
    {
        Ok(collector) => Arc::new(collector.reporting_to(wiring.states.clone()).telling_failures(failures)),
        Err(reason) if reason.is_expected() => {
            wiring.states.set("kubernetes", CollectorState::Disabled(reason.to_string()));
            return Ok(());
        }
        Err(reason) => {
            wiring.states.set("kubernetes", CollectorState::Degraded(reason.to_string()));
            return Ok(());
        }
    };
    supervision
        .add_task("agent-kubernetes", RestartPolicy::default(), move |context| {
            let collector = Arc::clone(&collector);
            async move { collector.run(context).await }
        })
        .await?;
    wiring.states.set("kubernetes", CollectorState::Running);
    Ok(())
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

async fn start_systemd(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<(), SuperviseError> {
    let config = wiring.config.systemd.clone();
    if !config.enabled {
        wiring.states.set("systemd", CollectorState::Disabled("systemd.enabled is false".to_owned()));
        return Ok(());
    }
    if let Some(state) = systemd::state_at_start(&config) {
        wiring.states.set("systemd", state);
    }
    let parts = systemd::Parts {
        config,
        history: wiring.config.systemd.history.get().min(wiring.config.age_max.get()),
        cluster: wiring.config.cluster.as_str().into(),
        node: wiring.node.into(),
        sink,
        states: wiring.states.clone(),
    };
    supervision
        .add_task("agent-systemd", RestartPolicy::default(), move |context| {
            systemd::run(parts.clone(), context)
        })
        .await
}

async fn start_network(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<(), SuperviseError> {
    let (config, node) = (wiring.config.network.clone(), wiring.attribution.node());
    if !config.enabled {
        wiring.states.set("network", CollectorState::Disabled("network.enabled is false".to_owned()));
        return Ok(());
    }
    let looks = move || network::Sampler::new(&config, node.clone());
    start_sampling(wiring, supervision, sink, "network", wiring.config.network.interval.get(), looks).await
}

async fn start_filesystem(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<(), SuperviseError> {
    let (config, node) = (wiring.config.filesystem.clone(), wiring.attribution.node());
    if !config.enabled {
        wiring.states.set("filesystem", CollectorState::Disabled("filesystem.enabled is false".to_owned()));
        return Ok(());
    }
    let looks = move || filesystem::Sampler::new(&config, node.clone());
    start_sampling(wiring, supervision, sink, "filesystem", wiring.config.filesystem.interval.get(), looks)
        .await
}

async fn start_sampling<L: Looks>(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
    name: &'static str,
    interval: Duration,
    looks: impl Fn() -> L + Send + Sync + 'static,
) -> Result<(), SuperviseError> {
    let parts = sampling::Parts {
        name,
        interval,
        clock: wiring.parts.clock.clone(),
        sink,
        states: wiring.states.clone(),
        metrics: wiring.parts.metrics.clone(),
    };
    wiring.states.set(name, CollectorState::Running);
    let task = format!("agent-{name}");
    supervision
        .add_task(&task, RestartPolicy::default(), move |context| {
            sampling::run(parts.clone(), looks(), context)
        })
        .await
}

async fn start_scrape(
    wiring: Wiring<'_>,
    supervision: &Supervision,
    sink: EventSink,
) -> Result<(), SuperviseError> {
    let config = wiring.config.scrape.clone();
    if config.targets.is_empty() {
        wiring.states.set("scrape", CollectorState::Disabled("scrape.targets is empty".to_owned()));
        return Ok(());
    }
    let kubernetes = &wiring.config.kubernetes;
    let parts = scrape::Parts {
        config,
        home: scrape::Home { kubeconfig: kubernetes.kubeconfig.clone(), context: kubernetes.context.clone() },
        cluster: wiring.config.cluster.clone(),
        node: wiring.node.to_owned(),
        clock: wiring.parts.clock.clone(),
        sink,
        states: wiring.states.clone(),
        metrics: wiring.parts.metrics.clone(),
    };
    supervision
        .add_task("agent-scrape", RestartPolicy::default(), move |context| {
            scrape::run(parts.clone(), context)
        })
        .await
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
        states: wiring.states.clone(),
    };
    let policy = RestartPolicy::default();
    supervision.add_thread("agent-ebpf", policy, move |context| ebpf::run(&parts, &context)).await?;
    wiring.states.set("ebpf", state);
    Ok(())
}
