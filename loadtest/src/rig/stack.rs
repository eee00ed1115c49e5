//! A nats-server, a storage service and correlators, each a process, over one directory that goes with them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tapio_runtime::bus::{Bus, BusConfig};
use tapio_runtime::config::ByteSize;
use tapio_runtime::nats_server::{Child, ChildConfig};
use tapio_runtime::telemetry::Metrics;

use super::process::{Launch, Process, Usage};
use super::scrape::{self, Sample};
use crate::error::LoadError;

/// Cluster of the load.
pub const CLUSTER: &str = "loadtest";
/// Machine of the node agent of [`Stack::agent`]: what is found there is true of the machine that this runs on.
pub const MACHINE: &str = "this-machine";
/// Name of that agent among the processes.
const AGENT: &str = "agent";
/// What it may use: of a debug build the program's text alone is resident with more than what an agent may have.
const AGENT_MEMORY: &str = "1GiB";
/// Name of the server among the processes.
pub const NATS: &str = "nats-server";
/// What the stream of events keeps: far more than the backlog that the load allows itself, and all of five minutes of chaos.
const EVENTS_BYTES_MAX: u64 = 2 << 30;

/// How to build it.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// The `tapio` binary.
    pub program: PathBuf,
    /// Directory for everything.
    pub dir: PathBuf,
    /// Correlator processes.
    pub replicas: usize,
    /// Further `key=value` settings of all services.
    pub settings: Vec<String>,
}

/// All of it, running.
pub struct Stack {
    config: StackConfig,
    /// The server.
    pub nats: Child,
    /// The storage service.
    pub storage: Process,
    /// The correlators.
    pub correlators: Vec<Process>,
}

/// The directory of a run, removed when dropped: after the processes that use it.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    keep: bool,
}

