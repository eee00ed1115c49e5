//! The command line.

use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

mod accuracy;
mod check;
mod fix;
mod patterns;
pub use accuracy::AccuracyArgs;
pub use check::{CheckArgs, ScopeArgs};
pub use fix::FixArgs;
pub use patterns::{PatternsArgs, PatternsCommand};

/// A path that may be empty, which is like not given: `TAPIO_DATA_DIR=` unsets it for one command.
fn path_or_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The path, unless it is empty.
pub fn given(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// What broke in your cluster, why, what comes next and which command fixes it.
#[derive(Debug, Parser)]
#[command(
    name = "tapio",
    version,
    about,
    after_help = "Examples:\n  tapio up                       run everything on this machine\n  tapio demo memory-leak         watch it predict and explain a real out-of-memory kill\n  tapio check                    what is wrong now\n  tapio why shop/deployment/api  the story of one thing\n  tapio doctor                   what works on this machine and what does not\n\nExit codes: 0 done or healthy, 1 failed, 2 findings or bad usage, 3 cannot tell, 64 bad configuration, 69 no running instance, 141 nobody reads what is printed."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process: node agent, correlator, storage, and a nats-server as a child.
    #[command(
        after_help = "Examples:\n  tapio up\n  tapio up --data-dir /var/lib/tapio --config tapio.yaml\n  tapio up --nats-url nats://nats.example:4222 --set agent.otlp.grpc_listen=0.0.0.0:4317"
    )]
    Up(RunArgs),
    /// Run the node agent alone.
    Agent(RunArgs),
    /// Run the correlator alone.
    Correlator(RunArgs),
    /// Run the storage service alone.
    Storage(RunArgs),
    /// Say what is wrong now, and whether anyone would know: asks a running instance, a cluster, or a dump of one.
    #[command(after_help = check::AFTER_HELP)]
    Check(CheckArgs),
    /// Do what a finding says is to be done, after a dry run and a question, and watch whether it helps.
    #[command(after_help = fix::AFTER_HELP)]
    Fix(FixArgs),
    /// Tell the story of one thing: name, kind/name, namespace/kind/name, a cgroup path or a finding id.
    #[command(
        after_help = "Examples:\n  tapio why api\n  tapio why shop/deployment/api\n  tapio why /tapio-demo\n\nExit codes: 0 nothing is known against it; 2 a finding; 3 nothing is known of it; 69 no running instance."
    )]
    Why(WhyArgs),
    /// Say whether a finding was right; the causes it weighed are believed more or less from then on.
    #[command(
        after_help = "Examples:\n  tapio feedback fnd-0123… --right --fix \"rolled back to 1.4\"\n  tapio feedback fnd-0123… --wrong --cause cpu.throttling --entity shop/deployment/api"
    )]
    Feedback(FeedbackArgs),
    /// Say how often each cause was right, and what that makes of its prior.
    #[command(
        after_help = "Examples:\n  tapio causes\n  tapio causes --all --output json\n  tapio causes --reset memory.leak\n  tapio causes --reset"
    )]
    Causes(CausesArgs),
    /// Print what was foretold, whether it came, and how often it came within its interval.
    #[command(after_help = "Examples:\n  tapio predictions\n  tapio predictions --scored --output jsonl")]
    Predictions(PredictionsArgs),
    /// Print findings as they are published.
    Watch(WatchArgs),
    /// Say what each part has done with the events, and whether all are accounted for.
    #[command(
        after_help = "Examples:\n  tapio status\n  tapio status --output json\n  tapio status --nats-url nats://nats.example:4222\n\nExit codes: 0 every event is accounted for; 2 events are missing; 3 a part is silent, or no agent speaks; 69 no running instance."
    )]
    Status(StatusArgs),
    /// The causes that are known: list them, show one, run their tests, check files of your own.
    #[command(
        after_help = "Examples:\n  tapio patterns list\n  tapio patterns show memory.leak\n  tapio patterns test --mutate\n  tapio patterns lint own.yaml\n\nExit codes: 0 all as expected; 1 a case fails, a discriminator is never needed, or a file is broken."
    )]
    Patterns(PatternsArgs),
    /// Run recordings through the pipeline in event time and print each finding revision.
    #[command(
        after_help = "Examples:\n  tapio replay incident.jsonl.zst --output jsonl\n\nFindings come one a line, as they are made: `--output json` is the same as `jsonl` here."
    )]
    Replay(ReplayArgs),
    /// Run recorded cases with known answers through the pipeline and say how often the verdict is right.
    #[command(
        after_help = "Examples:\n  tapio accuracy cases/\n  tapio accuracy cases/ --without traces --output json\n  tapio accuracy cases/ --rename 7 --twice\n\nA directory has recordings (<case>.jsonl, .zst or .gz) and labels/<case>.json. Exit code 1: a case cannot be read, or with --twice two runs differ."
    )]
    Accuracy(AccuracyArgs),
    /// Write the events of a running instance to a file that `tapio replay` reads.
    Record(RecordArgs),
    /// Write all stored findings to a file of JSON lines; the instance must not be running.
    #[command(
        after_help = "Examples:\n  tapio export findings.jsonl.zst\n  tapio export - --data-dir /var/lib/tapio | wc -l"
    )]
    Export(TransferArgs),
    /// Store the findings of an export; what is there already stays. The instance must not be running.
    #[command(after_help = "Examples:\n  tapio import findings.jsonl.zst --data-dir /var/lib/tapio")]
    Import(TransferArgs),
    /// Say what works on this machine, what does not, and what to do.
    Doctor(DoctorArgs),
    /// See Tapio do its job on a real failure.
    Demo(DemoArgs),
    /// Generate load and check that nothing is lost.
    Loadtest(crate::commands::loadtest_args::LoadtestArgs),
    /// Print a completion script for a shell.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// The process that leaks in `tapio demo memory-leak`.
    #[command(hide = true)]
    LeakChild(LeakArgs),
}

