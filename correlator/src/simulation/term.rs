//! Stage two in one replica, from the lease to its end.

use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use tapio_runtime::bus::StartAt;
use tapio_runtime::supervise::{WorkerError, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnixNanos;
use tokio::sync::{mpsc, watch};

use super::chance::Chance;
use super::replica::Site;
use super::scene::CLUSTER;
use super::server::SharedServer;
use super::wire::{SharedWire, Wire, WireOutlet};
use crate::checkpoint::{Checkpoint, Fresh};
use crate::config::nanos;
use crate::decider::Decider;
use crate::incident_worker::{IncidentParts, IncidentWorker, PUBLISH_WINDOW, Section};
use crate::ledger::Ledger;
use crate::low_water::start_in;
use crate::metrics::CorrelatorMetrics;
use crate::model::Model;
use crate::own_patterns::Patterns;
use crate::stage_two::Resume;

pub static MODEL: LazyLock<Arc<Model>> =
    LazyLock::new(|| Arc::new(Model::builtin().expect("the built-in model loads")));

/// Most sections read in a turn.
const READ_MAX: u64 = 200;

pub struct Term {
    pub epoch: u64,
    pub releasing: bool,
    pub wire: SharedWire,
    server: SharedServer,
    worker: IncidentWorker<WireOutlet>,
    to_keep: mpsc::Receiver<Checkpoint>,
    unkept: Option<Checkpoint>,
    fresh: watch::Receiver<Fresh>,
    /// Next message of the signal stream.
    cursor: usize,
}

impl Term {
    /// Takes the fence and reads what was kept and published; `None` when a later owner was here.
    pub fn begin(site: &Site, epoch: u64, mut chance: Chance) -> Option<Self> {
        let mut server = site.server.borrow_mut();
        if epoch <= server.fence {
            return None;
        }
        server.fence = epoch;
        let kept = server.load();
        let resume = Resume::new(&site.config, &kept, UnixNanos(server.now));
        let mut ledger = Ledger::new(nanos(site.config.incidents.stale));
        server.insights.iter().for_each(|finding| ledger.read(finding.clone()));
        resume.begin(&mut ledger);
        let start = start_in(server.signals.len() as u64, resume.mark, resume.from);
        let cursor = match start {
            StartAt::Sequence(first) => first as usize - 1,
            _ => 0,
        };
        let decider = Decider::new(&site.config, Arc::clone(&MODEL), ledger, kept, resume.goes_on(&start));
        drop(server);
        let (keep, to_keep) = mpsc::channel(16);
        let (tell, fresh) = watch::channel(Fresh::default());
        let parts = IncidentParts {
            cluster: CLUSTER.to_owned(),
            to_keep: keep,
            fresh: tell,
            priors: watch::channel(Arc::default()).1,
            patterns: watch::channel(Patterns::of(Arc::clone(&MODEL))).1,
            questions: mpsc::channel(1).1,
            clock: site.clock.shared(),
            metrics: CorrelatorMetrics::new(&Metrics::new()),
        };
        let wire = Wire::shared(&site.server, chance.split(), site.weather, PUBLISH_WINDOW);
        let worker = IncidentWorker::new(parts, decider, WireOutlet { wire: Rc::clone(&wire), fence: epoch });
        let server = Rc::clone(&site.server);
        Some(Self { epoch, releasing: false, wire, server, worker, to_keep, unkept: None, fresh, cursor })
    }

    /// True when it has given its office back.
    pub fn turn(&mut self, chance: &mut Chance) -> Result<bool, WorkerError> {
        let mut is_at_end = false;
        if self.server.borrow().is_up() {
            for _ in 0..chance.below(READ_MAX) {
                let payload = self.server.borrow().signals.get(self.cursor).cloned();
                let Some(payload) = payload.filter(|_| self.worker.is_ready()) else { break };
                self.cursor += 1;
                self.worker.section(&Section { sequence: self.cursor as u64, payload })?;
                self.worker.turn()?;
            }
            is_at_end = self.cursor == self.server.borrow().signals.len();
        }
        self.worker.turn()?;
        let is_over = self.releasing && is_at_end && self.worker.is_settled();
        if is_over {
            self.worker.finish();
        }
        self.keep()?;
        Ok(is_over)
    }

    fn keep(&mut self) -> WorkerResult {
        while let Ok(checkpoint) = self.to_keep.try_recv() {
            self.unkept = Some(checkpoint.after(self.unkept.take()));
        }
        let mut server = self.server.borrow_mut();
        match self.unkept.take_if(|_| server.is_up()) {
            Some(_) if server.fence != self.epoch => Err("another owner keeps the keys".into()),
            Some(checkpoint) => {
                server.save(checkpoint);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Event time up to which everything is decided and stored.
    pub fn settled_up_to(&self) -> UnixNanos {
        if self.worker.is_settled() { self.fresh.borrow().watermark } else { UnixNanos(0) }
    }
}
