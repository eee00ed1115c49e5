//! Which groups to sample: those with processes of their own, in any tree.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::attribution::{CgroupOwner, Hierarchies, owner_of, walk};

/// Paths of groups that hold processes, the most telling first, and how many did not fit into `max`.
pub fn groups(trees: &Hierarchies, max: usize) -> (Vec<String>, usize) {
    let mut seen_trees: BTreeSet<&Path> = trees.v1.iter().map(|(_, tree)| tree.as_path()).collect();
    seen_trees.extend(trees.unified.as_deref());
    let mut paths: BTreeSet<String> = BTreeSet::new();
    for tree in seen_trees {
        for group in walk(tree) {
            // All counters include those of the groups below, so a container is one series, however it is divided.
            let (_, own_path) = owner_of(&group.path);
            if !paths.contains(own_path) && has_processes(tree, &group.path) {
                paths.insert(own_path.to_owned());
            }
        }
    }
    let mut paths: Vec<String> = paths.into_iter().collect();
    paths.sort_by_cached_key(|path| rank(path));
    let over = paths.len().saturating_sub(max);
    paths.truncate(max);
    (paths, over)
}

/// Order in which groups are wanted when there are too many.
fn rank(path: &str) -> u8 {
    match owner_of(path).0 {
        CgroupOwner::Container { .. } => 0,
        CgroupOwner::Pod { .. } => 1,
        CgroupOwner::Unit { .. } => 2,
        CgroupOwner::Plain => 3,
        CgroupOwner::Root => 4,
    }
}

fn has_processes(tree: &Path, path: &str) -> bool {
    let mut byte = [0u8; 1];
    let file = File::open(format!("{}{path}/cgroup.procs", tree.display()));
    file.and_then(|mut file| file.read(&mut byte)).is_ok_and(|count| count > 0)
}
