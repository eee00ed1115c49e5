//! Which incident a component is the continuation of.

use std::collections::{BTreeMap, HashMap, HashSet};

use tapio_schemas::{Finding, FindingId, SignalId, UnixNanos};

use super::components::Component;
use super::incident::{Incident, finding_id};
use super::signals::is_change;
use super::view::View;

/// Incidents after the components of a tick have been given to them.
pub struct Assigned {
    /// One per component, in the components' order.
    pub kept: Vec<Incident>,
    /// (incident that turned out to be part of another one, number of that one).
    absorbed: Vec<(Incident, usize)>,
    /// Incidents none of whose signals is known any more.
    pub gone: Vec<Incident>,
}

impl Assigned {
    /// Last revisions of incidents that are part of others.
    pub fn merged(&mut self, now: UnixNanos) -> Vec<Finding> {
        let kept = &self.kept;
        let absorbed = std::mem::take(&mut self.absorbed).into_iter();
        absorbed
            .filter_map(|(mut incident, into)| {
                let other = &kept[into];
                incident.merged_into(other.id, &other.title(), now)
            })
            .collect()
    }
}

/// Gives each component to the oldest incident that began with one of its signals and was told of, else to the oldest one;
/// the others are absorbed by it. A component without one opens an incident. What was told of never becomes part of what
/// nobody heard of.
pub fn assign(
    mut incidents: Vec<Incident>,
    parts: &[Component],
    view: &View<'_>,
    last_revision: &dyn Fn(FindingId) -> u32,
) -> Assigned {
    incidents.sort_by_key(|i| (i.opened_at, i.id));
    let known: HashSet<SignalId> = view.signals.iter().map(|s| s.id).collect();
    let mut part_of: HashMap<SignalId, usize> = HashMap::new();
    for (number, part) in parts.iter().enumerate() {
        for at in &part.members {
            part_of.entry(view.signals[*at].id).or_insert(number);
        }
    }
    // An incident goes where its first signal goes; when that one is forgotten, where any of its signals goes.
    let continues_in = |i: &Incident| match part_of.get(&i.first) {
        None if !known.contains(&i.first) => i.members.iter().filter_map(|id| part_of.get(id)).min().copied(),
        found => found.copied(),
    };
    let mut continued: BTreeMap<usize, Vec<Incident>> = BTreeMap::new();
    let mut gone = Vec::new();
    for incident in incidents {
        match continues_in(&incident) {
            Some(number) => continued.entry(number).or_default().push(incident),
            None => gone.push(incident),
        }
    }
    let mut kept: Vec<Incident> = Vec::with_capacity(parts.len());
    let mut absorbed = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let mut mine = continued.remove(&number).unwrap_or_default();
        mine.sort_by_key(|incident| !incident.is_published());
        let mut mine = mine.into_iter();
        let mut incident = mine.next().unwrap_or_else(|| open(part, view, last_revision));
        incident.onset =
            part.members.iter().map(|at| view.signals[*at].onset).min().unwrap_or(incident.onset);
        incident.members = part.members.iter().map(|at| view.signals[*at].id).collect();
        kept.push(incident);
        absorbed.extend(mine.map(|other| (other, number)));
    }
    Assigned { kept, absorbed, gone }
}

fn open(part: &Component, view: &View<'_>, last_revision: &dyn Fn(FindingId) -> u32) -> Incident {
    let deviations = part.members.iter().map(|at| view.signals[*at]).filter(|s| !is_change(s.kind));
    let first = deviations.min_by_key(|s| (s.onset, s.id));
    let (cluster, id) = first.map_or(("", SignalId::default()), |s| (s.entity.cluster.as_str(), s.id));
    Incident::open(cluster, id, view.now, last_revision(finding_id(cluster, id)))
}
