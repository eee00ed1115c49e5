//! Control groups of the test's own, of one name in every tree, removed at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tapio_agents::attribution::{CGROUP_ROOT, Hierarchies};

pub struct TestGroup {
    pub trees: Hierarchies,
    name: String,
    dirs: Vec<(String, PathBuf)>,
}

impl TestGroup {
    /// A group of a unique name in every v1 tree and in the v2 tree.
    pub fn new(name: &str) -> Self {
        super::require_root();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let trees = Hierarchies::discover(Path::new(CGROUP_ROOT)).expect("this machine has control groups");
        let name = format!("tapio-test-{name}-{}-{count}", std::process::id());
        let mut roots: Vec<(String, PathBuf)> =
            trees.v1.iter().map(|(c, dir)| ((*c).to_owned(), dir.clone())).collect();
        roots.extend(trees.unified.iter().map(|dir| ("unified".to_owned(), dir.clone())));
        Self::in_trees(trees, name, roots)
    }

    /// A group in the tree of that controller alone; `None` where it has no tree of its own.
    pub fn only_in(controller: &str, name: &str) -> Option<Self> {
        super::require_root();
        let trees = Hierarchies::discover(Path::new(CGROUP_ROOT)).expect("this machine has control groups");
        let root = trees.v1_tree(controller)?.to_owned();
        let name = format!("tapio-test-{name}-{}", std::process::id());
        Some(Self::in_trees(trees, name, vec![(controller.to_owned(), root)]))
    }

    fn in_trees(trees: Hierarchies, name: String, roots: Vec<(String, PathBuf)>) -> Self {
        let dirs = roots.into_iter().map(|(tree, root)| (tree, root.join(&name))).collect();
        let group = Self { trees, name, dirs };
        for (_, dir) in &group.dirs {
            fs::create_dir_all(dir)
                .unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
        }
        group
    }

    /// Path below each tree's root.
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    pub fn has(&self, tree: &str) -> bool {
        self.dirs.iter().any(|(name, _)| name == tree)
    }

    pub fn write(&self, tree: &str, file: &str, value: impl ToString) {
        let dir = &self.dirs.iter().find(|(name, _)| name == tree).expect("the tree is there").1;
        let path = dir.join(file);
        fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    pub fn limit_memory(&self, bytes: u64) {
        if self.has("memory") {
            self.write("memory", "memory.limit_in_bytes", bytes);
        } else {
            self.write("unified", "memory.max", bytes);
        }
    }

    /// Shell commands that move the shell into the group.
    pub fn join_script(&self) -> String {
        let join = |(_, dir): &(String, PathBuf)| format!("echo $$ > {}/cgroup.procs", dir.display());
        self.dirs.iter().map(join).collect::<Vec<_>>().join("\n")
    }

    /// Runs a Python script in the group, from its first instruction on.
    pub fn python(&self, script: &str) -> Running {
        let shell = format!("{}\nexec python3 -c \"$SCRIPT\"", self.join_script());
        let child = Command::new("sh")
            .args(["-ec", &shell])
            .env("SCRIPT", script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        Running(child)
    }
}

impl Drop for TestGroup {
    fn drop(&mut self) {
        for (_, dir) in &self.dirs {
            // A process that was just killed may still be leaving.
            for _ in 0..200 {
                match fs::remove_dir(dir) {
                    Err(error) if error.raw_os_error() == Some(16) => {
                        // check: allow sleep, the kernel tells no one when a group becomes empty
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// A child that is killed and waited for at the end.
pub struct Running(pub Child);

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for a line that the child prints.
    pub fn line(&mut self) -> String {
        use std::io::Read;
        let stdout = self.0.stdout.as_mut().expect("a pipe");
        let mut line = Vec::new();
        let mut byte = [0u8];
        while stdout.read(&mut byte).expect("the pipe is readable") == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("text")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
