//! A service as a process of its own, and what it costs.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::scrape::{self, Sample};
use crate::error::LoadError;

/// How long a service may take to start.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a service may take to end after SIGTERM.
pub const STOP_MAX: Duration = Duration::from_secs(20);
/// Unit of times in /proc: USER_HZ, which Linux has fixed for programs.
const TICKS_PER_SECOND: f64 = 100.0;
const POLL: Duration = Duration::from_millis(10);
/// The last line that a service prints when it is up.
const READY_LINE: &str = "Ctrl-C stops it.";

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Largest resident set, bytes.
    pub peak_rss_bytes: u64,
    /// Resident set now, bytes.
    pub rss_bytes: u64,
}

impl Usage {
    /// Of a live process; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything; fields are counted after its closing bracket. 14 and 15 are utime and stime.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 =
            [11, 12].into_iter().map(|at| fields.get(at)?.parse::<u64>().ok()).sum::<Option<_>>()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Some(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND),
            peak_rss_bytes: kib("VmHWM:")? * 1024,
            rss_bytes: kib("VmRSS:")? * 1024,
        })
    }

    /// Sum of times, larger of sizes: two runs of the same service.
    pub fn and(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
            rss_bytes: other.rss_bytes,
        }
    }
}

/// How to start a service.
#[derive(Debug, Clone)]
pub struct Launch {
    /// For people, and the name of its log.
    pub name: String,
    /// Binary.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Directory of its log.
    pub dir: PathBuf,
}

/// A running service.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Child,
    log: PathBuf,
    /// Bytes that earlier runs had written to the log.
    log_start: u64,
    metrics: Option<SocketAddr>,
}

impl Process {
    /// Starts it; [`Process::ready`] waits for it.
    ///
    /// # Errors
    /// When the binary or its log cannot be used.
    pub fn start(launch: Launch) -> Result<Self, LoadError> {
        let path = launch.dir.join(format!("{}.log", launch.name));
        let failed = |source| LoadError::File { path: path.clone(), source };
        let log = File::options().create(true).append(true).open(&path).map_err(failed)?;
        let log_start = log.metadata().map_err(failed)?.len();
        let mut command = Command::new(&launch.program);
        for (name, _) in std::env::vars_os() {
            // What configures the caller's own instance is not for this one.
            let text = name.to_string_lossy();
            if text.starts_with("TAPIO_") && text != "TAPIO_NATS_SERVER" && text != "TAPIO_LOG" {
                command.env_remove(&name);
            }
        }
        let stderr = log.try_clone().map_err(failed)?;
        let child = command.args(&launch.arguments).stdin(Stdio::null()).stdout(log).stderr(stderr).spawn();
        let child = child.map_err(|source| LoadError::File { path: launch.program.clone(), source })?;
        Ok(Self { launch, child, log: path, log_start, metrics: None })
    }

    /// Waits until it says that it is up.
    ///
    /// # Errors
    /// When it ends, or does not get ready in time.
    pub async fn ready(&mut self) -> Result<(), LoadError> {
        let deadline = Instant::now() + START_MAX;
        while !self.is_ready()? {
            if Instant::now() >= deadline {
                return Err(self.failed("did not start in time".to_owned()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// True once it has said that it is up; where its metrics are is known from then on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn is_ready(&mut self) -> Result<bool, LoadError> {
        if self.metrics.is_some() {
            return Ok(true);
        }
        let said = self.said();
        if said.lines().any(|line| line.trim() == READY_LINE) {
            self.metrics = address(&said, "metrics");
            return Ok(true);
        }
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.failed(format!("ended early ({status})"))),
            _ => Ok(false),
        }
    }

    /// Its exit code, once it has ended; `Some(None)` when a signal ended it.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().ok().flatten().map(|status| status.code())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has used; `None` when it is gone.
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(self.pid())
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scrape(&self) -> Result<Vec<Sample>, LoadError> {
        let Some(address) = self.metrics else {
            return Err(self.failed("has no metrics address".to_owned()));
        };
        scrape::read(address).await.map_err(|error| self.failed(format!("does not answer: {error}")))
    }

    /// Sends a signal; true when the process was there.
    pub fn signal(&self, signal: Signal) -> bool {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts the same again.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn restart(&mut self) -> Result<(), LoadError> {
        self.kill();
        *self = Self::start(self.launch.clone())?;
        Ok(())
    }

    /// SIGTERM, and waits until it has drained; gives its exit code.
    ///
    /// # Errors
    /// When it does not end in time; then it is killed.
    pub async fn stop(&mut self) -> Result<Option<i32>, LoadError> {
        self.signal(Signal::TERM);
        if let Some(code) = self.drained().await {
            return Ok(code);
        }
        self.kill();
        Err(self.failed(format!("did not stop within {} s", STOP_MAX.as_secs())))
    }

    /// Waits until it has ended, as it was told to; its exit code as [`Process::ended`] gives it, `None` when it does not end in
    /// time.
    pub async fn drained(&mut self) -> Option<Option<i32>> {
        let deadline = Instant::now() + STOP_MAX;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What its present run has printed and logged so far.
    pub fn said(&self) -> String {
        let all = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(all.get(self.log_start as usize..).unwrap_or_default()).into_owned()
    }

    fn failed(&self, reason: String) -> LoadError {
        LoadError::Service { service: self.launch.name.clone(), reason, log: self.log.clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process does not see anything but this.
        self.kill();
    }
}

/// What is wrong with how a service ended when it was told to stop; `ended` as [`Process::ended`] gives it.
pub fn stopped_badly(name: &str, ended: Option<Option<i32>>) -> Option<String> {
    let how = match ended {
        Some(Some(0)) => return None,
        Some(Some(code)) => format!("ended with code {code}"),
        Some(None) => "was ended by a signal".to_owned(),
        None => format!("did not end within {} s", STOP_MAX.as_secs()),
    };
    Some(format!("{name} {how} when it was told to stop"))
}

/// `  metrics    127.0.0.1:9464   …` → the address.
fn address(said: &str, name: &str) -> Option<SocketAddr> {
    let words = said.lines().rev().map(str::split_whitespace);
    words.filter_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok())?).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_what_a_service_prints() {
        let said = "tapio-correlator runs; data in /x\n  NATS       nats://127.0.0.1:4 x\n  metrics    127.0.0.1:9464   /m\n";
        assert_eq!(address(said, "metrics"), "127.0.0.1:9464".parse().ok());
        assert_eq!(address(said, "NATS"), None);
    }

    #[test]
    fn only_an_end_with_code_0_is_a_good_stop() {
        let said = |ended| stopped_badly("storage", ended);
        assert_eq!(said(Some(Some(0))), None);
        assert_eq!(said(Some(Some(3))).unwrap(), "storage ended with code 3 when it was told to stop");
        assert_eq!(said(Some(None)).unwrap(), "storage was ended by a signal when it was told to stop");
        assert_eq!(said(None).unwrap(), "storage did not end within 20 s when it was told to stop");
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.peak_rss_bytes >= usage.rss_bytes && usage.rss_bytes > 1 << 20);
        assert_eq!(Usage::of(u32::MAX - 7), None);
    }
}
