//! The task of a membership: takes in news, decides what follows, and starts the writes.
//!
//! Nothing here waits for the server: writes run beside the loop, so that our own clock always ends what is over.

mod news;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tapio_schemas::names;
use tokio::sync::mpsc;

use super::holding::{Held, Holding};
use super::lease::Lease;
use super::membership::{Phase, new_incarnation};
use super::metrics::LeaseMetrics;
use super::operation::{self, Ended, Write};
use super::record::{Identity, LeaseRecord, MemberRecord};
use super::view::{OwnerState, View};
use super::{Command, LeaseConfig, LeaseEvent, Shown, lock};
use crate::bus::{Kv, KvWatch};
use crate::clock::SharedClock;
use crate::shutdown::Shutdown;

/// Pause before something that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The loop never waits for less, so that a write under way cannot make it spin.
const WAIT_MIN: Duration = Duration::from_millis(5);
/// The loop looks around at least so often.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The server takes a silent member's key away after so many times the ttl, when no other member does before.
const SERVER_TTLS: u32 = 2;

pub(super) struct Driver {
    config: LeaseConfig,
    kv: Kv,
    clock: SharedClock,
    metrics: LeaseMetrics,
    events: mpsc::Sender<LeaseEvent>,
    /// Events that had no room yet. Bounded: nothing is acquired while there are many.
    outbox: VecDeque<LeaseEvent>,
    shown: Arc<Mutex<Shown>>,
    member_prefix: String,
    resource_index: HashMap<String, usize>,
    holdings: Vec<Holding>,
    view: View,
    /// The view has everything that was there when we came.
    current: bool,
    phase: Phase,
    /// Our last incarnation, which we know to be over.
    previous: Option<String>,
    leaving: bool,
    /// Members whose removal is under way.
    expelling: HashSet<String>,
    operations: FuturesUnordered<BoxFuture<'static, Ended>>,
}

