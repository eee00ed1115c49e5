//! A real file system that fills up under a running instance: foretold, full, scored. Needs root (it mounts a tmpfs).

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Instance as Tapio, data_dir, stderr, stdout, wait_for};
use serde_json::Value;

const MIB: usize = 1 << 20;
const SIZE_MIB: usize = 64;

/// A file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        let size = format!("size={}", SIZE_MIB * MIB);
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        assert!(done.expect("mount runs").success(), "a file system of its own needs root");
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn predictions(tapio: &Tapio) -> Value {
    let output = tapio.ask(&["predictions", "--output", "json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The prediction for the disk: a machine that runs tests may have others.
fn of_the_disk(tapio: &Tapio) -> Option<Value> {
    predictions(tapio)["predictions"].as_array()?.iter().find(|p| p["scenario"] == "disk_full").cloned()
}

#[test]
fn a_disk_that_fills_is_foretold_and_the_forecast_is_scored() {
    let dir = data_dir();
    let mounts = tempfile::tempdir().expect("a directory");
    let disk = Disk::mount(&mounts.path().join("data"));
    let point = disk.0.to_str().expect("a plain name").to_owned();
    let settings = ["agent.filesystem.interval=1s", "agent.filesystem.process=/proc/self"];
    let tapio = Tapio::start_with(dir.path(), &settings.map(|s| ["--set", s]).concat());

    // Half full at once, then a MiB each second until there is no room.
    let mut file = std::fs::File::create(disk.0.join("log")).expect("a file");
    file.write_all(&vec![7; 28 * MIB]).expect("there is room");
    let second = vec![7; MIB];
    let mut told = None;
    let began = Instant::now();
    let mut written = 28;
    while file.write_all(&second).is_ok() {
        written += 1;
        told = told.or_else(|| of_the_disk(&tapio));
        let due = began + Duration::from_secs(written as u64 - 28);
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
    }
    assert_eq!(written, SIZE_MIB);
    let told = told.unwrap_or_else(|| panic!("it was full before anything was foretold\n{}", tapio.log()));
    assert_eq!(told["outcome"], "pending", "{told}");
    assert_eq!(told["cause"], "storage.filling", "{told}");

    let scored = wait_for("the score", || of_the_disk(&tapio).filter(|p| p["outcome"] != "pending"));
    assert_eq!(scored["outcome"], "hit", "{scored}");
    let shown = tapio.ask(&["predictions", "--scored"]);
    assert!(stdout(&shown).contains("disk full"), "{}", stdout(&shown));
    assert!(stdout(&shown).contains("came within an interval that promised 90 %"), "{}", stdout(&shown));
    let found = tapio.ask(&["check", "--output", "json"]);
    let found: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    let mut findings = found["findings"].as_array().expect("findings").iter();
    let finding = findings.find(|f| f["root_cause"]["cause"] == "storage.filling").expect("a finding");
    assert!(finding["title"].as_str().expect("a title").contains(&point), "{finding}");
    assert_eq!(tapio.interrupt(), Some(0));
}
