//! The node agent of this machine: what each of its runs said at last, against what the stream holds and correlators read.
//!
//! What a killed run had in memory is lost, and nobody knows how much that was: numbers that its stream lacks are told and not
//! judged. What it had on disk comes with the next run. Of each run but the last one correlators may have read more than they
//! said in time: their words name the newest run of a producer alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tapio_schemas::UnixNanos;
use tapio_schemas::status::{AgentStatus, SentShard};

use super::lanes::{Lanes, Stored};
use super::words::{Hears, Words};

/// Collectors that read this machine's kernel. Others depend on what is installed or configured.
const OF_THE_KERNEL: [&str; 4] = ["ebpf:", "cgroup:", "network:", "filesystem:"];

/// What was done to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `kill -9`.
    Killed,
    /// SIGTERM, at this moment.
    Stopped(UnixNanos),
}

/// The last word of each run.
#[derive(Debug, Default)]
pub struct Runs(BTreeMap<u32, AgentStatus>);

impl Hears for Runs {
    const ROLE: &'static str = "agent";
    type Word = AgentStatus;

    fn take(&mut self, word: &AgentStatus) {
        self.0.insert(word.epoch, word.clone());
    }
}

/// What became of all runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// A line for each, in their order.
    pub runs: Vec<String>,
    /// What is lost, doubled or unaccounted for.
    pub wrong: Vec<String>,
}

impl Runs {
    /// Compares all three. The newest run has to have ended with nothing left on its way.
    ///
    /// What the last word of a run says has to agree in itself, too: what it made is what was acknowledged, dropped and on its
    /// way; and with nothing on its way, what was acknowledged are the events of earlier runs and, over its shards, the numbers
    /// below the position but for those that were skipped.
    pub fn account(&self, ends: &BTreeMap<u32, End>, lanes: &Lanes, words: &Words) -> Account {
        let Some(producer) = self.0.values().next().map(|word| word.producer.0) else {
            let wrong = vec!["the node agent said nothing of itself".to_owned()];
            return Account { wrong, ..Account::default() };
        };
        let (stored, read) = (lanes.of(producer), words.of(producer));
        let numbers: BTreeSet<u32> =
            self.0.keys().chain(ends.keys()).copied().chain(stored.keys().map(|(run, _)| *run)).collect();
        let mut account = Account::default();
        for (at, number) in numbers.iter().enumerate() {
            let of = |((run, shard), stored): (&(u32, u16), &Stored)| {
                (run == number).then(|| (*shard, (*stored, read.get(&(*run, *shard)).copied().unwrap_or(0))))
            };
            let (said, end) = (self.0.get(number), ends.get(number).copied());
            let is_last = at + 1 == numbers.len();
            let shards = stored.iter().filter_map(of).collect();
            let run = Run { said, end, is_last, shards, lanes };
            let name = format!("run {} of {}", at + 1, numbers.len());
            account.runs.push(format!("{name}, {}", run.text()));
            let wrong = run.wrong().into_iter().filter(|(count, _)| *count > 0);
            account.wrong.extend(wrong.map(|(count, what)| format!("node agent, {name}: {count} {what}")));
        }
        account
    }
}

struct Run<'a> {
    said: Option<&'a AgentStatus>,
    end: Option<End>,
    is_last: bool,
    /// What is in the stream, and how many of it correlators say they read.
    shards: BTreeMap<u16, (Stored, u64)>,
    lanes: &'a Lanes,
}

