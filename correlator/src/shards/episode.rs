//! Deviations as long as they last: from the first evidence until it stops coming.
//!
//! What is said of an episode in step `g` carries a `last_seen` inside `(g − TICK, g]`: that is the moment at which
//! stage two may know it, whatever the order of arrival. The revision is a function of onset and `last_seen`.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use tapio_schemas::signal::{Forecast, SIGNAL_EVIDENCE_MAX, Signal};
use tapio_schemas::{
    Attribute, EntityRef, EventId, Score, ShardKey, SignalKind, SmolStr, TraceId, UnixNanos,
};

use super::confirm::{Confirm, FAINT, Starts, retells};
use super::context::{self, Meaning};
use super::counters::Counters;
use super::endings::{ENDS, ends_of};
use super::groups::Groups;
use super::record::hash_parts;
use super::watermark::TICK_NS;
use crate::config::{SignalConfig, nanos};
use tapio_schemas::entity::Entity;

/// One piece of evidence of a deviation.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Kind of the deviation.
    pub kind: SignalKind,
    /// What deviates.
    pub entity: Arc<EntityRef>,
    /// The other end, for edges.
    pub peer: Option<Entity>,
    /// Tells deviations of one kind on one entity apart (two images, two processes); zero when that is not wanted.
    pub topic: u64,
    /// Event time of the evidence.
    pub at: UnixNanos,
    /// When the deviation began, if before `at`.
    pub onset: UnixNanos,
    /// Events behind it.
    pub evidence: Vec<EventId>,
    /// Trace or lineage it happened in.
    pub key: ShardKey,
    /// The process.
    pub pid: u32,
    /// 0 … 1.
    pub strength: f64,
    /// What would be normal.
    pub baseline: f64,
    /// What is.
    pub observed: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// How many occurrences this stands for; a level that merely goes on adds none after the first.
    pub count: u64,
    /// Expectation.
    pub forecast: Option<Forecast>,
    /// Facts.
    pub attributes: Vec<Attribute>,
    /// Silence after which it is over; zero for the configured time.
    pub idle_ns: u64,
    /// What makes it certain, when one piece of evidence does not.
    pub confirm: Option<Confirm>,
}

impl Observation {
    /// One occurrence at `at`, certain, with nothing else known.
    pub fn new(kind: SignalKind, entity: &Arc<EntityRef>, at: UnixNanos, event: EventId) -> Self {
        Self {
            kind,
            entity: Arc::clone(entity),
            peer: None,
            topic: 0,
            at,
            onset: at,
            evidence: vec![event],
            key: ShardKey::derived(entity.lineage),
            pid: 0,
            strength: 1.0,
            baseline: f64::NAN,
            observed: f64::NAN,
            unit: "",
            count: 1,
            forecast: None,
            attributes: Vec::new(),
            idle_ns: 0,
            confirm: None,
        }
    }

    /// Adds a fact, unless it is empty text.
    pub fn with(mut self, key: &str, value: impl Into<tapio_schemas::AttributeValue>) -> Self {
        let value = value.into();
        if value.as_text() != Some("") {
            self.attributes.push(Attribute { key: SmolStr::new(key), value });
        }
        self
    }

    fn mean(&mut self, meaning: &Meaning) {
        self.attributes.push(Attribute::new("group_type", meaning.group_type));
        self.attributes.push(Attribute::new("intent", meaning.intent));
        self.attributes.push(Attribute::new("category", meaning.category.as_str()));
    }

    /// What is said of it before its episode is opened: revision zero, in no semantic group, and the id that the episode
    /// gets when nothing earlier turns up.
    pub fn first_word(mut self) -> Signal {
        self.mean(&context::meaning(self.kind));
        Episode::open(self, 0).signal
    }

    /// Identity of the episode it belongs to.
    pub fn episode(&self) -> EpisodeKey {
        episode_key(self.kind, &self.entity, self.peer.as_ref(), self.topic)
    }
}

/// Identity of an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EpisodeKey(u128);

