//! From standing objects to events in time.
//!
//! Each object is told twice to the tracker that also follows watches: as it was before, then as it is. What the
//! difference says with a time of its own stands at that time. What goes on is repeated until now, as the kubelet and
//! the controllers repeat their Events: a state that nobody mentions any more would count as over.

use std::collections::{BTreeSet, HashMap, HashSet};

use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::Payload;

use super::gone::{self, Gone};
use super::{Listed, Standing, Told, WINDOW_NS, history};
use crate::collectors::kubernetes::convert::WatchType;
use crate::collectors::kubernetes::summary::{LIMITS, Summary};
use crate::collectors::kubernetes::tracker::Tracker;
use crate::convert::Seed;

/// Time between two repetitions.
const REPEAT_NS: u64 = 240_000_000_000;
/// A container ends before it is waited for.
const BEFORE_BACK_OFF_NS: u64 = 1_000_000_000;

/// All events of the window before `now`, in the order of their times.
pub(super) fn events(
    mut objects: Vec<Standing>,
    mut told: Vec<Told>,
    listed: &BTreeSet<Listed>,
    cluster: &str,
    now: UnixNanos,
) -> Vec<UnifiedEvent> {
    // The order of files and answers must not matter.
    objects.sort_by(|a, b| place(&a.summary).cmp(&place(&b.summary)));
    objects.dedup_by(|a, b| place(&a.summary) == place(&b.summary));
    told.sort_by(|a, b| {
        (a.summary.at, &a.summary.uid, a.summary.count).cmp(&(b.summary.at, &b.summary.uid, b.summary.count))
    });
    let since = now.minus(WINDOW_NS);
    let loops = first_back_offs(&told);
    let over = over(&objects);
    let mut tracker = Tracker::new(cluster, None);
    listed.iter().for_each(|(kind, only)| tracker.was_listed(kind, only.as_ref()));
    let mut teller = Teller { tracker, loops, over, since, now, events: Vec::new() };
    let sets = sets_by_owner(&objects);
    for object in &objects {
        let owned = (object.summary.namespace.clone(), object.summary.name.clone());
        let owned = sets.get(&owned).map_or(&[][..], Vec::as_slice);
        teller.object(object, owned);
    }
    let gone = gone::pods(&objects, &told);
    gone.iter().for_each(|pod| teller.begun(pod));
    told.iter().for_each(|told| teller.event(told));
    gone.into_iter().for_each(|pod| teller.ended(pod));
    // What waited for the last of them.
    let overdue = teller.tracker.overdue(now);
    teller.events.extend(overdue);
    teller.events.sort_by_key(|event| event.timestamp);
    teller.events
}

/// Owners first, so that their names are known when the pods come.
fn place(object: &Summary) -> (u8, &SmolStr, &SmolStr, &SmolStr) {
    let rank = match object.kind.as_str() {
        kinds::NAMESPACE | kinds::NODE => 0,
        kinds::REPLICA_SET | kinds::JOB => 2,
        // A pod may wait for what is behind a Service.
        "EndpointSlice" => 4,
        kinds::POD => 5,
        // It names the pods that it is for.
        kind if LIMITS.contains(&kind) => 6,
        // What it names must be known before it is looked at.
        "Ingress" => 7,
        kind if kind == kinds::DEPLOYMENT || kind == kinds::CRON_JOB => 1,
        _ => 3,
    };
    (rank, &object.kind, &object.namespace, &object.name)
}

fn sets_by_owner(objects: &[Standing]) -> HashMap<(SmolStr, SmolStr), Vec<&Standing>> {
    let mut sets: HashMap<_, Vec<&Standing>> = HashMap::new();
    for set in objects.iter().filter(|object| object.summary.kind == kinds::REPLICA_SET) {
        if let Some((_, owner)) = set.summary.owner.as_ref().filter(|(kind, _)| kind == kinds::DEPLOYMENT) {
            sets.entry((set.summary.namespace.clone(), owner.clone())).or_default().push(set);
        }
    }
    sets
}

/// Jobs after which another one of the same CronJob has begun, by namespace and name: how they ended is history. Those of other
/// owners are parts of one work, and run side by side.
fn over(objects: &[Standing]) -> HashSet<(SmolStr, SmolStr)> {
    let mut runs: HashMap<_, Vec<&Standing>> = HashMap::new();
    for job in objects.iter().filter(|object| object.summary.kind == kinds::JOB) {
        if let Some(owner) = job.summary.owner.as_ref().filter(|(kind, _)| kind == kinds::CRON_JOB) {
            runs.entry((&job.summary.namespace, owner)).or_default().push(job);
        }
    }
    let mut over = HashSet::new();
    for mut jobs in runs.into_values() {
        jobs.sort_by_key(|job| (job.created, &job.summary.name));
        jobs.pop();
        over.extend(jobs.into_iter().map(|job| (job.summary.namespace.clone(), job.summary.name.clone())));
    }
    over
}

/// When a container of a pod was first waited for after its end, by namespace and pod.
fn first_back_offs(told: &[Told]) -> HashMap<(SmolStr, SmolStr), UnixNanos> {
    let mut first = HashMap::new();
    for told in told.iter().filter(|told| told.summary.is_restart_back_off()) {
        let [_, namespace, pod, _] = &told.summary.about;
        if let Some(at) = told.first {
            let known = first.entry((namespace.clone(), pod.clone())).or_insert(at);
            *known = at.min(*known);
        }
    }
    first
}

struct Teller {
    tracker: Tracker,
    loops: HashMap<(SmolStr, SmolStr), UnixNanos>,
    over: HashSet<(SmolStr, SmolStr)>,
    since: UnixNanos,
    now: UnixNanos,
    events: Vec<UnifiedEvent>,
}

