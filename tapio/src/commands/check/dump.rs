//! What files say: lists and dumps of `kubectl`, or a recording.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tapio_agents::collectors::kubernetes::Snapshot;
use tapio_agents::collectors::kubernetes::snapshot::decode::{self, Fallback};
use tapio_agents::collectors::kubernetes::snapshot::resources::Resource;

use super::about::About;
use super::judged::{self, CLUSTER, Holes, Latest};
use crate::input;
use crate::recording::{Replay, ReplaySettings};
use crate::verdict::Answer;

/// Bytes of a file that are read at once, which is faster; of larger ones only an object at a time is held.
const WHOLE_BYTES_MAX: usize = 48 << 20;
/// Bytes that are looked at to tell a recording from a list.
const HEAD_BYTES: usize = 4096;
/// Files of a directory.
const FILES_MAX: usize = 100_000;
/// Levels of directories.
const DEPTH_MAX: usize = 8;

/// Judges what `path` holds, as of the newest time in it.
pub fn ask(path: &Path, about: &About) -> anyhow::Result<Answer> {
    if path.is_dir() {
        return directory(path, about);
    }
    let mut source = input::open(path)?;
    let head = source.fill_buf().with_context(|| format!("cannot read {}", path.display()))?;
    if is_recording(&head[..head.len().min(HEAD_BYTES)]) {
        return recording(path, source, about);
    }
    let mut dump = Dump::new(about);
    dump.read(path, source).with_context(|| format!("cannot read {}", path.display()))?;
    dump.judge(path, about)
}

/// Lines of a recording begin with their time.
fn is_recording(head: &[u8]) -> bool {
    let line =
        head.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let has = |key: &str| line.windows(key.len()).any(|window| window == key.as_bytes());
    has("\"at_unix_nano\"") && has("\"signal\"")
}

fn recording(path: &Path, source: Box<dyn BufRead>, about: &About) -> anyhow::Result<Answer> {
    if about.selector.is_some() {
        bail!("a recording is not searched by label: leave out -l, and name the thing instead");
    }
    let mut replay =
        Replay::new(&ReplaySettings { cluster: CLUSTER.to_owned(), ..ReplaySettings::default() })?;
    let mut latest = Latest::default();
    replay
        .run(vec![source], |finding| latest.take(finding))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let now = replay.seen();
    let holes = if now.0 == 0 { nothing(path) } else { Holes::default() };
    Ok(judged::answer(latest, now, about, &BTreeSet::new(), holes))
}

fn directory(path: &Path, about: &About) -> anyhow::Result<Answer> {
    let mut files = Vec::new();
    find(path, DEPTH_MAX, &mut files)?;
    files.sort();
    if files.is_empty() {
        bail!(
            "no lists (*.json) in {}: make them with `kubectl cluster-info dump -A --output-directory={0}`, or name a file",
            path.display()
        );
    }
    let mut dump = Dump::new(about);
    for file in &files {
        let read = input::open(file).and_then(|source| dump.read(file, source));
        if let Err(error) = read {
            dump.gaps.push(format!("cannot read {}: {error:#}", file.display()));
        }
    }
    dump.judge(path, about)
}

fn find(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.is_dir() && depth > 0 {
            find(&path, depth - 1, files)?;
        } else if stem(&path).is_some() {
            if files.len() >= FILES_MAX {
                bail!("more than {FILES_MAX} files in {}: name a part of them", directory.display());
            }
            files.push(path);
        }
    }
    Ok(())
}

/// `pods` of `pods.json` and `pods.json.gz`; nothing of other files, such as logs.
fn stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    name.strip_suffix(".json")
}

struct Dump {
    snapshot: Snapshot,
    gaps: Vec<String>,
    /// What is no object of the API.
    strange: usize,
}

impl Dump {
    fn new(about: &About) -> Self {
        Self { snapshot: Snapshot::new(about.selector.clone()), gaps: Vec::new(), strange: 0 }
    }

    fn read(&mut self, path: &Path, mut source: Box<dyn BufRead>) -> anyhow::Result<()> {
        let by_name = stem(path).and_then(Resource::of_file);
        let fallback = by_name.map_or_else(Fallback::default, |resource| Fallback {
            kind: resource.kind,
            api_version: resource.api_version,
        });
        let mut whole = Vec::new();
        source.by_ref().take(WHOLE_BYTES_MAX as u64).read_to_end(&mut whole)?;
        let (snapshot, strange) = (&mut self.snapshot, &mut self.strange);
        let mut each = |object| *strange += usize::from(snapshot.take(&object).is_err());
        if whole.len() < WHOLE_BYTES_MAX {
            decode::slice(&whole, fallback, &mut each)?;
        } else {
            decode::reader(whole.as_slice().chain(source), fallback, &mut each)?;
        }
        Ok(())
    }

    fn judge(mut self, path: &Path, about: &About) -> anyhow::Result<Answer> {
        if self.strange > 0 {
            self.gaps.push(format!("{} entries are no objects of the Kubernetes API", self.strange));
        }
        let now = self.snapshot.newest();
        if now.0 == 0 {
            let holes = nothing(path);
            return Ok(judged::answer(Latest::default(), now, about, &BTreeSet::new(), holes));
        }
        let mut blind = self.gaps.first().cloned();
        if self.snapshot.count_of("Pod") == 0 {
            blind.get_or_insert_with(|| "the dump has no pods".to_owned());
        }
        if self.snapshot.events() == 0 {
            self.gaps
                .push("the dump has no Events: add them with `kubectl get events -A -o json`".to_owned());
        }
        judged::snapshot(self.snapshot, now, about, Holes { blind, gaps: self.gaps })
    }
}

fn nothing(path: &Path) -> Holes {
    let blind = format!("there is nothing of a cluster in {}", path.display());
    Holes { gaps: vec![blind.clone()], blind: Some(blind) }
}
