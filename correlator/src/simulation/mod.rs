//! Simulation: both stages with faults, driven by a seed, without threads and without a server (docs/simulation.md).
//!
//! A seed that fails is printed; `TAPIO_SIM_SEED=<seed>` runs it alone, exactly as it was. `TAPIO_SIM_SEEDS=<n>` runs so
//! many from the first on.

mod chance;
mod late_tests;
mod panic_tests;
mod property;
mod replica;
mod scene;
mod server;
mod term;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use world::{Outcome, Plan, World};

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 24;

type Findings = BTreeMap<(String, u32), String>;

static CALM: LazyLock<Findings> = LazyLock::new(|| {
    let outcome = World::new(Plan::calm()).run();
    assert!(outcome.finished && outcome.doubled.is_empty() && outcome.dead_letters == 0);
    outcome.findings
});

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Cases of a property: few, because each lives through the whole scene; `PROPTEST_CASES` asks for more.
fn cases(few: u32) -> u32 {
    number("PROPTEST_CASES").and_then(|n| n.try_into().ok()).unwrap_or(few)
}

/// What is wrong with a run.
fn judge(outcome: &Outcome) -> Result<(), String> {
    if !outcome.finished {
        return Err("not everything was decided in time".to_owned());
    }
    if !outcome.doubled.is_empty() || outcome.dead_letters > 0 {
        return Err(format!("doubled {:?}, dead letters {}", outcome.doubled, outcome.dead_letters));
    }
    if let Some((key, text)) = CALM.iter().find(|(key, _)| !outcome.findings.contains_key(*key)) {
        return Err(format!("missing {key:?}\n  {text}"));
    }
    for (key, text) in &outcome.findings {
        match CALM.get(key) {
            Some(calm) if calm == text => {}
            Some(calm) => return Err(format!("differs {key:?}{}", difference(calm, text))),
            None => return Err(format!("added {key:?}\n  {text}")),
        }
    }
    Ok(())
}

/// The fields that differ, each in the calm run and here.
fn difference(calm: &str, here: &str) -> String {
    fn walk(path: &str, calm: &Value, here: &Value, out: &mut String) {
        match (calm, here) {
            (Value::Object(calm), Value::Object(here)) if calm.len() == here.len() => {
                for (key, value) in calm {
                    walk(&format!("{path}.{key}"), value, here.get(key).unwrap_or(&Value::Null), out);
                }
            }
            _ if calm != here => *out += &format!("\n  {path}\n    calm {calm}\n    here {here}"),
            _ => {}
        }
    }
    let read = |text: &str| serde_json::from_str(text).expect("JSON");
    let mut out = String::new();
    walk("", &read(calm), &read(here), &mut out);
    out
}

fn run(seed: u64) -> Result<Outcome, String> {
    let outcome = World::new(Plan::of(seed)).run();
    judge(&outcome).map(|()| outcome)
}

#[test]
fn the_scene_is_worth_it() {
    let ids: std::collections::BTreeSet<_> = CALM.keys().map(|(id, _)| id).collect();
    let causes: std::collections::BTreeSet<String> = CALM
        .values()
        .filter_map(|text| {
            let finding: tapio_schemas::Finding = serde_json::from_str(text).expect("JSON");
            finding.root_cause.map(|root| root.cause.to_string())
        })
        .collect();
    println!("{} findings, {} revisions, {causes:?}", ids.len(), CALM.len());
    assert!(ids.len() >= 4 && CALM.len() > 12 && causes.len() >= 3, "{causes:?}");
}

#[test]
fn any_seed_finds_what_one_replica_finds_that_is_left_alone() {
    let seeds = match number("TAPIO_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TAPIO_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut failed = Vec::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    LazyLock::force(&CALM);
    let next = AtomicU64::new(seeds.start);
    let runs = || {
        let own = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed));
        std::iter::from_fn(own).map(|seed| (seed, run(seed))).collect::<Vec<_>>()
    };
    let runs = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
            .map(|_| scope.spawn(runs))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a run does not panic"))
            .collect::<Vec<_>>()
    });
    for (seed, outcome) in runs {
        match outcome {
            Ok(outcome) => {
                outcome.counts.into_iter().for_each(|(what, n)| *counts.entry(what).or_default() += n)
            }
            Err(wrong) => {
                println!("TAPIO_SIM_SEED={seed}: {wrong}\n  {:?}", Plan::of(seed));
                failed.push(seed);
            }
        }
    }
    println!("{} seeds: {counts:?}", seeds.end - seeds.start);
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
}
