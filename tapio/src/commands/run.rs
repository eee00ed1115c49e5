//! `tapio up|agent|correlator|storage`: configuration, build, print addresses, wait for a signal, drain.

use std::path::Path;

use anyhow::Context;
use tapio_agents::collectors::CollectorState;
use tapio_agents::node::{AgentHandle, AgentParts, NodeAgent};
use tapio_correlator::pipeline::{Correlator, CorrelatorHandle, CorrelatorParts};
use tapio_runtime::bus::{Bus, BusConfig, BusError};
use tapio_runtime::clock::{SharedClock, SystemClock};
use tapio_runtime::health::Health;
use tapio_runtime::nats_server::{Child, ChildConfig};
use tapio_runtime::shutdown::{Shutdown, trigger_on_signals};
use tapio_runtime::telemetry::{self, HttpServer, Metrics, TelemetryGuard};
use tapio_storage::{StorageHandle, StorageParts, StorageService};

use crate::cli::RunArgs;
use crate::config::TapioConfig;
use crate::endpoints::Endpoints;

/// Which services run in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All of them.
    All,
    /// The node agent.
    Agent,
    /// The correlator.
    Correlator,
    /// The storage service.
    Storage,
}

impl Role {
    fn includes(self, other: Role) -> bool {
        self == Role::All || self == other
    }

    fn name(self) -> &'static str {
        match self {
            Role::All => "tapio",
            Role::Agent => "tapio-agent",
            Role::Correlator => "tapio-correlator",
            Role::Storage => "tapio-storage",
        }
    }
}

/// Runs until a signal, then drains.
pub async fn run(role: Role, args: RunArgs) -> anyhow::Result<i32> {
    let config = TapioConfig::load(&args)?;
    let metrics = Metrics::new();
    let guard = telemetry::init(&config.telemetry, role.name(), &metrics)?;
    let signals = Shutdown::new();
    trigger_on_signals(&signals).context("cannot listen for signals")?;
    let Some(mut instance) = Instance::start_with(role, &config, metrics, &signals).await? else {
        println!("Stopped before NATS answered.");
        guard.shutdown();
        return Ok(0);
    };
    instance.guard = Some(guard);
    instance.announce(role);
    signals.wait().await;
    println!("Stopping: what is on its way is finished first.");
    instance.drain().await?;
    Ok(0)
}

/// Running services of one process.
pub struct Instance {
    endpoints: Endpoints,
    config: TapioConfig,
    whole: bool,
    agent: Option<AgentHandle>,
    correlator: Option<CorrelatorHandle>,
    storage: Option<StorageHandle>,
    http: HttpServer,
    shutdown: Shutdown,
    bus: Bus,
    nats: Option<Child>,
    guard: Option<TelemetryGuard>,
}

impl Instance {
    /// Starts with the configuration the arguments name, without touching logs or signals.
    pub async fn start(role: Role, args: &RunArgs) -> anyhow::Result<Self> {
        let config = TapioConfig::load(args)?;
        let started = Self::start_with(role, &config, Metrics::new(), &Shutdown::new()).await?;
        started.context("stopped before NATS answered")
    }

