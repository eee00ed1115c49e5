//! Configuration of the Kubernetes collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::HumanDuration;

/// The Kubernetes collector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// Whether to watch a cluster when there is one. Default true.
    pub enabled: bool,
    /// Kubeconfig file. None (default): `KUBECONFIG`, `~/.kube/config`, else the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. None (default): its current context.
    pub context: Option<String>,
    /// What to watch. Default `cluster`.
    pub scope: WatchScope,
    /// Whether changes of ConfigMaps are told, by key; their values are hashed when they are read. Default true.
    pub config_maps: bool,
    /// The same for Secrets. Default false: it takes the right to read them.
    pub secrets: bool,
    /// Custom resources whose conditions are followed, as `kubectl get` takes them: `certificates.cert-manager.io`. At most 64;
    /// each takes the right to get, list and watch it. Default none.
    pub custom_resources: Vec<String>,
    /// Name of a Lease: of several agents that name the same one, one watches and the others stand by; takeover within 12 s.
    /// It takes the right to get, create and update leases in `lease_namespace`. Empty (default): this agent watches.
    pub lease: String,
    /// Where the lease is. Empty (default): the namespace that the agent runs in, or that of the kubeconfig.
    pub lease_namespace: String,
    /// At start, Kubernetes events and container ends older than this are not reported again. What a container said last is not
    /// read when its end is heard of later than this, or than 5 min where this is less; never later than `age_max`. Default 10 min.
    pub history: HumanDuration,
    /// Time within which each object is told again with its relations, so that a correlator that began anew learns them;
    /// at most 200 objects per second. Default 5 min; 0 = never.
    pub retell: HumanDuration,
    /// Shortest and longest wait after an error of the API server; doubled from one to the next. Default 500 ms.
    pub backoff_min: HumanDuration,
    /// See `backoff_min`. Default 30 s.
    pub backoff_max: HumanDuration,
}

/// What to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchScope {
    /// Everything: one agent of a cluster does.
    #[default]
    Cluster,
    /// The pods of this agent's node, only to tell which control group belongs to which workload: their
    /// changes are told by the agent that watches the cluster.
    Node,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            kubeconfig: None,
            context: None,
            scope: WatchScope::Cluster,
            config_maps: true,
            secrets: false,
            custom_resources: Vec::new(),
            lease: String::new(),
            lease_namespace: String::new(),
            history: HumanDuration::from_secs(600),
            retell: HumanDuration::from_secs(300),
            backoff_min: HumanDuration::from_millis(500),
            backoff_max: HumanDuration::from_secs(30),
        }
    }
}
