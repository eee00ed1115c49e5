//! The control group trees of this machine: one (v2), one per controller (v1), or both (hybrid).

use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

/// Where the trees are, unless configured otherwise.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Control groups looked at in one walk.
pub const WALK_GROUPS_MAX: usize = 16_384;
/// Depth of a walk; deeper groups are counted to their ancestors.
const WALK_DEPTH_MAX: usize = 24;

/// A v1 tree that holds one or more controllers.
pub const V1_CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "blkio"];

/// Version of the machine's control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One tree per controller.
    V1,
    /// One tree.
    V2,
    /// v1 controllers beside a v2 tree that only groups processes.
    Hybrid,
}

impl CgroupVersion {
    /// `v1`, `v2`, `hybrid`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
        }
    }
}

/// The trees found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version.
    pub version: CgroupVersion,
    /// The v2 tree.
    pub unified: Option<PathBuf>,
    /// v1 trees by controller; the same directory may serve several.
    pub v1: Vec<(&'static str, PathBuf)>,
}

/// No control groups.
#[derive(Debug, thiserror::Error)]
#[error("no control groups below {0}; mount them, or set `cgroup.root` to where the host's are mounted")]
pub struct NoCgroups(PathBuf);

impl Hierarchies {
    /// Looks for trees below `root` ([`CGROUP_ROOT`], or where a container has the host's mounted).
    ///
    /// # Errors
    /// When there are none.
    pub fn discover(root: &Path) -> Result<Self, NoCgroups> {
        let is_v2 = |dir: &Path| dir.join("cgroup.controllers").is_file();
        if is_v2(root) {
            return Ok(Self { version: CgroupVersion::V2, unified: Some(root.to_owned()), v1: Vec::new() });
        }
        let v1: Vec<_> = V1_CONTROLLERS
            .into_iter()
            .map(|controller| (controller, root.join(controller)))
            .filter(|(_, dir)| dir.join("cgroup.procs").exists())
            .collect();
        let unified = Some(root.join("unified")).filter(|dir| is_v2(dir));
        let version = match (v1.is_empty(), &unified) {
            (true, None) => return Err(NoCgroups(root.to_owned())),
            (true, Some(_)) => CgroupVersion::V2,
            (false, None) => CgroupVersion::V1,
            (false, Some(_)) => CgroupVersion::Hybrid,
        };
        Ok(Self { version, unified, v1 })
    }

    /// The tree of a v1 controller.
    pub fn v1_tree(&self, controller: &str) -> Option<&Path> {
        self.v1.iter().find(|(name, _)| *name == controller).map(|(_, dir)| dir.as_path())
    }

    /// The tree where memory is charged.
    pub fn memory_tree(&self) -> Option<&Path> {
        self.v1_tree("memory").or(self.unified.as_deref())
    }

    /// True when memory has a tree of its own.
    pub fn memory_is_v1(&self) -> bool {
        self.v1_tree("memory").is_some()
    }
}

/// One group of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Inode number of its directory: the id that the kernel programs report.
    pub id: u64,
    /// Path below the tree's root, `/` for the root itself.
    pub path: String,
}

/// All groups of a tree but its root, parents before children, at most [`WALK_GROUPS_MAX`].
/// Groups that vanish meanwhile are left out.
pub fn walk(tree: &Path) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut open = vec![(String::new(), 0usize)];
    while let Some((path, depth)) = open.pop() {
        let Ok(entries) = fs::read_dir(format!("{}{path}", tree.display())) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if groups.len() >= WALK_GROUPS_MAX {
                return groups;
            }
            let child = format!("{path}/{}", entry.file_name().to_string_lossy());
            groups.push(Group { id: entry.ino(), path: child.clone() });
            if depth + 1 < WALK_DEPTH_MAX {
                open.push((child, depth + 1));
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn tells_the_three_layouts_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (v1, v2, hybrid) = (dir.path().join("v1"), dir.path().join("v2"), dir.path().join("hybrid"));
        touch(&v1.join("memory/cgroup.procs"));
        touch(&v2.join("cgroup.controllers"));
        touch(&hybrid.join("pids/cgroup.procs"));
        touch(&hybrid.join("unified/cgroup.controllers"));
        let version = |root: &Path| Hierarchies::discover(root).unwrap().version;
        assert_eq!(version(&v1), CgroupVersion::V1);
        assert_eq!(version(&v2), CgroupVersion::V2);
        assert_eq!(version(&hybrid), CgroupVersion::Hybrid);
        assert!(Hierarchies::discover(&hybrid).unwrap().memory_tree().unwrap().ends_with("unified"));
        let error = Hierarchies::discover(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no control groups below"), "{error}");
    }

    #[test]
    fn walks_this_machine() {
        let trees = Hierarchies::discover(Path::new(CGROUP_ROOT)).unwrap();
        let tree = trees.memory_tree().unwrap();
        for group in walk(tree).iter().take(50) {
            use std::os::unix::fs::MetadataExt;
            let Ok(meta) = fs::metadata(format!("{}{}", tree.display(), group.path)) else { continue };
            assert_eq!(meta.ino(), group.id, "{}", group.path);
        }
    }
}
