//! A real systemd, as process 1 of namespaces of the test's own, with a control group of its own.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tapio_agents::attribution::{CGROUP_ROOT, Hierarchies};

/// Where distributions keep it; not on the PATH.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// What the shell does before it becomes systemd. `$DIR`, `$GROUP` and `$SYSTEMD` are given.
const ENTER: &str = r#"
# Where memory has a tree of its own, the units' processes are at its root: their unit is in the v2 path.
if [ -e /sys/fs/cgroup/memory/cgroup.procs ]; then echo 0 > /sys/fs/cgroup/memory/cgroup.procs; fi
echo 0 > "$GROUP/cgroup.procs"
# Ended with the test, also when the test is killed.
exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount --cgroup --ipc --propagation private sh -euc '
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mkdir -p /run/systemd /run/dbus
    mount --bind "$DIR/systemd" /run/systemd
    mount --bind "$DIR/dbus" /run/dbus
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec env -i container=tapio PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH="$DIR/units" \
        "$SYSTEMD" --system --unit=test.target --log-target=console --show-status=no'
"#;

const BUS_SOCKET: &str = "[Socket]\nListenStream=/run/dbus/system_bus_socket\n";
const BUS: &str = "Requires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --system \
    --address=systemd: --nofork --nopidfile --systemd-activation\n";

pub struct Machine {
    dir: tempfile::TempDir,
    group: PathBuf,
    name: String,
    running: Option<Child>,
}

impl Machine {
    /// A machine with these units besides a system bus.
    pub fn boot(name: &str, units: &[(&str, &str)]) -> Self {
        super::require_root();
        let dir = tempfile::tempdir().expect("a directory");
        for part in ["units", "systemd", "dbus"] {
            fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        let trees = Hierarchies::discover(Path::new(CGROUP_ROOT)).expect("this machine has control groups");
        let name = format!("tapio-test-{name}-{}", std::process::id());
        let group = trees.unified.expect("a v2 tree").join(&name);
        fs::create_dir_all(&group).expect("a control group");
        let mut machine = Self { dir, group, name, running: None };
        let own = [("test.target", ""), ("dbus.socket", BUS_SOCKET), ("dbus.service", BUS)];
        for (unit, text) in own.iter().chain(units) {
            machine.unit(unit, &format!("[Unit]\nDefaultDependencies=no\n{text}"));
        }
        machine.start();
        machine
    }

    /// Writes a unit; one that is known already needs `systemctl daemon-reload`.
    pub fn unit(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("units").join(name), text).expect("a file");
    }

    /// A file that units can look at.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Path of the control group in the v2 tree.
    pub fn group(&self) -> String {
        format!("/{}", self.name)
    }

    pub fn bus_socket(&self) -> PathBuf {
        self.path("dbus/system_bus_socket")
    }

    /// Starts the manager, and waits until it can be asked.
    pub fn start(&mut self) {
        let systemd = SYSTEMD.iter().find(|path| Path::new(path).exists());
        let systemd = systemd.expect("systemd is installed: run scripts/setup as root");
        let log = fs::File::create(self.path("log")).expect("a file");
        let mut command = Command::new("sh");
        command.args(["-euc", ENTER]).process_group(0).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        command.env("DIR", self.dir.path()).env("GROUP", &self.group).env("SYSTEMD", systemd);
        self.running = Some(command.spawn().expect("sh runs"));
        let state = |machine: &Self| machine.try_systemctl(&["is-active", "test.target"]);
        self.wait("systemd starts", |machine| state(machine).is_some_and(|out| out.status.success()));
        self.systemctl(&["start", "dbus.service"]);
    }

    /// Ends the manager and all of its processes at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            // The first process of the namespace dies with its parent, and all others with it.
            let _ = child.kill();
            let _ = child.wait();
            self.wait("the processes end", |machine| {
                fs::read_to_string(machine.group.join("cgroup.events"))
                    .is_ok_and(|text| text.contains("populated 0"))
            });
        }
    }

    /// Process id of the manager, as this machine counts.
    pub fn manager_pid(&self) -> Option<u32> {
        let shell = self.running.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Asks the manager; what it answers is not looked at, a failed unit is what some tests want.
    pub fn systemctl(&self, arguments: &[&str]) -> String {
        let output = self.try_systemctl(arguments).expect("the manager runs");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn try_systemctl(&self, arguments: &[&str]) -> Option<Output> {
        let pid = self.manager_pid()?.to_string();
        Command::new("nsenter").args(["-t", &pid, "-m", "-p", "systemctl"]).args(arguments).output().ok()
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + super::PATIENCE;
        while !done(self) {
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "waited for: {what}\n{}", log());
            // check: allow sleep, this is the wait for a condition
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        remove_groups(&self.group);
    }
}

fn remove_groups(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
