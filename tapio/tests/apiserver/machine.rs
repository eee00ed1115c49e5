//! A real machine: containerd, runc and a kubelet, as root. Their files are in the directory of the control plane; what has a
//! fixed place on every machine (control groups, logs of pods) is taken away at the end.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::binaries::program;
use crate::common::wait_for;
use crate::image;
use crate::plane::Plane;
use crate::process::{Process, free_port};

/// Name of the node, by which the API server reaches its kubelet.
pub const NODE: &str = "localhost";
/// Namespace of its pods; their logs are removed by it, so it is one that nobody else has.
pub const NAMESPACE: &str = "tapio-on-a-real-machine";

/// The running programs; the kubelet ends first.
pub struct Machine {
    kubelet: Option<Process>,
    containerd: Option<Process>,
    dir: PathBuf,
}

impl Machine {
    /// Starts it, and waits until it takes pods.
    pub fn start(plane: &Plane) -> Self {
        // A kubelet ends what it finds in the control groups of pods and does not know.
        let groups: Vec<PathBuf> = parents().flat_map(|parent| groups_of_pods(&parent)).collect();
        assert!(groups.is_empty(), "this machine has a kubelet of its own, or one that left {groups:?}");
        let dir = plane.dir.path().join("machine");
        std::fs::create_dir_all(dir.join("cni")).unwrap();
        // All pods share the network of the machine; without a network of its own none is taken.
        let network = json!({"cniVersion": "0.3.1", "name": "none", "plugins": [{"type": "none"}]});
        std::fs::write(dir.join("cni/none.conflist"), network.to_string()).unwrap();
        std::fs::write(dir.join("containerd.toml"), containerd_config(&dir)).unwrap();
        let config = dir.join("containerd.toml").display().to_string();
        let containerd = Process::start("containerd", &dir, &["--config".to_owned(), config]);
        let mut machine = Self { kubelet: None, containerd: Some(containerd), dir };
        wait_for("containerd", || {
            machine.containerd.as_mut().unwrap().assert_runs();
            machine.ctr(&["version"]).ok()
        });
        let archive = image::archive(&machine.dir);
        machine.ctr(&["images", "import", archive.to_str().unwrap()]).unwrap();
        machine.kubelet = Some(Process::start("kubelet", &machine.dir, &machine.kubelet_args(plane)));
        wait_for("a ready machine", || {
            machine.kubelet.as_mut().unwrap().assert_runs();
            let node = plane.api.get(&format!("/api/v1/nodes/{NODE}"))?;
            let conditions = node["status"]["conditions"].as_array()?.clone();
            let ready = conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            ready.then_some(())
        });
        machine
    }

    /// The last that its kubelet and containerd said.
    pub fn said(&self) -> String {
        let of = |process: &Option<Process>| process.as_ref().map(Process::said).unwrap_or_default();
        format!("{}\n{}", of(&self.kubelet), of(&self.containerd))
    }

    fn socket(&self) -> String {
        self.dir.join("containerd.sock").display().to_string()
    }

    fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program("ctr"));
        let output =
            command.args(["--address", &self.socket(), "--namespace", "k8s.io"]).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output
            .status
            .success()
            .then_some(said)
            .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn kubelet_args(&self, plane: &Plane) -> Vec<String> {
        let config = json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": "127.0.0.1", "port": free_port(), "healthzPort": 0, "cgroupDriver": "cgroupfs", "failSwapOn": false,
            "makeIPTablesUtilChains": false, "authorization": {"mode": "AlwaysAllow"},
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false},
                "x509": {"clientCAFile": plane.dir.path().join("authority.crt")}},
            // However full the disk of this machine is, it is not the failure that is looked for.
            "evictionHard": {"nodefs.available": "1Mi", "imagefs.available": "1Mi", "memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99, "syncFrequency": "2s", "nodeStatusUpdateFrequency": "2s",
            "volumeStatsAggPeriod": "0s"});
        let file = self.dir.join("kubelet.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let dir = |name: &str| self.dir.join(name).display().to_string();
        // Since 1.24 there is no other, since 1.27 it may not be said.
        let older = (plane.minor_version() < 24).then(|| "--container-runtime=remote".to_owned());
        let args = [
            format!("--config={}", file.display()),
            format!(
                "--kubeconfig={}",
                plane.with_certificate(NODE, &format!("/O=system:nodes/CN=system:node:{NODE}"))
            ),
            format!("--hostname-override={NODE}"),
            format!("--root-dir={}", dir("kubelet")),
            format!("--cert-dir={}", dir("kubelet-certs")),
            format!("--container-runtime-endpoint=unix://{}", self.socket()),
        ];
        args.into_iter().chain(older).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kubelet = None;
        for (list, remove) in
            [("tasks", &["tasks", "rm", "--force"][..]), ("containers", &["containers", "rm"][..])]
        {
            for id in self.ctr(&[list, "ls", "-q"]).unwrap_or_default().lines() {
                let _ = self.ctr(&[remove, &[id]].concat());
            }
        }
        self.containerd = None;
        unmount_below(&self.dir);
        trees().for_each(|pods| remove_groups(&pods));
        let logs =
            std::fs::read_dir("/var/log/pods").into_iter().flatten().flatten().map(|entry| entry.path());
        logs.filter(|dir| is_log_of(dir, NAMESPACE)).for_each(|dir| drop(std::fs::remove_dir_all(dir)));
        let links = std::fs::read_dir("/var/log/containers").into_iter().flatten().flatten();
        let of_it = format!("_{NAMESPACE}_");
        let links = links.filter(|link| link.file_name().to_string_lossy().contains(&of_it));
        links.for_each(|link| drop(std::fs::remove_file(link.path())));
    }
}

/// Where the control groups of all pods are: in one tree, or in one for each controller.
fn trees() -> impl Iterator<Item = PathBuf> {
    parents().map(|tree| tree.join("kubepods"))
}

fn parents() -> impl Iterator<Item = PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|tree| tree.path());
    std::iter::once(root).chain(below)
}

/// Those of any kubelet, by name: `kubepods`, or `kubepods.slice` where systemd makes them.
fn groups_of_pods(parent: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(parent).into_iter().flatten().flatten();
    all.filter(|group| group.file_name().to_string_lossy().starts_with("kubepods"))
        .map(|g| g.path())
        .collect()
}

fn is_log_of(dir: &Path, namespace: &str) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(&format!("{namespace}_")))
}

/// What is still mounted below a directory.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut places: Vec<&str> = places.filter(|place| Path::new(place).starts_with(dir)).collect();
    places.reverse();
    for place in places {
        let _ = Command::new("umount").args(["--lazy", place]).status();
    }
}

/// Control groups from the leaves up; the kernel keeps those that still have a process.
fn remove_groups(group: &Path) {
    for below in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&below.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

fn containerd_config(dir: &Path) -> String {
    let here = dir.display();
    let (runc, image) = (program("runc"), image::IMAGE);
    format!(
        r#"version = 2
root = "{here}/containerd"
state = "{here}/containerd-run"
[grpc]
address = "{here}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{here}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
# Less than its own takes a right that root in a container or a small virtual machine may not have.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{here}/cni"
conf_dir = "{here}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{}"
"#,
        runc.display()
    )
}
