//! Where something is missing (root, BTF) Tapio says so, says what to do, and does the rest.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{data_dir, stderr, stdout};

/// `nobody`.
const UID: u32 = 65_534;

#[test]
fn without_root_the_demo_says_so_and_tells_a_recorded_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The build directory may be closed to others.
    let binary = dir.path().join("tapio");
    std::fs::copy(env!("CARGO_BIN_EXE_tapio"), &binary).unwrap();
    let output = Command::new(&binary)
        .args(["demo", "memory-leak"])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .uid(UID)
        .gid(UID)
        .output()
        .expect("the test runs as root");
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("Not root") && said.contains("sudo"), "{said}");
    assert!(said.contains("memory.leak") && said.contains("Root cause"), "{said}");
}

/// The command in a mount namespace in which the kernel's type information is hidden.
fn without_btf(args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_tapio"))
        .args(args);
    command
}

#[test]
fn without_btf_the_doctor_says_what_to_do() {
    let dir = data_dir();
    let data = dir.path().to_str().unwrap();
    let output =
        without_btf(&["doctor", "--free-ports", "--data-dir", data, "--output", "json"]).output().unwrap();
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("needs root: {error}: {}", stderr(&output)));
    let btf = checks.as_array().unwrap().iter().find(|check| check["name"] == "BTF").expect("a line on BTF");
    assert_eq!(btf["ok"], false, "{btf}");
    assert!(btf["todo"].as_str().unwrap().contains("CONFIG_DEBUG_INFO_BTF"), "{btf}");
}

#[test]
fn without_btf_it_runs_and_says_what_it_cannot_see() {
    let dir = data_dir();
    let data = dir.path().to_str().unwrap();
    let mut child = without_btf(&["up", "--free-ports", "--data-dir", data])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find(|line| line.contains("CONFIG_DEBUG_INFO_BTF"));
    let line = said.expect("it ends only when it is told to");
    assert!(line.contains("/sys/kernel/btf/vmlinux"), "{line}");
    assert!(child.try_wait().unwrap().is_none(), "the rest goes on");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success(), "Ctrl-C ends it in order");
}
