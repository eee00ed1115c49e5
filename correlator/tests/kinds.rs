//! Every kind of signal is made by something and explained by some cause: what nobody makes is a word without meaning, and
//! what no cause explains can only be told as unexplained.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tapio_correlator::model::Model;
use tapio_schemas::SignalKind;

/// Told beside a finding, and none of them is a reason by itself: changes of which the log of an API server tells without
/// a word what they are of, and what a container said last.
const CONTEXT: [SignalKind; 2] = [SignalKind::ChangeApplied, SignalKind::LastWords];

/// Where kinds are read, weighed or named, and none is made.
const READERS: [&str; 5] = ["bursts.rs", "confirm.rs", "context.rs", "endings.rs", "faults.rs"];

#[test]
fn every_kind_is_explained_by_some_cause() {
    let model = Model::builtin().unwrap();
    let mut used: BTreeSet<SignalKind> = CONTEXT.into();
    for pattern in model.patterns() {
        used.extend(pattern.symptoms.iter().map(|symptom| symptom.signal));
        used.extend(pattern.changes.iter().map(|change| change.signal));
    }
    let unused: Vec<_> = SignalKind::ALL.iter().filter(|kind| !used.contains(kind)).collect();
    assert!(unused.is_empty(), "no cause explains {unused:?}");
}

#[test]
fn every_kind_is_made_by_something() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files =
        ["../schemas/src/status.rs", "../agents/src/trouble.rs"].map(|file| root.join(file)).to_vec();
    for directory in ["shards", "services", "stage_one"] {
        sources(&root.join("src").join(directory), &mut files);
    }
    assert!(files.len() > 30, "only {} files were found", files.len());
    let text: String = files.iter().map(|file| made_in(file)).collect();
    let unmade: Vec<_> =
        SignalKind::ALL.iter().filter(|kind| !is_made(&text, &format!("SignalKind::{kind:?}"))).collect();
    assert!(unmade.is_empty(), "nothing makes {unmade:?}");
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, files);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !READERS.contains(&name.as_str()) {
            files.push(path);
        }
    }
}

/// The text of a file without its tests.
fn made_in(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// Whether a kind stands where a value does, not where one is matched or compared.
fn is_made(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (text[..at].trim_end(), &text[at + name.len()..]);
        let is_whole = !after.starts_with(|c: char| c.is_alphanumeric());
        let after = after.trim_start();
        let is_matched = after.starts_with("=>")
            || after.starts_with('|')
            || after.starts_with("if ")
            || ["|", "==", "!="].iter().any(|sign| before.ends_with(sign));
        is_whole && !is_matched
    })
}

#[test]
fn a_kind_that_is_only_matched_is_not_made() {
    assert!(is_made("at(event, SignalKind::OomKill)", "SignalKind::OomKill"));
    assert!(is_made("_ => SignalKind::OomKill,", "SignalKind::OomKill"));
    for text in ["SignalKind::OomKill => 3", "if kind == SignalKind::OomKill {", "SignalKind::OomKills,", ""]
    {
        assert!(!is_made(text, "SignalKind::OomKill"), "{text}");
    }
}
