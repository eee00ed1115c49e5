//! Real children. Each is waited for; what it prints is what it wants to tell.

use std::process::{Command, ExitStatus, Output, Stdio};

/// Runs a program to its end and gives its pid.
pub fn run(program: &str, arguments: &[&str]) -> u32 {
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    child.wait().unwrap_or_else(|error| panic!("cannot wait for {program}: {error}"));
    child.id()
}

/// What became of a script.
pub struct Ended {
    pub pid: u32,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails with what the script said unless it exited with 0.
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "script failed ({}):\n{}", self.status, self.stderr);
        self
    }

    fn new(pid: u32, output: Output) -> Self {
        Self {
            pid,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn end(mut command: Command) -> Ended {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let pid = child.id();
    Ended::new(pid, child.wait_with_output().expect("the child can be waited for"))
}

/// Runs a Python script; the pid is the script's own, whatever starts it.
pub fn python(script: &str) -> Ended {
    let mut command = Command::new("python3");
    command.args(["-c", script]);
    end(command)
}

/// Runs a Python script after shell lines that prepare its surroundings, in the same process.
pub fn prepared(shell: &str, script: &str) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("{shell}\nexec python3 -c \"$SCRIPT\"")]).env("SCRIPT", script);
    end(command)
}

/// As [`prepared`], in a network namespace of its own, which goes with the process. Needs `unshare` and `ip`.
pub fn in_own_network(shell: &str, script: &str) -> Ended {
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-ec", &format!("{shell}\nexec python3 -c \"$SCRIPT\"")]).env("SCRIPT", script);
    end(command)
}
