//! The root configuration: each part lives beside its component.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tapio_agents::config::AgentConfig;
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::bus::BusConfig;
use tapio_runtime::config::{ByteSize, ConfigError, Sources, load};
use tapio_runtime::telemetry::TelemetryConfig;
use tapio_storage::config::StorageConfig;

use crate::cli::{RunArgs, given};
use crate::endpoints::default_data_dir;

/// What the store may have where all parts share a process: it has no bound of its own.
const STORAGE_MEMORY: ByteSize = ByteSize::mib(512);

/// Everything that can be configured, by file, `TAPIO_` environment and `--set`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TapioConfig {
    /// Where streams, findings and endpoints.json are kept. Default: /var/lib/tapio for root, else the user's data home.
    pub data_dir: PathBuf,
    /// Name of the cluster: part of subjects, entities and finding ids. Default `default`.
    pub cluster: String,
    /// The nats-server that `tapio up` starts.
    pub nats: NatsConfig,
    /// The connection to NATS and the limits of the streams.
    pub bus: BusConfig,
    /// Logs, metrics, health.
    pub telemetry: TelemetryConfig,
    /// The node agent and its collectors.
    pub agent: AgentConfig,
    /// The correlator.
    pub correlator: CorrelatorConfig,
    /// The store of findings and its API.
    pub storage: StorageConfig,
}

impl Default for TapioConfig {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir(),
            cluster: "default".to_owned(),
            nats: NatsConfig::default(),
            bus: BusConfig::default(),
            telemetry: TelemetryConfig::default(),
            agent: AgentConfig::default(),
            correlator: CorrelatorConfig::default(),
            storage: StorageConfig::default(),
        }
    }
}

/// The child nats-server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConfig {
    /// Port on loopback; 0 takes a free one. Default 4222.
    pub port: u16,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self { port: 4222 }
    }
}

impl TapioConfig {
    /// Defaults, file, environment, `--set`, then the flags with names of their own.
    pub fn load(args: &RunArgs) -> Result<Self, ConfigError> {
        let mut sources = Sources::from_process(given(&args.config).map(Path::to_path_buf));
        if args.free_ports {
            for key in Self::default().listeners().iter().map(|(key, _)| *key) {
                sources = sources.with_override(&format!("{key}=127.0.0.1:0"))?;
            }
            sources = sources.with_override("nats.port=0")?;
        }
        for pair in &args.overrides {
            sources = sources.with_override(pair)?;
        }
        let mut config: Self = load(&sources)?;
        if let Some(dir) = args.data_dir() {
            config.data_dir = dir.to_owned();
        }
        if let Some(url) = &args.nats_url {
            config.bus.urls = vec![url.clone()];
        }
        config.spread();
        config.check()?;
        Ok(config)
    }

    /// What a type cannot say; before anything is started with it.
    fn check(&self) -> Result<(), ConfigError> {
        for (key, address) in self.listeners() {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
            if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                let message = format!("`{address}` is not host:port, as in 127.0.0.1:0");
                return Err(ConfigError::Unusable { key: key.to_owned(), message });
            }
        }
        self.agent.audit.check().map_err(|(key, message)| ConfigError::Unusable {
            key: format!("agent.audit.{key}"),
            message: message.to_owned(),
        })?;
        self.storage.check().map_err(|(key, message)| ConfigError::Unusable {
            key: format!("storage.{key}"),
            message: message.to_owned(),
        })
    }

    /// What belongs to all parts is said once, at the root.
    fn spread(&mut self) {
        // A part that names a cluster of its own keeps it.
        if self.agent.cluster == AgentConfig::default().cluster {
            self.agent.cluster.clone_from(&self.cluster);
        }
        if self.correlator.cluster == CorrelatorConfig::default().cluster {
            self.correlator.cluster.clone_from(&self.cluster);
        }
        self.agent.data_dir.get_or_insert_with(|| self.data_dir.join("agent"));
        if self.storage.path.as_os_str().is_empty() {
            self.storage.path = self.data_dir.join("findings");
        }
    }

    /// All parts in one process: each may have what all may have together, for it sees what all have.
    pub fn share_memory(&mut self) {
        let parts = [self.agent.memory_max, self.correlator.memory_max];
        if parts.iter().all(|part| part.bytes() > 0) {
            let all = ByteSize(parts.iter().map(|part| part.bytes()).sum::<u64>() + STORAGE_MEMORY.bytes());
            (self.agent.memory_max, self.correlator.memory_max) = (all, all);
        }
    }

    /// True when a NATS server is named, by flag, file or environment; else `tapio up` starts one.
    pub fn names_nats(&self) -> bool {
        self.bus.urls != BusConfig::default().urls
    }

    /// Keys of all listening addresses, with their values.
    pub fn listeners(&self) -> Vec<(&'static str, String)> {
        vec![
            ("agent.otlp.grpc_listen", self.agent.otlp.grpc_listen.clone()),
            ("agent.otlp.http_listen", self.agent.otlp.http_listen.clone()),
            ("storage.listen", self.storage.listen.clone()),
            ("telemetry.listen", self.telemetry.listen.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_is_like_none() {
        let args =
            RunArgs { data_dir: Some(PathBuf::new()), config: Some(PathBuf::new()), ..RunArgs::default() };
        assert_eq!(TapioConfig::load(&args).unwrap().data_dir, default_data_dir());
    }

    #[test]
    fn half_a_tls_configuration_is_refused_with_the_key_that_is_missing() {
        for (set, missing) in [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")] {
            let overrides = vec![format!("agent.audit.{set}=/etc/tapio/tls.pem")];
            let error = TapioConfig::load(&RunArgs { overrides, ..RunArgs::default() }).unwrap_err();
            let ConfigError::Unusable { key, .. } = &error else { panic!("{error}") };
            assert_eq!(*key, format!("agent.audit.{missing}"));
        }
    }

    #[test]
    fn parts_of_one_process_may_have_what_they_may_have_together() {
        let mut config = TapioConfig::default();
        let sum = config.agent.memory_max.bytes() + config.correlator.memory_max.bytes();
        config.share_memory();
        assert_eq!(config.agent.memory_max, config.correlator.memory_max);
        assert_eq!(config.agent.memory_max.bytes(), sum + STORAGE_MEMORY.bytes());
        // Who asked for no bound has none.
        config.correlator.memory_max = ByteSize(0);
        config.share_memory();
        assert_eq!(config.correlator.memory_max, ByteSize(0));
    }
}
