//! What was done, a line a step, in `actions.jsonl` of the data directory or of `--audit-dir`. The line is there before the change is made:
//! where it cannot be written, nothing is changed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use tapio_schemas::UnixNanos;

/// Name of the file.
const FILE: &str = "actions.jsonl";
/// Beyond this the file becomes `actions.old.jsonl`, in the place of the one before.
const BYTES_MAX: u64 = 16 << 20;

/// What stands in every line of one action.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Action {
    /// The finding.
    pub finding: String,
    /// Its cause.
    pub cause: String,
    /// What was to be done, in words.
    pub action: String,
    /// The command that means the same.
    pub command: String,
    /// Address of the API server.
    pub server: String,
    /// The object.
    pub object: String,
    /// `patch`, `create` or `delete`.
    pub verb: String,
    /// Version of the object that the change was made for; empty of a new one.
    pub version_before: String,
}

/// One step of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It is about to be asked of the server.
    Asked,
    /// The server has done it.
    Applied,
    /// The server has not.
    Failed,
    /// What was wrong is gone.
    Gone,
    /// It is not gone.
    StillThere,
    /// Something else is wrong since.
    Worse,
    /// It was undone.
    Undone,
    /// It should have been undone and was not.
    UndoFailed,
}

#[derive(Serialize)]
struct Line<'a> {
    at: UnixNanos,
    step: Step,
    #[serde(flatten)]
    action: &'a Action,
    #[serde(skip_serializing_if = "str::is_empty")]
    version_after: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
}

/// The file.
pub struct Audit {
    file: File,
    path: PathBuf,
    action: Action,
    /// Why a step after the change is not there, the first of them.
    unwritten: Option<anyhow::Error>,
}

impl Audit {
    /// Opens the file of a directory, for one action. It is readable by its owner alone.
    ///
    /// # Errors
    /// When the directory or file cannot be written.
    pub fn open(directory: &Path, action: Action) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let cannot =
            || format!("cannot write {}: nothing is changed; name another --audit-dir", path.display());
        fs::create_dir_all(directory).with_context(cannot)?;
        if fs::metadata(&path).is_ok_and(|about| about.len() > BYTES_MAX) {
            fs::rename(&path, directory.join("actions.old.jsonl")).with_context(cannot)?;
        }
        let file =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&path).with_context(cannot)?;
        Ok(Self { file, path, action, unwritten: None })
    }

    /// Writes a step, through to the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &mut self,
        at: UnixNanos,
        step: Step,
        version_after: &str,
        note: &str,
    ) -> anyhow::Result<()> {
        let line = serde_json::to_string(&Line { at, step, action: &self.action, version_after, note })?;
        // One write: lines of two processes do not mix.
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes a step of what is already done. That it cannot be written undoes nothing: [`Self::unwritten`] has the
    /// reason.
    pub fn follow(&mut self, at: UnixNanos, step: Step, version_after: &str, note: &str) {
        if let Err(error) = self.write(at, step, version_after, note) {
            self.unwritten.get_or_insert(error);
        }
    }

    /// Why not all that was done is in the file.
    pub fn unwritten(&self) -> Option<&anyhow::Error> {
        self.unwritten.as_ref()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn lines_are_appended_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let action = Action { object: "shop/Deployment/api".to_owned(), ..Action::default() };
        for step in [Step::Asked, Step::Applied] {
            let mut audit = Audit::open(dir.path(), action.clone()).unwrap();
            audit.write(UnixNanos(1_000_000_000), step, "8", "").unwrap();
        }
        let path = dir.path().join(FILE);
        let lines: Vec<serde_json::Value> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[1]["step"], &lines[1]["version_after"]), (&"applied".into(), &"8".into()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Audit::open(&path, action).err().unwrap().to_string();
        assert!(error.contains("nothing is changed"), "{error}");
    }
}
