//! The command line of `tapio accuracy`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Output, path_or_empty};
use crate::accuracy::perturb::Perturbation;

/// Arguments of `accuracy`.
#[derive(Debug, Clone, Args)]
pub struct AccuracyArgs {
    /// Directories of cases.
    #[arg(required = true)]
    pub directories: Vec<PathBuf>,
    /// Form of the report.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// How causes are found; all but `causal` are there to be compared with.
    #[arg(long, value_enum, default_value_t = CauseMethod::Causal)]
    pub method: CauseMethod,
    /// Leave out all lines of a signal; repeatable.
    #[arg(long, value_enum)]
    pub without: Vec<RecordedSignal>,
    /// Replace every name of a service, workload, pod, namespace and node by random words of this seed.
    #[arg(long, value_name = "SEED")]
    pub rename: Option<u64>,
    /// Change the recordings: the figures should hold, or fall gently.
    #[arg(long, value_enum)]
    pub perturb: Option<Perturbation>,
    /// Cases at a time.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Run each case twice; both must say the same, byte by byte.
    #[arg(long)]
    pub twice: bool,
    /// Write the findings of each case to this directory, as `tapio replay --output jsonl` prints them.
    #[arg(long, value_name = "DIR")]
    pub findings: Option<PathBuf>,
    /// Score the findings in this directory (`CASE.jsonl`) and replay nothing.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["findings", "twice", "without", "rename", "perturb"])]
    pub score: Option<PathBuf>,
    /// Compare with the simple methods, with less input and with other names, and write the figures into this page.
    #[arg(long, value_name = "PAGE", conflicts_with_all = ["score", "without", "rename", "perturb", "method", "fit"])]
    pub write: Option<PathBuf>,
    /// Fit the calibration to raw confidences, of the recordings as they are and perturbed in every way, and write it to this
    /// file, which is built into the program.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["score", "without", "method", "perturb"])]
    pub fit: Option<PathBuf>,
    /// Configuration file (YAML).
    #[arg(long, env = "TAPIO_CONFIG", value_parser = path_or_empty())]
    pub config: Option<PathBuf>,
    /// Override one configuration key, such as `correlator.lateness=1s`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Ways to find a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CauseMethod {
    /// Causal inference, the product.
    Causal,
    /// What the earliest strong signal is on.
    Earliest,
    /// What the most and strongest signals are on.
    Loudest,
    /// Whose measures changed most since the first alarm (BARO).
    Ranksum,
}

impl From<CauseMethod> for tapio_correlator::baseline::Method {
    fn from(method: CauseMethod) -> Self {
        match method {
            CauseMethod::Causal => Self::Causal,
            CauseMethod::Earliest => Self::Earliest,
            CauseMethod::Loudest => Self::Loudest,
            CauseMethod::Ranksum => Self::RankSum,
        }
    }
}

/// Signals of OpenTelemetry in a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecordedSignal {
    /// Log records.
    Logs,
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
}

impl RecordedSignal {
    /// As recordings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}