/// Identity of the episode of this kind on this entity and edge.
pub fn episode_key(kind: SignalKind, entity: &EntityRef, peer: Option<&Entity>, topic: u64) -> EpisodeKey {
    let subject = entity.subject();
    let nobody = Entity::default();
    let peer = peer.unwrap_or(&nobody);
    EpisodeKey(hash_parts(&[
        kind.as_str(),
        &entity.cluster,
        &subject.kind,
        &subject.namespace,
        &subject.name,
        &subject.node,
        &peer.kind,
        &peer.namespace,
        &peer.name,
        &peer.node,
        &topic.to_string(),
    ]))
}

struct Episode {
    signal: Signal,
    /// Time of the last evidence.
    last_evidence: UnixNanos,
    idle_ns: u64,
    /// What is still needed to be certain.
    confirm: Option<Confirm>,
    /// Strength once it is.
    strength: f64,
    /// Something new is to be said.
    dirty: bool,
    /// Step in which it was last said; zero = never.
    said: UnixNanos,
    due: UnixNanos,
}

/// The open episodes of a shard.
pub struct Episodes {
    config: SignalConfig,
    cluster: SmolStr,
    open: HashMap<EpisodeKey, Episode>,
    agenda: BTreeSet<(UnixNanos, EpisodeKey)>,
    starts: Starts,
}

impl Episodes {
    /// None open.
    pub fn new(cluster: &str, config: SignalConfig) -> Self {
        Self {
            config,
            cluster: SmolStr::new(cluster),
            open: HashMap::new(),
            agenda: BTreeSet::new(),
            starts: Starts::default(),
        }
    }

    /// Takes evidence; what is to be said of it is said by [`Self::say`] at the end of the step.
    pub fn observe(
        &mut self,
        step: UnixNanos,
        mut seen: Observation,
        groups: &mut Groups,
        counters: &mut Counters,
    ) {
        let key = seen.episode();
        if ENDS.contains(&seen.kind) && self.starts.runs_since(&seen.entity, seen.at) {
            seen.confirm = seen.confirm.map(Confirm::resumed);
        }
        // A kill of long ago is no part of one that may follow. What the kernel says itself needs nobody's word.
        if seen.kind == SignalKind::OomKill
            && seen.confirm.is_some()
            && self.starts.retells(&seen.entity, seen.at)
        {
            counters.dropped.retold += seen.count;
            return;
        }
        let meaning = context::meaning(seen.kind);
        let group = groups.join(&self.cluster, seen.key, meaning.group_type, seen.at, counters);
        let idle_ns = match seen.idle_ns {
            0 => nanos(self.config.idle) * context::idle_factor(seen.kind),
            given => given,
        };
        if let Some(episode) = self.open.get_mut(&key) {
            episode.extend(seen);
            episode.idle_ns = episode.idle_ns.max(idle_ns);
        } else {
            seen.mean(&meaning);
            let mut episode = Episode::open(seen, idle_ns);
            episode.signal.group = group;
            self.open.insert(key, episode);
            self.evict(counters);
        }
        self.schedule(key, step);
    }

    /// The deviation is seen to be over.
    pub fn end(&mut self, step: UnixNanos, key: EpisodeKey) {
        if let Some(episode) = self.open.get_mut(&key) {
            episode.idle_ns = 0;
            episode.last_evidence = episode.last_evidence.min(step);
            self.schedule(key, step);
        }
    }

    /// What had failed in a pod before `at` is over `calm_ns` after it, unless it fails again until then.
    pub fn calm(
        &mut self,
        step: UnixNanos,
        pod: &EntityRef,
        kinds: &[SignalKind],
        at: UnixNanos,
        calm_ns: u64,
    ) {
        let keys: Vec<EpisodeKey> = self
            .open
            .iter_mut()
            .filter(|(_, e)| kinds.contains(&e.signal.kind) && e.last_evidence <= at)
            .filter(|(_, e)| {
                let own = &e.signal.entity;
                (&own.cluster, &own.namespace, &own.pod) == (&pod.cluster, &pod.namespace, &pod.pod)
            })
            .map(|(key, episode)| {
                episode.idle_ns =
                    episode.idle_ns.min(at.since(episode.last_evidence).saturating_add(calm_ns));
                *key
            })
            .collect();
        keys.into_iter().for_each(|key| self.schedule(key, step));
    }

