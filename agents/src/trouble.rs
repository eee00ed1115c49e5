//! The agent's own troubles: what it loses, what it must keep on its disk, and why.

use std::time::Duration;

use tapio_runtime::bus::{Bus, CircuitState};
use tapio_schemas::SignalKind;
use tapio_schemas::SmolStr;
use tapio_schemas::status::MemoryStatus;
use tapio_schemas::trouble::{REPEAT, Trouble};

use crate::ledger::{DropReason, Ledger, Place};
use crate::outbox::Outbox;

/// Reasons that are no loss: what is not valid is not missed.
const NO_LOSS: [DropReason; 5] = [
    DropReason::IntakeClosed,
    DropReason::NoTime,
    DropReason::TooOld,
    DropReason::InFuture,
    DropReason::Malformed,
];

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// From this fill on a word on it may not fit any more.
const FULL_PERCENT: u64 = 90;
/// A shorter stay on the disk is what it is for.
const SPOOLING_AFTER: Duration = Duration::from_secs(10);

/// Looks at the agent each second, and tells each kind of trouble every [`REPEAT`] while it lasts.
pub struct TroubleWatch {
    node: SmolStr,
    bus: Bus,
    /// Bytes that may wait as configured; the disk may have less.
    backlog_bytes: u64,
    next_look: Duration,
    lost: u64,
    disk_refused: u64,
    spooling_since: Option<Duration>,
    told: Vec<(SignalKind, Duration)>,
    /// Waits for room, one of each kind.
    held: Vec<Trouble>,
}

impl TroubleWatch {
    /// Nothing is wrong yet.
    pub fn new(node: &str, bus: Bus, backlog_bytes: u64) -> Self {
        Self {
            node: node.into(),
            bus,
            backlog_bytes,
            next_look: Duration::ZERO,
            lost: 0,
            disk_refused: 0,
            spooling_since: None,
            told: Vec::new(),
            held: Vec::new(),
        }
    }

    /// What is to be told now; while nothing more fits it is held. The `last` time it is told in any case.
    pub fn look(
        &mut self,
        ledger: &Ledger,
        outbox: &Outbox,
        memory: &MemoryStatus,
        monotonic: Duration,
        last: bool,
    ) -> Vec<Trouble> {
        if monotonic < self.next_look && !last {
            return Vec::new();
        }
        self.next_look = monotonic + LOOK_INTERVAL;
        let mut new = self.troubles(ledger, outbox, monotonic);
        if let Some(says) = memory.says()
            && self.tells(SignalKind::TapioMemory, monotonic)
        {
            new.push(self.trouble(SignalKind::TapioMemory, says));
        }
        self.held.retain(|held| new.iter().all(|trouble| trouble.kind != held.kind));
        self.held.extend(new);
        let is_full = outbox.bytes() * 100 >= outbox.bytes_max() * FULL_PERCENT;
        if is_full && !last { Vec::new() } else { std::mem::take(&mut self.held) }
    }

    fn troubles(&mut self, ledger: &Ledger, outbox: &Outbox, monotonic: Duration) -> Vec<Trouble> {
        self.told.retain(|(_, at)| monotonic.saturating_sub(*at) < REPEAT);
        let now = ledger.snapshot();
        let mut troubles = Vec::new();
        let losses = now.dropped.iter().filter(|(reason, _)| !NO_LOSS.contains(reason));
        let lost: u64 = losses.map(|(_, count)| count).sum();
        if lost > self.lost && self.tells(SignalKind::TapioLoss, monotonic) {
            let newly = lost - std::mem::replace(&mut self.lost, lost);
            troubles.push(self.trouble(SignalKind::TapioLoss, format!("{newly} events were lost")));
        }
        let spooled = now.in_flight[Place::Spool as usize].1;
        if spooled == 0 {
            self.spooling_since = None;
        }
        let since = (spooled > 0).then(|| *self.spooling_since.get_or_insert(monotonic));
        if since.is_some_and(|since| monotonic.saturating_sub(since) >= SPOOLING_AFTER)
            && self.tells(SignalKind::TapioSpooling, monotonic)
        {
            let says = format!("{spooled} events wait on the disk");
            troubles.push(self.trouble(SignalKind::TapioSpooling, says));
        }
        if self.bus.circuit() == CircuitState::Open && self.tells(SignalKind::TapioCircuitOpen, monotonic) {
            let says = "NATS is away or does not acknowledge".to_owned();
            troubles.push(self.trouble(SignalKind::TapioCircuitOpen, says));
        }
        if self.is_disk_short(ledger, outbox, spooled) && self.tells(SignalKind::TapioDiskRefuses, monotonic)
        {
            let (room, wanted) = (outbox.bytes_max(), self.backlog_bytes);
            let says = format!("the disk leaves room for {room} of the {wanted} bytes that may wait");
            troubles.push(self.trouble(SignalKind::TapioDiskRefuses, says));
        }
        troubles
    }

    fn is_disk_short(&mut self, ledger: &Ledger, outbox: &Outbox, spooled: u64) -> bool {
        let refused = ledger.dropped_for(DropReason::SpoolIo);
        let newly_refused = refused > std::mem::replace(&mut self.disk_refused, refused);
        // Before anything is shed for it: what is being filled counts there, too.
        let is_half_full = outbox.bytes() * 2 >= outbox.bytes_max();
        newly_refused || (spooled > 0 && outbox.bytes_max() < self.backlog_bytes && is_half_full)
    }

    fn tells(&mut self, kind: SignalKind, monotonic: Duration) -> bool {
        let is_new = self.told.iter().all(|(told, _)| *told != kind);
        if is_new {
            self.told.push((kind, monotonic));
        }
        is_new
    }

    fn trouble(&self, kind: SignalKind, says: String) -> Trouble {
        Trouble { part: "agent", place: self.node.clone(), kind, says }
    }
}
