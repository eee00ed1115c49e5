//! `scripts/demo`, which is what `make demo` runs after the build: the script itself, with the binary of this build. Needs
//! root (kernel programs, a memory cgroup) and says so.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};

use common::{clean, data_dir};
use rustix::process::{Pid, Signal, kill_process_group};

/// The script over a data directory, in a process group of its own as a terminal would have it.
struct Demo {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What it said so far.
    said: String,
}

impl Demo {
    fn start(data: &Path, variables: &[(&str, &str)]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes cgroups and loads kernel programs: run it as root"
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
        let mut command = clean(&script);
        for name in ["DEMO_ONCE", "DEMO_FLAGS"] {
            command.env_remove(name);
        }
        command.arg(env!("CARGO_BIN_EXE_tapio")).current_dir("/").process_group(0).stdout(Stdio::piped());
        command.env("DEMO_DATA", data).env("DEMO_UP_FLAGS", "--free-ports").envs(variables.iter().copied());
        command.stderr(std::fs::File::create(data.join("stderr")).expect("a file"));
        let mut child = command.spawn().expect("the script starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines, said: String::new() }
    }

    /// Reads on until a line has this in it.
    fn until(&mut self, text: &str) {
        let before = self.said.len();
        while !self.said[before..].contains(text) {
            let read = self.lines.read_line(&mut self.said).expect("text");
            assert!(read > 0, "it ended before it said {text:?}:\n{}", self.said);
        }
    }

    /// Ctrl-C: to all that the terminal has in its foreground.
    fn interrupt(&self) {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).expect("it runs");
    }

    /// Reads to its end. Nothing that it started is left then.
    fn ended(mut self, data: &Path) -> (ExitStatus, String) {
        self.lines.read_to_string(&mut self.said).expect("text");
        let status = self.child.wait().expect("it can be waited for");
        assert_eq!(users_of(data), Vec::<String>::new(), "still there");
        let errors = std::fs::read_to_string(data.join("stderr")).expect("a file");
        (status, std::mem::take(&mut self.said) + &errors)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Only a test that failed gets here with the script running; it stops what it started.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
    }
}

/// Command lines that name this directory.
fn users_of(data: &Path) -> Vec<String> {
    let data = data.to_str().expect("a plain name");
    let command_line = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
    let lines = std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(command_line);
    let text = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    text.filter(|line| line.contains(data)).collect()
}

/// The control group of the story, from what the script said.
fn cgroup_of(said: &str) -> &str {
    let asked = said.lines().find_map(|line| line.strip_prefix("Ask again with: tapio why "));
    asked.unwrap_or_else(|| panic!("no story:\n{said}"))
}

/// That the whole story is there: predicted, killed, explained, and stored.
fn check_story(said: &str) {
    let cgroup = cgroup_of(said);
    let stored = format!("== What was stored: tapio why {cgroup}");
    let steps = [
        "== A process leaks memory: tapio demo memory-leak",
        "the kernel killed the process",
        "Root cause",
        "First prediction",
        "Last prediction",
        "Ask again with",
        stored.as_str(),
        "memory.leak",
    ];
    let mut rest = said;
    for step in steps {
        let at = rest.find(step).unwrap_or_else(|| panic!("{step:?} is not there, or too early:\n{said}"));
        rest = &rest[at + step.len()..];
    }
    let predictions: Vec<_> = said.lines().filter(|line| line.contains(" prediction ")).collect();
    // One in ten intervals is missed by design, but none by much, and not by both.
    let missed: Vec<i64> = predictions.iter().map(|line| missed_by_s(line)).collect();
    assert!(missed.len() == 2 && missed.contains(&0) && missed.iter().all(|s| *s <= MISS_MAX_S), "{said}");
    assert!(!Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')).exists(), "{cgroup} is left");
}

/// Most that the interval of a prediction may miss the kill by, s.
const MISS_MAX_S: i64 = 5;

/// By how many seconds the interval of a prediction's line misses the kill: `… (19:08:43 – 19:08:56), killed 19:08:57: …`.
fn missed_by_s(line: &str) -> i64 {
    let times: Vec<i64> = line
        .split(|c: char| !c.is_ascii_digit() && c != ':')
        .filter_map(|text| {
            let parts: Vec<i64> =
                text.trim_matches(':').split(':').map_while(|part| part.parse().ok()).collect();
            (parts.len() == 3).then(|| parts[0] * 3600 + parts[1] * 60 + parts[2])
        })
        .collect();
    let [_, from, to, killed] = times[..] else { panic!("not a prediction: {line}") };
    // Times of a day, which may end meanwhile.
    let after = |a: i64, b: i64| (a - b + 43_200).rem_euclid(86_400) - 43_200;
    after(from, killed).max(after(killed, to)).max(0)
}

#[test]
fn it_tells_the_story_stays_until_ctrl_c_and_knows_it_after_a_restart() {
    let dir = data_dir();
    let mut demo = Demo::start(dir.path(), &[]);
    demo.until("Ctrl-C stops it. Data and log stay in");
    assert!(demo.child.try_wait().unwrap().is_none(), "it stays");
    check_story(&demo.said);
    assert!(!demo.said.contains("From the run before"), "{}", demo.said);
    let cgroup = cgroup_of(&demo.said).to_owned();
    // The commands it names do what it says.
    let data = dir.path().to_str().unwrap();
    let check = common::run(&["check", "--output", "json", "--data-dir", data]);
    assert!(matches!(check.status.code(), Some(0 | 2)), "{}", common::stderr(&check));
    assert!(common::stdout(&check).contains(&cgroup), "{}", common::stdout(&check));
    demo.interrupt();
    let (status, said) = demo.ended(dir.path());
    assert_eq!(status.code(), Some(0), "{said}");

    let mut demo = Demo::start(dir.path(), &[]);
    demo.until("A process leaks memory");
    let recalled = format!("== From the run before, after a restart of everything: tapio why {cgroup}");
    let story = demo.said.split_once(&recalled).map(|(_, story)| story.to_owned());
    assert!(story.is_some_and(|story| story.contains("memory.leak")), "{}", demo.said);
    // In the middle of the next story.
    demo.until("A process will leak");
    demo.interrupt();
    let (status, said) = demo.ended(dir.path());
    assert_eq!(status.code(), Some(130), "{said}");
}

#[test]
fn once_it_ends_by_itself_with_the_code_of_the_demonstration() {
    let dir = data_dir();
    let demo = Demo::start(dir.path(), &[("DEMO_ONCE", "1"), ("DEMO_FLAGS", "--limit-mib 48")]);
    let (status, said) = demo.ended(dir.path());
    check_story(&said);
    // An interval that missed the kill is told with the exit code, too.
    let all_inside = !said.contains(": outside the interval.");
    assert_eq!(status.code(), Some(i32::from(!all_inside)), "{said}");
    assert!(!said.contains("It stays up"), "{said}");

    let demo = Demo::start(dir.path(), &[("DEMO_ONCE", "1"), ("DEMO_FLAGS", "--timeout-seconds 1")]);
    let (status, said) = demo.ended(dir.path());
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the kernel did not kill the process in time"), "{said}");
}

#[test]
fn without_a_binary_it_says_how_to_make_one() {
    let dir = data_dir();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
    let output = clean(&script).arg(dir.path().join("tapio")).env("DEMO_DATA", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(common::stderr(&output).contains("run: make build"), "{}", common::stderr(&output));
}