    /// The deviations of this kind on the very thing that were seen until `at` are over, whoever the other end was.
    pub fn end_all(&mut self, step: UnixNanos, entity: &EntityRef, kind: SignalKind, at: UnixNanos) {
        let subject = entity.subject();
        let keys: Vec<EpisodeKey> = self
            .open
            .iter()
            .filter(|(_, e)| e.signal.kind == kind && e.last_evidence <= at)
            .filter(|(_, e)| {
                e.signal.entity.cluster == entity.cluster && e.signal.entity.subject() == subject
            })
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter().for_each(|key| self.end(step, key));
    }

    /// A container runs since `at`: that it ended before is certain only when it ends again.
    pub fn resumed(&mut self, step: UnixNanos, container: &EntityRef, at: UnixNanos) {
        self.starts.note(container, at);
        for key in ends_of(container) {
            let Some(episode) = self.open.get_mut(&key).filter(|e| e.last_evidence <= at) else { continue };
            episode.confirm = episode.confirm.map(Confirm::resumed);
            self.schedule(key, step);
        }
    }

    /// The kubelet of a machine has started at `at`: the kills that it tells from then on may be old, and what it alone has told
    /// of them is taken back. Of the same second either may be read first.
    pub fn kubelet_started(
        &mut self,
        step: UnixNanos,
        machine: &EntityRef,
        at: UnixNanos,
        counters: &mut Counters,
    ) {
        self.starts.note(machine, at);
        let key = episode_key(SignalKind::OomKill, machine, None, 0);
        let open = self.open.get(&key);
        let Some(episode) = open.filter(|e| e.confirm.is_some() && retells(at, e.signal.onset)) else {
            return;
        };
        counters.dropped.retold += episode.signal.count;
        if episode.said.0 > 0 {
            return self.end(step, key);
        }
        self.agenda.remove(&(episode.due, key));
        self.open.remove(&key);
    }

    /// True when the episode is open.
    pub fn is_open(&self, key: EpisodeKey) -> bool {
        self.open.get(&key).is_some_and(|e| e.idle_ns > 0)
    }

    /// Next moment at which something is to be said.
    pub fn due(&self) -> Option<UnixNanos> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// Says what is to be said in this step.
    pub fn say(&mut self, step: UnixNanos, out: &mut Vec<Signal>, counters: &mut Counters) {
        let first = out.len();
        while let Some((due, key)) = self.agenda.first().copied() {
            if due > step {
                break;
            }
            self.agenda.pop_first();
            let refresh = nanos(self.config.refresh);
            let Some(episode) = self.open.get_mut(&key) else { continue };
            let over = episode.last_evidence.plus(episode.idle_ns) <= step;
            if over {
                let episode = self.open.remove(&key);
                out.extend(episode.and_then(|e| e.last_words(step)));
                continue;
            }
            episode.ripen(step);
            if episode.dirty && (episode.said.0 == 0 || step.since(episode.said) >= refresh) {
                out.push(episode.revision(step));
            }
            self.schedule(key, step.plus(1));
        }
        out[first..].sort_by_key(|s| (s.last_seen, s.id));
        counters.signals += (out.len() - first) as u64;
    }

    /// Onset of the earliest open episode that is not a mere change.
    pub fn earliest_onset(&self) -> Option<UnixNanos> {
        self.open.values().filter(|e| !context::is_change(e.signal.kind)).map(|e| e.signal.onset).min()
    }

    /// Open episodes.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// Puts the episode on the agenda for when it next has something to say, not before `earliest`.
    fn schedule(&mut self, key: EpisodeKey, earliest: UnixNanos) {
        let Some(episode) = self.open.get_mut(&key) else { return };
        let over = episode.last_evidence.plus(episode.idle_ns);
        let news = if episode.said.0 == 0 { earliest } else { episode.said.plus(nanos(self.config.refresh)) };
        let ripe = episode.confirm.and_then(|c| c.due(episode.signal.onset)).unwrap_or(over);
        let due = if episode.dirty { news.min(over) } else { over }.min(ripe).max(earliest);
        self.agenda.remove(&(episode.due, key));
        episode.due = due;
        self.agenda.insert((due, key));
    }

