//! Clusters made by hand, told as recordings of an API server, and what `tapio check` makes of them: with other names and
//! other kinds of workloads than anywhere else, several failures at once, those that are over, and noise that is none.

mod clusters {
    pub mod calm;
    pub mod outer;
    pub mod places;
    pub mod programs;
    pub mod workloads;
    pub mod world;

    use world::World;

    /// What happens.
    pub type Scene = fn(&mut World);

    /// What is to be said of it.
    #[derive(Debug, Clone, Copy)]
    pub enum Expected {
        /// These causes, each first among the findings: cause (or the begin of it), kind, namespace, name; empty: any.
        Causes(&'static [[&'static str; 4]]),
        /// As the only one.
        Cause([&'static str; 4]),
        /// Something was wrong and is not any more.
        Recovered,
        /// Nothing is wrong, and nothing was.
        Healthy,
    }

    pub const fn cause(
        cause: &'static str,
        kind: &'static str,
        namespace: &'static str,
        name: &'static str,
    ) -> Expected {
        Expected::Cause([cause, kind, namespace, name])
    }

    pub const fn recovered() -> Expected {
        Expected::Recovered
    }
}
mod common;

use clusters::world::World;
use clusters::{Expected, Scene, calm, outer, places, programs};
use common::{run, stderr, stdout};
use serde_json::Value;

/// Findings that are stated with less are not confident.
const CONFIDENT: f64 = 0.7;

/// Confident causes that are active, in their order, as `cause Kind namespace/name`.
fn active(answer: &Value) -> Vec<[String; 4]> {
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    let confident = findings.into_iter().filter(|f| f["confidence"].as_f64().unwrap_or(0.0) > CONFIDENT);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    confident
        .map(|finding| {
            let root = &finding["root_cause"];
            let entity = &root["entity"];
            [&root["cause"], &entity["kind"], &entity["namespace"], &entity["name"]].map(text)
        })
        .collect()
}

fn fits(wanted: &[&str; 4], found: &[String; 4]) -> bool {
    let (cause, place) = (wanted[0], &wanted[1..]);
    found[0].starts_with(cause)
        && place.iter().zip(&found[1..]).all(|(wanted, found)| wanted.is_empty() || wanted == found)
}

/// What is wrong with the answer.
fn fault(expected: Expected, answer: &Value) -> Option<String> {
    let found = active(answer);
    let recovered = answer["recovered"].as_array().map_or(0, Vec::len);
    let is_right = match expected {
        Expected::Cause(wanted) => found.len() == 1 && fits(&wanted, &found[0]),
        Expected::Causes(wanted) => {
            found.len() == wanted.len()
                && wanted.iter().all(|wanted| found.iter().any(|found| fits(wanted, found)))
        }
        Expected::Recovered => answer["verdict"] == "recovered",
        Expected::Healthy => answer["verdict"] == "healthy",
    };
    let titles: Vec<_> = answer["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|f| format!("{} ({})", f["title"], f["confidence"]))
        .collect();
    (!is_right).then(|| {
        let verdict = &answer["verdict"];
        format!(
            "wanted {expected:?}\n    is {verdict}: {found:?}, {recovered} recovered, {}",
            titles.join("; ")
        )
    })
}

fn check(scenes: &[(&str, Scene, Expected)]) {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = String::new();
    for (name, scene, expected) in scenes {
        let mut world = World::new();
        scene(&mut world);
        let kept = std::env::var_os("TAPIO_KEEP_RECORDINGS").map(std::path::PathBuf::from);
        let file = kept.as_deref().unwrap_or(dir.path()).join(format!("{}.jsonl", name.replace(' ', "-")));
        std::fs::write(&file, world.recording()).unwrap();
        let output = run(&["check", "--from", file.to_str().unwrap(), "--output", "json"]);
        let answer = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{name}: {error}: {} {}", stdout(&output), stderr(&output)));
        if let Some(fault) = fault(*expected, &answer) {
            wrong.push_str(&format!("{name}: {fault}\n"));
        }
    }
    assert!(wrong.is_empty(), "of {} scenes:\n{wrong}", scenes.len());
}

#[test]
fn programs_that_fail_are_told_by_their_cause() {
    check(programs::SCENES);
}

#[test]
fn places_that_fail_are_told_by_their_cause() {
    check(places::SCENES);
}

#[test]
fn calm_is_left_alone_and_several_causes_are_told_apart() {
    check(calm::SCENES);
}

#[test]
fn machines_routes_and_measures_are_told_by_their_cause() {
    check(outer::SCENES);
}
