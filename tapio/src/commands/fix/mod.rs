//! `tapio fix`: does what a finding says is to be done, and looks whether it helped.
//!
//! The finding's command is read as one of a closed set of changes (`change`); the object is read and the places that
//! differ are worked out (`plan`); permission, a dry run of the server and the difference come before the question; the
//! change is made for the version that was read; then the same verdicts are asked for until the symptom is gone (`symptom`).

mod audit;
mod change;
mod limits;
mod origin;
mod patch;
mod plan;
mod symptom;

use std::io::{BufRead, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tapio_agents::collectors::kubernetes::objects::{Objects, Run};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::finding::Action;
use tapio_schemas::{Entity, Finding, UnixNanos};

use self::audit::{Audit, Step};
use self::change::Change;
use self::limits::Wishes;
use self::origin::Origin;
use self::plan::{Plan, Undo};
use self::symptom::{Seen, Symptom};
use super::check::{Lists, Looker};
use crate::cli::FixArgs;
use crate::client::ID_PREFIX;
use crate::endpoints::default_data_dir;
use crate::exit::{FAILED, FINDINGS};
use crate::verdict::Answer;

/// Looks at the symptom in the time of `--settle`.
const LOOKS: u32 = 5;
/// Between two looks, at least and at most.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// A change that is ready to be made, and what it is for.
struct Fix<'a> {
    args: &'a FixArgs,
    looker: Looker,
    objects: Objects,
    origin: Origin,
    finding: Finding,
    action: Action,
    plan: Plan,
    answer: Answer,
}

/// Finds what is wrong, shows what would be done, does it, watches; returns the exit code.
pub async fn run(args: FixArgs) -> anyhow::Result<i32> {
    let looker = Looker::choose(args.check()).await?;
    let instance = looker.instance()?;
    let mut answer = looker.look().await?;
    // Lists are of the cluster that is changed, whatever it is called.
    let named = args.cluster.as_deref().filter(|_| instance.is_some());
    named.into_iter().for_each(|cluster| origin::only(&mut answer, cluster));
    let Some(finding) = wanted(&answer, &args.target).cloned() else {
        let place = named.map(|cluster| format!(" in cluster {cluster}")).unwrap_or_default();
        println!("nothing is known to be wrong with {}{place}: nothing to fix", args.target);
        return Ok(FAILED);
    };
    origin::only(&mut answer, &finding.cluster);
    println!("{} ({})\n", finding.title, finding.id);
    if finding.root_cause.is_none() {
        println!(
            "its cause is not proven, so there is nothing that would fix it for sure: nothing is changed"
        );
        return Ok(FAILED);
    }
    let Some((action, change)) = chosen(&finding, args.action)? else {
        return Ok(FAILED);
    };
    let lists = Lists::find(&args.scope).await?;
    let objects = lists.objects();
    let wishes = Wishes { container: args.container.clone(), limit: args.limit.clone() };
    let plan = Plan::of(&objects, &change, &wishes, &seconds(now())).await?;
    let open = plan::is_open(&change.what, &wishes);
    let origin = Origin { instance, cluster: finding.cluster.to_string(), target: lists.describe() };
    let fix = Fix { args: &args, looker, objects, origin, finding, action, plan, answer };
    if !fix.shown(open).await? {
        return Ok(FAILED);
    }
    if args.dry_run {
        println!("dry run: nothing is changed");
        return Ok(0);
    }
    if !fix.is_agreed()? {
        println!("nothing is changed");
        return Ok(FAILED);
    }
    fix.make().await
}

