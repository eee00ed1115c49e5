//! The processes that chaos is done to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::schedule::{Action, Harm, Step, Target};
use crate::error::LoadError;
use crate::rig::process::{Process, STOP_MAX, Usage, stopped_badly};
use crate::rig::stack::Stack;

const POLL: Duration = Duration::from_millis(10);

/// All of them, and what the runs that are over have used.
pub struct Victims {
    /// Server and services.
    pub stack: Stack,
    /// The producer.
    pub agent: Process,
    /// What ended and was not made to, or not as it should.
    pub fallen: Vec<String>,
    harmed: BTreeSet<Target>,
    /// Services that were told to stop, should be back and have not ended, with when they must have. They are waited for beside
    /// the rest: what they wait for may be paused.
    draining: BTreeMap<Target, Instant>,
    used: BTreeMap<&'static str, Usage>,
    /// Of the producer's present run, as long as it could be seen.
    agent_seen: Usage,
}

impl Victims {
    /// Everything runs.
    pub fn new(stack: Stack, agent: Process) -> Self {
        Self {
            stack,
            agent,
            fallen: Vec::new(),
            harmed: BTreeSet::new(),
            draining: BTreeMap::new(),
            used: BTreeMap::new(),
            agent_seen: Usage::default(),
        }
    }

    /// Does one step of an action.
    ///
    /// # Errors
    /// When a process cannot be started again.
    pub async fn step(&mut self, action: &Action, step: Step) -> Result<(), LoadError> {
        match step {
            Step::Begin => {
                while self.draining.contains_key(&action.target) {
                    tokio::time::sleep(POLL).await;
                    self.revive()?;
                }
                self.revive()?;
                self.harmed.insert(action.target);
            }
            Step::End => drop(self.harmed.remove(&action.target)),
        }
        match (action.target, action.harm, step) {
            (Target::Nats, Harm::Pause, Step::Begin) => signal(self.stack.nats.pid(), Signal::STOP),
            (Target::Nats, Harm::Pause, Step::End) => signal(self.stack.nats.pid(), Signal::CONT),
            (Target::Nats, harm, Step::Begin) => {
                self.note("nats-server", Usage::of(self.stack.nats.pid()));
                let nats = &mut self.stack.nats;
                // Both block until the process has ended, which is what has to be waited for.
                tokio::task::block_in_place(|| match harm {
                    Harm::Kill => nats.kill(),
                    _ => drop(nats.stop()),
                });
            }
            (Target::Nats, _, Step::End) => tokio::task::block_in_place(|| self.stack.nats.restart())?,
            (target, harm, step) => self.step_service(target, harm, step)?,
        }
        Ok(())
    }

    fn service(&mut self, target: Target) -> (&'static str, &mut Process) {
        match target {
            Target::Correlator(number) => {
                let replicas = self.stack.correlators.len().max(1);
                ("correlator", &mut self.stack.correlators[number % replicas])
            }
            Target::Storage => ("storage", &mut self.stack.storage),
            Target::Agent | Target::Nats => ("agent", &mut self.agent),
        }
    }

    fn step_service(&mut self, target: Target, harm: Harm, step: Step) -> Result<(), LoadError> {
        let (name, process) = self.service(target);
        if target == Target::Agent && process.ended() == Some(Some(0)) {
            // It has sent everything and is not started again.
            return Ok(());
        }
        let usage = process.usage();
        match (harm, step) {
            (Harm::Kill, Step::Begin) => process.kill(),
            (Harm::Restart, Step::Begin) => drop(process.signal(Signal::TERM)),
            (Harm::Pause, Step::Begin) => drop(process.signal(Signal::STOP)),
            (Harm::Pause, Step::End) => drop(process.signal(Signal::CONT)),
            // The producer does not drain: SIGTERM ends it.
            (Harm::Kill, Step::End) => process.restart()?,
            (Harm::Restart, Step::End) if target == Target::Agent => process.restart()?,
            (Harm::Restart, Step::End) => {
                self.draining.insert(target, Instant::now() + STOP_MAX);
                return self.revive();
            }
        }
        if matches!((harm, step), (Harm::Kill, Step::Begin) | (Harm::Restart, Step::End)) {
            self.note(name, usage);
        }
        Ok(())
    }

    /// Starts what was told to stop again once it has ended, and notes when that was not as it should be.
    fn end_draining(&mut self) -> Result<(), LoadError> {
        for (target, deadline) in self.draining.clone() {
            let (name, process) = self.service(target);
            let usage = process.usage();
            let ended = process.ended();
            if ended.is_none() && Instant::now() < deadline {
                continue;
            }
            let wrong = stopped_badly(process.name(), ended);
            process.restart()?;
            self.note(name, usage);
            self.fallen.extend(wrong);
            self.draining.remove(&target);
        }
        Ok(())
    }

