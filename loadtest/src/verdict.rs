//! Whether what came out is what had to come out.

use std::collections::HashMap;
use std::fmt;

use tapio_schemas::entity::kinds;
use tapio_schemas::finding::Status;
use tapio_schemas::{Entity, Finding, FindingId, UnixNanos};

use crate::latency::Latencies;
use crate::load::faults::{Fault, Kind};
use crate::rig::observe::Seen;
use crate::rig::stack::MACHINE;

/// Something that is wrong with the findings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// A fault of which no finding tells.
    Missing {
        /// Cause.
        cause: String,
        /// Entity.
        seat: String,
    },
    /// A fault of which several findings tell.
    Doubled {
        /// Cause.
        cause: String,
        /// Entity.
        seat: String,
        /// How many.
        findings: usize,
    },
    /// A finding about a thing in which nothing was injected, or with another cause.
    Unexpected {
        /// Cause, or `no cause`.
        cause: String,
        /// Entity.
        seat: String,
        /// Finding.
        id: String,
    },
    /// The same revision of a finding twice in the stream.
    Repeated {
        /// Finding.
        id: String,
        /// Revision.
        revision: u32,
        /// How often.
        times: u32,
    },
    /// What the store holds differs from the stream.
    Store {
        /// Finding.
        id: String,
        /// What is wrong.
        says: String,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { cause, seat } => write!(f, "missing: no finding of {cause} in {seat}"),
            Self::Doubled { cause, seat, findings } => {
                write!(f, "doubled: {findings} findings of {cause} in {seat}")
            }
            Self::Unexpected { cause, seat, id } => {
                write!(f, "unexpected: {id} tells of {cause} in {seat}")
            }
            Self::Repeated { id, revision, times } => {
                write!(f, "repeated: revision {revision} of {id} is in the stream {times} times")
            }
            Self::Store { id, says } => write!(f, "store: {id} {says}"),
        }
    }
}

/// The findings, judged.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Faults injected.
    pub faults: usize,
    /// Faults with exactly one finding of the right cause in the right place.
    pub right: usize,
    /// What is wrong.
    pub wrong: Vec<Wrong>,
    /// What Tapio found wrong with itself.
    pub own: Vec<String>,
    /// What the node agent of this machine saw here, beside the load.
    pub machine: Vec<String>,
    /// From the fault's first event to the first finding that names it. A leak is left out: there it is the sample that
    /// makes the climb a trend, not the first one.
    pub to_insight: Latencies,
    /// The same from the event that the cause follows from.
    pub deciding_to_insight: Latencies,
}

/// Compares the final state of the stream of findings with the truth.
pub fn judge(faults: &[Fault], findings: &HashMap<FindingId, Seen>, start: UnixNanos) -> Verdict {
    let mut verdict = Verdict { faults: faults.len(), ..Verdict::default() };
    let mut by_fault: HashMap<u64, usize> = HashMap::new();
    for seen in findings.values() {
        for (revision, times) in seen.revisions.iter().filter(|(_, times)| **times > 1) {
            let id = seen.last.id.to_string();
            verdict.wrong.push(Wrong::Repeated { id, revision: *revision, times: *times });
        }
        // Turned out to be part of another one.
        if seen.last.status == Status::Superseded {
            continue;
        }
        match fault_of(faults, &seen.last) {
            Some(fault) => {
                *by_fault.entry(fault.number).or_default() += 1;
                let named = seen.named.get(&(fault.seat.clone(), fault.kind.cause().to_owned()));
                if let (Some(at), true) = (named, fault.kind != Kind::Leak) {
                    let onset = start.plus(fault.at.as_nanos() as u64);
                    let certain = onset.plus(fault.kind.certain_after().as_nanos() as u64);
                    verdict.to_insight.add(at.saturating_sub(onset.0));
                    verdict.deciding_to_insight.add(at.saturating_sub(certain.0));
                }
            }
            // That it falls behind on a busy machine is true, and said in the notes.
            None if is_of_tapio(&seen.last) => verdict.own.push(title(&seen.last)),
            None if is_of_machine(&seen.last) => verdict.machine.push(title(&seen.last)),
            None => verdict.wrong.push(unexpected(&seen.last)),
        }
    }
    for fault in faults {
        let (cause, seat) = (fault.kind.cause().to_owned(), fault.seat.to_string());
        match by_fault.get(&fault.number).copied().unwrap_or(0) {
            0 => verdict.wrong.push(Wrong::Missing { cause, seat }),
            1 => verdict.right += 1,
            findings => verdict.wrong.push(Wrong::Doubled { cause, seat, findings }),
        }
    }
    verdict.wrong.sort();
    verdict.machine.sort();
    verdict
}

/// True when every fault has its finding.
pub fn all_told(faults: &[Fault], findings: &HashMap<FindingId, Seen>) -> bool {
    faults.iter().all(|fault| findings.values().any(|seen| tells(fault, &seen.last)))
}

fn fault_of<'a>(faults: &'a [Fault], finding: &Finding) -> Option<&'a Fault> {
    faults.iter().find(|fault| tells(fault, finding))
}

fn tells(fault: &Fault, finding: &Finding) -> bool {
    let root = finding.root_cause.as_ref();
    root.is_some_and(|root| root.cause == fault.kind.cause() && root.entity == fault.seat)
}

fn is_of_tapio(finding: &Finding) -> bool {
    finding.root_cause.as_ref().is_some_and(|root| root.cause.starts_with("tapio."))
}

fn is_of_machine(finding: &Finding) -> bool {
    let seen_on = finding.chain.iter().map(|link| &link.entity);
    finding.entity().is_some_and(|seat| is_here(seat, seen_on))
}

/// It is on this machine, or about an address that somebody on this machine called: other programs run here, too.
fn is_here<'a>(seat: &Entity, mut seen_on: impl Iterator<Item = &'a Entity>) -> bool {
    let is = |entity: &Entity| [&entity.node, &entity.name].iter().any(|name| *name == MACHINE);
    is(seat) || (seat.kind == kinds::EXTERNAL && seen_on.any(is))
}

fn title(finding: &Finding) -> String {
    finding.title.clone()
}

fn unexpected(finding: &Finding) -> Wrong {
    let cause = finding.root_cause.as_ref().map_or("no cause".to_owned(), |root| root.cause.to_string());
    let seat = finding.entity().map_or_else(|| "nothing".to_owned(), Entity::to_string);
    Wrong::Unexpected { cause, seat, id: finding.id.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_of_this_machine_call_is_of_this_machine_and_what_the_load_does_is_not() {
        let here = Entity::new(kinds::CGROUP, "", "/test", MACHINE);
        let there = Entity::namespaced("Deployment", "team-01", "api");
        let outside = Entity::new(kinds::EXTERNAL, "", "10.0.0.9:81", "");
        let is = |seat, seen_on| is_here(seat, std::iter::once(seen_on));
        assert!(is(&here, &there) && is(&outside, &here));
        assert!(!is(&outside, &there) && !is(&there, &here));
    }
}
