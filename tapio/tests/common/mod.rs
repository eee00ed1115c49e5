//! A real `tapio up` in a child process, for tests.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, without the caller's TAPIO_ variables.
pub fn tapio(args: &[&str]) -> Command {
    let mut command = clean(Path::new(env!("CARGO_BIN_EXE_tapio")));
    command.args(args);
    command
}

/// A program without the caller's TAPIO_ variables and standard input.
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TAPIO_") && name != "TAPIO_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs to the end.
pub fn run(args: &[&str]) -> Output {
    tapio(args).output().expect("tapio starts")
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `probe` gives something.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A running instance over a data directory.
pub struct Instance {
    child: Child,
    dir: PathBuf,
    /// Contents of endpoints.json.
    pub endpoints: Value,
}

impl Instance {
    /// Starts `tapio up --free-ports` and waits for endpoints.json.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// With further arguments.
    pub fn start_with(dir: &Path, extra: &[&str]) -> Self {
        let data = dir.to_str().expect("a temporary directory has a plain name");
        let log = std::fs::File::create(dir.join("up.log")).expect("the log can be written");
        let mut child = tapio(&["up", "--free-ports", "--data-dir", data])
            .args(extra)
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log)
            .spawn()
            .expect("tapio starts");
        let endpoints = wait_for("endpoints.json", || {
            let ended = child.try_wait().expect("the child can be asked");
            assert!(ended.is_none(), "tapio up ended: {ended:?}\n{}", log_of(dir));
            serde_json::from_slice(&std::fs::read(dir.join("endpoints.json")).ok()?).ok()
        });
        Self { child, dir: dir.to_owned(), endpoints }
    }

    /// An address of endpoints.json.
    pub fn address(&self, name: &str) -> &str {
        self.endpoints[name].as_str().unwrap_or_else(|| panic!("{name} in {}", self.endpoints))
    }

    /// Runs a client command against it.
    pub fn ask(&self, args: &[&str]) -> Output {
        let dir = self.dir.to_str().expect("a plain name");
        let mut all = args.to_vec();
        all.extend(["--data-dir", dir]);
        run(&all)
    }

    /// Ctrl-C, then waits; gives the exit code.
    pub fn interrupt(self) -> Option<i32> {
        self.signal("-INT");
        self.ended()
    }

    /// Waits for its end; gives the exit code.
    pub fn ended(mut self) -> Option<i32> {
        wait_for("the end of tapio up", || self.child.try_wait().expect("the child can be asked")).code()
    }

    /// Log so far.
    pub fn log(&self) -> String {
        log_of(&self.dir)
    }

    /// Sends a signal, such as `-INT`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("up.log")).unwrap_or_default()
}

/// A temporary data directory.
pub fn data_dir() -> TempDir {
    TempDir::with_prefix("tapio-test-").expect("a temporary directory")
}

/// Python of the test environment; its absence fails by name.
pub fn python() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/venv/bin/python");
    assert!(path.exists(), "{} is missing: run `make setup`", path.display());
    path
}
