//! Whether every event is accounted for: what agents say they sent against what correlators say they read.
//!
//! `produced = processed + dropped{stage, reason} + in flight`, per producer. Both sides speak of numbers that the agent gave
//! to its events, per shard, so nothing is counted twice when a shard is read again by another owner.

use std::collections::BTreeMap;

use serde::Serialize;
use tapio_schemas::UnixNanos;
use tapio_schemas::status::{
    AgentStatus, CorrelatorStatus, Dropped, OwnedShardStatus, ReadShard, WatchStatus,
};

/// Words of agents and correlators, taken so that causes come before effects: agents, then correlators, then agents again.
#[derive(Debug, Clone, Default)]
pub struct Words {
    /// What each agent said first, by node.
    pub agents: Vec<AgentStatus>,
    /// What each correlator said after that.
    pub correlators: Vec<CorrelatorStatus>,
    /// What each agent said after that.
    pub agents_after: Vec<AgentStatus>,
}

/// The account of one producer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Machine.
    pub node: String,
    /// Name in batches.
    pub producer: String,
    /// Which run.
    pub epoch: u32,
    /// When the agent said so.
    pub at: UnixNanos,
    /// Events made.
    pub produced: u64,
    /// Events the stream took.
    pub acknowledged: u64,
    /// Events that wait on the agent's disk.
    pub spooled: u64,
    /// Events on their way in the agent, the spooled ones among them.
    pub in_flight: u64,
    /// Events that wait in the stream.
    pub in_stream: u64,
    /// Events the correlators used; with what an earlier run sent, and what an earlier owner of a shard read.
    pub processed: u64,
    /// Of these, what no correlator that runs now has read itself.
    pub processed_before: u64,
    /// What is gone, by stage and reason.
    pub dropped: Vec<Dropped>,
    /// Events that the correlators miss and the agent has not dropped.
    pub missing: u64,
    /// State of the way to NATS.
    pub circuit: String,
    /// How its watches of a cluster stand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<WatchStatus>,
}

/// Events of which nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unaccounted {
    /// Whose.
    pub node: String,
    /// How many.
    pub events: u64,
    /// After this stage …
    pub after: &'static str,
    /// … and before this one.
    pub before: &'static str,
}

/// All accounts, and what does not add up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// By node.
    pub accounts: Vec<Account>,
    /// Empty when the balance is exact.
    pub unaccounted: Vec<Unaccounted>,
}

/// Where one shard is read, by whom.
struct Owner<'a> {
    owned: &'a OwnedShardStatus,
    replica: &'a CorrelatorStatus,
}

/// Adds up.
pub fn judge(words: &Words) -> Balance {
    let mut owners: BTreeMap<u16, Owner<'_>> = BTreeMap::new();
    for replica in &words.correlators {
        for owned in &replica.shards {
            // A replica that was put off keeps saying what it said until it notices: the newer lease counts.
            if owners.get(&owned.0).is_none_or(|known| known.owned.1 < owned.1) {
                owners.insert(owned.0, Owner { owned, replica });
            }
        }
    }
    let mut balance = Balance::default();
    for agent in &words.agents {
        let after =
            words.agents_after.iter().find(|a| a.producer == agent.producer && a.epoch == agent.epoch);
        let mut sums = Sums::default();
        for sent in &agent.sent {
            let later = after.and_then(|a| a.sent.iter().find(|s| s.0 == sent.0)).unwrap_or(sent);
            sums.shard(agent, (sent.1, sent.2), (later.1, later.2), owners.get(&sent.0));
        }
        let own = off(agent).min(after.map_or(u64::MAX, off));
        let stages = [
            (own, "the collectors", "the stream"),
            (sums.tail + sums.missing, "the stream", "the correlator"),
            (sums.off, "reading", "processing in the correlator"),
        ];
        let lost = stages.into_iter().filter(|(events, ..)| *events > 0);
        balance.unaccounted.extend(lost.map(|(events, after, before)| Unaccounted {
            node: agent.node.clone(),
            events,
            after,
            before,
        }));
        balance.accounts.push(account(agent, &sums, &words.correlators));
    }
    balance
}

