//! `tapio check`: what is wrong now, of a running instance, of a cluster, or of a dump of one.

mod about;
mod cluster;
mod dump;
mod instance;
mod judged;
mod logs;
mod screen;

use anyhow::Context;
use tapio_schemas::finding::Status;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{CheckArgs, Output};
use crate::client::locate;
use crate::exit::{CANNOT_TELL, ExitWith, FINDINGS, UNAVAILABLE};
use crate::verdict::Answer;

use about::About;
pub use cluster::Lists;
pub use logs::as_told;

/// Who is asked.
enum Source {
    Instance,
    Cluster(Box<Lists>),
    Dump,
}

/// Asks, prints the answer, returns the exit code.
pub async fn run(args: CheckArgs) -> anyhow::Result<i32> {
    let about = About::of(&args)?;
    let source = choose(&args).await?;
    if args.watch {
        return watch(&args, &about, &source).await;
    }
    let answer = ask(&args, &about, &source).await?;
    print!("{}", text(&answer, &args)?);
    Ok(exit_code(&answer))
}

/// Asks again and again, prints what changes, until interrupted. Whoever does not answer once may answer the next time;
/// who has never answered is not waited for.
async fn watch(args: &CheckArgs, about: &About, source: &Source) -> anyhow::Result<i32> {
    // One for all rounds: an interrupt that comes while nobody listens would be lost.
    let mut interrupts = signal(SignalKind::interrupt()).context("interrupts cannot be taken")?;
    let (mut said, mut silent, mut code) = (String::new(), None, CANNOT_TELL);
    loop {
        let asked = tokio::select! {
            asked = ask(args, about, source) => asked,
            _ = interrupts.recv() => return Ok(code),
        };
        match asked {
            Ok(answer) => {
                // Ages and times of an answer that says the same are no news.
                let gist = screen::gist(&answer);
                if gist != said {
                    print!("{}", text(&answer, args)?);
                    said = gist;
                } else if silent.is_some() {
                    eprintln!("it answers again: nothing has changed");
                }
                (silent, code) = (None, exit_code(&answer));
            }
            Err(error) if said.is_empty() => return Err(error),
            Err(error) => {
                let text = format!("{error:#}");
                if silent.as_ref() != Some(&text) {
                    eprintln!("cannot look, trying again every {}: {text}", args.every);
                }
                (silent, code) = (Some(text), CANNOT_TELL);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(args.every.get()) => {}
            _ = interrupts.recv() => return Ok(code),
        }
    }
}

/// Who is asked again and again, by another command.
pub struct Looker {
    args: CheckArgs,
    about: About,
    source: Source,
}

impl Looker {
    /// Finds whom to ask.
    ///
    /// # Errors
    /// When nobody is there.
    pub async fn choose(args: CheckArgs) -> anyhow::Result<Self> {
        let about = About::of(&args)?;
        let source = choose(&args).await?;
        Ok(Self { args, about, source })
    }

    /// Address of the instance that is asked; nothing when lists are.
    ///
    /// # Errors
    /// When it cannot be read where the instance is.
    pub fn instance(&self) -> anyhow::Result<Option<String>> {
        match self.source {
            Source::Instance => Ok(Some(locate(&self.args.client)?.0)),
            Source::Cluster(_) | Source::Dump => Ok(None),
        }
    }

    /// What is wrong now.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn look(&self) -> anyhow::Result<Answer> {
        ask(&self.args, &self.about, &self.source).await
    }
}

async fn ask(args: &CheckArgs, about: &About, source: &Source) -> anyhow::Result<Answer> {
    match (source, &args.from) {
        (Source::Instance, _) => {
            let mut answer = instance::ask(args, about).await?;
            answer.logs = logs::as_told(&answer.findings);
            Ok(answer)
        }
        (Source::Cluster(lists), _) => lists.ask(args, about).await,
        (Source::Dump, Some(path)) => dump::ask(path, about),
        (Source::Dump, None) => unreachable!("chosen by --from"),
    }
}

/// `--from` reads a dump. A kubeconfig or context that is named is asked; so is an instance that is named or that
/// answers. Else the cluster of the kubeconfig is.
async fn choose(args: &CheckArgs) -> anyhow::Result<Source> {
    if args.from.is_some() {
        return Ok(Source::Dump);
    }
    let scope = &args.scope;
    let names_an_instance = args.client.server().is_some() || args.client.data_dir().is_some();
    if scope.names_a_cluster() || (scope.selector.is_some() && !names_an_instance) {
        let lists = Lists::find(scope).await?;
        eprintln!("asking the cluster {}", lists.describe());
        return Ok(Source::Cluster(Box::new(lists)));
    }
    if names_an_instance {
        return Ok(Source::Instance);
    }
    let no_instance = match crate::client::Client::connect(&args.client).await {
        Ok(_) => return Ok(Source::Instance),
        Err(error) => error,
    };
    let is_away = no_instance.downcast_ref::<ExitWith>().is_some_and(|with| with.code == UNAVAILABLE);
    match Lists::find(scope).await {
        Ok(lists) if is_away => {
            let (address, _) = locate(&args.client)?;
            eprintln!("no instance answers at {address}: asking the cluster {}", lists.describe());
            Ok(Source::Cluster(Box::new(lists)))
        }
        Err(error) if is_away && !cluster::is_expected(&error) => Err(error),
        _ => Err(no_instance),
    }
}

fn text(answer: &Answer, args: &CheckArgs) -> anyhow::Result<String> {
    Ok(match args.output {
        Output::Human => screen::human(answer, args.all),
        // One document a line, so that the next one can be told from it.
        Output::Json if !args.watch => format!("{}\n", serde_json::to_string_pretty(answer)?),
        Output::Json | Output::Jsonl => format!("{}\n", serde_json::to_string(answer)?),
    })
}

fn exit_code(answer: &Answer) -> i32 {
    match answer.verdict {
        _ if !answer.findings.is_empty() => FINDINGS,
        Status::Healthy | Status::Recovered => 0,
        _ => CANNOT_TELL,
    }
}
