//! Where the binary is, and whether it is new enough.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ENV_NATS_SERVER, NatsServerError, VERSION_MIN};

const BINARY: &str = "nats-server";
/// Where the set-up script puts it, below the checkout.
const TOOLS_DIR: &str = ".tools/bin";

/// A released version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Patch number.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A binary that answers to `--version` and is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub version: Version,
}

/// Finds nats-server: `TAPIO_NATS_SERVER`, else the first that is new enough on `PATH` and in
/// `.tools/bin` of the directories above the working directory and the executable.
///
/// # Errors
/// [`NatsServerError::Missing`], [`NatsServerError::TooOld`], [`NatsServerError::Unusable`].
pub fn find() -> Result<Binary, NatsServerError> {
    if let Some(path) = env::var_os(ENV_NATS_SERVER).filter(|path| !path.is_empty()) {
        return named(PathBuf::from(path));
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    let start_dirs = [env::current_dir().ok(), env::current_exe().ok()];
    let tools = start_dirs.iter().flatten().flat_map(|dir| dir.ancestors()).map(|dir| dir.join(TOOLS_DIR));
    choose(env::split_paths(&on_path).chain(tools))
}

fn named(path: PathBuf) -> Result<Binary, NatsServerError> {
    match ask_version(&path) {
        Ok(version) if version >= VERSION_MIN => Ok(Binary { path, version }),
        Ok(found) => Err(NatsServerError::TooOld { path, found }),
        Err(message) => Err(NatsServerError::Unusable { path, message }),
    }
}

/// The first good one in these directories.
fn choose(dirs: impl Iterator<Item = PathBuf>) -> Result<Binary, NatsServerError> {
    let mut best_old: Option<Binary> = None;
    for path in dirs.map(|dir| dir.join(BINARY)).filter(|path| path.is_file()) {
        // What does not run is passed over: the next one may.
        let Ok(version) = ask_version(&path) else { continue };
        if version >= VERSION_MIN {
            return Ok(Binary { path, version });
        }
        if best_old.as_ref().is_none_or(|old| old.version < version) {
            best_old = Some(Binary { path, version });
        }
    }
    Err(match best_old {
        Some(old) => NatsServerError::TooOld { path: old.path, found: old.version },
        None => NatsServerError::Missing { searched: format!("PATH and {TOOLS_DIR} of the checkout") },
    })
}

fn ask_version(path: &Path) -> Result<Version, String> {
    let output = Command::new(path).arg("--version").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| format!("`--version` says `{}`", text.trim()))
}

/// Reads `nats-server: v2.15.1` and pre-releases such as `v2.15.0-RC.1`.
fn parse_version(text: &str) -> Option<Version> {
    let number = text.trim().rsplit_once('v')?.1;
    let mut parts = number.split(['.', '-', '+']).map(str::parse);
    let mut next = || parts.next()?.ok();
    Some(Version { major: next()?, minor: next()?, patch: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(dir: &Path, text: &str) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(BINARY);
        std::fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn reads_versions() {
        let version = |major, minor, patch| Some(Version { major, minor, patch });
        assert_eq!(parse_version("nats-server: v2.15.1\n"), version(2, 15, 1));
        assert_eq!(parse_version("nats-server: v2.15.0-RC.1"), version(2, 15, 0));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn passes_over_old_and_broken_ones() {
        let root = tempfile::tempdir().unwrap();
        let (old, broken, good) =
            (root.path().join("old"), root.path().join("broken"), root.path().join("good"));
        fake(&old, "nats-server: v2.9.0");
        fake(&broken, "segmentation fault");
        let error = choose([old.clone(), broken.clone()].into_iter()).unwrap_err().to_string();
        assert!(error.contains("2.9.0") && error.contains("older than 2.12.0"), "{error}");
        let expected = fake(&good, "nats-server: v2.12.3");
        assert_eq!(choose([old, broken, good].into_iter()).unwrap().path, expected);
    }

    #[test]
    fn missing_names_the_remedy() {
        let error = choose(std::iter::empty()).unwrap_err().to_string();
        assert!(error.contains("make setup"), "{error}");
        let error = named(PathBuf::from("/nowhere/nats-server")).unwrap_err().to_string();
        assert!(error.contains("TAPIO_NATS_SERVER=/nowhere/nats-server"), "{error}");
    }
}
