//! The cases of a directory: recordings with the labels that belong to them.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::label::Label;

/// Endings that a recording may have after the name of its case.
const ENDINGS: [&str; 3] = [".jsonl.zst", ".jsonl.gz", ".jsonl"];

/// A recording and what is right about it.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is right.
    pub label: Label,
    /// The recording.
    pub file: PathBuf,
}

/// Reads the labels of each directory (`labels/<case>.json`, recording `<case>.jsonl[.zst|.gz]`), sorted by directory as
/// given and then by name.
pub fn read(directories: &[PathBuf]) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for directory in directories {
        cases.extend(read_one(directory)?);
    }
    Ok(cases)
}

fn read_one(directory: &Path) -> anyhow::Result<Vec<Case>> {
    let labels = directory.join("labels");
    let listed = std::fs::read_dir(&labels).with_context(|| format!("cannot list {}", labels.display()))?;
    let mut files = listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "json"));
    files.sort();
    if files.is_empty() {
        bail!("{} has no <case>.json", labels.display());
    }
    let named = directory.canonicalize()?;
    let system = named.file_name().unwrap_or_default().to_string_lossy();
    files.iter().map(|file| case_of(directory, Label::read(file, &system)?)).collect()
}

fn case_of(directory: &Path, label: Label) -> anyhow::Result<Case> {
    let candidates = ENDINGS.map(|ending| directory.join(format!("{}{ending}", label.case)));
    match candidates.into_iter().find(|file| file.exists()) {
        Some(file) => Ok(Case { label, file }),
        None => bail!("case {} has a label and no recording {}.jsonl[.zst|.gz]", label.case, label.case),
    }
}