impl Run<'_> {
    fn sum(&self, of: impl Fn(&Stored) -> u64) -> u64 {
        self.shards.values().map(|(stored, _)| of(stored)).sum()
    }

    fn read(&self) -> u64 {
        self.shards.values().map(|(_, read)| read).sum()
    }

    /// How far it said that a shard was acknowledged.
    fn sent(&self, shard: u16) -> SentShard {
        let known = self.said.and_then(|said| said.sent.iter().find(|sent| sent.0 == shard));
        known.copied().unwrap_or(SentShard(shard, 0, 0))
    }

    /// Its word, when that was said after all of it had ended.
    fn last_word(&self) -> Option<&AgentStatus> {
        self.said.filter(|said| matches!(self.end, Some(End::Stopped(at)) if said.at >= at))
    }

    fn wrong(&self) -> Vec<(u64, &'static str)> {
        let mut wrong = vec![(self.sum(|stored| stored.doubled), "events are in the stream twice")];
        let lost = self.said.map_or(0, |said| {
            let lost = said.sent.iter().map(|SentShard(shard, position, skipped)| {
                let lane = (said.producer.0, said.epoch, *shard);
                (position - skipped).saturating_sub(self.lanes.below(lane, *position))
            });
            lost.sum()
        });
        let (mut unsaid, mut missing) = (0, 0);
        for (shard, (stored, _)) in &self.shards {
            let SentShard(_, position, skipped) = self.sent(*shard);
            unsaid += stored.events.saturating_sub(position - skipped);
            missing += stored.holes.saturating_sub(skipped);
        }
        wrong.push((lost, "events that it said were acknowledged are not in the stream"));
        if matches!(self.end, Some(End::Stopped(_))) {
            wrong.push((missing, "numbers are missing in the stream that it did not say it had dropped"));
        }
        if let Some(said) = self.last_word() {
            let (dropped, in_flight) = gone(said);
            let accounted = said.acknowledged + dropped + in_flight;
            wrong.push((
                said.produced.abs_diff(accounted),
                "events: what it made and what became of it differ by them",
            ));
            if in_flight == 0 {
                let numbered = said.sent.iter().map(|SentShard(_, position, skipped)| position - skipped);
                let acknowledged = said.acknowledged_earlier + numbered.sum::<u64>();
                wrong.push((
                    said.acknowledged.abs_diff(acknowledged),
                    "events: what it said was acknowledged and how far it said its shards are differ by them",
                ));
                wrong.push((
                    unsaid,
                    "events are in the stream and it did not say that they were acknowledged",
                ));
            }
        }
        if self.is_last {
            let in_flight = self.last_word().map(|said| gone(said).1);
            wrong.push((u64::from(in_flight.is_none()), "last word was not heard"));
            wrong.push((in_flight.unwrap_or(0), "events were still on their way when it had ended"));
            let unread = self.shards.values().map(|(stored, read)| stored.events.saturating_sub(*read)).sum();
            wrong.push((unread, "events are in the stream and no correlator says that it has read them"));
        }
        wrong
    }

    fn text(&self) -> String {
        let mut text = match self.end {
            Some(End::Killed) => "kill -9".to_owned(),
            Some(End::Stopped(_)) => "SIGTERM".to_owned(),
            None => "not ended by us".to_owned(),
        };
        if let Some(said) = self.said {
            let (_, in_flight) = gone(said);
            let when = if self.last_word().is_some() { "" } else { "some time before its end " };
            let _ = write!(text, ": {when}{} produced = {} acknowledged", said.produced, said.acknowledged);
            if said.acknowledged_earlier > 0 {
                let _ = write!(text, " ({} of earlier runs)", said.acknowledged_earlier);
            }
            for dropped in &said.dropped {
                let _ = write!(text, " + {} dropped ({}.{})", dropped.count, dropped.stage, dropped.reason);
            }
            let _ = write!(text, " + {in_flight} in flight");
        }
        let (events, holes) = (self.sum(|stored| stored.events), self.sum(|stored| stored.holes));
        let _ = write!(
            text,
            "; {events} in the stream, {holes} missing in its numbers, {} said to be read",
            self.read()
        );
        text
    }
}

/// Events dropped, and on their way.
fn gone(said: &AgentStatus) -> (u64, u64) {
    let dropped = said.dropped.iter().map(|dropped| dropped.count).sum();
    (dropped, said.in_flight.iter().map(|place| place.count).sum())
}