    /// Starts consumers before producers: storage, correlator, agent. `None` when `stop` came before NATS
    /// answered.
    async fn start_with(
        role: Role,
        config: &TapioConfig,
        metrics: Metrics,
        stop: &Shutdown,
    ) -> anyhow::Result<Option<Self>> {
        let mut config = config.clone();
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("cannot make data directory {}", config.data_dir.display()))?;
        let mut nats = if role == Role::All && !config.names_nats() {
            Some(start_nats(&mut config).await?)
        } else {
            None
        };
        let bus = tokio::select! {
            connected = connect(&config.bus, &metrics) => connected?,
            () = stop.wait() => {
                stop_nats(nats.take()).await?;
                return Ok(None);
            }
        };
        if role == Role::All {
            config.share_memory();
        }
        let clock = SystemClock::shared();
        let health = Health::new(clock.clone());
        let shutdown = Shutdown::new();
        let parts = Parts { bus: &bus, clock: &clock, metrics: &metrics, health: &health };
        let storage = parts.storage(role, &config).await?;
        let correlator = parts.correlator(role, &config).await?;
        let agent = parts.agent(role, &config).await?;
        let http =
            telemetry::serve(&config.telemetry.listen, metrics.clone(), health.clone(), shutdown.clone())
                .await?;
        let endpoints = Endpoints {
            nats: config.bus.urls.join(","),
            otlp_grpc: agent
                .as_ref()
                .and_then(AgentHandle::otlp_grpc)
                .map(|a| a.to_string())
                .unwrap_or_default(),
            otlp_http: agent
                .as_ref()
                .and_then(AgentHandle::otlp_http)
                .map(|a| a.to_string())
                .unwrap_or_default(),
            api_grpc: storage.as_ref().map(|s| s.grpc_addr().to_string()).unwrap_or_default(),
            metrics: http.addr().to_string(),
        };
        let whole = role == Role::All;
        if whole {
            endpoints.write(&config.data_dir)?;
        }
        Ok(Some(Self {
            endpoints,
            config,
            whole,
            agent,
            correlator,
            storage,
            http,
            shutdown,
            bus,
            nats,
            guard: None,
        }))
    }

    /// Where it listens.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    fn announce(&self, role: Role) {
        println!("{} runs; data in {}", role.name(), self.config.data_dir.display());
        let lines = [
            ("NATS", &self.endpoints.nats, "nats sub 'tapio.v1.insights.>'"),
            ("OTLP gRPC", &self.endpoints.otlp_grpc, "OTEL_EXPORTER_OTLP_ENDPOINT"),
            ("OTLP HTTP", &self.endpoints.otlp_http, "/v1/traces /v1/metrics /v1/logs"),
            ("API gRPC", &self.endpoints.api_grpc, "tapio check, tapio why, grpcurl"),
            ("metrics", &self.endpoints.metrics, "/metrics /livez /readyz"),
        ];
        for (name, address, use_with) in lines {
            if !address.is_empty() {
                println!("  {name:<10} {address:<28} {use_with}");
            }
        }
        if let Some(agent) = &self.agent {
            for (collector, state) in agent.collectors().states() {
                if let CollectorState::Degraded(reason) | CollectorState::Disabled(reason) = state {
                    println!("  without    {collector}: {reason}");
                }
            }
        }
        println!("Ctrl-C stops it.");
    }

    /// Producers first, so that everything on its way arrives; NATS last.
    pub async fn drain(mut self) -> anyhow::Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.drain().await.context("the node agent did not drain")?;
        }
        if let Some(correlator) = self.correlator.take() {
            correlator.drain().await.context("the correlator did not drain")?;
        }
        if let Some(storage) = self.storage.take() {
            storage.drain().await.context("the storage service did not drain")?;
        }
        self.shutdown.trigger();
        self.http.join().await;
        if let Err(error) = self.bus.drain().await {
            tracing::debug!(%error, "the connection to NATS was already closed");
        }
        if self.whole {
            Endpoints::remove(&self.config.data_dir);
        }
        stop_nats(self.nats.take()).await?;
        if let Some(guard) = self.guard.take() {
            guard.shutdown();
        }
        Ok(())
    }
}

async fn connect(config: &BusConfig, metrics: &Metrics) -> Result<Bus, BusError> {
    let bus = Bus::connect(config, metrics).await?;
    bus.ensure_streams().await?;
    Ok(bus)
}

async fn stop_nats(nats: Option<Child>) -> anyhow::Result<()> {
    if let Some(mut nats) = nats {
        tokio::task::spawn_blocking(move || nats.stop()).await?.context("nats-server did not stop")?;
    }
    Ok(())
}

async fn start_nats(config: &mut TapioConfig) -> anyhow::Result<Child> {
    let child = ChildConfig { port: config.nats.port, ..ChildConfig::new(nats_dir(&config.data_dir)) };
    let child = tokio::task::spawn_blocking(move || Child::start(child)).await??;
    config.bus.urls = vec![child.url()];
    Ok(child)
}

fn nats_dir(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("nats")
}

/// What every service is built from.
struct Parts<'a> {
    bus: &'a Bus,
    clock: &'a SharedClock,
    metrics: &'a Metrics,
    health: &'a Health,
}

impl Parts<'_> {
    async fn storage(&self, role: Role, config: &TapioConfig) -> anyhow::Result<Option<StorageHandle>> {
        if !role.includes(Role::Storage) {
            return Ok(None);
        }
        let parts = StorageParts {
            bus: self.bus.clone(),
            clock: self.clock.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
        };
        Ok(Some(StorageService::start(config.storage.clone(), parts).await?))
    }

    async fn correlator(&self, role: Role, config: &TapioConfig) -> anyhow::Result<Option<CorrelatorHandle>> {
        if !role.includes(Role::Correlator) {
            return Ok(None);
        }
        let parts = CorrelatorParts {
            bus: self.bus.clone(),
            clock: self.clock.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
        };
        Ok(Some(Correlator::start(config.correlator.clone(), parts).await?))
    }

    async fn agent(&self, role: Role, config: &TapioConfig) -> anyhow::Result<Option<AgentHandle>> {
        if !role.includes(Role::Agent) {
            return Ok(None);
        }
        let parts = AgentParts {
            bus: self.bus.clone(),
            clock: self.clock.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
        };
        Ok(Some(NodeAgent::start(config.agent.clone(), parts).await?))
    }
}