/// The command line as people are to see it: without what is only for the program itself.
pub fn visible() -> clap::Command {
    let whole = Cli::command();
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("tapio")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(commands.collect::<Vec<_>>())
}

impl Command {
    /// True for what runs until it is told to stop, and what starts services of its own: it lives on when nobody reads what it
    /// prints any more.
    pub fn is_service(&self) -> bool {
        let starts_some = matches!(self, Self::Demo(_) | Self::Loadtest(_));
        starts_some || matches!(self, Self::Up(_) | Self::Agent(_) | Self::Correlator(_) | Self::Storage(_))
    }

    /// True for what holds no connection while it prints.
    pub fn is_offline(&self) -> bool {
        matches!(
            self,
            Self::LeakChild(_)
                | Self::Doctor(_)
                | Self::Replay(_)
                | Self::Patterns(_)
                | Self::Accuracy(_)
                | Self::Export(_)
                | Self::Import(_)
                | Self::Completions { .. }
        )
    }
}

/// How to run a service.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Configuration file (YAML).
    #[arg(long, env = "TAPIO_CONFIG", value_parser = path_or_empty())]
    pub config: Option<PathBuf>,
    /// Where findings, streams and endpoints.json are kept.
    #[arg(long, env = "TAPIO_DATA_DIR", value_parser = path_or_empty())]
    pub data_dir: Option<PathBuf>,
    /// Use this NATS server; without it `tapio up` starts one.
    #[arg(long)]
    pub nats_url: Option<String>,
    /// Override one configuration key, such as `agent.cgroup.interval=1s`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Let every port be chosen by the system.
    #[arg(long)]
    pub free_ports: bool,
}

/// How to find a running instance.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// gRPC address of the instance, such as 127.0.0.1:50051.
    #[arg(long, env = "TAPIO_SERVER")]
    pub server: Option<String>,
    /// Data directory of the instance (its endpoints.json is read).
    #[arg(long, env = "TAPIO_DATA_DIR", value_parser = path_or_empty())]
    pub data_dir: Option<PathBuf>,
}

impl RunArgs {
    /// The data directory, when one is named.
    pub fn data_dir(&self) -> Option<&Path> {
        given(&self.data_dir)
    }
}

impl ClientArgs {
    /// The address, when one is named.
    pub fn server(&self) -> Option<&str> {
        self.server.as_deref().filter(|server| !server.is_empty())
    }

    /// The data directory, when one is named.
    pub fn data_dir(&self) -> Option<&Path> {
        given(&self.data_dir)
    }
}

/// Text or JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// One JSON document.
    Json,
    /// One JSON document a line.
    Jsonl,
}

/// Arguments of `why`.
#[derive(Debug, Clone, Args)]
pub struct WhyArgs {
    /// name, kind/name, namespace/kind/name, a cgroup path or a finding id.
    pub entity: String,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `feedback`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("judgement").required(true).args(["right", "wrong"]))]