impl Teller {
    fn object(&mut self, object: &Standing, sets: &[&Standing]) {
        let began = object.created.unwrap_or(self.since).max(self.since).min(self.now);
        let before = history::before(object, self.since);
        let mut states = history::revisions(object, sets, &before, self.since);
        if states.is_empty() {
            states.push((began, before));
        }
        for (place, (at, state)) in states.into_iter().enumerate() {
            let (at, kind) = if place == 0 { (began, WatchType::Added) } else { (at, WatchType::Modified) };
            let said = self.tracker.summarized(at.min(self.now), self.since, kind, state);
            self.events.extend(said);
        }
        let (since, now) = (self.since, self.now);
        let said = self.tracker.summarized(now, since, WatchType::Modified, object.summary.clone());
        let is_over = object.summary.kind == kinds::JOB
            && self.over.contains(&(object.summary.namespace.clone(), object.summary.name.clone()));
        for event in said {
            match Course::of(&event) {
                Course::GoesOn if is_over => {
                    self.events.extend((event.timestamp >= since).then_some(event));
                }
                Course::GoesOn => {
                    let from = goes_on_since(&event, &object.summary, now).unwrap_or(began);
                    self.repeat(event, from.max(began));
                }
                Course::Happened(at) if at >= since => {
                    self.events.extend(self.first_end(&event, &object.summary));
                    self.events.push(event);
                }
                // An eviction is told without a time: the pod's conditions stopped to change then.
                Course::Untimed => match last_change(&object.summary) {
                    Some(at) if at >= since => self.events.push(moved(event, at.min(now))),
                    _ => {}
                },
                Course::Happened(_) => {}
            }
        }
    }

    /// A container that ends again and again says only how it ended last; it is taken to have ended so from the first
    /// time that it was waited for on.
    fn first_end(&self, end: &UnifiedEvent, pod: &Summary) -> Option<UnifiedEvent> {
        let Payload::Kubernetes(data) = &end.payload else { return None };
        if end.kind != EventKind::K8sContainerTerminated || data.restart_count < 2 {
            return None;
        }
        let first = self.loops.get(&(pod.namespace.clone(), pod.name.clone()))?.minus(BEFORE_BACK_OFF_NS);
        (first >= self.since && first < end.timestamp).then(|| moved(end.clone(), first))
    }

    /// A pod that is no more, as it was.
    fn begun(&mut self, pod: &Gone) {
        let (at, since) = (pod.from.max(self.since).min(self.now), self.since);
        let said = self.tracker.summarized(at, since, WatchType::Added, pod.summary.clone());
        self.events.extend(said);
    }

    fn ended(&mut self, pod: Gone) {
        let (at, since) = (pod.to.max(self.since).min(self.now), self.since);
        let said = self.tracker.summarized(at, since, WatchType::Deleted, pod.summary);
        self.events.extend(said);
    }

    /// The event from `from` to now, again and again.
    fn repeat(&mut self, event: UnifiedEvent, from: UnixNanos) {
        let mut at = from;
        while self.now.since(at) > REPEAT_NS {
            self.events.push(moved(event.clone(), at));
            at = at.plus(REPEAT_NS);
        }
        if at < self.now {
            self.events.push(moved(event.clone(), at));
        }
        self.events.push(moved(event, self.now));
    }

    /// An Event that happened often is told for its first time, for some times between, and for the last.
    fn event(&mut self, told: &Told) {
        let last = told.summary.at.unwrap_or(self.now);
        let mut at = told.first.unwrap_or(last).max(self.since);
        let mut count = 1;
        while count < told.summary.count && at < last {
            let mut earlier = told.summary.clone();
            (earlier.at, earlier.count) = (Some(at), count);
            self.events.extend(self.tracker.summarized_event(self.now, self.since, &earlier));
            at = at.plus(REPEAT_NS);
            count += 1;
        }
        self.events.extend(self.tracker.summarized_event(self.now, self.since, &told.summary));
    }
}

/// How an event stands in time.
enum Course {
    /// A state that lasts until now.
    GoesOn,
    /// Something that happened then.
    Happened(UnixNanos),
    /// Something that happened, the object does not say when.
    Untimed,
}

impl Course {
    fn of(event: &UnifiedEvent) -> Self {
        let is_bad = event.severity >= EventSeverity::Warning;
        match event.kind {
            EventKind::K8sContainerWaiting | EventKind::K8sPodUnschedulable | EventKind::K8sPodNotReady => {
                Self::GoesOn
            }
            EventKind::K8sNodeCondition | EventKind::K8sObjectChanged if is_bad => Self::GoesOn,
            EventKind::K8sPodEvicted if event.timestamp == event.observed_at => Self::Untimed,
            _ => Self::Happened(event.timestamp),
        }
    }
}

/// Since when a state goes on. A container that waits has no time of its own: its pod is not ready since.
fn goes_on_since(event: &UnifiedEvent, object: &Summary, now: UnixNanos) -> Option<UnixNanos> {
    if event.timestamp < now {
        return Some(event.timestamp);
    }
    object.condition("Ready").filter(|ready| ready.status != "True").and_then(|ready| ready.since)
}

fn last_change(object: &Summary) -> Option<UnixNanos> {
    object.conditions.iter().filter_map(|condition| condition.since).max()
}

/// The same at another time, with an id of its own.
fn moved(mut event: UnifiedEvent, at: UnixNanos) -> UnifiedEvent {
    if event.timestamp != at {
        event.id = Seed::new("k8s-standing").number(event.id.0).event(at);
        event.timestamp = at;
    }
    event
}