/// By how much the agent's own ledger is off.
fn off(agent: &AgentStatus) -> u64 {
    let dropped: u64 = agent.dropped.iter().map(|d| d.count).sum();
    let in_flight: u64 = agent.in_flight.iter().map(|i| i.count).sum();
    agent.produced.abs_diff(agent.acknowledged + dropped + in_flight)
}

#[derive(Default)]
struct Sums {
    in_stream: u64,
    processed: u64,
    before: u64,
    dropped: u64,
    missing: u64,
    tail: u64,
    off: u64,
}

impl Sums {
    /// `sent` and `later`: position and skipped, before and after the correlator's word.
    fn shard(&mut self, agent: &AgentStatus, sent: (u64, u64), later: (u64, u64), owner: Option<&Owner<'_>>) {
        let (position, skipped) = sent;
        let Some(owner) = owner else {
            self.in_stream += position - skipped;
            return;
        };
        let OwnedShardStatus(shard, _, since, _, current_at) = *owner.owned;
        // The owner has read everything that was there when the agent spoke.
        let is_current = current_at > agent.at;
        let row = owner.replica.producers.iter().find(|p| p.producer == agent.producer);
        let row = row.and_then(|p| p.shards.iter().find(|r| r.0 == shard && r.1 == agent.epoch));
        let Some(&ReadShard(_, _, from, next, processed, dropped, missing)) = row else {
            match (is_current, since > agent.started || owner.replica.producers_left_out > 0) {
                (false, _) => self.in_stream += position - skipped,
                (true, true) => self.before += position - skipped,
                (true, false) => self.tail += position - skipped,
            }
            return;
        };
        self.processed += processed;
        self.dropped += dropped;
        // What is not there of what an earlier owner read is known to the agent alone; it is the agent's drop.
        self.before += from;
        self.off += (next - from).abs_diff(processed + dropped + missing);
        if next < position {
            let waits = position - next;
            *(if is_current { &mut self.tail } else { &mut self.in_stream }) += waits;
        }
        // Holes are judged when the agent has spoken of the same numbers.
        if next <= later.0 {
            self.missing += missing.saturating_sub(later.1);
        }
    }
}

