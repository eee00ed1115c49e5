//! A replica: the very workers of both stages, with what the control side does around them. Where the real one has
//! tasks and threads, this one takes turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tapio_runtime::clock::{Clock, ManualClock};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::{ProducerId, UnixNanos};
use tokio::sync::mpsc;

use super::chance::Chance;
use super::scene::MS;
use super::server::{INCIDENTS, SharedServer, TTL};
use super::term::Term;
use super::wire::{SharedWire, Weather, Wire, WireOutlet};
use crate::config::CorrelatorConfig;
use crate::low_water::{LowWater, start_in};
use crate::metrics::CorrelatorMetrics;
use crate::shards::CHUNK_UNITS;
use crate::stage_one::readings::{QUIET, Readings};
use crate::stage_one::worker::{Answer, Shared, Work, Worker, WorkerParts};

const LANES: usize = 2;
const WINDOW: usize = 64;
const RENEW: u64 = 500 * MS;
/// A member counts itself out so long before the others do.
const MARGIN: u64 = 200 * MS;
/// Longest way of a message of the event stream to its reader.
const READ_LAG: u64 = 60 * MS;
/// How long after a pause nothing has come yet.
const WAKING: u64 = 50 * MS;
/// Messages read per shard in a turn.
const READ_MAX: usize = 4;
/// Turns for each batch that was put aside: fewer than it needs.
const TURNS_PER_BATCH: usize = 2;

/// What a lease brings.
pub enum Notice {
    Acquired { resource: usize, epoch: u64, note: Vec<u8> },
    Release { resource: usize },
}

/// The parts of a world that a replica uses.
#[derive(Clone)]
pub struct Site {
    pub server: SharedServer,
    pub clock: ManualClock,
    pub config: CorrelatorConfig,
    pub weather: Weather,
    /// Units of work after which a worker puts the rest aside; `None`: as in life, hardly ever.
    pub chunk: Option<u32>,
}

struct Lane {
    worker: Worker<WireOutlet>,
    readings: Readings,
    /// Next message of each shard that is read.
    cursors: BTreeMap<u16, usize>,
    wire: SharedWire,
    quiet_due: u64,
    /// What was called into the server and has not come back.
    called: Option<u64>,
}

struct Note {
    resource: usize,
    epoch: u64,
    note: Vec<u8>,
    free: bool,
}

pub struct Replica {
    pub number: u64,
    site: Site,
    chance: Chance,
    lanes: Vec<Lane>,
    answers: mpsc::Receiver<Answer>,
    held: BTreeMap<usize, u64>,
    pub inbox: VecDeque<Notice>,
    /// Resources that it was asked to give up.
    asked: BTreeSet<usize>,
    notes: VecDeque<Note>,
    pub term: Option<Term>,
    /// Its names in the two groups: a new one after each loss.
    pub identity: [String; 2],
    incarnation: u64,
    joined: [bool; 2],
    renew_at: [u64; 2],
    valid_until: [u64; 2],
    pub paused_until: u64,
    pub leaving: bool,
}

impl Replica {
    pub fn new(number: u64, site: Site, mut chance: Chance) -> Self {
        let (sender, answers) = mpsc::channel(256);
        let shared = Arc::new(Shared::new(LANES));
        let metrics = CorrelatorMetrics::new(&Metrics::new());
        let lanes = (0..LANES)
            .map(|index| {
                let parts = WorkerParts {
                    index,
                    producer: ProducerId(1000 * (number + 1) + index as u64),
                    config: site.config.clone(),
                    shared: Arc::clone(&shared),
                    answers: sender.clone(),
                    clock: site.clock.shared(),
                    metrics: metrics.clone(),
                };
                let wire = Wire::shared(&site.server, chance.split(), site.weather, WINDOW);
                let outlet = WireOutlet { wire: Rc::clone(&wire), fence: 0 };
                let worker = Worker::new(parts, outlet).with_chunk(site.chunk.unwrap_or(CHUNK_UNITS));
                Lane {
                    worker,
                    readings: Readings::new(),
                    cursors: BTreeMap::new(),
                    wire,
                    quiet_due: 0,
                    called: None,
                }
            })
            .collect();
        Self {
            number,
            site,
            chance,
            lanes,
            answers,
            held: BTreeMap::new(),
            inbox: VecDeque::new(),
            asked: BTreeSet::new(),
            notes: VecDeque::new(),
            term: None,
            identity: [format!("r{number}"), format!("r{number}")],
            incarnation: 0,
            joined: [false; 2],
            renew_at: [0; 2],
            valid_until: [0; 2],
            paused_until: 0,
            leaving: false,
        }
    }

