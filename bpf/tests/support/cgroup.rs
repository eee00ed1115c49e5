//! A memory cgroup of the test's own, v1 or v2, removed at the end.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

pub struct MemoryCgroup {
    path: PathBuf,
}

impl MemoryCgroup {
    /// A new cgroup with a limit; swap is no way out.
    pub fn new(name: &str, limit_bytes: u64) -> Self {
        let (root, v2) = memory_root();
        let path = root.join(format!("tapio-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        let cgroup = Self { path };
        if v2 {
            cgroup.write("memory.max", limit_bytes);
            cgroup.write("memory.swap.max", 0);
        } else {
            cgroup.write("memory.limit_in_bytes", limit_bytes);
        }
        cgroup
    }

    fn write(&self, file: &str, value: u64) {
        let path = self.path.join(file);
        // Without swap accounting there is no file for it, and no swap to speak of.
        if path.exists() {
            fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    /// The inode number of its directory: what the kernel calls its id.
    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("the cgroup is there").ino()
    }

    pub fn processes_file(&self) -> String {
        self.path.join("cgroup.procs").display().to_string()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Where memory cgroups are made, and whether that is the v2 hierarchy.
fn memory_root() -> (PathBuf, bool) {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.limit_in_bytes").exists() || v1.join("cgroup.procs").exists() {
        return (v1.to_owned(), false);
    }
    let v2 = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(v2.join("cgroup.subtree_control")).unwrap_or_default();
    assert!(
        controllers.split_whitespace().any(|controller| controller == "memory"),
        "no memory cgroups: neither {} nor the memory controller in {}/cgroup.subtree_control",
        v1.display(),
        v2.display()
    );
    (v2.to_owned(), true)
}
