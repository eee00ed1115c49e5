//! A run: the scene, the replicas, the server and the faults of one seed, in steps of virtual time.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::clock::ManualClock;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::lease::desired_owner;
use tapio_schemas::wire::{EventBatch, Packer};
use tapio_schemas::{EventId, ProducerId, UnifiedEvent, UnixNanos};

use super::chance::Chance;
use super::replica::{Notice, Replica, Site};
use super::scene::{self, CLUSTER, LENGTH, MS, SECOND, START};
use super::server::{INCIDENTS, RESOURCES, Server, SharedServer};
use super::wire::Weather;
use crate::config::CorrelatorConfig;

/// Length of a step.
const STEP: u64 = 25 * MS;
/// Findings up to here are compared.
const CUT: u64 = START + LENGTH + 5 * SECOND;
/// By then everything must be decided, whatever happened.
const DEADLINE: u64 = CUT + 40 * SECOND;
/// Most faults of a run.
const FAULTS_MAX: u64 = 10;
/// Nodes whose agents send.
const PRODUCERS: u64 = 3;
/// Longest way of an event to the stream: within the lateness, with the way to the reader.
const EVENT_DELAY: u64 = 250 * MS;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A replica is killed; another may start.
    Crash { who: u64, again: bool },
    /// A replica stands still.
    Pause { who: u64, length: u64 },
    /// A replica is stopped as planned.
    Leave { who: u64 },
    /// One more replica.
    Join,
    /// The server is away.
    Down { length: u64 },
    /// The server stands still, and its connections stay.
    Freeze { length: u64 },
    /// A replica is put out of a group.
    Expel { who: u64, group: usize },
}

/// What a seed stands for.
#[derive(Debug, Clone)]
pub struct Plan {
    pub replicas: u64,
    pub weather: Weather,
    pub duplicate_window: u64,
    pub faults: VecDeque<(u64, Fault)>,
    pub chance: Chance,
    /// Units of work after which a worker puts the rest of a batch aside.
    pub chunk: Option<u32>,
    /// How long the last fault of the scene takes to the stream, when that is told.
    pub last_fault_delay: Option<u64>,
    /// An event at which a shard panics.
    pub trap: Option<EventId>,
}

impl Plan {
    /// One replica, and nothing goes wrong.
    pub fn calm() -> Self {
        Self {
            replicas: 1,
            weather: Weather::default(),
            duplicate_window: 120 * SECOND,
            faults: VecDeque::new(),
            chance: Chance::new(0),
            chunk: None,
            last_fault_delay: None,
            trap: None,
        }
    }

    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let weather = Weather {
            delay: MS + chance.below(40 * MS),
            lost: chance.below(2) * chance.below(12),
            ack_lost: chance.below(2) * chance.below(12),
        };
        let replicas = chance.within(1..5);
        let mut faults: Vec<(u64, Fault)> =
            (0..chance.below(FAULTS_MAX + 1)).map(|_| fault(&mut chance)).collect();
        // Of a chance of its own, so that everything else of a seed stays as it was.
        let mut cold = Chance::new(seed.rotate_left(32));
        if cold.per_mille(400) {
            let freeze = Fault::Freeze { length: 300 * MS + cold.below(2500 * MS) };
            faults.push((START + SECOND + cold.below(LENGTH), freeze));
        }
        faults.sort_by_key(|(at, _)| *at);
        let duplicate_window = if chance.per_mille(500) { 100 * MS } else { 120 * SECOND };
        // Of a chance of its own, so that everything else of a seed stays as it was.
        let mut slow = Chance::new(!seed);
        let chunk = slow.per_mille(500).then(|| slow.within(1..40) as u32);
        Self {
            replicas,
            weather,
            duplicate_window,
            faults: faults.into(),
            chance,
            chunk,
            last_fault_delay: None,
            trap: None,
        }
    }
}

fn fault(chance: &mut Chance) -> (u64, Fault) {
    let at = START + SECOND + chance.below(LENGTH);
    let who = chance.below(8);
    let fault = match chance.below(6) {
        0 => Fault::Crash { who, again: chance.per_mille(700) },
        1 => Fault::Pause { who, length: 100 * MS + chance.below(5 * SECOND) },
        2 => Fault::Leave { who },
        3 => Fault::Join,
        4 => Fault::Down { length: 100 * MS + chance.below(3 * SECOND) },
        _ => Fault::Expel { who, group: chance.below(2) as usize },
    };
    (at, fault)
}

