//! Arguments of `tapio loadtest`.

use clap::{Args, Subcommand};

use crate::cli::Output;

/// Arguments of `loadtest`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  tapio loadtest throughput\n  tapio loadtest latency --rate 165000\n  tapio loadtest soak --minutes 30\n  tapio loadtest chaos --seed 7 --replicas 3\n  tapio loadtest takeover --rounds 5\n\nEverything runs in processes of its own: a nats-server with a store on disk, storage, correlators. Exit code 1 when an\nevent is not accounted for, a finding is missing, doubled, or about a thing in which nothing was injected, or a process\nkeeps growing over the second half of at least ten minutes."
)]
pub struct LoadtestArgs {
    /// What to measure.
    #[command(subcommand)]
    pub mode: Mode,
    /// Form of the report; as JSON one object is the last line, and the text goes to standard error.
    #[arg(long, short, value_enum, default_value_t, global = true)]
    pub output: Output,
    /// Seed of the cluster, its events and its faults.
    #[arg(long, default_value_t = 1, global = true)]
    pub seed: u64,
    /// Correlator processes.
    #[arg(long, global = true)]
    pub replicas: Option<usize>,
    /// Node agents that publish.
    #[arg(long, default_value_t = 50, global = true)]
    pub producers: usize,
    /// Milliseconds between two injected faults.
    #[arg(long, default_value_t = 3000, global = true)]
    pub fault_every_ms: u64,
    /// Seconds of each of the two measurements of NATS alone; 0 leaves them out.
    #[arg(long, default_value_t = 5.0, global = true)]
    pub ceiling_seconds: f64,
    /// Override one configuration key of the services, such as `correlator.workers=2`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    pub overrides: Vec<String>,
    /// Keep the directory with logs and streams.
    #[arg(long, global = true)]
    pub keep: bool,
}

/// What to measure.
#[derive(Debug, Clone, Subcommand)]
pub enum Mode {
    /// As many events as the correlator takes, without loss.
    Throughput(ThroughputArgs),
    /// How long an event takes to its signal and a fault to its finding, at a steady rate.
    Latency(LatencyArgs),
    /// A steady rate for a long time: memory must not grow.
    Soak(SoakArgs),
    /// A steady rate while every process is killed, paused and restarted: every fault is found once, nothing is lost.
    Chaos(ChaosArgs),
    /// How long nobody judges when a correlator is killed, and when it is told to stop. The goals are printed beside the times and
    /// not judged: exit code 1 is for what was not taken over, or stopped badly.
    Takeover(TakeoverArgs),
    /// The producer that `chaos` kills.
    #[command(hide = true)]
    Producer(ProducerArgs),
}

/// Arguments of `loadtest throughput`.
#[derive(Debug, Clone, Args)]
pub struct ThroughputArgs {
    /// Length of the load.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Events per second; without it as fast as the correlator takes them.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Batches that may be published and not yet processed.
    #[arg(long, default_value_t = 512)]
    pub backlog: u64,
    /// Make all messages before the start (60 bytes of memory per event), so that the work of the node agents, which is
    /// done on other machines, does not take part in the measurement.
    #[arg(long, requires = "rate")]
    pub prepared: bool,
}

/// Arguments of `loadtest latency`.
#[derive(Debug, Clone, Args)]
pub struct LatencyArgs {
    /// Events per second.
    #[arg(long)]
    pub rate: f64,
    /// Length of the load.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long, default_value_t = 5.0)]
    pub batch_age_ms: f64,
}

/// Arguments of `loadtest soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Length of the load.
    #[arg(long)]
    pub minutes: f64,
    /// Events per second.
    #[arg(long, default_value_t = 50_000.0)]
    pub rate: f64,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long, default_value_t = 100.0)]
    pub batch_age_ms: f64,
}

/// Arguments of `loadtest chaos`.
#[derive(Debug, Clone, Args)]
pub struct ChaosArgs {
    /// Length of the load.
    #[arg(long, default_value_t = 5.0)]
    pub minutes: f64,
    /// Events per second.
    #[arg(long, default_value_t = 100_000.0)]
    pub rate: f64,
    /// Things done to processes: kill -9, SIGSTOP, restart.
    #[arg(long, default_value_t = 20)]
    pub actions: usize,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long, default_value_t = 100.0)]
    pub batch_age_ms: f64,
}

/// Arguments of `loadtest takeover`.
#[derive(Debug, Clone, Args)]
pub struct TakeoverArgs {
    /// Kills, and as many planned stops.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Events per second.
    #[arg(long, default_value_t = 10_000.0)]
    pub rate: f64,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long, default_value_t = 100.0)]
    pub batch_age_ms: f64,
}

/// Arguments of the producer that can be killed.
#[derive(Debug, Clone, Args)]
pub struct ProducerArgs {
    /// NATS.
    #[arg(long)]
    pub nats_url: String,
    /// Wall clock at the beginning of the load.
    #[arg(long)]
    pub start_unix_nanos: u64,
    /// File that keeps how far it is.
    #[arg(long)]
    pub place: std::path::PathBuf,
    /// Length of the load.
    #[arg(long)]
    pub seconds: f64,
    /// Events per second.
    #[arg(long)]
    pub rate: f64,
    /// Age at which a batch is sent, milliseconds.
    #[arg(long)]
    pub batch_age_ms: f64,
}
