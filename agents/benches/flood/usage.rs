//! What this process used.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of all threads, and of each, by name.
pub struct Usage {
    pub cpu: Duration,
    /// Resident now.
    pub resident_bytes: u64,
    /// Most resident ever.
    pub peak_bytes: u64,
    threads: Vec<(u32, String, Duration)>,
}

impl Usage {
    pub fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32),
            resident_bytes: status("VmRSS:"),
            peak_bytes: status("VmHWM:"),
            threads: threads(),
        }
    }

    /// CPU since `before`; memory as it is.
    pub fn since(self, before: &Self) -> Self {
        let used = |(id, name, cpu): (u32, String, Duration)| {
            let then = before.threads.iter().find(|(other, ..)| *other == id).map_or(Duration::ZERO, |t| t.2);
            (id, name, cpu.saturating_sub(then))
        };
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            threads: self.threads.into_iter().map(used).collect(),
            ..self
        }
    }

    /// CPU by thread name, the most first.
    pub fn by_thread(&self) -> Vec<(String, Duration)> {
        let mut sums: Vec<(String, Duration)> = Vec::new();
        for (_, name, cpu) in &self.threads {
            match sums.iter_mut().find(|(other, _)| other == name) {
                Some((_, sum)) => *sum += *cpu,
                None => sums.push((name.clone(), *cpu)),
            }
        }
        sums.sort_by_key(|(_, cpu)| std::cmp::Reverse(*cpu));
        sums
    }
}

/// A line of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of memory");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// The first number of `schedstat` is nanoseconds on a CPU.
fn threads() -> Vec<(u32, String, Duration)> {
    let tasks = fs::read_dir("/proc/self/task").expect("proc is mounted").flatten();
    let one = |task: fs::DirEntry| {
        let id = task.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let nanos = stat.split_whitespace().next()?.parse().ok()?;
        Some((id, name.trim_end().to_owned(), Duration::from_nanos(nanos)))
    };
    tasks.filter_map(one).collect()
}