impl Dir {
    /// Another one each time. With `keep` it stays.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(keep: bool) -> Result<Self, LoadError> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("tapio-loadtest-{process}-{number}"));
        std::fs::create_dir_all(&path).map_err(|source| LoadError::File { path: path.clone(), source })?;
        Ok(Self { path, keep })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("logs and streams are left in {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Settings of a bus to the server.
fn bus_config(url: &str, name: &str) -> BusConfig {
    let mut config = BusConfig { client_name: name.to_owned(), ..BusConfig::with_url(url) };
    config.streams.events.max_bytes = ByteSize(EVENTS_BYTES_MAX);
    config
}

/// A connection of the load generator's own.
///
/// # Errors
/// When the server refuses it.
pub async fn connect(url: &str, name: &str) -> Result<Bus, LoadError> {
    Ok(Bus::connect(&bus_config(url, name), &Metrics::new()).await?)
}

/// A nats-server alone, with the streams made.
///
/// # Errors
/// When it does not start.
pub async fn server(dir: &Path) -> Result<Child, LoadError> {
    let config = ChildConfig::new(dir.join("nats"));
    let started = tokio::task::spawn_blocking(move || Child::start(config)).await;
    let child = started.map_err(|error| LoadError::Generator(error.to_string()))??;
    connect(&child.url(), "loadtest-setup").await?.ensure_streams().await?;
    Ok(child)
}

impl Stack {
    /// Starts everything on a server that runs; the store first, then the correlators.
    ///
    /// # Errors
    /// When a service does not get ready.
    pub async fn start(config: StackConfig, nats: Child) -> Result<Self, LoadError> {
        let launch = |role: &str, name: String| launch(&config, &nats.url(), role, name);
        let mut storage = Process::start(launch("storage", "storage".to_owned()))?;
        storage.ready().await?;
        let mut correlators = Vec::new();
        for number in 0..config.replicas.max(1) {
            let mut correlator = Process::start(launch("correlator", format!("correlator-{number}")))?;
            correlator.ready().await?;
            correlators.push(correlator);
        }
        Ok(Self { config, nats, storage, correlators })
    }

    /// URL of the server.
    pub fn url(&self) -> String {
        self.nats.url()
    }

    /// How the node agent of this machine is started beside it, with the collectors that need no cluster.
    pub fn agent(&self) -> Launch {
        let mut launch = launch(&self.config, &self.url(), "agent", AGENT.to_owned());
        let own = [
            format!("agent.node={MACHINE}"),
            format!("agent.memory_max={AGENT_MEMORY}"),
            // Whoever runs this may have a kubeconfig, and that cluster is none of the load's.
            "agent.kubernetes.enabled=false".to_owned(),
        ];
        launch.arguments.extend(own.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
        launch
    }

    /// The run that the node agent is in, or was in at last; `None` before the first. It is in a file before a run says anything.
    pub fn agent_run(&self) -> Option<u32> {
        let path = self.config.dir.join(AGENT).join("agent").join("epoch");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Directory of logs and data.
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// Metrics of all correlators, one after the other.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn correlator_metrics(&self) -> Result<Vec<Sample>, LoadError> {
        let mut all = Vec::new();
        for correlator in &self.correlators {
            all.extend(correlator.scrape().await?);
        }
        Ok(all)
    }

    /// Waits until a counter of the correlators, summed, has reached `wanted`; gives what it reached.
    ///
    /// # Errors
    /// When a correlator does not answer.
    pub async fn wait_counter(&self, name: &str, wanted: u64, patience: Duration) -> Result<u64, LoadError> {
        let mut last = (0, tokio::time::Instant::now());
        loop {
            let reached = scrape::sum(&self.correlator_metrics().await?, name);
            if reached > last.0 {
                last = (reached, tokio::time::Instant::now());
            }
            // Patience is for standing still.
            if reached >= wanted || last.1.elapsed() >= patience {
                return Ok(reached);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What each process has used, by name; correlators are summed, and so is what the load generator itself used.
    pub fn usage(&self) -> Vec<(&'static str, Usage)> {
        let correlators: Vec<Usage> = self.correlators.iter().filter_map(Process::usage).collect();
        let peak = correlators.iter().map(|u| u.peak_rss_bytes).max().unwrap_or(0);
        let rss = correlators.iter().map(|u| u.rss_bytes).max().unwrap_or(0);
        let correlator =
            Usage { cpu: correlators.iter().map(|u| u.cpu).sum(), peak_rss_bytes: peak, rss_bytes: rss };
        vec![
            (NATS, Usage::of(self.nats.pid()).unwrap_or_default()),
            ("correlator", correlator),
            ("storage", self.storage.usage().unwrap_or_default()),
            ("loadtest", Usage::of(std::process::id()).unwrap_or_default()),
        ]
    }

    /// Stops correlators and storage as a user does, and says whether each ended well.
    ///
    /// # Errors
    /// When one does not stop in time.
    pub async fn stop_services(&mut self) -> Result<Vec<(String, Option<i32>)>, LoadError> {
        let mut ended = Vec::new();
        for process in self.correlators.iter_mut().chain([&mut self.storage]) {
            let code = process.stop().await?;
            ended.push((process.name().to_owned(), code));
        }
        Ok(ended)
    }
}

fn launch(config: &StackConfig, url: &str, role: &str, name: String) -> Launch {
    let data = config.dir.join(&name);
    let mut arguments = vec![
        role.to_owned(),
        "--free-ports".to_owned(),
        "--nats-url".to_owned(),
        url.to_owned(),
        "--data-dir".to_owned(),
        data.to_string_lossy().into_owned(),
    ];
    let own = [
        format!("cluster={CLUSTER}"),
        format!("bus.client_name={name}"),
        format!("bus.streams.events.max_bytes={EVENTS_BYTES_MAX}"),
    ];
    for setting in own.iter().chain(&config.settings) {
        arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    Launch { name, program: config.program.clone(), arguments, dir: config.dir.clone() }
}
