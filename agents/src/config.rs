//! Configuration of the node agent. Each collector's part lives beside the collector.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapio_runtime::config::{ByteSize, HumanDuration};

use crate::collectors::audit::AuditConfig;
use crate::collectors::cgroup::CgroupConfig;
use crate::collectors::ebpf::EbpfConfig;
use crate::collectors::filesystem::FilesystemConfig;
use crate::collectors::kubernetes::KubernetesConfig;
use crate::collectors::network::NetworkConfig;
use crate::collectors::otlp::OtlpConfig;
use crate::collectors::pod_logs::PodLogsConfig;
use crate::collectors::scrape::ScrapeConfig;
use crate::collectors::systemd::SystemdConfig;

/// The node agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Name of the cluster; part of subjects and entities. Default `default`.
    pub cluster: String,
    /// Name of this machine, as Kubernetes knows it. Empty (default): the host name.
    pub node: String,
    /// Where the spool and the restart counter are kept. None (default): no spool, the backlog is in memory alone.
    pub data_dir: Option<PathBuf>,
    /// Events older than this are dropped. Default 24 h: a list of Kubernetes objects tells old news.
    pub age_max: HumanDuration,
    /// Events further ahead of this machine's clock are dropped. Default 5 min.
    pub future_max: HumanDuration,
    /// Resident memory of this process from which 80 % on routine events of severity `info` are shed, and from 90 % those of
    /// severity `warning`. Default 128 MiB; 0 = no bound but that of the control group. The group's counts when it is less.
    pub memory_max: ByteSize,
    /// How events are put together.
    pub batch: BatchConfig,
    /// What happens to batches that cannot be sent at once.
    pub backlog: BacklogConfig,
    /// Kernel programs.
    pub ebpf: EbpfConfig,
    /// Samples of control groups.
    pub cgroup: CgroupConfig,
    /// Telemetry of applications.
    pub otlp: OtlpConfig,
    /// Objects and events of a cluster.
    pub kubernetes: KubernetesConfig,
    /// Units of systemd.
    pub systemd: SystemdConfig,
    /// Counters of the network.
    pub network: NetworkConfig,
    /// Room on file systems.
    pub filesystem: FilesystemConfig,
    /// Last lines of failing containers.
    pub pod_logs: PodLogsConfig,
    /// Metrics of others.
    pub scrape: ScrapeConfig,
    /// Who did what, as the API server tells it.
    pub audit: AuditConfig,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            cluster: "default".to_owned(),
            node: String::new(),
            data_dir: None,
            age_max: HumanDuration::from_secs(24 * 3600),
            future_max: HumanDuration::from_secs(300),
            memory_max: ByteSize::mib(128),
            batch: BatchConfig::default(),
            backlog: BacklogConfig::default(),
            ebpf: EbpfConfig::default(),
            cgroup: CgroupConfig::default(),
            otlp: OtlpConfig::default(),
            kubernetes: KubernetesConfig::default(),
            systemd: SystemdConfig::default(),
            network: NetworkConfig::default(),
            filesystem: FilesystemConfig::default(),
            pod_logs: PodLogsConfig::default(),
            scrape: ScrapeConfig::default(),
            audit: AuditConfig::default(),
        }
    }
}

impl AgentConfig {
    /// The node's name: configured, else the host name, else `localhost`.
    pub fn node_name(&self) -> String {
        if !self.node.is_empty() {
            return self.node.clone();
        }
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if name.is_empty() { "localhost".to_owned() } else { name }
    }
}

/// When a shard's batch is sent: whichever comes first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Estimated size before packing. Default 256 KiB: large enough to share strings, and some 64 KiB when packed.
    pub bytes: ByteSize,
    /// Number of events, at most 65536. Default 4096.
    pub events: usize,
    /// Time since its first event. Default 100 ms.
    pub age: HumanDuration,
    /// Longest time that an error, or what may be news by itself, waits in a batch. Default 5 ms: the first leaves at
    /// once, and while more come a shard's batch leaves this often.
    pub urgent_age: HumanDuration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            bytes: ByteSize(256 << 10),
            events: 4096,
            age: HumanDuration::from_millis(100),
            urgent_age: HumanDuration::from_millis(5),
        }
    }
}

/// The backlog while NATS is slow or away: memory first, then disk, then shedding by severity.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BacklogConfig {
    /// Batches sent and not yet acknowledged. Default 128.
    pub window: usize,
    /// Finished batches kept in memory. Default 8 MiB.
    pub memory: ByteSize,
    /// Finished batches kept on disk; 0 = none. Default 256 MiB.
    pub spool: ByteSize,
    /// Size at which a spool file is closed and the next begun. Default 8 MiB.
    pub spool_file: ByteSize,
}

impl Default for BacklogConfig {
    fn default() -> Self {
        Self {
            window: 128,
            memory: ByteSize::mib(8),
            spool: ByteSize::mib(256),
            spool_file: ByteSize::mib(8),
        }
    }
}