/// What came out.
pub struct Outcome {
    /// Every revision up to the cut, as JSON.
    pub findings: BTreeMap<(String, u32), String>,
    pub doubled: Vec<(String, u32)>,
    pub counts: BTreeMap<&'static str, u64>,
    pub dead_letters: usize,
    /// Everything was decided in time.
    pub finished: bool,
}

pub struct World {
    site: Site,
    chance: Chance,
    replicas: Vec<Replica>,
    born: u64,
    faults: VecDeque<(u64, Fault)>,
    /// Events and when they leave their node.
    coming: VecDeque<(u64, UnifiedEvent)>,
    batches: BTreeMap<(u64, u16), EventBatch>,
    repeated: Vec<(u64, u16, Bytes)>,
    packer: Packer,
    agents_back: u64,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut chance = plan.chance;
        let begin = START - SECOND;
        let server: SharedServer = Rc::new(RefCell::new(Server::new(begin, plan.duplicate_window)));
        let mut config = CorrelatorConfig { cluster: CLUSTER.into(), ..CorrelatorConfig::default() };
        if plan.chunk.is_some() {
            config.batch_time_max = HumanDuration::from_millis(0);
        }
        let (weather, chunk) = (plan.weather, plan.chunk);
        let site = Site { server, clock: ManualClock::new(begin), config, weather, chunk };
        let mut arrivals = chance.split();
        let mut coming: Vec<(u64, UnifiedEvent)> = scene::events()
            .into_iter()
            .chain(plan.trap.map(scene::trap))
            .map(|event| {
                let usual = arrivals.below(EVENT_DELAY);
                let delay = plan.last_fault_delay.filter(|_| scene::is_last_fault(&event)).unwrap_or(usual);
                (event.timestamp.0 + delay, event)
            })
            .collect();
        coming.sort_by_key(|(at, event)| (*at, event.id));
        let mut world = Self {
            site,
            chance,
            replicas: Vec::new(),
            born: 0,
            faults: plan.faults,
            coming: coming.into(),
            batches: BTreeMap::new(),
            repeated: Vec::new(),
            packer: Packer::default(),
            agents_back: 0,
        };
        (0..plan.replicas).for_each(|_| world.join());
        world
    }

    pub fn run(mut self) -> Outcome {
        let mut finished = false;
        while !finished && self.now() < DEADLINE {
            self.site.clock.advance(Duration::from_nanos(STEP));
            self.site.server.borrow_mut().now += STEP;
            self.faults();
            self.agents();
            self.assign();
            for replica in &mut self.replicas {
                replica.wires();
                replica.turn();
            }
            self.bury();
            let decided =
                self.replicas.iter().filter_map(|r| r.term.as_ref()).map(|t| t.settled_up_to()).max();
            finished = decided.is_some_and(|at| at > UnixNanos(CUT));
        }
        let server = self.site.server.borrow();
        let mut findings = BTreeMap::new();
        let mut doubled = Vec::new();
        for finding in server.insights.iter().filter(|finding| finding.emitted_at.0 <= CUT) {
            let key = (finding.id.to_string(), finding.revision);
            let text = serde_json::to_string(finding).expect("JSON");
            if findings.insert(key.clone(), text).is_some() {
                doubled.push(key);
            }
        }
        let (counts, dead_letters) = (server.counts.clone(), server.dead_letters.len());
        Outcome { findings, doubled, counts, dead_letters, finished }
    }

    fn now(&self) -> u64 {
        self.site.server.borrow().now
    }

    fn join(&mut self) {
        let chance = self.chance.split();
        self.replicas.push(Replica::new(self.born, self.site.clone(), chance));
        self.born += 1;
    }

    fn faults(&mut self) {
        let now = self.now();
        while self.faults.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, fault)) = self.faults.pop_front() else { return };
            let count = self.replicas.len() as u64;
            let at = |who: u64| (who % count.max(1)) as usize;
            match fault {
                Fault::Crash { who, again } => {
                    self.replicas.remove(at(who)).crash();
                    if again || self.replicas.is_empty() {
                        self.join();
                    }
                }
                Fault::Pause { who, length } => self.replicas[at(who)].paused_until = now + length,
                Fault::Leave { who } => {
                    if self.replicas.iter().filter(|r| !r.leaving).count() < 2 {
                        self.join();
                    }
                    self.replicas[at(who)].leaving = true;
                }
                Fault::Join => self.join(),
                Fault::Down { length } => {
                    self.site.server.borrow_mut().down_until = now + length;
                    self.agents_back = now + length + self.chance.below(300 * MS);
                }
                Fault::Freeze { length } => {
                    self.site.server.borrow_mut().frozen_until = now + length;
                    self.agents_back = now + length + self.chance.below(100 * MS);
                }
                Fault::Expel { who, group } => {
                    let identity = self.replicas[at(who)].identity[group].clone();
                    self.site.server.borrow_mut().members[group].remove(&identity);
                }
            }
        }
    }

    /// The agents send what is due, in batches of whatever size, packed or plain, and some of them twice.
    fn agents(&mut self) {
        let now = self.now();
        if now < self.agents_back || !self.site.server.borrow().is_up() {
            return;
        }
        // After an outage all come at once, and yet none much earlier than one that should have come before it.
        while let Some(until) =
            self.coming.front().map(|(at, _)| at + STEP).filter(|until| *until <= now + STEP)
        {
            let mut touched: Vec<(u64, u16)> = Vec::new();
            while self.coming.front().is_some_and(|(at, _)| *at <= until.min(now)) {
                let Some((_, event)) = self.coming.pop_front() else { break };
                let shard = event.key().shard();
                let key = (event.entity.lineage as u64 % PRODUCERS, shard);
                let producer = ProducerId(7 + key.0);
                self.batches.entry(key).or_insert_with(|| EventBatch::new(producer, 1, shard)).push(event);
                if self.chance.per_mille(300) {
                    self.send(key);
                } else if !touched.contains(&key) {
                    touched.push(key);
                }
            }
            touched.into_iter().for_each(|key| self.send(key));
        }
        let due = self.repeated.extract_if(.., |(at, ..)| *at <= now);
        let mut server = self.site.server.borrow_mut();
        due.for_each(|(_, shard, bytes)| server.store_events(shard, bytes));
    }

    fn send(&mut self, key: (u64, u16)) {
        let Some(batch) = self.batches.get_mut(&key).filter(|batch| !batch.is_empty()) else { return };
        let mut bytes = batch.finish(UnixNanos(0)).expect("a batch");
        if self.chance.per_mille(500) {
            bytes = self.packer.pack(bytes);
        }
        let bytes = Bytes::from(bytes);
        if self.chance.per_mille(20) {
            self.repeated.push((self.now() + self.chance.below(SECOND), key.1, bytes.clone()));
        }
        self.site.server.borrow_mut().store_events(key.1, bytes);
    }

    /// What the members of the groups do with free and foreign resources.
    fn assign(&mut self) {
        if !self.site.server.borrow().is_up() {
            return;
        }
        let live = [0, 1].map(|group| self.site.server.borrow().live(group));
        for resource in 0..RESOURCES {
            let group = usize::from(resource == INCIDENTS);
            let by_name = |name: &str| self.replicas.iter().position(|r| r.identity[group] == name);
            let stays = |name: &&String| by_name(name).is_none_or(|at| !self.replicas[at].leaving);
            let name = if group == 1 { "incidents".to_owned() } else { format!("shard.{resource}") };
            let wanted = desired_owner(&name, live[group].iter().filter(stays).map(String::as_str));
            let owner = self.site.server.borrow().resources[resource].owner.clone();
            let owner = owner.filter(|owner| live[group].contains(owner));
            match owner {
                Some(owner) if wanted == Some(&owner) => {}
                Some(owner) => {
                    if let Some(at) = by_name(&owner) {
                        self.replicas[at].release(resource);
                    }
                }
                None => {
                    let Some(at) = wanted.and_then(by_name) else { continue };
                    if self.now() < self.replicas[at].paused_until {
                        continue;
                    }
                    let owned =
                        self.site.server.borrow_mut().acquire(resource, &self.replicas[at].identity[group]);
                    let (epoch, note) = (owned.epoch, owned.note);
                    self.replicas[at].inbox.push_back(Notice::Acquired { resource, epoch, note });
                }
            }
        }
    }

    /// Replicas that have left are gone.
    fn bury(&mut self) {
        self.replicas.retain(|replica| {
            let over = replica.has_left();
            if over {
                let mut server = self.site.server.borrow_mut();
                for group in 0..2 {
                    server.members[group].remove(&replica.identity[group]);
                }
            }
            !over
        });
    }
}
