//! Taking in what happened: news of the watch, ends of writes, requests of the application.

use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::names;

use super::super::Command;
use super::super::lease::Validity;
use super::super::membership::{Member, Phase};
use super::super::operation::{Acquisition, Ended, Expulsion, Renewal, Writing};
use super::super::record::{Identity, LeaseRecord, MemberRecord};
use super::super::view::{MemberView, ResourceView};
use super::{Driver, RETRY_AFTER, WAIT_MIN};
use crate::bus::{KvEntry, KvEvent};

impl Driver {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Leave => self.start_leaving(),
            Command::Write { lease, note, free, done } => {
                // What is over by the clock must not be written, however late we come to know.
                self.check_membership();
                let resource = lease.resource();
                match self.holdings.iter_mut().find(|holding| &*holding.resource == resource) {
                    Some(holding) => holding.request(&lease, note, free, done),
                    None => drop(done.send(false)),
                }
            }
        }
    }

    pub(super) fn observe(&mut self, event: KvEvent) {
        match event {
            KvEvent::Current => self.current = true,
            KvEvent::Put { key, entry } => self.observe_key(&key, entry.revision, Some(&entry)),
            KvEvent::Gone { key, revision, .. } => self.observe_key(&key, revision, None),
        }
    }

    fn observe_key(&mut self, key: &str, revision: u64, entry: Option<&KvEntry>) {
        if let Some(replica) = key.strip_prefix(&self.member_prefix) {
            let record = entry.map(|entry| MemberRecord::decode(&entry.value));
            // A value that cannot be read belongs to someone we do not know: he is neither there nor gone.
            let Some(record) = record.map_or(Some(None), |known| known.map(Some)) else { return };
            self.view.observe(replica, MemberView { revision, record, seen: self.clock.monotonic() });
        } else if let Some(index) = self.resource_index.get(key) {
            let record = entry.and_then(|entry| LeaseRecord::decode(&entry.value));
            self.holdings[*index].observe(ResourceView { revision, record });
        }
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Joined { incarnation, sent, result } => match result {
                Ok(revision) => self.joined(incarnation, sent, revision),
                Err(error) => {
                    tracing::debug!(%error, "joining failed");
                    self.phase = Phase::Outside { retry_at: self.clock.monotonic() + RETRY_AFTER };
                }
            },
            Ended::Renewed { incarnation, sent, draining, result } => {
                self.renewed(&incarnation, sent, draining, result);
            }
            Ended::Left => self.phase = Phase::Left,
            Ended::Expelled { replica, result } => self.expelled(&replica, result),
            Ended::Acquired { index, incarnation, note, result } => {
                self.acquired(index, &incarnation, note, result);
            }
            Ended::Written { index, epoch, record, result } => self.written(index, epoch, record, result),
        }
    }

    fn joined(&mut self, incarnation: String, sent: Duration, revision: u64) {
        let replica = self.config.replica.clone();
        tracing::info!(group = self.config.group, replica, incarnation, "joined");
        let record = MemberRecord { incarnation: incarnation.clone(), draining: false };
        let seen = self.clock.monotonic();
        self.view.observe(&replica, MemberView { revision, record: Some(record), seen });
        let deadline = sent + self.config.ttl - self.config.margin();
        self.phase = Phase::Inside(Member {
            identity: Identity { replica, incarnation },
            revision,
            validity: Validity::new(self.clock.clone(), deadline),
            renew_at: if self.leaving { Duration::ZERO } else { sent + self.config.renew },
            renewing: false,
        });
        self.tick();
    }

    fn renewed(&mut self, incarnation: &str, sent: Duration, draining: bool, result: Renewal) {
        let now = self.clock.monotonic();
        let (ttl, margin, renew) = (self.config.ttl, self.config.margin(), self.config.renew);
        let Phase::Inside(member) = &mut self.phase else { return };
        if member.identity.incarnation != incarnation {
            return;
        }
        member.renewing = false;
        match result {
            Renewal::Renewed(revision) => {
                member.revision = revision;
                // That we leave, when it began meanwhile, must be told at once.
                member.renew_at = if draining == self.leaving { sent + renew } else { now };
                if member.validity.extend(sent + ttl - margin) {
                    self.tick();
                }
            }
            Renewal::Moved(revision) => member.revision = revision,
            Renewal::Lost => self.lose_membership(),
            Renewal::Failed(error) => {
                self.metrics.renewal_failures.inc();
                tracing::debug!(%error, "renewal failed");
                member.renew_at = now + renew / 4;
            }
        }
    }

    fn expelled(&mut self, replica: &str, result: Expulsion) {
        self.expelling.remove(replica);
        let now = self.clock.monotonic();
        match result {
            Expulsion::Gone(revision) => {
                self.metrics.expelled.inc();
                tracing::info!(group = self.config.group, replica, "a silent member was removed");
                self.view.observe(replica, MemberView { revision, record: None, seen: now });
            }
            Expulsion::Moves(entry) => {
                if let Some(entry) = entry {
                    let key = names::lease_member_key(&self.config.group, replica);
                    self.observe_key(&key, entry.revision, Some(&entry));
                }
                self.view.seen_moving(replica, now);
            }
            Expulsion::Failed(error) => {
                tracing::debug!(%error, replica, "removing a silent member failed");
                self.view.seen_moving(replica, (now + RETRY_AFTER).saturating_sub(self.config.ttl));
            }
        }
    }

    fn acquired(&mut self, index: usize, incarnation: &str, note: Bytes, result: Acquisition) {
        let now = self.clock.monotonic();
        let identity = Identity { replica: self.config.replica.clone(), incarnation: incarnation.to_owned() };
        let holding = &mut self.holdings[index];
        holding.busy = false;
        match result {
            // The next look at the resource finds that it is ours, if we still are who took it.
            Acquisition::Ours(revision) => {
                let record = Some(LeaseRecord { owner: Some(identity), epoch: None, note });
                holding.observe(ResourceView { revision, record });
            }
            Acquisition::Taken(entry) => {
                holding.retry_at = now + WAIT_MIN;
                let key = holding.key.clone();
                if let Some(entry) = entry {
                    self.observe_key(&key, entry.revision, Some(&entry));
                }
            }
            Acquisition::Failed(error) => {
                holding.retry_at = now + RETRY_AFTER;
                tracing::debug!(%error, resource = &*holding.resource, "taking a resource failed");
            }
        }
    }

    fn written(&mut self, index: usize, epoch: u64, record: LeaseRecord, result: Writing) {
        let holding = &mut self.holdings[index];
        holding.busy = false;
        let is_current = holding.held.as_ref().is_some_and(|held| held.lease.epoch() == epoch);
        match result {
            Writing::Written(revision) => {
                let free = record.owner.is_none();
                holding.observe(ResourceView { revision, record: Some(record) });
                holding.written(true);
                if free && is_current {
                    holding.held = None;
                    self.metrics.released.inc();
                    self.metrics.epoch(&self.holdings[index].resource, 0);
                }
            }
            Writing::Lost if is_current => self.lose(index),
            Writing::Lost => {}
        }
    }
}
