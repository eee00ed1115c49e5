//! Leases: which replica works on which resource, so that no two do at a time.
//!
//! The replicas of a group share a list of resources. Each replica has a key in the state bucket that it renews
//! ([`LeaseConfig::renew`]) and that the server or another member takes away when it is silent
//! ([`LeaseConfig::ttl`]); each resource has a key that names its owner, the epoch of the ownership and a small note.
//! Ownership hangs on the owner's membership, so renewing costs one write for a replica, however much it owns.
//! Every write is a compare-and-set. Rendezvous hashing over the members says who should own what.
//!
//! A replica is over by its own clock, a margin before anyone may take what it had. A process that was stopped for a
//! while finds [`Lease::is_valid`] false at its first look; what it had already handed to a stream is refused there
//! (see [`Bus::fence`](crate::bus::Bus::fence)).

mod driver;
mod holding;
#[expect(clippy::module_inception, reason = "the lease itself, beside what makes it")]
mod lease;
mod membership;
mod metrics;
mod operation;
mod record;
mod rendezvous;
mod view;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::names;
use tokio::sync::{mpsc, oneshot};

use crate::bus::{Bus, BusError};
use crate::clock::SharedClock;
use crate::health::{Health, Progress};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;

pub use lease::Lease;

use driver::Driver;

/// Most bytes of a note.
pub const NOTE_BYTES_MAX: usize = 1024;
/// Most resources of a group.
pub const RESOURCES_MAX: usize = 1024;
/// Requests of the application that wait for the driver.
const COMMANDS_MAX: usize = 256;
/// Name in the health report.
const HEALTH_COMPONENT: &str = "leases";

/// A group and this replica's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Name of the group, see [`names::lease_group`].
    pub group: String,
    /// Name of this replica, unique in the group: letters, digits, `-` and `_`.
    pub replica: String,
    /// What the group shares; the same for every member. Letters, digits, `-`, `_` and dots.
    pub resources: Vec<String>,
    /// A replica that was not renewed for so long has lost everything. Default 2 s.
    pub ttl: Duration,
    /// Time between two renewals, at most a third of `ttl`. Default 500 ms.
    pub renew: Duration,
}

impl LeaseConfig {
    /// The default times.
    pub fn new(group: impl Into<String>, replica: impl Into<String>, resources: Vec<String>) -> Self {
        Self {
            group: group.into(),
            replica: replica.into(),
            resources,
            ttl: Duration::from_secs(2),
            renew: Duration::from_millis(500),
        }
    }

    /// How long before the others a replica counts itself out: clocks of two machines do not run alike.
    pub(crate) fn margin(&self) -> Duration {
        self.ttl / 10
    }

    fn check(&self) -> Result<(), LeaseError> {
        let wrong = |message: String| Err(LeaseError::Config { message });
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_key = |text: &str| text.split('.').all(|part| !part.is_empty() && part.chars().all(good));
        if !is_key(&self.group) || !is_key(&self.replica) || self.replica.contains('.') {
            let (group, replica) = (&self.group, &self.replica);
            return wrong(format!("group `{group}` and replica `{replica}` need letters, digits, - and _"));
        }
        if self.resources.is_empty() || self.resources.len() > RESOURCES_MAX {
            return wrong(format!("{} resources; 1 to {RESOURCES_MAX} can be shared", self.resources.len()));
        }
        let mut seen = HashSet::new();
        if let Some(bad) = self.resources.iter().find(|name| !is_key(name) || !seen.insert(name.as_str())) {
            return wrong(format!("resource `{bad}` is there twice or has other characters than a key"));
        }
        if self.renew.is_zero() || self.ttl < self.renew * 3 || self.ttl < Duration::from_millis(300) {
            return wrong(format!(
                "ttl {:?} must be 300 ms and three times renew {:?}",
                self.ttl, self.renew
            ));
        }
        Ok(())
    }
}

/// Why something with leases failed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The configuration cannot work.
    #[error("leases: {message}")]
    Config {
        /// What is wrong.
        message: String,
    },
    /// The lease is over; stop working on the resource.
    #[error("lease of {resource} with epoch {epoch} is lost")]
    Lost {
        /// The resource.
        resource: String,
        /// Epoch of the lease that was shown.
        epoch: u64,
    },
    /// The note does not fit.
    #[error("note of {resource} has {bytes} bytes, more than {NOTE_BYTES_MAX}")]
    NoteTooLong {
        /// The resource.
        resource: String,
        /// Size of the note.
        bytes: usize,
    },
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// What happens to this replica's leases.
#[derive(Debug, Clone)]
pub enum LeaseEvent {
    /// This replica owns the resource.
    Acquired {
        /// The lease.
        lease: Lease,
        /// What the owner before left, empty for the first.
        note: Bytes,
    },
    /// Another replica should own it: drain, then answer with [`Leases::released`].
    Release {
        /// The lease; valid until it is released.
        lease: Lease,
    },
    /// It is not ours any more: stop at once. May come at any time.
    Lost {
        /// The lease, not valid any more.
        lease: Lease,
    },
}

