//! The command line of `tapio patterns`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

/// Arguments of `patterns`.
#[derive(Debug, Clone, Args)]
pub struct PatternsArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub what: PatternsCommand,
}

/// Subcommands of `patterns`.
#[derive(Debug, Clone, Subcommand)]
pub enum PatternsCommand {
    /// List the causes that are known.
    List {
        /// Own pattern files, beside those that come with tapio.
        files: Vec<PathBuf>,
        /// Form of the list.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Show one cause: symptoms, what refutes it, what to do.
    Show {
        /// Cause id, such as `memory.leak`.
        id: String,
        /// Own pattern files, beside those that come with tapio.
        files: Vec<PathBuf>,
        /// Form: a page, or the pattern itself as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Run the patterns' own cases: all of them, or those of the given files.
    Test {
        /// Own pattern files; they take part with those that come with tapio.
        files: Vec<PathBuf>,
        /// Also take each discriminator away and see whether a case notices.
        #[arg(long)]
        mutate: bool,
        /// Only patterns whose cause id contains this.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Form of the report.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Check pattern files: what is broken, on which line and why.
    Lint {
        /// Pattern files, or directories of them.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Form of the report.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Print the page of all patterns (Markdown).
    Docs {
        /// Instead print which case misses each discriminator when it is taken away; takes minutes.
        #[arg(long)]
        mutations: bool,
    },
}