    fn now(&self) -> u64 {
        self.site.server.borrow().now
    }

    /// What the network does, whether the process runs or not.
    pub fn wires(&mut self) {
        let frozen = self.now() < self.paused_until;
        let term = self.term.as_ref().map(|term| &term.wire);
        for wire in self.lanes.iter().map(|lane| &lane.wire).chain(term) {
            let mut wire = wire.borrow_mut();
            wire.frozen = frozen;
            wire.step();
        }
    }

    /// A turn of everything. After a pause nobody knows who comes first.
    pub fn turn(&mut self) {
        if self.now() < self.paused_until {
            return;
        }
        if self.chance.per_mille(500) {
            self.lanes();
            self.leases();
        } else {
            self.leases();
            self.lanes();
        }
        self.decide();
        self.answer();
    }

    /// Another one should own it: told once.
    pub fn release(&mut self, resource: usize) {
        if self.asked.insert(resource) {
            self.inbox.push_back(Notice::Release { resource });
        }
    }

    /// It is killed.
    pub fn crash(&mut self) {
        self.lanes.iter().for_each(|lane| lane.wire.borrow_mut().cut());
        if let Some(term) = self.term.take() {
            term.wire.borrow_mut().cut();
        }
    }

    /// Nothing is owned any more, and nothing is left to say.
    pub fn has_left(&self) -> bool {
        self.leaving
            && self.held.is_empty()
            && self.term.is_none()
            && self.inbox.is_empty()
            && self.notes.is_empty()
    }

    fn leases(&mut self) {
        let now = self.now();
        for group in 0..2 {
            let is_member = self.site.server.borrow().members[group].contains_key(&self.identity[group]);
            if self.joined[group] && (now >= self.valid_until[group] || !is_member) {
                self.lose(group);
            }
            let mut server = self.site.server.borrow_mut();
            if server.is_up() && now >= self.renew_at[group] && (self.joined[group] || !self.leaving) {
                server.members[group].insert(self.identity[group].clone(), now);
                self.joined[group] = true;
                self.renew_at[group] = now + RENEW;
                self.valid_until[group] = now + TTL - MARGIN;
            }
        }
        while let Some(notice) = self.inbox.pop_front() {
            if let Notice::Acquired { resource, .. } = notice {
                self.asked.remove(&resource);
            }
            match notice {
                Notice::Acquired { resource: INCIDENTS, epoch, .. } => {
                    self.term = Term::begin(&self.site, epoch, self.chance.split());
                }
                Notice::Release { resource: INCIDENTS } => {
                    if let Some(term) = &mut self.term {
                        term.releasing = true;
                    }
                }
                Notice::Acquired { resource, epoch, note } => self.own(resource, epoch, &note),
                Notice::Release { resource } => {
                    if self.held.contains_key(&resource) {
                        self.tell(resource, Work::Release(resource as u16));
                    }
                }
            }
        }
    }

    /// The membership is over: all that hangs on it is lost.
    pub fn lose(&mut self, group: usize) {
        self.site.server.borrow_mut().count("memberships lost");
        self.joined[group] = false;
        self.incarnation += 1;
        let identity = format!("r{}-{}", self.number, self.incarnation);
        let old = std::mem::replace(&mut self.identity[group], identity);
        self.site.server.borrow_mut().members[group].remove(&old);
        self.renew_at[group] = self.now() + 100 * MS;
        if group == 1 {
            if let Some(term) = self.term.take() {
                term.wire.borrow_mut().cut();
            }
            return;
        }
        for resource in std::mem::take(&mut self.held).into_keys() {
            self.tell(resource, Work::Lost(resource as u16));
        }
    }

    fn own(&mut self, resource: usize, epoch: u64, note: &[u8]) {
        let shard = resource as u16;
        let from = serde_json::from_slice::<LowWater>(note).ok();
        self.held.insert(resource, epoch);
        let lane = &mut self.lanes[resource % LANES];
        lane.readings.own(shard, epoch);
        let server = self.site.server.borrow();
        let stored = &server.events[resource];
        let cursor = match start_in(server.events_last, from, UnixNanos(0)) {
            tapio_runtime::bus::StartAt::Sequence(first) => stored.partition_point(|m| m.sequence < first),
            _ => 0,
        };
        if cursor == stored.len() {
            lane.readings.current(shard);
        }
        lane.cursors.insert(shard, cursor);
        drop(server);
        lane.worker.work(Work::Own { shard, epoch, from }).expect("a shard is taken on");
    }

