//! Paths in `/proc/<pid>/cgroup` are relative to the reader's cgroup namespace: an agent in a container sees
//! `/../../system.slice/x.service`. Where its own namespace begins is found once, by its own process id in the
//! host's trees.

use std::fs;
use std::path::Path;

use super::hierarchy::{Hierarchies, walk};

/// Where this process's cgroup namespace begins in each tree; empty for the whole tree, none when that cannot be
/// found (the host's trees are not mounted).
#[derive(Debug, Default)]
pub(super) struct Namespace {
    memory: Option<String>,
    unified: Option<String>,
}

impl Namespace {
    pub(super) fn of_this_process(trees: Option<&Hierarchies>) -> Self {
        let Some(trees) = trees else { return Self::default() };
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let root = |tree: Option<&Path>, is_wanted: fn(&str) -> bool| {
            let own = lines(&text).find(|(controllers, _)| is_wanted(controllers))?.1;
            root_in(tree?, own)
        };
        Self {
            memory: root(trees.v1_tree("memory"), is_memory),
            unified: root(trees.unified.as_deref(), str::is_empty),
        }
    }

    /// A line's path below its tree's root; none when it cannot be told.
    pub(super) fn absolute(&self, controllers: &str, path: &str) -> Option<String> {
        let root = if is_memory(controllers) { &self.memory } else { &self.unified };
        match root {
            Some(root) => Some(join(root, path)),
            None => (!path.starts_with("/..")).then(|| path.to_owned()),
        }
    }
}

/// Controllers and path of each line.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

/// Whether a line is of the tree where memory is charged in v1.
pub(super) fn is_memory(controllers: &str) -> bool {
    controllers.split(',').any(|controller| controller == "memory")
}

fn root_in(tree: &Path, own: &str) -> Option<String> {
    let pid = std::process::id().to_string();
    let holds_us = |path: &str| {
        let procs = fs::read_to_string(format!("{}{path}/cgroup.procs", tree.display()));
        procs.is_ok_and(|procs| procs.lines().any(|line| line == pid))
    };
    if holds_us(own) {
        return Some(String::new());
    }
    let found = walk(tree).into_iter().find(|group| holds_us(&group.path))?.path;
    Some(found.strip_suffix(own).unwrap_or(&found).to_owned())
}

fn join(root: &str, path: &str) -> String {
    let mut parts: Vec<&str> = root.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_to_where_the_namespace_begins() {
        assert_eq!(join("/kubepods/pod1/c1", "/../../../system.slice/a.service"), "/system.slice/a.service");
        assert_eq!(join("/kubepods/pod1/c1", "/"), "/kubepods/pod1/c1");
        assert_eq!(join("/kubepods/pod1/c1", "/worker"), "/kubepods/pod1/c1/worker");
        assert_eq!(join("", "/a/b"), "/a/b");
        assert_eq!(join("/a", "/../../.."), "/");
        let unknown = Namespace::default();
        assert_eq!(unknown.absolute("", "/../x"), None, "better none than a wrong one");
        assert_eq!(unknown.absolute("", "/x").as_deref(), Some("/x"));
    }
}
