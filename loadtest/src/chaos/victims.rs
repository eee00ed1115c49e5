//! The processes that chaos is done to.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::{Pid, Signal, kill_process};

use super::schedule::{Action, Harm, Step, Target};
use crate::error::LoadError;
use crate::rig::process::{Process, Usage};
use crate::rig::stack::Stack;

/// All of them, and what the runs that are over have used.
pub struct Victims {
    /// Server and services.
    pub stack: Stack,
    /// The producer.
    pub agent: Process,
    /// What ended and was not made to, or not as it should.
    pub fallen: Vec<String>,
    harmed: BTreeSet<Target>,
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

    fn step_service(&mut self, target: Target, harm: Harm, step: Step) -> Result<(), LoadError> {
        let name = match target {
            Target::Correlator(_) => "correlator",
            Target::Storage => "storage",
            Target::Agent | Target::Nats => "agent",
        };
        let process = match target {
            Target::Correlator(number) => {
                let replicas = self.stack.correlators.len().max(1);
                &mut self.stack.correlators[number % replicas]
            }
            Target::Storage => &mut self.stack.storage,
            Target::Agent | Target::Nats => &mut self.agent,
        };
        if target == Target::Agent && process.ended() == Some(Some(0)) {
            // It has sent everything and is not started again.
            return Ok(());
        }
        let usage = process.usage();
        if (harm, step) == (Harm::Restart, Step::End)
            && let Some(Some(code @ 1..)) = process.ended()
        {
            self.fallen.push(format!("{} ended with code {code} when it was told to stop", process.name()));
        }
        match (harm, step) {
            (Harm::Kill, Step::Begin) => process.kill(),
            (Harm::Restart, Step::Begin) => drop(process.signal(Signal::TERM)),
            (Harm::Pause, Step::Begin) => drop(process.signal(Signal::STOP)),
            (Harm::Pause, Step::End) => drop(process.signal(Signal::CONT)),
            (Harm::Kill | Harm::Restart, Step::End) => process.restart()?,
        }
        if matches!((harm, step), (Harm::Kill, Step::Begin) | (Harm::Restart, Step::End)) {
            self.note(name, usage);
        }
        Ok(())
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
        let Self { stack, agent, harmed, fallen, .. } = self;
        let numbered = stack.correlators.iter_mut().enumerate();
        let correlators = numbered.map(|(number, process)| (Target::Correlator(number), process));
        for (target, process) in
            correlators.chain([(Target::Storage, &mut stack.storage), (Target::Agent, agent)])
        {
            let Some(code) = process.ended().filter(|_| !harmed.contains(&target)) else { continue };
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
