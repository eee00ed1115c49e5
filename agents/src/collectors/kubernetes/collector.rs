//! The collector: connects, watches, follows, hands over.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use smol_str::SmolStr;
use tapio_runtime::backoff::Backoff;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tokio::sync::mpsc;

use super::config::{KubernetesConfig, WatchScope};
use super::convert::WatchType;
use super::index::PodIndex;
use super::summary::NotAnObject;
use super::tracker::Tracker;
use super::watch::{Change, QUEUE_MAX, Watches};
use crate::collectors::{CollectorState, CollectorStates};
use crate::sink::EventSink;

/// How often the collector says that it lives.
const TICK: Duration = Duration::from_secs(1);
/// The API server may take this long to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// There is no cluster to watch.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Switched off.
    #[error("kubernetes.enabled is false")]
    SwitchedOff,
    /// Nothing says where a cluster is: an ordinary machine.
    #[error("no cluster: no kubeconfig, and not in a pod; set `kubernetes.kubeconfig` to watch one")]
    NoCluster,
    /// A configuration that cannot be used.
    #[error("cannot use the kubeconfig{path}: {source}")]
    Kubeconfig {
        /// ` /its/path`, when it was configured.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Unavailable {
    /// True when nobody asked for a cluster: then the collector is disabled, not degraded.
    pub fn is_expected(&self) -> bool {
        !matches!(self, Self::Kubeconfig { .. })
    }
}

/// A collector that knows its cluster.
pub struct KubernetesCollector {
    config: KubernetesConfig,
    client: Client,
    cluster: SmolStr,
    node: SmolStr,
    pods: PodIndex,
    sink: EventSink,
    metrics: CollectorMetrics,
    states: Option<CollectorStates>,
}

#[derive(Clone)]
struct CollectorMetrics {
    changes: Family<[(&'static str, Label); 2], Counter>,
    objects: Gauge,
    untracked: Gauge,
    refused_pods: Gauge,
}

/// A label value out of a closed set.
type Label = &'static str;

impl CollectorMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            changes: metrics.shared(
                "kubernetes_changes",
                "Changes from watches of the API server, by kind of change and outcome",
            ),
            objects: metrics.shared("kubernetes_objects", "Objects that are followed"),
            untracked: metrics.shared(
                "kubernetes_untracked_changes",
                "Changes of objects beyond the limit of followed ones, told without a comparison",
            ),
            refused_pods: metrics
                .shared("kubernetes_refused_pods", "Updates of pods that the full pod index did not take"),
        }
    }

    fn sizes(&self, tracker: &Tracker, pods: &PodIndex) {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.objects.set(signed(tracker.len() as u64));
        self.untracked.set(signed(tracker.untracked()));
        self.refused_pods.set(signed(pods.refused()));
    }

    fn count(&self, change: Label, outcome: Label) {
        self.changes.get_or_create(&[("change", change), ("outcome", outcome)]).inc();
    }
}

impl KubernetesCollector {
    /// Finds the cluster. Does not talk to it: an API server that is away is waited for by [`Self::run`].
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn connect(
        config: KubernetesConfig,
        cluster: &str,
        node: &str,
        pods: PodIndex,
        sink: EventSink,
        metrics: &Metrics,
    ) -> Result<Self, Unavailable> {
        let client = client(&config).await?;
        let (cluster, node) = (SmolStr::new(cluster), SmolStr::new(node));
        Ok(Self {
            config,
            client,
            cluster,
            node,
            pods,
            sink,
            metrics: CollectorMetrics::new(metrics),
            states: None,
        })
    }

    /// Says in `states` when a watch fails and when all work again.
    #[must_use]
    pub fn reporting_to(self, states: CollectorStates) -> Self {
        Self { states: Some(states), ..self }
    }

    /// Watches until shutdown. Events wait for room in the sink, and the watches wait for them.
    ///
    /// # Errors
    /// When the node agent takes no more events.
    pub async fn run(&self, context: WorkerContext) -> WorkerResult {
        let (sender, mut changes) = mpsc::channel(QUEUE_MAX);
        let watches = Watches {
            client: self.client.clone(),
            scope: self.config.scope,
            node: self.node.clone(),
            config_maps: self.config.config_maps,
            secrets: self.config.secrets,
            backoff: Backoff::new(self.config.backoff_min.get(), self.config.backoff_max.get()),
            clock: context.clock.clone(),
        };
        let started_at = UnixNanos(context.clock.now_unix_nanos());
        let history = u64::try_from(self.config.history.get().as_nanos()).unwrap_or(u64::MAX);
        let mut follower = Follower {
            tracker: Tracker::new(&self.cluster, Some(self.pods.clone())),
            news_after: started_at.minus(history),
            failures: BTreeMap::new(),
            pods: self.pods.clone(),
            scope: self.config.scope,
            retell: self.config.retell.get(),
            next_retell: Duration::ZERO,
            states: self.states.clone(),
            metrics: self.metrics.clone(),
        };
        let watching = watches.run(sender);
        tokio::pin!(watching);
        loop {
            tokio::select! {
                () = context.shutdown.wait() => return Ok(()),
                // Runs the watches; they end only with the receiver.
                () = &mut watching => return Ok(()),
                change = changes.recv() => {
                    let Some((resource, change)) = change else { return Ok(()) };
                    let now = UnixNanos(context.clock.now_unix_nanos());
                    let events = follower.follow(now, &resource.kind, change);
                    tokio::select! {
                        sent = self.sink.send(events) => sent?,
                        () = context.shutdown.wait() => return Ok(()),
                    }
                    context.progress.tick();
                }
                () = context.clock.sleep(TICK) => context.progress.tick(),
            }
            // Also between changes that come without a pause.
            if let Some(events) = follower.retell(&context.clock) {
                tokio::select! {
                    sent = self.sink.send(events) => sent?,
                    () = context.shutdown.wait() => return Ok(()),
                }
            }
        }
    }
}