fn account(agent: &AgentStatus, sums: &Sums, correlators: &[CorrelatorStatus]) -> Account {
    let mut dropped = agent.dropped.clone();
    let read = correlators.iter().flat_map(|c| &c.producers).filter(|p| p.producer == agent.producer);
    for more in read.flat_map(|p| &p.dropped) {
        match dropped.iter_mut().find(|d| d.stage == more.stage && d.reason == more.reason) {
            Some(known) => known.count += more.count,
            None => dropped.push(more.clone()),
        }
    }
    let place = |name: &str| agent.in_flight.iter().find(|i| i.place == name).map_or(0, |i| i.count);
    let before = sums.before + agent.acknowledged_earlier;
    Account {
        node: agent.node.clone(),
        producer: agent.producer.to_string(),
        epoch: agent.epoch,
        at: agent.at,
        produced: agent.produced,
        acknowledged: agent.acknowledged,
        spooled: place("spool"),
        in_flight: agent.in_flight.iter().map(|i| i.count).sum(),
        in_stream: sums.in_stream,
        processed: sums.processed + before,
        processed_before: before,
        dropped,
        missing: sums.missing + sums.tail,
        circuit: agent.circuit.clone(),
        watches: agent.watches.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::ProducerId;
    use tapio_schemas::status::{InFlight, ProducerRead, SentShard};

    fn agent(at: u64, sent: SentShard) -> AgentStatus {
        AgentStatus {
            at: UnixNanos(at),
            started: UnixNanos(1),
            node: "n1".into(),
            producer: ProducerId(7),
            epoch: 3,
            produced: 100 + 5 + 10,
            acknowledged: 100,
            acknowledged_earlier: 0,
            dropped: vec![Dropped { stage: "spool".into(), reason: "full".into(), count: 5 }],
            in_flight: vec![InFlight { place: "spool".into(), count: 10 }],
            sent: vec![sent],
            backlog_bytes: 0,
            backlog_bytes_max: 1,
            circuit: "closed".into(),
            watches: Vec::new(),
        }
    }

    /// Shard 9, owned since time 0 under epoch 2, everything read at `current_at`.
    fn correlator(current_at: u64, row: ReadShard) -> CorrelatorStatus {
        CorrelatorStatus {
            at: UnixNanos(current_at),
            replica: "r".into(),
            shards: vec![OwnedShardStatus(9, 2, UnixNanos(0), UnixNanos(0), UnixNanos(current_at))],
            deferred: Default::default(),
            memory: Default::default(),
            producers: vec![ProducerRead {
                producer: ProducerId(7),
                node: "n1".into(),
                shards: vec![row],
                dropped: vec![],
                duplicate_batches: 0,
                late: 0,
            }],
            producers_left_out: 0,
            batches_rejected: 0,
            findings: 0,
            circuit: "closed".into(),
        }
    }

    fn judged(agent: AgentStatus, correlator: CorrelatorStatus) -> Balance {
        let agents = vec![agent];
        judge(&Words { agents_after: agents.clone(), agents, correlators: vec![correlator] })
    }

    #[test]
    fn what_the_agent_dropped_itself_is_no_loss_of_the_stream() {
        let balance =
            judged(agent(10, SentShard(9, 105, 5)), correlator(20, ReadShard(9, 3, 0, 105, 98, 2, 5)));
        assert_eq!(balance.unaccounted, []);
        let account = &balance.accounts[0];
        assert_eq!((account.processed, account.spooled, account.in_stream, account.missing), (98, 10, 0, 0));
    }

    #[test]
    fn a_hole_that_the_agent_does_not_know_is_unaccounted() {
        let balance =
            judged(agent(10, SentShard(9, 105, 5)), correlator(20, ReadShard(9, 3, 0, 105, 90, 0, 15)));
        let lost = &balance.unaccounted[0];
        assert_eq!((lost.events, lost.after, lost.before), (10, "the stream", "the correlator"));
        assert_eq!(balance.unaccounted.len(), 1);
    }

    #[test]
    fn what_was_sent_last_and_not_read_waits_until_the_reader_is_at_the_end() {
        let row = ReadShard(9, 3, 0, 95, 90, 0, 5);
        let waits = judged(agent(10, SentShard(9, 105, 5)), correlator(9, row));
        assert_eq!((waits.unaccounted.len(), waits.accounts[0].in_stream), (0, 10));
        let lost = judged(agent(10, SentShard(9, 105, 5)), correlator(11, row));
        assert_eq!((lost.unaccounted[0].events, lost.accounts[0].in_stream), (10, 0));
    }

    #[test]
    fn events_that_vanish_inside_a_process_are_found_on_either_side() {
        let mut leaky = agent(10, SentShard(9, 100, 0));
        leaky.produced += 3;
        let inside = judged(leaky, correlator(20, ReadShard(9, 3, 0, 100, 96, 0, 0)));
        let found: Vec<_> = inside.unaccounted.iter().map(|u| (u.events, u.after)).collect();
        assert_eq!(found, [(3, "the collectors"), (4, "reading")]);
    }

    #[test]
    fn a_new_owner_begins_in_the_middle_and_the_older_lease_does_not_count() {
        let now = correlator(20, ReadShard(9, 3, 60, 100, 40, 0, 0));
        let mut old = correlator(20, ReadShard(9, 3, 0, 70, 70, 0, 0));
        old.shards[0].1 = 1;
        let agents = vec![agent(10, SentShard(9, 100, 0))];
        let words = Words { agents_after: agents.clone(), agents, correlators: vec![now, old] };
        let balance = judge(&words);
        assert_eq!(balance.unaccounted, []);
        assert_eq!((balance.accounts[0].processed, balance.accounts[0].processed_before), (100, 60));
    }
}