    fn evict(&mut self, counters: &mut Counters) {
        if self.open.len() <= self.config.open_max {
            return;
        }
        let oldest = self.open.iter().min_by_key(|(k, e)| (e.last_evidence, **k)).map(|(k, e)| (e.due, *k));
        if let Some((due, key)) = oldest {
            self.agenda.remove(&(due, key));
            self.open.remove(&key);
            counters.evicted.episodes += 1;
        }
    }
}

impl Episode {
    fn open(seen: Observation, idle_ns: u64) -> Self {
        let signal = Signal::new(seen.kind, Arc::clone(&seen.entity), seen.peer.clone(), seen.onset);
        let mut signal = signal.of_topic(seen.topic);
        signal.trace_id = if seen.key.derived { TraceId::default() } else { TraceId(seen.key.id) };
        signal.count = 0;
        let mut episode = Self {
            signal,
            last_evidence: seen.at,
            idle_ns,
            confirm: seen.confirm,
            strength: seen.strength,
            dirty: true,
            said: UnixNanos(0),
            due: UnixNanos(0),
        };
        episode.extend(seen);
        episode
    }

    fn extend(&mut self, seen: Observation) {
        let signal = &mut self.signal;
        self.last_evidence = self.last_evidence.max(seen.at);
        self.dirty = true;
        signal.count += seen.count;
        self.strength = seen.strength;
        // What is certain stays so; else the newest evidence says what is still needed.
        self.confirm = self.confirm.and(seen.confirm);
        signal.baseline = seen.baseline;
        signal.observed = seen.observed;
        signal.unit = SmolStr::new_static(seen.unit);
        signal.forecast = seen.forecast;
        if signal.pid == 0 {
            signal.pid = seen.pid;
        }
        for event in seen.evidence {
            add_evidence(&mut signal.evidence, event);
        }
        for attribute in seen.attributes {
            match signal.attributes.iter_mut().find(|a| a.key == attribute.key) {
                Some(known) => known.value = attribute.value,
                None => signal.attributes.push(attribute),
            }
        }
        self.ripen(self.last_evidence);
        let faint = if self.confirm.is_some() { self.strength.min(FAINT) } else { self.strength };
        self.signal.strength = Score::clamped(faint);
    }

    /// What has been repeated or has lasted is certain.
    fn ripen(&mut self, now: UnixNanos) {
        let signal = &mut self.signal;
        let met = |c: Confirm| c.is_met(signal.count, signal.onset, self.last_evidence, now);
        if self.confirm.is_some_and(met) {
            self.confirm = None;
            self.dirty = true;
            signal.strength = Score::clamped(self.strength);
        }
    }

    fn revision(&mut self, step: UnixNanos) -> Signal {
        self.dirty = false;
        self.said = step;
        let seen = if self.last_evidence.plus(TICK_NS) > step { self.last_evidence.min(step) } else { step };
        stamped(self.signal.clone(), seen)
    }

    /// The last revision; a change does not end, it is just no longer spoken of.
    fn last_words(mut self, step: UnixNanos) -> Option<Signal> {
        if context::is_change(self.signal.kind) {
            return self.dirty.then(|| self.revision(step));
        }
        self.signal.ended = true;
        Some(stamped(self.signal, step))
    }
}

/// Sets `last_seen` and the revision that follows from it.
pub fn stamped(mut signal: Signal, last_seen: UnixNanos) -> Signal {
    signal.last_seen = last_seen;
    let milliseconds = last_seen.since(signal.onset) / 1_000_000;
    signal.revision = u32::try_from(milliseconds).unwrap_or(u32::MAX - 1) + 1;
    signal
}

/// Keeps the first events and the last one: a story needs its beginning and its end.
pub fn add_evidence(evidence: &mut Vec<EventId>, event: EventId) {
    if event == EventId::default() || evidence.contains(&event) {
        return;
    }
    if evidence.len() >= SIGNAL_EVIDENCE_MAX {
        evidence.pop();
    }
    evidence.push(event);
    evidence.sort_unstable();
}