pub struct FeedbackArgs {
    /// Id of the finding.
    pub id: String,
    /// The root cause it names is right.
    #[arg(long)]
    pub right: bool,
    /// It is not.
    #[arg(long)]
    pub wrong: bool,
    /// The cause it was, such as `memory.leak`.
    #[arg(long, requires = "wrong")]
    pub cause: Option<String>,
    /// Where it was: name, kind/name or namespace/kind/name.
    #[arg(long, requires = "wrong")]
    pub entity: Option<String>,
    /// What helped, in words: told with similar findings later.
    #[arg(long)]
    pub fix: Option<String>,
    /// Anything else, in words.
    #[arg(long)]
    pub note: Option<String>,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `causes`.
#[derive(Debug, Clone, Args)]
pub struct CausesArgs {
    /// Only this cluster.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Also the causes without an outcome.
    #[arg(long)]
    pub all: bool,
    /// Forget what was learnt, of one cause or of all.
    #[arg(long, value_name = "CAUSE", num_args = 0..=1, default_missing_value = "")]
    pub reset: Option<String>,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `predictions`.
#[derive(Debug, Clone, Args)]
pub struct PredictionsArgs {
    /// Only those whose time has come.
    #[arg(long)]
    pub scored: bool,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `watch`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Only what concerns this.
    pub entity: Option<String>,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the lines.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Print the stored findings first.
    #[arg(long, conflicts_with = "news")]
    pub stored: bool,
    /// Print what happens when it is read, before there is a verdict: kills, failures, changes.
    #[arg(long)]
    pub news: bool,
    /// With `--news`: NATS server of the instance; else taken from endpoints.json.
    #[arg(long, requires = "news")]
    pub nats_url: Option<String>,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// NATS server of the instance; else taken from endpoints.json.
    #[arg(long)]
    pub nats_url: Option<String>,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Print all agents, not just one screen.
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// JSON lines, plain, .gz or .zst; `-` for standard input. Several files are merged in time order.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Form of the findings.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Name of the cluster the recording is taken for.
    #[arg(long, default_value = "replay")]
    pub cluster: String,
    /// Configuration file (YAML).
    #[arg(long, env = "TAPIO_CONFIG", value_parser = path_or_empty())]
    pub config: Option<PathBuf>,
}

/// Arguments of `record`.
#[derive(Debug, Clone, Args)]
pub struct RecordArgs {
    /// File to write; `.zst` compresses.
    pub file: PathBuf,
    /// NATS server of the instance; else taken from endpoints.json.
    #[arg(long)]
    pub nats_url: Option<String>,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Only events of cgroups whose path contains this.
    #[arg(long)]
    pub cgroup: Option<String>,
    /// Stop after this many seconds; else at Ctrl-C.
    #[arg(long)]
    pub seconds: Option<u64>,
}

/// Arguments of `export` and `import`.
#[derive(Debug, Clone, Args)]
pub struct TransferArgs {
    /// JSON lines; `-` for standard output or input. An export is compressed when it ends in `.zst`.
    pub file: PathBuf,
    /// Configuration file (YAML).
    #[arg(long, env = "TAPIO_CONFIG", value_parser = path_or_empty())]
    pub config: Option<PathBuf>,
    /// Data directory of the instance.
    #[arg(long, env = "TAPIO_DATA_DIR", value_parser = path_or_empty())]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// How services would be run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Which failure.
    #[command(subcommand)]
    pub scenario: DemoScenario,
}

/// Scenarios.
#[derive(Debug, Clone, Subcommand)]
pub enum DemoScenario {
    /// A process leaks about 1 MiB/s in a cgroup of 64 MiB until the kernel kills it.
    MemoryLeak(MemoryLeakArgs),
}

/// Arguments of `demo memory-leak`.
#[derive(Debug, Clone, Args)]
pub struct MemoryLeakArgs {
    /// Where the instance is; one is started when none is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Memory limit of the cgroup, MiB.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=4096))]
    pub limit_mib: u64,
    /// Leak, KiB per second.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=65536))]
    pub rate_kib: u64,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 240)]
    pub timeout_seconds: u64,
}

/// Arguments of the leaking child.
#[derive(Debug, Clone, Args)]
pub struct LeakArgs {
    /// `cgroup.procs` file to join first.
    #[arg(long)]
    pub procs: PathBuf,
    /// Leak, KiB per second.
    #[arg(long)]
    pub rate_kib: u64,
    /// Stop by itself at this many MiB, should nobody kill it.
    #[arg(long)]
    pub stop_mib: u64,
}
