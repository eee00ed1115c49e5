//! The processes that chaos is done to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tapio_schemas::UnixNanos;

use super::schedule::{Action, Harm, Step, Target};
use crate::error::LoadError;
use crate::rig::agents::{End, lacks};
use crate::rig::observe::unix_nanos;
use crate::rig::process::{Process, STOP_MAX, Usage, stopped_badly};
use crate::rig::stack::Stack;

const POLL: Duration = Duration::from_millis(20);

/// All of them, and what the runs that are over have used.
pub struct Victims {
    /// Server and services.
    pub stack: Stack,
    /// The producer.
    pub sender: Process,
    /// The node agent of this machine.
    pub agent: Process,
    /// What was done to each of its runs.
    pub ends: BTreeMap<u32, End>,
    /// What it cannot read of the kernel here.
    pub lacks: Vec<String>,
    /// What ended and was not made to, or not as it should.
    pub fallen: Vec<String>,
    harmed: BTreeSet<Target>,
    /// Services that were told to stop, should be back and have not ended, with when they must have. They are waited for beside
    /// the rest: what they wait for may be paused.
    draining: BTreeMap<Target, Instant>,
    /// Of all runs that are over.
    used: BTreeMap<&'static str, Usage>,
    /// Of each one's present run, as long as it could be seen: of what has ended nobody can tell any more.
    seen: BTreeMap<Target, Usage>,
}