/// What a node agent cannot read of the kernel here, and why: from what it prints when it is up.
pub fn lacks(said: &str) -> Vec<String> {
    let lines = said.lines().filter_map(|line| line.trim().strip_prefix("without")).map(str::trim);
    lines.filter(|line| OF_THE_KERNEL.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::lanes::tests::lanes;
    use crate::rig::words::tests::{row, word};
    use tapio_schemas::ProducerId;
    use tapio_schemas::status::{Dropped, InFlight, ReadShard};

    const AGENT: ProducerId = ProducerId(77);
    const STOPPED: UnixNanos = UnixNanos(50);

    /// Said at the end of run 1: 110 made, 100 acknowledged, which are all up to number 100, and of all made so many dropped and
    /// in flight.
    fn said(dropped: u64, in_flight: u64) -> AgentStatus {
        AgentStatus {
            at: STOPPED,
            started: UnixNanos(0),
            node: "n".into(),
            producer: AGENT,
            epoch: 1,
            produced: 110,
            acknowledged: 100,
            acknowledged_earlier: 0,
            dropped: vec![Dropped { stage: "spool".into(), reason: "io".into(), count: dropped }],
            in_flight: vec![InFlight { place: "spool".into(), count: in_flight }],
            sent: vec![SentShard(9, 100, 0)],
            backlog_bytes: 0,
            backlog_bytes_max: 0,
            circuit: String::new(),
            watches: Vec::new(),
        }
    }

    fn wrong(end: End, said: AgentStatus, held: &[usize], read: ReadShard) -> Vec<String> {
        let mut words = Words::default();
        let mut word = word(1, read);
        word.producers[0].producer = AGENT;
        words.take(&word);
        let mut runs = Runs::default();
        runs.take(&said);
        let wrong = runs.account(&BTreeMap::from([(1, end)]), &lanes(AGENT, held), &words).wrong;
        wrong.into_iter().map(|text| text.replace("node agent, run 1 of 1: ", "")).collect()
    }

    const ALL: [usize; 4] = [0, 1, 2, 3];
    const STOP: End = End::Stopped(STOPPED);

    #[test]
    fn a_run_that_ended_with_all_accounted_for_is_exact() {
        assert_eq!(wrong(STOP, said(10, 0), &ALL, row(0, 100, 100, 0, 0)), Vec::<String>::new());
    }

    #[test]
    fn what_a_stopped_run_loses_doubles_or_leaves_shows() {
        let whole = row(0, 100, 100, 0, 0);
        let starts = |wrong: Vec<String>, with: &str| {
            assert!(wrong.iter().any(|text| text.starts_with(with)), "{with}: {wrong:?}")
        };
        starts(wrong(STOP, said(9, 0), &ALL, whole), "1 events: what it made");
        starts(wrong(STOP, said(9, 1), &ALL, whole), "1 events were still on their way");
        starts(wrong(STOP, said(10, 0), &[0, 1, 3], whole), "25 events that it said were acknowledged");
        starts(wrong(STOP, said(10, 0), &[0, 1, 3], whole), "25 numbers are missing");
        starts(wrong(STOP, said(10, 0), &[0, 1, 1, 2, 3], whole), "25 events are in the stream twice");
        starts(wrong(STOP, said(10, 0), &ALL, row(0, 90, 90, 0, 0)), "10 events are in the stream and no");
        let early = AgentStatus { at: UnixNanos(49), ..said(10, 0) };
        starts(wrong(STOP, early, &ALL, whole), "1 last word was not heard");
        let behind = AgentStatus { sent: vec![SentShard(9, 75, 0)], ..said(10, 0) };
        starts(wrong(STOP, behind, &ALL, whole), "25 events are in the stream and it did not");
    }

    #[test]
    fn numbers_that_were_skipped_are_not_acknowledged() {
        let (held, read) = ([0, 1, 3], row(0, 100, 75, 0, 25));
        let said = |acknowledged: u64, in_flight: u64| AgentStatus {
            produced: acknowledged + 35 + in_flight,
            acknowledged,
            acknowledged_earlier: 5,
            sent: vec![SentShard(9, 100, 25)],
            ..said(35, in_flight)
        };
        assert_eq!(wrong(STOP, said(80, 0), &held, read), Vec::<String>::new());
        // Those skipped counted as acknowledged, or the events of earlier runs forgotten.
        for (acknowledged, off) in [(105, 25), (75, 5)] {
            let told = wrong(STOP, said(acknowledged, 0), &held, read);
            let text =
                format!("{off} events: what it said was acknowledged and how far it said its shards are");
            assert!(told.len() == 1 && told[0].starts_with(&text), "{told:?}");
        }
        // While something is on its way the two are not of one moment.
        let told = wrong(STOP, said(79, 1), &held, read);
        assert_eq!(told, ["1 events were still on their way when it had ended"]);
    }

    #[test]
    fn what_a_killed_run_had_in_memory_is_told_and_not_judged() {
        let mut runs = Runs::default();
        let before = AgentStatus { sent: vec![SentShard(9, 25, 0)], ..said(0, 85) };
        runs.take(&AgentStatus { acknowledged: 25, at: UnixNanos(20), ..before });
        runs.take(&AgentStatus { epoch: 2, produced: 0, acknowledged: 0, sent: Vec::new(), ..said(0, 0) });
        let ends = BTreeMap::from([(1, End::Killed), (2, STOP)]);
        let told = runs.account(&ends, &lanes(AGENT, &[0, 2]), &Words::default());
        assert_eq!(told.wrong, Vec::<String>::new());
        let line = "run 1 of 2, kill -9: some time before its end 110 produced = 25 acknowledged + 0 dropped (spool.io) \
                    + 85 in flight; 50 in the stream, 25 missing in its numbers, 0 said to be read";
        assert_eq!(told.runs[0], line);
        let told = runs.account(&ends, &lanes(AGENT, &[2, 3]), &Words::default());
        assert!(told.wrong[0].contains("25 events that it said were acknowledged are not"), "{told:?}");
    }

    #[test]
    fn what_it_lacks_is_read_from_what_it_prints() {
        let said =
            "tapio-agent runs\n  without    audit: off\n  without    ebpf: run as root\nCtrl-C stops it.\n";
        assert_eq!(lacks(said), ["ebpf: run as root"]);
    }
}
