//! A memory cgroup of our own, version 1 or 2, removed when dropped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const REMOVE_PATIENCE: Duration = Duration::from_secs(3);
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// A limited cgroup.
pub struct LimitedCgroup {
    directory: PathBuf,
    /// Path below the hierarchy's root, as Tapio names it.
    pub name: String,
    events_file: &'static str,
}

impl LimitedCgroup {
    /// Makes `/tapio-demo-<pid>` with a memory limit and without swap.
    pub fn create(limit_bytes: u64) -> anyhow::Result<Self> {
        let name = format!("/tapio-demo-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        if v1.join("memory.limit_in_bytes").exists() {
            let made = Self::make(v1, name, "memory.oom_control")?;
            made.write("memory.limit_in_bytes", &limit_bytes.to_string())?;
            return Ok(made);
        }
        let v2 = Path::new("/sys/fs/cgroup");
        let controllers = std::fs::read_to_string(v2.join("cgroup.controllers"))
            .context("no memory cgroups on this machine: neither version 1 nor version 2 is mounted")?;
        if !controllers.split_whitespace().any(|c| c == "memory") {
            bail!("the memory controller is not enabled in /sys/fs/cgroup/cgroup.controllers");
        }
        std::fs::write(v2.join("cgroup.subtree_control"), "+memory")
            .context("cannot enable the memory controller for a new cgroup")?;
        let made = Self::make(v2, name, "memory.events")?;
        made.write("memory.max", &limit_bytes.to_string())?;
        // Without swap accounting the file is absent, and there is nothing to forbid.
        if made.directory.join("memory.swap.max").exists() {
            made.write("memory.swap.max", "0")?;
        }
        Ok(made)
    }

    fn make(root: &Path, name: String, events_file: &'static str) -> anyhow::Result<Self> {
        let directory = root.join(name.trim_start_matches('/'));
        std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory, name, events_file })
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }

    /// The file a process writes its id to, to join.
    pub fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Kills of the out-of-memory killer the kernel has counted here.
    pub fn oom_kills(&self) -> u64 {
        let text = std::fs::read_to_string(self.directory.join(self.events_file)).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for LimitedCgroup {
    fn drop(&mut self) {
        let started = Instant::now();
        // A cgroup is busy until its last process is reaped.
        while let Err(error) = std::fs::remove_dir(&self.directory) {
            if started.elapsed() > REMOVE_PATIENCE {
                eprintln!("tapio: cannot remove {}: {error}", self.directory.display());
                return;
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
}