/// Turns changes into events, one after the other.
struct Follower {
    tracker: Tracker,
    news_after: UnixNanos,
    /// Kinds whose watch fails, with the last message: it is logged when it changes.
    failures: BTreeMap<String, String>,
    pods: PodIndex,
    scope: WatchScope,
    /// Time within which all objects are told again; zero = never.
    retell: Duration,
    next_retell: Duration,
    states: Option<CollectorStates>,
    metrics: CollectorMetrics,
}

impl Follower {
    /// Objects whose turn to be told again it is, looked at once per [`TICK`].
    fn retell(&mut self, clock: &SharedClock) -> Option<Vec<UnifiedEvent>> {
        let now = clock.monotonic();
        if now < self.next_retell || self.retell.is_zero() || self.scope == WatchScope::Node {
            return None;
        }
        self.next_retell = now + TICK;
        let at = UnixNanos(clock.now_unix_nanos());
        let mut events = self.tracker.overdue(at);
        events.extend(self.tracker.retell(at, now, self.retell));
        (!events.is_empty()).then_some(events)
    }

    fn follow(&mut self, now: UnixNanos, kind: &str, change: Change) -> Vec<UnifiedEvent> {
        if !matches!(change, Change::Failed(_) | Change::ListBegins) && self.failures.remove(kind).is_some() {
            tracing::info!(kind, "watch works again");
            self.report();
        }
        let (name, result) = match change {
            Change::ListBegins => {
                self.tracker.list_begins(kind);
                return Vec::new();
            }
            Change::ListEnds => ("list_ends", Ok(self.tracker.list_ends(now, kind))),
            Change::Listed(object) => ("listed", self.change(now, kind, WatchType::Added, &object)),
            Change::Applied(object) => ("applied", self.change(now, kind, WatchType::Modified, &object)),
            Change::Deleted(object) => ("deleted", self.change(now, kind, WatchType::Deleted, &object)),
            Change::Failed(message) => {
                self.metrics.count("failed", "error");
                self.failed(kind, message);
                return Vec::new();
            }
        };
        self.metrics.count(name, if result.is_ok() { "converted" } else { "malformed" });
        self.metrics.sizes(&self.tracker, &self.pods);
        // The agent that watches the whole cluster tells what happens to this node's pods as well.
        if self.scope == WatchScope::Node { Vec::new() } else { result.unwrap_or_default() }
    }

    fn change(
        &mut self,
        now: UnixNanos,
        kind: &str,
        watch_type: WatchType,
        object: &serde_json::Value,
    ) -> Result<Vec<UnifiedEvent>, NotAnObject> {
        match (kind, watch_type) {
            // Events expire; that says nothing.
            ("Event", WatchType::Deleted) => Ok(Vec::new()),
            ("Event", _) => Ok(self.tracker.event(now, self.news_after, object)?.into_iter().collect()),
            _ => self.tracker.object(now, self.news_after, watch_type, object),
        }
    }

    fn failed(&mut self, kind: &str, message: String) {
        if self.failures.get(kind) != Some(&message) {
            tracing::warn!(kind, error = message, "watch failed, trying again");
            self.failures.insert(kind.to_owned(), message);
        }
        self.report();
    }

    fn report(&self) {
        let Some(states) = &self.states else { return };
        let state = match self.failures.first_key_value() {
            None => CollectorState::Running,
            Some((kind, message)) => {
                let others = self.failures.len() - 1;
                let more = if others > 0 { format!(" (and {others} more kinds)") } else { String::new() };
                CollectorState::Degraded(format!("cannot watch {kind}{more}: {message}"))
            }
        };
        states.set("kubernetes", state);
    }
}

async fn client(config: &KubernetesConfig) -> Result<Client, Unavailable> {
    let found = find(config).await?;
    Client::try_from(found).map_err(|e| unusable(config, e.into()))
}

/// What the kubeconfig has cannot be used.
pub(super) fn unusable(
    config: &KubernetesConfig,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> Unavailable {
    let path = config.kubeconfig.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default();
    Unavailable::Kubeconfig { path, source }
}

/// Where the cluster is, and who asks.
pub(super) async fn find(config: &KubernetesConfig) -> Result<Config, Unavailable> {
    if !config.enabled {
        return Err(Unavailable::SwitchedOff);
    }
    let unusable = |source| unusable(config, source);
    let options = KubeConfigOptions { context: config.context.clone(), ..KubeConfigOptions::default() };
    let mut found = match &config.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|e| unusable(e.into()))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| unusable(e.into()))?
        }
        None => infer(&options).await?,
    };
    found.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(found)
}

/// The user's kubeconfig, else the pod's service account.
async fn infer(options: &KubeConfigOptions) -> Result<Config, Unavailable> {
    match Config::from_kubeconfig(options).await {
        Ok(config) => Ok(config),
        // A file that is there and cannot be used must not be passed over in silence.
        Err(error) if has_kubeconfig() => {
            Err(Unavailable::Kubeconfig { path: String::new(), source: error.into() })
        }
        Err(_) => Config::incluster().map_err(|_| Unavailable::NoCluster),
    }
}

fn has_kubeconfig() -> bool {
    let home = std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".kube/config"));
    std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty())
        || home.is_some_and(|path| path.exists())
}
