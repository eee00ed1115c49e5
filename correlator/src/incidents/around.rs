//! Places as seen from one seat.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use tapio_schemas::entity::kinds;
use tapio_schemas::{Entity, SignalKind, UnixNanos};

use super::view::View;
use crate::model::{Facts, Relation};

/// Each place is looked up when a pattern first asks for it.
pub struct Around<'v, 'a> {
    /// The signals.
    pub view: &'v View<'a>,
    /// The seat.
    pub seat: &'v Entity,
    mounters: OnceCell<BTreeSet<Entity>>,
    mounted: OnceCell<BTreeSet<Entity>>,
    callers: OnceCell<Arc<BTreeSet<Entity>>>,
    upstream: OnceCell<Arc<BTreeSet<Entity>>>,
    machines: OnceCell<Arc<BTreeSet<Entity>>>,
}

impl<'v, 'a> Around<'v, 'a> {
    /// Nothing is looked up yet.
    pub fn new(view: &'v View<'a>, seat: &'v Entity) -> Self {
        Self {
            view,
            seat,
            mounters: OnceCell::new(),
            mounted: OnceCell::new(),
            callers: OnceCell::new(),
            upstream: OnceCell::new(),
            machines: OnceCell::new(),
        }
    }

    /// Of a thing that is mounted, or that limits others: those. Who calls that suffers from the seat.
    fn mounters(&self) -> &BTreeSet<Entity> {
        self.mounters.get_or_init(|| self.view.graph.mounters(self.seat))
    }

    fn mounted(&self) -> &BTreeSet<Entity> {
        self.mounted.get_or_init(|| self.view.graph.mounted(self.seat))
    }

    fn callers(&self) -> &BTreeSet<Entity> {
        self.callers.get_or_init(|| {
            let mut callers = self.view.graph.callers(self.seat);
            for mounter in self.mounters() {
                Arc::make_mut(&mut callers).extend(self.view.graph.callers(mounter).iter().cloned());
            }
            callers
        })
    }

    fn upstream(&self) -> &BTreeSet<Entity> {
        self.upstream.get_or_init(|| {
            let mut upstream = self.view.graph.reach(self.seat, true);
            for mounter in self.mounters() {
                Arc::make_mut(&mut upstream).extend(self.view.graph.reach(mounter, true).iter().cloned());
            }
            upstream
        })
    }

    fn machines(&self) -> &BTreeSet<Entity> {
        self.machines.get_or_init(|| self.view.graph.machines(self.seat))
    }

    fn is_seat(&self, entity: &Entity) -> bool {
        entity == self.seat || self.mounters().contains(entity)
    }

    /// Signals of a kind that stand in a relation to the seat, by onset and id.
    pub fn seen(&self, kind: SignalKind, relation: Relation) -> Vec<usize> {
        let all =
            if relation == Relation::Itself { self.view.at_home(self.seat) } else { self.view.of_kind(kind) };
        let fits = |at: &usize| self.view.signals[*at].kind == kind && self.holds(relation, *at);
        all.iter().copied().filter(fits).collect()
    }

    fn holds(&self, relation: Relation, at: usize) -> bool {
        let (home, peer) = (&self.view.homes[at], self.view.peers[at].as_ref());
        match relation {
            Relation::Itself => home == self.seat,
            Relation::Caller => {
                !self.is_seat(home)
                    && match peer {
                        // A Service is an object of its own by its name, whatever stands behind it.
                        Some(peer) => {
                            self.is_seat(peer) || self.view.signals[at].peer.as_ref() == Some(self.seat)
                        }
                        None => self.callers().contains(home),
                    }
            }
            Relation::Upstream => {
                !self.is_seat(home)
                    && !peer.is_some_and(|peer| self.is_seat(peer))
                    && self.upstream().contains(home)
            }
            Relation::Callee => self.view.graph.callees(self.seat).contains(home),
            Relation::Node => self.machines().contains(home),
            Relation::Mounter => self.mounters().contains(home),
            Relation::Mounted => self.mounted().contains(home),
            Relation::Hosted => {
                self.seat.kind == kinds::NODE
                    && home != self.seat
                    && self.view.graph.machines(home).contains(self.seat)
            }
        }
    }

    /// What predicates may ask for.
    pub fn facts(&self, anchor: UnixNanos) -> Facts {
        let kernel = self.view.kernel_nodes;
        let forecast_passed = self.seen(SignalKind::MemoryGrowth, Relation::Itself).iter().any(|at| {
            let latest = self.view.signals[*at].forecast.as_ref().map(|f| f.latest);
            latest.is_some_and(|latest| latest < self.view.now)
        });
        Facts {
            elapsed_s: self.view.now.since(anchor) as f64 / 1e9,
            has_callers: !self.callers().is_empty(),
            cpu_normal_s: self.view.cpu_normal_s(self.seat, anchor),
            kernel_seen: self.machines().iter().any(|m| kernel.contains(m)),
            forecast_passed,
        }
    }
}
