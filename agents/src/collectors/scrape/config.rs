//! Configuration of the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::{ByteSize, HumanDuration};

/// The scraper of metrics.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScrapeConfig {
    /// Time between two scrapes of a target. Default 15 s.
    pub interval: HumanDuration,
    /// A target has to answer within this time, head and body. Default 10 s.
    pub timeout: HumanDuration,
    /// Bytes of an answer; what is beyond is not read, and the scrape counts as failed. Default 128 MiB: that of an API server
    /// is large, and is read line by line.
    pub body_max: ByteSize,
    /// Series of one target that are passed on by `keep`; further ones are counted and left out. Default 1000.
    pub series_max: usize,
    /// What is asked. Default nothing: then the collector is disabled.
    pub targets: Vec<TargetConfig>,
}

impl Default for ScrapeConfig {
    fn default() -> Self {
        Self {
            interval: HumanDuration::from_secs(15),
            timeout: HumanDuration::from_secs(10),
            body_max: ByteSize::mib(128),
            series_max: 1000,
            targets: Vec::new(),
        }
    }
}

/// What a target is: which of its metrics say how it fares, and of what they speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// kube-apiserver; its `/readyz?verbose` is asked as well.
    ApiServer,
    /// kube-scheduler.
    Scheduler,
    /// kube-controller-manager.
    ControllerManager,
    /// etcd.
    Etcd,
    /// The name service.
    CoreDns,
    /// The kubelet of a machine.
    Kubelet,
    /// The node exporter of a machine.
    Node,
    /// Anything else: only what `keep` names.
    #[default]
    Other,
}

/// One target.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetConfig {
    /// What it is. Default `other`.
    pub role: Role,
    /// Where its metrics are, such as `https://10.0.0.1:2381/metrics`. Empty, for an API server alone: that of
    /// `kubernetes.kubeconfig` and `kubernetes.context`, else of the environment's kubeconfig, or of the pod's own account.
    pub url: String,
    /// The machine that it speaks of, for `kubelet` and `node`. Empty (default): this one.
    pub node: String,
    /// What the kept metrics are about, as `namespace/Kind/name`, for `other`. Empty (default): the machine.
    pub entity: String,
    /// Names of metrics that are passed on as they are; `*` at the end stands for any rest. Default none.
    pub keep: Vec<String>,
    /// File with a bearer token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// File with the certificates (PEM) that sign the target's; else those of the system count.
    pub ca_file: Option<PathBuf>,
    /// File with the certificate (PEM) that is shown to the target; goes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// File with the key (PEM) of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// Name that the target's certificate must have, when it is not that of the URL.
    pub server_name: String,
    /// Take any certificate. A kubelet often has one that nobody has signed. Default false.
    pub insecure: bool,
}
