//! Arguments of `check`.

use std::path::PathBuf;

use clap::Args;
use tapio_runtime::config::HumanDuration;

use super::{ClientArgs, Output};

/// What follows the help of `check`.
pub const AFTER_HELP: &str = "Examples:
  tapio check                              the running instance; without one, the cluster of the kubeconfig
  tapio check -n shop deployment/api       one thing in one namespace
  tapio check -A --context prod -l app=api a cluster, with nothing installed in it; it is only read
  tapio check --from dump/                 kubectl cluster-info dump -A --output-directory=dump
  tapio check --from all.json              kubectl get pods,deploy,rs,nodes,events -A -o json > all.json
  tapio check --from incident.jsonl.zst    a recording, as it stands at its end

As `kubectl-tapio` in the PATH it is also `kubectl tapio`, which always asks the cluster of the context.

Exit codes: 0 healthy (or recovered): everything up to less than a minute ago, or up to the time of the dump, is judged; 2 findings; 3 cannot tell: nothing has been judged lately, the store lacks findings, pods or events cannot be listed, or nothing is known of what was asked for; 69 no running instance and no cluster.";

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Only what concerns this: name, kind/name or namespace/kind/name.
    pub entity: Option<String>,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Form of the answer.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Print all findings, not just one screen.
    #[arg(long)]
    pub all: bool,
    /// Read this instead: a list or dump of `kubectl` (file or directory), or a recording; `-` is standard input.
    #[arg(long, value_name = "DIR|FILE", conflicts_with_all = ["kubeconfig", "context", "watch", "server"])]
    pub from: Option<PathBuf>,
    /// Which cluster, and what of it.
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Answer again whenever the answer changes, until interrupted.
    #[arg(long, short)]
    pub watch: bool,
    /// Between two looks of --watch.
    #[arg(long, value_name = "DURATION", default_value = "10s", requires = "watch")]
    pub every: HumanDuration,
}

/// Which cluster, and what of it.
#[derive(Debug, Clone, Default, Args)]
pub struct ScopeArgs {
    /// Ask the cluster of this kubeconfig, not an instance.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Ask the cluster of this context, not an instance.
    #[arg(long)]
    pub context: Option<String>,
    /// Only this namespace.
    #[arg(long, short, conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// All namespaces, and nothing less: without it the namespace of the context is asked when all are not allowed.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Only what concerns objects with these labels, such as `app=shop,tier in (web,db)`.
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Ask the cluster of the context, whatever instance runs.
    #[arg(long, hide = true)]
    pub of_context: bool,
}

impl ScopeArgs {
    /// Whether a cluster was asked for by name.
    pub fn names_a_cluster(&self) -> bool {
        self.of_context || self.kubeconfig.is_some() || self.context.is_some()
    }
}
