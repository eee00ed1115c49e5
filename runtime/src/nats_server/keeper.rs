//! The thread that starts the process and waits for it.
//!
//! The death signal of Linux is tied to the *thread* that forked, not to the process. A pooled
//! thread may end at any time and would take the server with it, so the child gets a thread of its
//! own that lives exactly as long as the child.

// `pre_exec` is unsafe; see its SAFETY note.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

/// A process and its end.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    pid: u32,
    /// `false` once the process is reaped; held while a signal is sent, so that a signal never
    /// reaches a stranger with the same id.
    alive: Arc<Mutex<bool>>,
    /// How it ended.
    ended: watch::Receiver<Option<String>>,
}

impl Keeper {
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        let (started, start) = mpsc::sync_channel(1);
        let (end, ended) = watch::channel(None);
        let alive = Arc::new(Mutex::new(true));
        let shared = Arc::clone(&alive);
        thread::Builder::new().name("nats-server".to_owned()).spawn(move || {
            command.process_group(0);
            #[cfg(target_os = "linux")]
            // SAFETY: the closure runs between fork and exec and makes one system call; it does not
            // allocate, lock, or touch memory of the parent.
            unsafe {
                command.pre_exec(|| {
                    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                        .map_err(io::Error::from)
                });
            }
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(child.id()));
            wait_unreaped(child.id());
            let mut alive = shared.lock().expect("keeper lock");
            let status = child.wait();
            *alive = false;
            drop(alive);
            end.send_replace(Some(status.map_or_else(|error| error.to_string(), |s| s.to_string())));
        })?;
        let pid = start.recv().map_err(io::Error::other)??;
        Ok(Self { pid, alive, ended })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn is_running(&self) -> bool {
        *self.alive.lock().expect("keeper lock")
    }

    /// Sends a signal unless the process has ended.
    pub(super) fn signal(&self, signal: Signal) {
        let alive = self.alive.lock().expect("keeper lock");
        if let (true, Some(pid)) = (*alive, raw_pid(self.pid)) {
            // It may have ended a moment ago; then the signal goes to a zombie and does nothing.
            let _ = kill_process(pid, signal);
        }
    }

    /// Exit status as text, once it has ended.
    pub(super) fn status(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits for the end.
    pub(super) async fn wait(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            // The keeper thread died without a word.
            Err(_) => "unknown".to_owned(),
        }
    }
}

fn raw_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Waits for the end without reaping, so that the process id stays taken until the lock is held.
fn wait_unreaped(pid: u32) {
    let Some(pid) = raw_pid(pid) else { return };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
}