impl Fix<'_> {
    /// Asks for the permission and for a dry run, shows what they say; false when it cannot be done.
    async fn shown(&self, open: bool) -> anyhow::Result<bool> {
        let (plan, action) = (&self.plan, &self.action);
        println!("Do          {} (risk {})", action.title, action.risk);
        println!("            {} {} {}", plan.verb(), plan.place, self.origin.target);
        if let Some(both) = self.origin.told() {
            println!("            {both}");
        }
        println!("            like: {}", action.command);
        if open {
            println!("            the new limit is twice the one that stands; --limit gives another");
        }
        if let Err(reason) = self.objects.may(plan.verb(), &plan.place).await? {
            let (verb, name) = (plan.verb(), plan.place.resource.name());
            let because = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            println!("not allowed: grant {verb} of {name} in {}{because}", place_of(plan));
            return Ok(false);
        }
        let tried = match plan.send(&self.objects, Run::Dry).await {
            Ok(tried) => tried,
            Err(error) => {
                println!("the server would refuse it: {error}");
                return Ok(false);
            }
        };
        match (&plan.request, plan.before()) {
            (plan::Request::Delete { .. }, _) => println!("\n  {} goes", plan.place),
            (_, before) => print!("\n{}", patch::shown(before.unwrap_or(&Value::Null), &tried)),
        }
        if !plan.undo(&tried).exists() {
            println!("  this cannot be undone");
        }
        println!();
        Ok(true)
    }

    fn is_agreed(&self) -> anyhow::Result<bool> {
        if self.args.yes
            && let Some(doubt) = self.origin.doubt(self.args.cluster.as_deref())
        {
            println!("{doubt}");
            return Ok(false);
        }
        let is_high = self.action.risk == "high";
        if self.args.yes && (!is_high || self.args.high_risk) {
            return Ok(true);
        }
        if self.args.yes {
            println!("its risk is high: --yes alone does not do it, add --high-risk");
            return Ok(false);
        }
        agreed("Do it?")
    }

    /// Makes the change, then watches.
    async fn make(&self) -> anyhow::Result<i32> {
        let directory = self.args.audit_dir.as_deref().or(self.args.client.data_dir());
        let directory = directory.map_or_else(default_data_dir, std::path::Path::to_path_buf);
        let mut audit = Audit::open(&directory, self.audited())?;
        audit.write(now(), Step::Asked, "", "")?;
        let after = match self.plan.send(&self.objects, Run::Real).await {
            Ok(after) => after,
            Err(error) => {
                let hint = if error.is_conflict() { "; it was changed meanwhile: look again" } else { "" };
                println!("not done: {error}{hint}");
                audit.write(now(), Step::Failed, "", &error.to_string())?;
                return Ok(FAILED);
            }
        };
        // From here on something is changed: what cannot be written down any more is told at the end, and stops nothing.
        audit.follow(now(), Step::Applied, plan::version(&after), "");
        let undo = self.plan.undo(&after);
        println!("done: {} is at version {}", self.plan.place, plan::version(&after));
        let seen = self.watch().await?;
        let (step, said) = match &seen {
            Seen::Gone => (Step::Gone, format!("gone: nothing of it was seen for {}", self.args.settle)),
            Seen::Worse(title) => (Step::Worse, format!("worse: {title}")),
            _ => (Step::StillThere, format!("still there after {}", self.args.watch_for)),
        };
        audit.follow(now(), step, "", if step == Step::Worse { &said } else { "" });
        println!("{said}");
        match step {
            Step::Gone if audit.unwritten().is_none() => {}
            Step::Worse => self.go_back(&undo, &mut audit).await?,
            _ => self.tell_undo(&undo),
        }
        if let Some(error) = audit.unwritten() {
            eprintln!("not every step of this is written down: {error:#}");
            return Ok(FINDINGS);
        }
        println!("each step is in {}", audit.path().display());
        Ok(if step == Step::Gone { 0 } else { FINDINGS })
    }

    /// Asks for the verdicts again and again.
    async fn watch(&self) -> anyhow::Result<Seen> {
        let (settle, limit) = (self.args.settle.get(), self.args.watch_for.get());
        let mut symptom = Symptom::of(&self.finding, &self.answer, now(), settle)
            .context("the finding has no root cause")?;
        let clock = SystemClock::new();
        let (began, interval) = (clock.monotonic(), (settle / LOOKS).clamp(INTERVAL.0, INTERVAL.1));
        eprintln!("watching {} for at most {}", self.finding.id, self.args.watch_for);
        loop {
            tokio::time::sleep(interval).await;
            let seen = match self.looker.look().await {
                Ok(mut answer) => {
                    origin::only(&mut answer, &self.finding.cluster);
                    self.settled(symptom.look(&answer)).await
                }
                Err(error) => {
                    eprintln!("cannot look: {error:#}");
                    Seen::Waiting
                }
            };
            let is_over = clock.monotonic() - began >= limit;
            if is_over || matches!(seen, Seen::Gone | Seen::Worse(_)) {
                return Ok(seen);
            }
        }
    }

    /// Nothing is gone while what was changed is not yet what runs.
    async fn settled(&self, seen: Seen) -> Seen {
        let is_there = !matches!(self.plan.request, plan::Request::Delete { .. });
        if seen == Seen::Gone && is_there {
            let object = self.objects.get(&self.plan.place).await;
            return if object.is_ok_and(|object| symptom::is_rolled_out(&object)) {
                seen
            } else {
                Seen::Waiting
            };
        }
        seen
    }

    async fn go_back(&self, undo: &Undo, audit: &mut Audit) -> anyhow::Result<()> {
        if !undo.exists() {
            println!("what was done cannot be undone");
            return Ok(());
        }
        // Who has agreed to all beforehand has not agreed to this.
        if !self.args.rollback && (self.args.yes || !agreed("Undo it?")?) {
            self.tell_undo(undo);
            return Ok(());
        }
        match undo.send(&self.objects, &self.plan.place).await {
            Ok(object) => {
                audit.follow(now(), Step::Undone, plan::version(&object), "");
                println!("undone: {} is as it was", self.plan.place);
            }
            Err(error) => {
                audit.follow(now(), Step::UndoFailed, "", &format!("{error:#}"));
                println!("not undone: {error:#}");
                self.tell_undo(undo);
            }
        }
        Ok(())
    }

    fn tell_undo(&self, undo: &Undo) {
        if !self.action.undo.is_empty() && undo.exists() {
            println!("to undo it: {}", self.action.undo);
        }
    }

    fn audited(&self) -> audit::Action {
        let cause = self.finding.root_cause.as_ref().map(|root| root.cause.to_string());
        audit::Action {
            finding: self.finding.id.to_string(),
            cause: cause.unwrap_or_default(),
            action: self.action.title.clone(),
            command: self.action.command.clone(),
            server: self.origin.target.clone(),
            object: self.plan.place.to_string(),
            verb: self.plan.verb().to_owned(),
            version_before: self.plan.before().map(plan::version).unwrap_or_default().to_owned(),
        }
    }
}

