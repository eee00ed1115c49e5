//! The one binary: every service, and the command line that asks them.
#![forbid(unsafe_code)]

// Its macros are for all that follow.
#[macro_use]
mod print;

mod accuracy;
mod balance;
mod cli;
mod client;
mod commands;
mod config;
mod endpoints;
mod exit;
mod input;
mod plugin;
mod recording;
mod render;
mod verdict;

use clap::Parser;

use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let cli = Cli::parse_from(plugin::arguments(std::env::args_os()));
    if cli.command.is_service() {
        print::live_on();
    } else if cli.command.is_offline() {
        sigpipe::reset();
    }
    let code = dispatch(cli.command).unwrap_or_else(|error| {
        eprintln!("tapio: {error:#}");
        exit::code_of(&error)
    });
    std::process::exit(if code == 0 && print::is_cut() { exit::FAILED } else { code });
}

fn dispatch(command: Command) -> anyhow::Result<i32> {
    match command {
        Command::LeakChild(args) => commands::leak_child::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Replay(args) => commands::replay::run(&args),
        Command::Patterns(args) => commands::patterns::run(&args),
        Command::Accuracy(args) => commands::accuracy::run(&args),
        Command::Export(args) => commands::transfer::export(&args),
        Command::Import(args) => commands::transfer::import(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut cli::visible(), "tapio", &mut std::io::stdout());
            Ok(0)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(dispatch_async(command))
        }
    }
}

async fn dispatch_async(command: Command) -> anyhow::Result<i32> {
    use commands::run::Role;
    match command {
        Command::Up(args) => commands::run::run(Role::All, args).await,
        Command::Agent(args) => commands::run::run(Role::Agent, args).await,
        Command::Correlator(args) => commands::run::run(Role::Correlator, args).await,
        Command::Storage(args) => commands::run::run(Role::Storage, args).await,
        Command::Check(args) => commands::check::run(args).await,
        Command::Fix(args) => commands::fix::run(args).await,
        Command::Why(args) => commands::why::run(args).await,
        Command::Feedback(args) => commands::feedback::run(args).await,
        Command::Causes(args) => commands::causes::run(args).await,
        Command::Predictions(args) => commands::predictions::run(args).await,
        Command::Watch(args) => commands::watch::run(args).await,
        Command::Status(args) => commands::status::run(args).await,
        Command::Record(args) => commands::record::run(args).await,
        Command::Demo(args) => commands::demo::run(args).await,
        Command::Loadtest(args) => commands::loadtest::run(args).await,
        Command::LeakChild(_)
        | Command::Doctor(_)
        | Command::Replay(_)
        | Command::Accuracy(_)
        | Command::Patterns(_)
        | Command::Export(_)
        | Command::Import(_)
        | Command::Completions { .. } => {
            unreachable!("handled without a runtime")
        }
    }
}