impl Victims {
    /// Everything runs.
    pub fn new(stack: Stack, sender: Process, agent: Process) -> Self {
        Self {
            stack,
            sender,
            agent,
            ends: BTreeMap::new(),
            lacks: Vec::new(),
            fallen: Vec::new(),
            harmed: BTreeSet::new(),
            draining: BTreeMap::new(),
            used: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Does one step of an action, which begins only while [`Victims::is_busy`] is false of its target.
    ///
    /// # Errors
    /// When a process cannot be started again.
    pub fn step(&mut self, action: &Action, step: Step) -> Result<(), LoadError> {
        match step {
            Step::Begin => drop(self.harmed.insert(action.target)),
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
            Target::Agent => ("agent", &mut self.agent),
            Target::Sender | Target::Nats => ("sender", &mut self.sender),
        }
    }

    fn step_service(&mut self, target: Target, harm: Harm, step: Step) -> Result<(), LoadError> {
        self.look(target);
        match (target, harm, step) {
            (Target::Agent, Harm::Kill, Step::Begin) => self.end_run(End::Killed),
            (Target::Agent, Harm::Restart, Step::Begin) => {
                self.end_run(End::Stopped(UnixNanos(unix_nanos())))
            }
            _ => {}
        }
        let (_, process) = self.service(target);
        if target == Target::Sender && process.ended() == Some(Some(0)) {
            // It has sent everything and is not started again.
            return Ok(());
        }
        match (harm, step) {
            (Harm::Kill, Step::Begin) => process.kill(),
            (Harm::Restart, Step::Begin) => drop(process.signal(Signal::TERM)),
            (Harm::Pause, Step::Begin) => drop(process.signal(Signal::STOP)),
            (Harm::Pause, Step::End) => drop(process.signal(Signal::CONT)),
            // The producer does not drain: SIGTERM ends it.
            (Harm::Kill, Step::End) => self.restart(target)?,
            (Harm::Restart, Step::End) if target == Target::Sender => self.restart(target)?,
            (Harm::Restart, Step::End) => {
                self.draining.insert(target, Instant::now() + STOP_MAX);
                self.revive()?;
            }
        }
        Ok(())
    }

    /// Notes what is done to the run that the node agent is in. One that has not taken its number yet has not begun.
    fn end_run(&mut self, end: End) {
        if let Some(run) = self.stack.agent_run() {
            self.ends.entry(run).or_insert(end);
        }
    }

    /// Stops the node agent for good, as a user does, once it is up.
    ///
    /// # Errors
    /// When it does not get up.
    pub async fn stop_agent(&mut self) -> Result<(), LoadError> {
        while self.is_busy(Target::Agent)? {
            tokio::time::sleep(POLL).await;
        }
        self.agent.ready().await?;
        self.lacks = lacks(&self.agent.said());
        self.look(Target::Agent);
        // From now on its end is no fall.
        self.step(&Action::now(Target::Agent, Harm::Restart), Step::Begin)?;
        let ended = self.agent.drained().await;
        self.fallen.extend(stopped_badly(self.agent.name(), ended));
        Ok(())
    }

    /// Keeps in mind what a service has used, while it can be seen.
    fn look(&mut self, target: Target) {
        if let Some(usage) = self.service(target).1.usage() {
            self.seen.insert(target, usage);
        }
    }

    /// Starts a service again; what it was last seen to have used is that of the run that is over.
    fn restart(&mut self, target: Target) -> Result<(), LoadError> {
        let seen = self.seen.remove(&target);
        let (name, process) = self.service(target);
        process.restart()?;
        self.note(name, seen);
        Ok(())
    }

    /// Starts what was told to stop again once it has ended, and notes when that was not as it should be.
    fn end_draining(&mut self) -> Result<(), LoadError> {
        for (target, deadline) in self.draining.clone() {
            let (_, process) = self.service(target);
            let ended = process.ended();
            if ended.is_none() && Instant::now() < deadline {
                continue;
            }
            let wrong = stopped_badly(process.name(), ended);
            self.restart(target)?;
            self.fallen.extend(wrong);
            self.draining.remove(&target);
        }
        Ok(())
    }

    /// True while something is being done to the target, or it has not ended after a planned stop.
    ///
    /// # Errors
    /// As [`Victims::revive`].
    pub fn is_busy(&mut self, target: Target) -> Result<bool, LoadError> {
        self.revive()?;
        Ok(self.harmed.contains(&target) || self.draining.contains_key(&target))
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
        for (target, name, process) in
            [(Target::Sender, "sender", &self.sender), (Target::Agent, "agent", &self.agent)]
        {
            let seen = self.seen.get(&target).copied();
            now.push((name, process.usage().or(seen).unwrap_or_default()));
        }
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
        let correlators = (0..self.stack.correlators.len()).map(Target::Correlator);
        for target in correlators.chain([Target::Storage, Target::Sender, Target::Agent]) {
            self.look(target);
            let is_meant = self.harmed.contains(&target) || self.draining.contains_key(&target);
            let (_, process) = self.service(target);
            let Some(code) = process.ended().filter(|_| !is_meant) else { continue };
            // The producer ends by itself once it has sent everything.
            if (target, code) != (Target::Sender, Some(0)) {
                let said = format!("{} ended by itself with {code:?}", process.name());
                self.fallen.push(said);
                self.restart(target)?;
            }
        }
        if !self.harmed.contains(&Target::Nats) && !self.stack.nats.is_running() {
            self.fallen.push("nats-server ended by itself".to_owned());
            tokio::task::block_in_place(|| self.stack.nats.restart())?;
        }
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
        let launch =
            Launch { name: "sender".to_owned(), program, arguments: Vec::new(), dir: dir.to_owned() };
        let agent = Process::start(stack.agent()).unwrap();
        Victims::new(stack, Process::start(launch).unwrap(), agent)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_planned_stop_is_waited_for_and_a_bad_one_is_noted() {
        let dir = Dir::new(false).unwrap();
        let mut victims = victims(dir.path()).await;
        let of = [Target::Storage, Target::Correlator(0), Target::Correlator(1)];
        let before = of.map(|target| victims.service(target).1.pid());
        for step in [Step::Begin, Step::End] {
            for target in of {
                victims.step(&Action::now(target, Harm::Restart), step).unwrap();
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

    #[tokio::test(flavor = "multi_thread")]
    async fn who_drains_is_busy_and_nobody_waits_for_it() {
        let dir = Dir::new(false).unwrap();
        let mut victims = victims(dir.path()).await;
        let pid = |victims: &mut Victims| victims.service(Target::Storage).1.pid();
        let before = pid(&mut victims);
        let [stops, kills] = [Harm::Restart, Harm::Kill].map(|harm| Action::now(Target::Storage, harm));
        let pauses = Action::now(Target::Nats, Harm::Pause);
        let mut is_busy = Vec::new();
        for (action, step) in
            [(stops, Step::Begin), (stops, Step::End), (pauses, Step::Begin), (pauses, Step::End)]
        {
            victims.step(&action, step).unwrap();
            is_busy.push([Target::Storage, Target::Nats].map(|target| victims.is_busy(target).unwrap()));
        }
        assert_eq!(is_busy, [[true, false], [true, false], [true, true], [true, false]]);
        assert_eq!((pid(&mut victims), victims.fallen.len()), (before, 0));
        std::fs::write(dir.path().join("program.may-end"), "").unwrap();
        while victims.is_busy(Target::Storage).unwrap() {
            // check: allow sleep, this is the wait for a condition
            tokio::time::sleep(POLL).await;
        }
        let before = pid(&mut victims);
        victims.step(&kills, Step::Begin).unwrap();
        victims.step(&kills, Step::End).unwrap();
        assert_ne!(pid(&mut victims), before);
        assert!(victims.fallen.is_empty(), "{:?}", victims.fallen);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_each_run_of_the_node_agent_is_noted() {
        let dir = Dir::new(false).unwrap();
        let mut victims = victims(dir.path()).await;
        let data = dir.path().join("agent").join("agent");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(dir.path().join("program.may-end"), "").unwrap();
        for step in [Step::Begin, Step::End] {
            std::fs::write(data.join("epoch"), "7\n").unwrap();
            victims.step(&Action::now(Target::Agent, Harm::Kill), step).unwrap();
        }
        std::fs::write(data.join("epoch"), "8\n").unwrap();
        victims.stop_agent().await.unwrap();
        assert_eq!(victims.fallen, ["agent was ended by a signal when it was told to stop"]);
        assert!(matches!(victims.ends[&8], End::Stopped(_)) && victims.ends[&7] == End::Killed);
        victims.revive().unwrap();
        assert_eq!(victims.agent.ended(), Some(None), "it stays away");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_run_used_is_known_although_it_ended_unseen() {
        let dir = Dir::new(false).unwrap();
        let mut victims = victims(dir.path()).await;
        std::fs::write(dir.path().join("program.may-end"), "").unwrap();
        for target in [Target::Storage, Target::Sender, Target::Agent] {
            let stops = Action::now(target, Harm::Restart);
            victims.step(&stops, Step::Begin).unwrap();
            let (name, process) = victims.service(target);
            let pid = process.pid();
            while Usage::of(pid).is_some() {
                // check: allow sleep, this is the wait for a condition
                tokio::time::sleep(POLL).await;
            }
            assert_eq!(victims.used.get(name), None);
            victims.step(&stops, Step::End).unwrap();
            assert!(victims.used[name].peak_rss_bytes > 0, "{name}: {:?}", victims.used);
            assert_ne!(victims.service(target).1.pid(), pid);
        }
    }
}