/// The worst finding that has this id or is about this.
fn wanted<'a>(answer: &'a Answer, target: &str) -> Option<&'a Finding> {
    let query = Entity::parse_query(target);
    let by_id = target.starts_with(ID_PREFIX);
    let mut all = answer.findings.iter();
    if by_id {
        return all.find(|finding| finding.id.to_string() == target);
    }
    let root =
        |finding: &&Finding| finding.root_cause.as_ref().is_some_and(|root| query.matches(&root.entity));
    all.clone().find(root).or_else(|| all.find(|finding| finding.mentions(&query)))
}

/// The action that is to be done, and the change that it means. The others are printed: people can do them.
fn chosen(finding: &Finding, number: Option<usize>) -> anyhow::Result<Option<(Action, Change)>> {
    let changes: Vec<Option<Change>> =
        finding.actions.iter().map(|action| Change::of_command(&action.command)).collect();
    let at = match number {
        Some(number) if number == 0 || number > changes.len() => {
            bail!("there are {} actions, and --action {number} is none of them", changes.len())
        }
        Some(number) => Some(number - 1),
        None => changes.iter().position(Option::is_some),
    };
    for (place, action) in finding.actions.iter().enumerate().filter(|(place, _)| Some(*place) != at) {
        println!("{}. {} (risk {})\n   $ {}", place + 1, action.title, action.risk, action.command);
    }
    if let Some((at, change)) = at.and_then(|at| Some((at, changes[at].clone()?))) {
        println!();
        return Ok(Some((finding.actions[at].clone(), change)));
    }
    if let Some(at) = at {
        println!("{}. {}\n   $ {}", at + 1, finding.actions[at].title, finding.actions[at].command);
    }
    let what = if number.is_some() { "this action" } else { "none of its actions" };
    let verb = if number.is_some() { "is none" } else { "is one" };
    println!("\n{what} {verb} that a request to the API can do: nothing is changed");
    Ok(None)
}

fn agreed(question: &str) -> anyhow::Result<bool> {
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    // No one there is no yes.
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()))
}

fn place_of(plan: &Plan) -> String {
    let namespace = &plan.place.namespace;
    if namespace.is_empty() { "the cluster".to_owned() } else { format!("namespace {namespace}") }
}

fn now() -> UnixNanos {
    UnixNanos(SystemClock::new().now_unix_nanos())
}

/// Without parts of a second, as the API writes times.
fn seconds(at: UnixNanos) -> String {
    let text = at.to_string();
    format!("{}Z", text.split('.').next().unwrap_or_default().trim_end_matches('Z'))
}
