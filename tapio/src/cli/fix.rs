//! Arguments of `fix`.

use std::path::PathBuf;

use clap::Args;
use tapio_runtime::config::HumanDuration;

use super::{CheckArgs, ClientArgs, Output, ScopeArgs};

/// What follows the help of `fix`.
pub const AFTER_HELP: &str = "Examples:
  tapio fix shop/deployment/api --dry-run   what would be changed, tried by the server
  tapio fix fnd-0123… --action 2            another than the first action of a finding
  tapio fix api --context prod --rollback   undo it by itself when something is worse after it
  tapio fix api --yes --limit 1Gi           without a question, with a value of your own
  tapio fix api --yes --cluster prod        what an instance found in prod, changed in the cluster of the kubeconfig

The change is tried by the server first (dry run), your permission is asked for, the difference is shown. Then it is made for the
version of the object that was read, and the same symptom is watched until it is gone. Each step is a line of actions.jsonl in the data
directory. An instance may watch another cluster than the one of the kubeconfig, where the change is made: both are named before the
question, and --yes needs --cluster. Actions that no request to the API can do are printed as commands.

Exit codes: 0 gone, or --dry-run; 1 nothing was changed; 2 changed and not gone, worse, undone, or not all written to actions.jsonl; 69 no running instance and no cluster.";

/// Arguments of `fix`.
#[derive(Debug, Clone, Args)]
pub struct FixArgs {
    /// What to fix: the id of a finding, or name, kind/name or namespace/kind/name of what is broken.
    pub target: String,
    /// Where the instance is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Which cluster, and what of it.
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Only findings of this cluster, as the instance names it. Needed with --yes when an instance is asked: it says
    /// that the cluster of the kubeconfig, where the change is made, is this one.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kubeconfig", "context"])]
    pub cluster: Option<String>,
    /// Where actions.jsonl is; without it the data directory.
    #[arg(long, value_name = "DIR")]
    pub audit_dir: Option<PathBuf>,
    /// Which of the finding's actions, from 1; without it the first that can be done.
    #[arg(long, value_name = "N")]
    pub action: Option<usize>,
    /// Show what would be changed, as the server says, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Do not ask for an action of high risk either.
    #[arg(long, requires = "yes")]
    pub high_risk: bool,
    /// Undo it without a question when something is worse after it.
    #[arg(long)]
    pub rollback: bool,
    /// The limit to set, such as 512Mi, or cpu=2 when the action sets several; without it twice the one that stands.
    #[arg(long, value_name = "[RESOURCE=]QUANTITY")]
    pub limit: Option<String>,
    /// The container that gets the limit.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// How long the symptom is watched at most.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub watch_for: HumanDuration,
    /// How long nothing of the symptom must be seen.
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub settle: HumanDuration,
}

impl FixArgs {
    /// The question of `check` that finds what is wrong, of everything that is in scope.
    pub fn check(&self) -> CheckArgs {
        CheckArgs {
            entity: None,
            client: self.client.clone(),
            output: Output::Json,
            all: true,
            from: None,
            scope: self.scope.clone(),
            watch: false,
            every: HumanDuration::from_secs(10),
        }
    }
}
