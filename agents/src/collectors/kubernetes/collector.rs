//! The collector: connects, watches, follows, hands over.

use std::sync::Mutex;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use smol_str::SmolStr;
use tapio_runtime::backoff::Backoff;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerError, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::ids::UnixNanos;
use tokio::sync::mpsc;

use super::config::{KubernetesConfig, WatchScope};
use super::ends::FailureTeller;
use super::follower::{self, Follower, FollowerMetrics, TICK};
use super::index::PodIndex;
use super::lease::{Held, Lease};
use super::requests::Server;
use super::standing::Standings;
use super::tracker::Tracker;
use super::watch::{QUEUE_MAX, Watches};
use super::watched::{self, Watched};
use crate::collectors::{CollectorState, CollectorStates};
use crate::sink::EventSink;

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
    metrics: FollowerMetrics,
    states: Option<CollectorStates>,
    failures: Option<FailureTeller>,
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
            metrics: FollowerMetrics::new(metrics),
            states: None,
            failures: None,
        })
    }

    /// Says in `states` when a watch fails and when all work again.
    #[must_use]
    pub fn reporting_to(self, states: CollectorStates) -> Self {
        Self { states: Some(states), ..self }
    }

    /// Tells of the containers of this machine that fail.
    #[must_use]
    pub fn telling_failures(self, failures: Option<FailureTeller>) -> Self {
        Self { failures, ..self }
    }

    /// Watches until shutdown, while this agent is the one that watches. Events wait for room in the sink, and the watches
    /// wait for them.
    ///
    /// # Errors
    /// When the node agent takes no more events.
    pub async fn run(&self, context: WorkerContext) -> WorkerResult {
        let Some(lease) = self.lease(&context.clock) else {
            return self.lead(&context, std::future::pending(), || true).await.map(drop);
        };
        loop {
            let Some(held) = self.stand_by(&context, &lease).await else { return Ok(()) };
            tracing::info!("this agent holds the lease and watches the cluster");
            let held = Mutex::new(held);
            let is_valid = || held.lock().is_ok_and(|held| held.is_valid(context.clock.monotonic()));
            let Some(reason) = self.lead(&context, lease.keep(&held), is_valid).await? else {
                lease.release().await;
                return Ok(());
            };
            tracing::warn!(reason, "this agent no longer watches the cluster");
        }
    }

    fn lease(&self, clock: &SharedClock) -> Option<Lease> {
        if self.config.lease.is_empty() || self.config.scope == WatchScope::Node {
            return None;
        }
        let server = Server { client: self.client.clone(), clock: clock.clone() };
        let namespace = match self.config.lease_namespace.as_str() {
            "" => self.client.default_namespace(),
            namespace => namespace,
        };
        Some(Lease::new(server, namespace, &self.config.lease, &self.node))
    }

    /// Waits for the lease; none when it is time to stop.
    async fn stand_by(&self, context: &WorkerContext, lease: &Lease) -> Option<Held> {
        let says = |who: Result<&str, &str>| {
            let Some(states) = &self.states else { return };
            states.set_watches(Vec::new());
            states.set(
                "kubernetes",
                match who {
                    Ok(holder) => {
                        CollectorState::Disabled(format!("stands by, {holder} watches the cluster"))
                    }
                    Err(reason) => CollectorState::Degraded(format!("cannot get the lease: {reason}")),
                },
            );
        };
        let acquiring = lease.acquire(says);
        tokio::pin!(acquiring);
        loop {
            tokio::select! {
                () = context.shutdown.wait() => return None,
                held = &mut acquiring => return Some(held),
                () = context.clock.sleep(TICK) => context.progress.tick(),
            }
        }
    }

    /// Watches until shutdown (none), or until `deposed` says why no longer.
    async fn lead(
        &self,
        context: &WorkerContext,
        deposed: impl Future<Output = String>,
        is_valid: impl Fn() -> bool,
    ) -> Result<Option<String>, WorkerError> {
        let (sender, mut changes) = mpsc::channel(QUEUE_MAX);
        let (kinds, refused) = watched::of(&self.config);
        let mut follower = self.follower(&context.clock, &kinds, refused);
        let watching = self.watches(&context.clock, kinds).run(sender);
        tokio::pin!(watching, deposed);
        loop {
            let events = tokio::select! {
                () = context.shutdown.wait() => return Ok(None),
                reason = &mut deposed => return Ok(Some(reason)),
                // Runs the watches; they end only with the receiver.
                () = &mut watching => return Ok(None),
                change = changes.recv() => {
                    let Some((place, change)) = change else { return Ok(None) };
                    follower.follow(UnixNanos(context.clock.now_unix_nanos()), place, change)
                }
                () = context.clock.sleep(TICK) => Vec::new(),
            };
            context.progress.tick();
            // Also between changes that come without a pause.
            for events in [events, follower.look(&context.clock)] {
                if !is_valid() {
                    return Ok(Some("the lease could not be renewed in time".to_owned()));
                }
                if events.is_empty() {
                    continue;
                }
                tokio::select! {
                    sent = self.sink.send(events) => sent?,
                    () = context.shutdown.wait() => return Ok(None),
                    reason = &mut deposed => return Ok(Some(reason)),
                }
            }
        }
    }

    fn watches(&self, clock: &SharedClock, kinds: Vec<Watched>) -> Watches {
        let is_node = self.config.scope == WatchScope::Node;
        Watches {
            client: self.client.clone(),
            kinds,
            node: if is_node { self.node.clone() } else { SmolStr::default() },
            backoff: Backoff::new(self.config.backoff_min.get(), self.config.backoff_max.get()),
            clock: clock.clone(),
        }
    }

    fn follower(&self, clock: &SharedClock, kinds: &[Watched], refused: Vec<String>) -> Follower {
        let started_at = UnixNanos(clock.now_unix_nanos());
        let history = u64::try_from(self.config.history.get().as_nanos()).unwrap_or(u64::MAX);
        Follower {
            tracker: Tracker::new(&self.cluster, Some(self.pods.clone())).telling(self.failures.clone()),
            news_after: started_at.minus(history),
            standings: Standings::new(kinds, refused, started_at),
            pods: self.pods.clone(),
            scope: self.config.scope,
            retell: self.config.retell.get(),
            next_look: Duration::ZERO,
            states: self.states.clone(),
            metrics: self.metrics.clone(),
            node: follower::agent_entity(&self.cluster, &self.node),
        }
    }
}

async fn client(config: &KubernetesConfig) -> Result<Client, Unavailable> {
    let mut found = find(config).await?;
    // Waits between requests are the watches' own.
    found.default_retry = false;
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

/// The context that is meant when none is named; nothing of a pod's service account.
pub(super) fn current_context(config: &KubernetesConfig) -> Option<String> {
    let read = match &config.kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    read.ok()?.current_context.filter(|context| !context.is_empty())
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