/// The events of a membership. Dropping it is as a crash: nothing is handed over, everything lapses.
#[derive(Debug)]
pub struct LeaseEvents {
    events: mpsc::Receiver<LeaseEvent>,
}

impl LeaseEvents {
    /// The next event; `None` when the replica has left.
    pub async fn next(&mut self) -> Option<LeaseEvent> {
        self.events.recv().await
    }

    /// [`LeaseEvents::next`] for a thread outside tokio.
    pub fn next_blocking(&mut self) -> Option<LeaseEvent> {
        self.events.blocking_recv()
    }

    /// An event that is there now.
    pub fn try_next(&mut self) -> Option<LeaseEvent> {
        self.events.try_recv().ok()
    }
}

/// A request of the application.
#[derive(Debug)]
enum Command {
    Write { lease: Lease, note: Bytes, free: bool, done: oneshot::Sender<bool> },
    Leave,
}

/// What the driver shows.
#[derive(Debug, Default)]
struct Shown {
    held: Vec<Lease>,
    members: Vec<String>,
    progress: Option<Progress>,
}

/// A replica's membership of a group. Clones are the same.
#[derive(Debug, Clone)]
pub struct Leases {
    commands: mpsc::Sender<Command>,
    shown: Arc<Mutex<Shown>>,
}

impl Leases {
    /// Joins the group. Returns at once; the membership comes, and comes back after an outage, by itself, and the
    /// leases come as events. When `shutdown` triggers the replica leaves, as with [`Leases::leave`].
    ///
    /// Events wait in a bounded channel; while no one reads them nothing more is acquired.
    ///
    /// # Errors
    /// [`LeaseError::Config`]; [`LeaseError::Bus`] when there is no state bucket or NATS is away.
    pub async fn join(
        bus: &Bus,
        config: LeaseConfig,
        clock: SharedClock,
        metrics: &Metrics,
        shutdown: Shutdown,
    ) -> Result<(Self, LeaseEvents), LeaseError> {
        config.check()?;
        let kv = bus.kv().await?.with_timeout(config.ttl / 2);
        let watch = kv.watch(&names::lease_prefix(&config.group)).await?;
        let (commands, requests) = mpsc::channel(COMMANDS_MAX);
        let (sender, events) = mpsc::channel(config.resources.len());
        let shown = Arc::new(Mutex::new(Shown::default()));
        let metrics = metrics::LeaseMetrics::register(metrics, &config.group);
        let driver = Driver::new(config, kv, clock, metrics, sender, Arc::clone(&shown));
        tokio::spawn(driver.run(watch, requests, shutdown));
        Ok((Self { commands, shown }, LeaseEvents { events }))
    }

    /// Makes the membership a component `leases` of `health`: it makes progress with every renewal.
    pub fn register_health(&self, health: &Health, stale_after: Duration) {
        let progress = health.register(HEALTH_COMPONENT, Some(stale_after));
        lock(&self.shown).progress = Some(progress);
    }

    /// Keeps `note` with the lease, for the next owner. Updates of one lease that come faster than the bucket takes
    /// them are one: the newest counts.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when the lease is not ours any more: the note was not written;
    /// [`LeaseError::NoteTooLong`].
    pub async fn update_note(&self, lease: &Lease, note: Bytes) -> Result<(), LeaseError> {
        self.write(lease, note, false).await
    }

    /// The resource is drained: leaves `note` and makes the resource free. The lease is over with the call.
    ///
    /// # Errors
    /// As [`Leases::update_note`].
    pub async fn released(&self, lease: &Lease, note: Bytes) -> Result<(), LeaseError> {
        self.write(lease, note, true).await
    }

    /// Leaves: every lease comes as [`LeaseEvent::Release`] and must be answered. Returns when all are handed over
    /// or have lapsed; the events then end.
    pub async fn leave(&self) {
        if self.commands.send(Command::Leave).await.is_ok() {
            self.commands.closed().await;
        }
    }

    /// The leases held now, by resource.
    pub fn held(&self) -> Vec<Lease> {
        let mut held = lock(&self.shown).held.clone();
        held.sort_by(|a, b| a.resource().cmp(b.resource()));
        held
    }

    /// The members of the group as seen here, sorted.
    pub fn members(&self) -> Vec<String> {
        lock(&self.shown).members.clone()
    }

    async fn write(&self, lease: &Lease, note: Bytes, free: bool) -> Result<(), LeaseError> {
        let resource = || lease.resource().to_owned();
        if note.len() > NOTE_BYTES_MAX {
            return Err(LeaseError::NoteTooLong { resource: resource(), bytes: note.len() });
        }
        let (done, written) = oneshot::channel();
        // When the driver has ended, the answer channel is dropped with the command.
        let _ = self.commands.send(Command::Write { lease: lease.clone(), note, free, done }).await;
        match written.await {
            Ok(true) => Ok(()),
            _ => Err(LeaseError::Lost { resource: resource(), epoch: lease.epoch() }),
        }
    }
}

/// The member that should own `resource` when these are the members; `None` when there are none.
pub fn desired_owner<'a>(resource: &str, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    rendezvous::owner(resource, members.into_iter())
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().expect("lease state lock")
}