    /// True while something that was told to stop has not ended.
    pub fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    fn note(&mut self, name: &'static str, usage: Option<Usage>) {
        let used = self.used.entry(name).or_default();
        *used = used.and(usage.unwrap_or_default());
    }

    /// What each service has used in all its runs.
    pub fn usage(&self) -> Vec<(&'static str, Usage)> {
        let mut now = self.stack.usage();
        now.push(("agent", self.agent.usage().unwrap_or(self.agent_seen)));
        for (name, usage) in &mut now {
            *usage = self.used.get(name).copied().unwrap_or_default().and(*usage);
        }
        now
    }

    /// Processes that have ended although nothing was done to them are noted and started again, as a cluster does it.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn revive(&mut self) -> Result<(), LoadError> {
        self.end_draining()?;
        let Self { stack, agent, harmed, draining, fallen, .. } = self;
        let numbered = stack.correlators.iter_mut().enumerate();
        let correlators = numbered.map(|(number, process)| (Target::Correlator(number), process));
        for (target, process) in
            correlators.chain([(Target::Storage, &mut stack.storage), (Target::Agent, agent)])
        {
            let is_meant = harmed.contains(&target) || draining.contains_key(&target);
            let Some(code) = process.ended().filter(|_| !is_meant) else { continue };
            // The producer ends by itself once it has sent everything.
            if (target, code) != (Target::Agent, Some(0)) {
                fallen.push(format!("{} ended by itself with {code:?}", process.name()));
                process.restart()?;
            }
        }
        if !harmed.contains(&Target::Nats) && !stack.nats.is_running() {
            fallen.push("nats-server ended by itself".to_owned());
            tokio::task::block_in_place(|| stack.nats.restart())?;
        }
        self.agent_seen = self.agent.usage().unwrap_or(self.agent_seen);
        Ok(())
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is gone has nothing to be told.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::rig::process::Launch;
    use crate::rig::stack::{self, Dir, StackConfig};

    /// Services that end once they may: storage as it should, one correlator with code 3, the other one by a signal.
    const PROGRAM: &str = r#"#!/bin/sh
case "$*" in
  *storage*) end='exit 0' ;;
  *correlator-0*) end='exit 3' ;;
  *) end='kill -9 $$' ;;
esac
trap 'while [ ! -e "$0.may-end" ]; do sleep 0.02; done; eval "$end"' TERM
echo 'Ctrl-C stops it.'
while :; do sleep 0.05; done
"#;

    async fn victims(dir: &Path) -> Victims {
        let program = dir.join("program");
        std::fs::write(&program, PROGRAM).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let nats = stack::server(dir).await.unwrap();
        let config =
            StackConfig { program: program.clone(), dir: dir.to_owned(), replicas: 2, settings: Vec::new() };
        let stack = Stack::start(config, nats).await.unwrap();
        let launch = Launch { name: "agent".to_owned(), program, arguments: Vec::new(), dir: dir.to_owned() };
        Victims::new(stack, Process::start(launch).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_planned_stop_is_waited_for_and_a_bad_one_is_noted() {
        let dir = Dir::new(false).unwrap();
        let mut victims = victims(dir.path()).await;
        let of = [Target::Storage, Target::Correlator(0), Target::Correlator(1)];
        let restart =
            |target| Action { at: Duration::ZERO, lasts: Duration::ZERO, target, harm: Harm::Restart };
        let before = of.map(|target| victims.service(target).1.pid());
        for step in [Step::Begin, Step::End] {
            for target in of {
                victims.step(&restart(target), step).await.unwrap();
            }
        }
        assert_eq!(
            of.map(|target| victims.service(target).1.pid()),
            before,
            "none is killed while it drains"
        );
        std::fs::write(dir.path().join("program.may-end"), "").unwrap();
        while victims.is_draining() {
            // check: allow sleep, this is the wait for a condition
            tokio::time::sleep(POLL).await;
            victims.revive().unwrap();
        }
        victims.fallen.sort();
        assert_eq!(
            victims.fallen,
            [
                "correlator-0 ended with code 3 when it was told to stop",
                "correlator-1 was ended by a signal when it was told to stop"
            ]
        );
        for (target, pid) in of.into_iter().zip(before) {
            let process = victims.service(target).1;
            process.ready().await.unwrap();
            assert_ne!(process.pid(), pid, "{target} was started again");
        }
    }
}
