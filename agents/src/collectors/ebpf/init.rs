//! Which processes are the first of their pid namespace: the main processes of containers.

use std::collections::HashSet;
use std::fs;

/// Main processes remembered; more containers than that do not run on a machine.
const INITS_MAX: usize = 16_384;

/// Known main processes by pid of the initial namespace.
#[derive(Debug, Default)]
pub(super) struct Inits(HashSet<u32>);

impl Inits {
    /// With those that run now.
    pub(super) fn scan() -> Self {
        let mut inits = Self::default();
        let Ok(entries) = fs::read_dir("/proc") else { return inits };
        for entry in entries.flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                inits.look_at(pid);
            }
        }
        inits
    }

    /// Looks at a process that lives.
    pub(super) fn look_at(&mut self, pid: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_init = is_namespace_init(&status);
        if !is_init {
            // Its number may have been another's, whose end was lost.
            self.0.remove(&pid);
        } else if self.0.len() < INITS_MAX {
            self.0.insert(pid);
        }
        is_init
    }

    /// The process ended: whether it was one.
    pub(super) fn ended(&mut self, pid: u32) -> bool {
        self.0.remove(&pid)
    }

    /// Whether it is one.
    pub(super) fn contains(&self, pid: u32) -> bool {
        self.0.contains(&pid)
    }
}

/// `NSpid:` lists the pid in each namespace, the innermost last. The machine's own init has one only.
fn is_namespace_init(status: &str) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = pids.split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_pid_counts() {
        assert!(is_namespace_init("Name:\tapp\nNSpid:\t4711\t1\n"));
        assert!(!is_namespace_init("NSpid:\t4711\t7\n"));
        assert!(!is_namespace_init("NSpid:\t1\n"), "the machine's own");
        assert!(!is_namespace_init(""));
        assert!(!Inits::default().look_at(std::process::id()));
    }
}