    /// The shard is not read any more.
    fn tell(&mut self, resource: usize, work: Work) {
        let lane = &mut self.lanes[resource % LANES];
        lane.readings.stop(resource as u16);
        lane.cursors.remove(&(resource as u16));
        lane.worker.work(work).expect("a shard is given up");
    }

    fn lanes(&mut self) {
        let now = self.now();
        let monotonic = self.site.clock.monotonic();
        let is_up = self.site.server.borrow().is_up();
        let is_connected = self.site.server.borrow().is_connected();
        // What came while it stood still is there a moment after it goes on.
        let is_waking = now < self.paused_until + WAKING;
        for lane in &mut self.lanes {
            let is_idle = match is_up && !is_waking {
                true => read(lane, &self.site, &mut self.chance),
                false => lane.worker.is_ready(),
            };
            if let Some(number) = lane.called.take_if(|_| is_up && !is_waking) {
                lane.readings.came_back(number, monotonic);
            }
            if is_idle && let Some((shards, now)) = lane.readings.caught_up(monotonic) {
                lane.worker.work(Work::CaughtUp { shards, now }).expect("the clock is followed");
            }
            if is_idle && now >= lane.quiet_due {
                lane.quiet_due = now + QUIET.as_nanos() as u64;
                let called = lane.readings.look(monotonic, UnixNanos(now), is_connected);
                lane.called = called.or(lane.called.filter(|_| is_connected));
            }
            // A real worker turns all the time; one that has put work aside is to have a chance to catch up.
            if lane.worker.put_aside_now() > 0 {
                self.site.server.borrow_mut().count("turns with work put aside");
            }
            let turns = 1 + TURNS_PER_BATCH * lane.worker.put_aside_now();
            for _ in 0..turns {
                lane.worker.turn().expect("nothing is refused");
            }
        }
    }

    fn decide(&mut self) {
        let Some(term) = &mut self.term else { return };
        match term.turn(&mut self.chance) {
            Ok(false) => {}
            Ok(true) => {
                let epoch = term.epoch;
                self.term = None;
                self.notes.push_back(Note { resource: INCIDENTS, epoch, note: Vec::new(), free: true });
            }
            // Another replica owns the incidents by now.
            Err(_) => self.lose(1),
        }
    }

    fn answer(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            let resource = usize::from(answer.shard);
            if self.held.get(&resource) != Some(&answer.epoch) {
                continue;
            }
            if answer.released {
                self.held.remove(&resource);
                // Given back unasked, it is still being read.
                self.tell(resource, Work::Lost(answer.shard));
            }
            let note = answer.low_water.map(|mark| serde_json::to_vec(&mark).expect("JSON"));
            if answer.released || note.is_some() {
                let (epoch, note) = (answer.epoch, note.unwrap_or_default());
                self.notes.push_back(Note { resource, epoch, note, free: answer.released });
            }
        }
        assert!(self.notes.len() <= 16 * usize::from(SHARD_COUNT), "notes are bounded");
        let mut server = self.site.server.borrow_mut();
        while server.is_up() {
            let Some(Note { resource, epoch, note, free }) = self.notes.pop_front() else { return };
            server.note(resource, epoch, note, free);
        }
    }
}

/// Reads a little of each shard. True when nothing waits to be read.
fn read(lane: &mut Lane, site: &Site, chance: &mut Chance) -> bool {
    let monotonic = site.clock.monotonic();
    let now = site.server.borrow().now;
    let mut is_idle = true;
    for (shard, cursor) in &mut lane.cursors {
        for turn in 0..=READ_MAX {
            let (sequence, payload, pending) = {
                let server = site.server.borrow();
                let stored = &server.events[usize::from(*shard)];
                let Some(message) = stored.get(*cursor) else { break };
                if message.at + chance.below(READ_LAG) > now {
                    break;
                }
                (message.sequence, Bytes::clone(&message.payload), stored.len() - *cursor - 1)
            };
            if turn == READ_MAX || !lane.worker.is_ready() {
                is_idle = false;
                break;
            }
            *cursor += 1;
            lane.readings.read(*shard, pending as u64, monotonic);
            lane.worker.work(Work::Batch { shard: *shard, sequence, payload }).expect("a batch is taken");
        }
    }
    is_idle && lane.worker.is_ready()
}