impl Driver {
    pub(super) fn new(
        config: LeaseConfig,
        kv: Kv,
        clock: SharedClock,
        metrics: LeaseMetrics,
        events: mpsc::Sender<LeaseEvent>,
        shown: Arc<Mutex<Shown>>,
    ) -> Self {
        let key = |resource: &str| names::lease_resource_key(&config.group, resource);
        let holdings: Vec<_> = config.resources.iter().map(|name| Holding::new(name, key(name))).collect();
        let indexed = holdings.iter().enumerate();
        let resource_index = indexed.map(|(index, holding)| (holding.key.clone(), index)).collect();
        Self {
            member_prefix: names::lease_member_key(&config.group, ""),
            config,
            kv,
            clock,
            metrics,
            events,
            outbox: VecDeque::new(),
            shown,
            resource_index,
            holdings,
            view: View::default(),
            current: false,
            phase: Phase::Outside { retry_at: Duration::ZERO },
            previous: None,
            leaving: false,
            expelling: HashSet::new(),
            operations: FuturesUnordered::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut watch: KvWatch,
        mut requests: mpsc::Receiver<Command>,
        shutdown: Shutdown,
    ) {
        let (events, clock) = (self.events.clone(), self.clock.clone());
        let mut asking = true;
        loop {
            let now = clock.monotonic();
            self.decide(now);
            self.show();
            if matches!(self.phase, Phase::Left) {
                break;
            }
            let wait = self.wait(now);
            tokio::select! {
                biased;
                // No one could drain: as good as dead, and to be seen as such.
                () = events.closed() => break,
                Ok(room) = events.reserve(), if !self.outbox.is_empty() => {
                    if let Some(event) = self.outbox.pop_front() {
                        room.send(event);
                    }
                }
                Some(ended) = self.operations.next() => self.ended(ended),
                event = watch.next() => match event {
                    Ok(event) => self.observe(event),
                    // The bus is closed for good.
                    Err(_) => break,
                },
                command = requests.recv(), if asking => match command {
                    Some(command) => self.command(command),
                    None => asking = false,
                },
                () = shutdown.wait(), if !self.leaving => self.start_leaving(),
                () = clock.sleep(wait) => {}
            }
        }
        self.lose_membership();
        self.show();
        for event in self.outbox {
            // Who does not listen any more does not need it.
            let _ = events.send(event).await;
        }
    }

    /// Everything that follows from what is known, at this time.
    fn decide(&mut self, now: Duration) {
        self.check_membership();
        match &self.phase {
            Phase::Outside { .. } if self.leaving => self.phase = Phase::Left,
            Phase::Outside { retry_at } if self.current && now >= *retry_at => self.join(now),
            Phase::Inside(member) if now >= member.renew_at && !member.renewing => self.renew(now),
            _ => {}
        }
        let Phase::Inside(member) = &self.phase else { return };
        let me = member.identity.clone();
        for (replica, revision) in self.view.silent(&me.replica, now, self.config.ttl) {
            self.expel(&replica, revision);
        }
        for index in 0..self.holdings.len() {
            self.decide_holding(index, &me, now);
        }
        let idle = |holding: &Holding| holding.held.is_none() && !holding.busy;
        if self.leaving && self.holdings.iter().all(idle) {
            self.leave();
        }
    }

    /// Ends the membership when our clock or our key says that it is over.
    fn check_membership(&mut self) {
        let Some(member) = self.phase.member() else { return };
        let ours = |record: &MemberRecord| record.incarnation == member.identity.incarnation;
        let replaced = self
            .view
            .member(&member.identity.replica)
            .is_some_and(|seen| seen.revision > member.revision && !seen.record.as_ref().is_some_and(ours));
        if replaced || !member.validity.is_valid() {
            let reason = if replaced { "removed by another member" } else { "not renewed in time" };
            tracing::warn!(
                group = self.config.group,
                replica = self.config.replica,
                reason,
                "leases are lost"
            );
            self.lose_membership();
        }
    }

    fn lose_membership(&mut self) {
        let Some(member) = self.phase.member() else { return };
        member.validity.end();
        self.previous = Some(member.identity.incarnation.clone());
        for index in 0..self.holdings.len() {
            self.lose(index);
        }
        self.phase = Phase::Outside { retry_at: self.clock.monotonic() + RETRY_AFTER };
    }

    fn lose(&mut self, index: usize) {
        if let Some(lease) = self.holdings[index].end() {
            self.metrics.lost.inc();
            self.metrics.epoch(lease.resource(), 0);
            self.outbox.push_back(LeaseEvent::Lost { lease });
        }
    }

    /// Makes our key, once no other member of our name can be alive.
    fn join(&mut self, now: Duration) {
        let replica = self.config.replica.clone();
        if let Some(there) = self.view.member(&replica)
            && let Some(record) = &there.record
        {
            let over = Some(&record.incarnation) == self.previous.as_ref();
            let (seen, revision) = (there.seen, there.revision);
            if over || now >= seen + self.config.ttl {
                self.expel(&replica, revision);
            }
            return;
        }
        let incarnation = new_incarnation();
        let value = MemberRecord { incarnation: incarnation.clone(), draining: false }.encode();
        let (kv, ttl) = (self.kv.clone(), self.config.ttl * SERVER_TTLS);
        let key = names::lease_member_key(&self.config.group, &replica);
        self.phase = Phase::Joining;
        self.operations.push(Box::pin(async move {
            let result = kv.create_with_ttl(&key, value, ttl).await;
            Ended::Joined { incarnation, sent: now, result }
        }));
    }

    fn renew(&mut self, now: Duration) {
        let Phase::Inside(member) = &mut self.phase else { return };
        member.renewing = true;
        let Identity { replica, incarnation } = member.identity.clone();
        let draining = self.leaving;
        let value = MemberRecord { incarnation: incarnation.clone(), draining }.encode();
        let (kv, ttl, revision) = (self.kv.clone(), self.config.ttl * SERVER_TTLS, member.revision);
        let key = names::lease_member_key(&self.config.group, &replica);
        self.operations.push(Box::pin(async move {
            let result = operation::renew(kv, key, value, revision, ttl, &incarnation).await;
            Ended::Renewed { incarnation, sent: now, draining, result }
        }));
    }

    fn expel(&mut self, replica: &str, revision: u64) {
        if !self.expelling.insert(replica.to_owned()) {
            return;
        }
        let (kv, replica) = (self.kv.clone(), replica.to_owned());
        let key = names::lease_member_key(&self.config.group, &replica);
        self.operations.push(Box::pin(async move {
            let result = operation::expel(kv, key, revision).await;
            Ended::Expelled { replica, result }
        }));
    }

    fn start_leaving(&mut self) {
        self.leaving = true;
        // The others must know before anything becomes free, or we would take it again.
        if let Phase::Inside(member) = &mut self.phase {
            member.renew_at = Duration::ZERO;
        }
    }

    fn leave(&mut self) {
        let Phase::Inside(member) = &self.phase else { return };
        if member.renewing {
            return;
        }
        member.validity.end();
        let (kv, revision) = (self.kv.clone(), member.revision);
        let key = names::lease_member_key(&self.config.group, &member.identity.replica);
        self.phase = Phase::Leaving;
        self.operations.push(Box::pin(async move {
            // When it fails the key ends by itself.
            let _ = operation::expel(kv, key, revision).await;
            Ended::Left
        }));
    }

    /// What to do about one resource: keep, take, give away, or see that it is lost.
    fn decide_holding(&mut self, index: usize, me: &Identity, now: Duration) {
        let wanted = !self.leaving && self.view.desired(&self.holdings[index].resource) == Some(&*me.replica);
        let holding = &mut self.holdings[index];
        let owner = holding.view.record.as_ref().and_then(|record| record.owner.as_ref());
        let is_mine = owner == Some(me);
        if let Some(held) = &mut holding.held {
            if !holding.busy && !is_mine {
                self.lose(index);
                return;
            }
            // Not when it is being released already, unasked.
            if !wanted && !held.releasing && held.lease.is_valid() {
                held.releasing = true;
                self.outbox.push_back(LeaseEvent::Release { lease: held.lease.clone() });
            }
            self.write(index);
            return;
        }
        if holding.busy {
            return;
        }
        if is_mine {
            // The answer to our acquisition was lost, and the watch told.
            let (record, revision) = (holding.view.record.clone(), holding.view.revision);
            if let Some(record) = record {
                self.hold(index, record.epoch.unwrap_or(revision), record.note);
            }
            return;
        }
        // Who does not take the events gets nothing new.
        if !wanted || now < holding.retry_at || self.outbox.len() >= self.holdings.len() {
            return;
        }
        match self.view.owner_state(&self.holdings[index].view) {
            OwnerState::Free | OwnerState::Dead => self.acquire(index, me),
            OwnerState::Alive => {}
            OwnerState::Unknown => self.ask(index, now),
        }
    }

    /// Only a removal that the server accepts proves that an owner of whom nothing is known is gone.
    fn ask(&mut self, index: usize, now: Duration) {
        let holding = &mut self.holdings[index];
        holding.retry_at = now + RETRY_AFTER;
        let owner = holding.view.record.as_ref().and_then(|record| record.owner.clone());
        let Some(owner) = owner.filter(|owner| owner.replica != self.config.replica) else { return };
        let revision = self.view.member(&owner.replica).map_or(0, |member| member.revision);
        self.expel(&owner.replica, revision);
    }

    fn acquire(&mut self, index: usize, me: &Identity) {
        let holding = &mut self.holdings[index];
        holding.busy = true;
        let note = holding.view.record.as_ref().map(|record| record.note.clone()).unwrap_or_default();
        if holding.view.record.as_ref().is_some_and(|record| record.owner.is_some()) {
            self.metrics.takeovers.inc();
        }
        let record = LeaseRecord { owner: Some(me.clone()), epoch: None, note: note.clone() };
        let (kv, key, revision) = (self.kv.clone(), holding.key.clone(), holding.view.revision);
        let incarnation = me.incarnation.clone();
        self.operations.push(Box::pin(async move {
            let result = operation::acquire(kv, key, record, revision).await;
            Ended::Acquired { index, incarnation, note, result }
        }));
    }

    fn write(&mut self, index: usize) {
        let Phase::Inside(member) = &self.phase else { return };
        let holding = &mut self.holdings[index];
        let Some(pending) = holding.next_write() else { return };
        let epoch = holding.held.as_ref().map_or(0, |held| held.lease.epoch());
        let write = Write {
            kv: self.kv.clone(),
            clock: self.clock.clone(),
            key: holding.key.clone(),
            me: member.identity.clone(),
            epoch,
            revision: holding.view.revision,
            note: pending.note,
            free: pending.free,
            validity: Arc::clone(&member.validity),
        };
        self.operations.push(Box::pin(async move {
            let (record, result) = write.run().await;
            Ended::Written { index, epoch, record, result }
        }));
    }

    fn hold(&mut self, index: usize, epoch: u64, note: Bytes) {
        let Phase::Inside(member) = &self.phase else { return };
        let holding = &mut self.holdings[index];
        let lease = Lease::new(Arc::clone(&holding.resource), epoch, Arc::clone(&member.validity));
        holding.held = Some(Held { lease: lease.clone(), releasing: false });
        self.metrics.acquired.inc();
        self.metrics.epoch(&holding.resource, epoch);
        self.outbox.push_back(LeaseEvent::Acquired { lease, note });
    }

    fn tick(&self) {
        if let Some(progress) = &lock(&self.shown).progress {
            progress.tick();
        }
    }

    /// How long nothing can become due.
    fn wait(&self, now: Duration) -> Duration {
        let mut due = now + WAIT_MAX;
        match &self.phase {
            Phase::Inside(member) => {
                due = due.min(member.validity.deadline());
                if !member.renewing {
                    due = due.min(member.renew_at);
                }
            }
            Phase::Outside { retry_at } => due = due.min((*retry_at).max(now + RETRY_AFTER)),
            Phase::Joining | Phase::Leaving | Phase::Left => {}
        }
        let silence = self.view.next_silence(&self.config.replica, self.config.ttl);
        due = due.min(silence.unwrap_or(due));
        let retries = self.holdings.iter().map(|holding| holding.retry_at).filter(|retry_at| *retry_at > now);
        due = due.min(retries.min().unwrap_or(due));
        due.saturating_sub(now).max(WAIT_MIN)
    }

    fn show(&self) {
        let held: Vec<Lease> =
            self.holdings.iter().filter_map(|holding| Some(holding.held.as_ref()?.lease.clone())).collect();
        let members: Vec<String> = self.view.live().into_iter().map(str::to_owned).collect();
        self.metrics.member.set(i64::from(self.phase.member().is_some()));
        self.metrics.members.set(i64::try_from(members.len()).unwrap_or(i64::MAX));
        self.metrics.owned.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        let mut shown = lock(&self.shown);
        (shown.held, shown.members) = (held, members);
    }
}
