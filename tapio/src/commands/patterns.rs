//! `tapio patterns`: the causes that are known, their tests, and whether a file is one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use tapio_correlator::model::{self, Model, Pattern};
use tapio_correlator::trial::{self, CaseRun, Survey};

use crate::cli::{Output, PatternsArgs, PatternsCommand};
use crate::exit::FAILED;

/// Runs a subcommand.
pub fn run(args: &PatternsArgs) -> anyhow::Result<i32> {
    match &args.what {
        PatternsCommand::List { files, output } => list(&load(files)?.0, *output),
        PatternsCommand::Show { id, files, output } => show(&load(files)?.0, id, *output),
        PatternsCommand::Test { files, mutate, only, output } => {
            test(files, *mutate, only.as_deref().unwrap_or_default(), *output)
        }
        PatternsCommand::Lint { files, output } => lint(files, *output),
        PatternsCommand::Docs { mutations } => {
            let model = Arc::new(Model::builtin()?);
            if *mutations {
                print!("{}", trial::mutations_page(&trial::surveys(&model)?));
            } else {
                print!("{}", model::reference(&model));
            }
            Ok(0)
        }
    }
}

/// The built-in model with the files' patterns, and these.
fn load(files: &[PathBuf]) -> anyhow::Result<(Model, Vec<Arc<Pattern>>)> {
    let mut model = Model::builtin()?;
    let mut own = Vec::new();
    for file in expand(files)? {
        let pattern = Arc::new(read(&file)?);
        model = model.with(Arc::clone(&pattern));
        own.push(pattern);
    }
    Ok((model, own))
}

fn read(file: &Path) -> anyhow::Result<Pattern> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Model::parse_one(&file.display().to_string(), &text)?)
}

/// Files, and the pattern files of directories among them.
fn expand(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(model::files_of(path)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

fn print<T: Serialize>(output: Output, items: &[T]) -> anyhow::Result<()> {
    if output == Output::Jsonl {
        for item in items {
            println!("{}", serde_json::to_string(item)?);
        }
    } else {
        println!("{}", serde_json::to_string_pretty(items)?);
    }
    Ok(())
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    sits_on: Vec<&'a str>,
    prior: f64,
    symptoms: usize,
    refuted_by: usize,
    actions: usize,
    cases: usize,
    file: &'a str,
}

fn list(model: &Model, output: Output) -> anyhow::Result<i32> {
    if output == Output::Human {
        for pattern in model.patterns() {
            let (symptoms, cases) = (pattern.symptoms.len(), pattern.cases.len());
            let on = pattern.sits_on.join(", ");
            println!("{:<36} {symptoms:>3} symptoms {cases:>3} cases  {on}", pattern.id);
        }
        return Ok(0);
    }
    let lines: Vec<Line<'_>> = model
        .patterns()
        .iter()
        .map(|p| Line {
            id: &p.id,
            sits_on: p.sits_on.iter().map(|kind| kind.as_str()).collect(),
            prior: p.prior,
            symptoms: p.symptoms.len(),
            refuted_by: p.refuted_by.len(),
            actions: p.actions.len(),
            cases: p.cases.len(),
            file: &p.file,
        })
        .collect();
    print(output, &lines)?;
    Ok(0)
}

fn show(model: &Model, id: &str, output: Output) -> anyhow::Result<i32> {
    let Some(pattern) = model.pattern(id) else {
        let near: Vec<&str> =
            model.patterns().iter().map(|p| p.id.as_str()).filter(|k| k.contains(id)).collect();
        if near.is_empty() {
            bail!("no cause `{id}`; `tapio patterns list` has them all");
        }
        bail!("no cause `{id}`; there is {}", near.join(", "));
    };
    let whole = model::document(pattern)?;
    match output {
        Output::Human => print!("{}", model::page(pattern)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&whole)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&whole)?),
    }
    Ok(0)
}

#[derive(Serialize)]
struct Report {
    cases: Vec<CaseRun>,
    mutants: Vec<Survey>,
}

fn test(files: &[PathBuf], mutate: bool, only: &str, output: Output) -> anyhow::Result<i32> {
    let (model, own) = load(files)?;
    let chosen: Vec<Arc<Pattern>> = if own.is_empty() { model.patterns().to_vec() } else { own };
    let chosen: Vec<_> = chosen.into_iter().filter(|p| p.id.contains(only)).collect();
    let model = Arc::new(model);
    let cases: Vec<CaseRun> = chosen.iter().flat_map(|pattern| trial::run_pattern(&model, pattern)).collect();
    let mut mutants = Vec::new();
    for pattern in chosen.iter().filter(|_| mutate) {
        mutants.push(trial::survey(&model, pattern)?);
    }
    let fails =
        cases.iter().any(|run| !run.wrong.is_empty()) || mutants.iter().any(|s| !s.unnoticed.is_empty());
    match output {
        Output::Human => human(&cases, &mutants),
        Output::Json => println!("{}", serde_json::to_string_pretty(&Report { cases, mutants })?),
        Output::Jsonl => {
            print(output, &cases)?;
            print(output, &mutants)?;
        }
    }
    Ok(if fails { FAILED } else { 0 })
}

fn human(cases: &[CaseRun], mutants: &[Survey]) {
    let wrong: Vec<&CaseRun> = cases.iter().filter(|run| !run.wrong.is_empty()).collect();
    for run in &wrong {
        println!("{} / {}: {}", run.pattern, run.case, run.wrong.join("; "));
    }
    println!("{} cases, {} as expected", cases.len(), cases.len() - wrong.len());
    if mutants.is_empty() {
        return;
    }
    for survey in mutants.iter().filter(|s| !s.unnoticed.is_empty()) {
        println!("{}: no case notices the absence of {}", survey.pattern, survey.unnoticed.join("; "));
    }
    let noticed: usize = mutants.iter().map(|s| s.noticed.len()).sum();
    let unnoticed: usize = mutants.iter().map(|s| s.unnoticed.len()).sum();
    println!("{} discriminators taken away one by one, {noticed} noticed", noticed + unnoticed);
}

#[derive(Serialize)]
struct Linted {
    file: String,
    fault: Option<String>,
}

fn lint(paths: &[PathBuf], output: Output) -> anyhow::Result<i32> {
    let mut linted = Vec::new();
    for file in expand(paths)? {
        let fault = read(&file).err().map(|fault| format!("{fault:#}"));
        linted.push(Linted { file: file.display().to_string(), fault });
    }
    let broken = linted.iter().filter(|l| l.fault.is_some()).count();
    if output == Output::Human {
        linted.iter().filter_map(|l| l.fault.as_ref()).for_each(|fault| println!("{fault}"));
        println!("{} files, {broken} broken", linted.len());
    } else {
        print(output, &linted)?;
    }
    Ok(if broken > 0 { FAILED } else { 0 })
}
