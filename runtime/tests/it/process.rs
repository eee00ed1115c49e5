//! What happens to processes: signals, and the end of the parent.
//!
//! The other process is this test binary, started again with a variable that makes one test play
//! the part of the child.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, kill_process, test_kill_process};
use tapio_runtime::nats_server;
use tapio_runtime::shutdown::{self, Shutdown};

use crate::PATIENCE;

const CHILD_MARK: &str = "RUNTIME_TEST_IS_CHILD";

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD_MARK).is_some()
}

/// A child that does not outlive its test, whatever the test does.
pub(crate) struct Player(pub(crate) Child);

impl Drop for Player {
    fn drop(&mut self) {
        // It may have ended already; both then do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this binary as the child of the test of this name.
pub(crate) fn start_child(test: &str) -> Player {
    start_child_with(test, &[])
}

/// The same, with more variables.
pub(crate) fn start_child_with(test: &str, variables: &[(&str, &str)]) -> Player {
    let child = Command::new(std::env::current_exe().unwrap())
        .envs(variables.iter().copied())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD_MARK, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    Player(child.unwrap())
}

/// Reads lines of the child until one starts with `word`; gives the rest of that line.
pub(crate) fn wait_word(lines: &mut impl BufRead, word: &str) -> String {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        // The test runner may have written the name of the test before it.
        if let Some((_, rest)) = line.split_once(word) {
            return rest.trim().to_owned();
        }
        line.clear();
    }
    panic!("the child ended without saying {word}");
}

pub(crate) fn pid_of(Player(child): &Player) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

fn wait_end(Player(child): &mut Player) -> ExitStatus {
    // Its output ends when it does.
    child.stdout.take().map(|mut out| out.read_to_end(&mut Vec::new()).unwrap());
    child.wait().unwrap()
}

#[test]
fn the_first_signal_drains_and_the_second_forces() {
    if is_child() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let shutdown = Shutdown::new();
            shutdown::trigger_on_signals(&shutdown).unwrap();
            println!("ready.");
            shutdown.wait().await;
            println!("draining.");
            // A drain that never ends.
            std::future::pending::<()>().await;
        });
    }
    let mut child = start_child("process::the_first_signal_drains_and_the_second_forces");
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    wait_word(&mut lines, "ready.");
    kill_process(pid_of(&child), Signal::INT).unwrap();
    wait_word(&mut lines, "draining.");
    kill_process(pid_of(&child), Signal::TERM).unwrap();
    assert_eq!(wait_end(&mut child).code(), Some(shutdown::EXIT_FORCED));
}

#[test]
fn nats_server_survives_our_ctrl_c_and_dies_with_us() {
    if is_child() {
        let dir = tempfile::tempdir().unwrap();
        let config = nats_server::ChildConfig::new(dir.path());
        let server = nats_server::Child::start(config).unwrap();
        println!("server {} {}", dir.path().display(), server.pid());
        std::thread::park();
    }
    let mut child = start_child("process::nats_server_survives_our_ctrl_c_and_dies_with_us");
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    let answer = wait_word(&mut lines, "server ");
    let (dir, pid) = answer.rsplit_once(' ').unwrap();
    let server = Pid::from_raw(pid.parse().unwrap()).unwrap();
    assert_eq!(getpgid(Some(server)).unwrap(), server, "a terminal's Ctrl-C does not reach it");
    test_kill_process(server).unwrap();
    // kill -9: nothing of ours runs any more.
    drop(child);
    let deadline = Instant::now() + PATIENCE;
    while is_running(server) {
        if Instant::now() >= deadline {
            kill_process(server, Signal::KILL).unwrap();
            panic!("it outlived its parent");
        }
        // check: allow sleep, the kernel tells no one when a grandchild ends
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// A zombie that no one reaped yet does not run.
fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let state = |text: String| text.rsplit_once(") ").map(|(_, rest)| !rest.starts_with('Z'));
    stat.ok().and_then(state).unwrap_or(false)
}
