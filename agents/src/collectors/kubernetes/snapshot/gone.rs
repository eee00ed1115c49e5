//! Pods that are no more, as far as Events still tell of them: whose they were, and when they went.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;
use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::ids::UnixNanos;

use super::{Standing, Told};
use crate::collectors::kubernetes::summary::Summary;

/// Namespace and name.
type Pod = (SmolStr, SmolStr);

/// A pod that is no more.
pub(super) struct Gone {
    /// What is known of it.
    pub summary: Summary,
    /// First word of it.
    pub from: UnixNanos,
    /// Last word of it.
    pub to: UnixNanos,
}

/// What Events tell of one pod.
#[derive(Default)]
struct Traces {
    uid: SmolStr,
    /// Kind and name of who made it.
    owner: Option<(SmolStr, SmolStr)>,
    times: Vec<UnixNanos>,
}

/// Pods that Events tell of and no list has. Only when pods are listed at all: else nothing is known to be gone.
pub(super) fn pods(objects: &[Standing], told: &[Told]) -> Vec<Gone> {
    let listed = |kind: &'static str| objects.iter().map(|o| &o.summary).filter(move |o| o.kind == kind);
    let there: HashSet<(&SmolStr, &SmolStr)> = listed(kinds::POD).map(|o| (&o.namespace, &o.name)).collect();
    if there.is_empty() {
        return Vec::new();
    }
    let mut traces: BTreeMap<Pod, Traces> = BTreeMap::new();
    for told in told {
        let [kind, namespace, name, uid] = &told.summary.about;
        let (pod, maker) = match (kind.as_str(), told.summary.pod_of_controller()) {
            (kinds::POD, _) => (name.clone(), None),
            (_, Some(pod)) => (SmolStr::new(pod), Some((kind.clone(), name.clone()))),
            _ => continue,
        };
        if there.contains(&(namespace, &pod)) {
            continue;
        }
        let traces = traces.entry((namespace.clone(), pod)).or_default();
        traces.times.extend(told.first.into_iter().chain(told.summary.at));
        match maker {
            Some(maker) => traces.owner = Some(maker),
            None => traces.uid = uid.clone(),
        }
    }
    let sets: HashMap<&SmolStr, &Summary> = listed(kinds::REPLICA_SET).map(|set| (&set.name, set)).collect();
    traces.into_iter().filter_map(|(pod, traces)| gone(pod, traces, &sets)).collect()
}

fn gone((namespace, name): Pod, traces: Traces, sets: &HashMap<&SmolStr, &Summary>) -> Option<Gone> {
    let (from, to) = (*traces.times.iter().min()?, *traces.times.iter().max()?);
    // Who made it is forgotten after an hour; its name begins with that of its set all the same.
    let by_name = || {
        let (set, _) = name.rsplit_once('-')?;
        let set = sets.get(&SmolStr::new(set)).filter(|set| set.namespace == namespace)?;
        Some((set.kind.clone(), set.name.clone()))
    };
    let mut owners = Vec::new();
    if let Some((kind, name)) = traces.owner.or_else(by_name) {
        owners.push(json!({"kind": kind.as_str(), "name": name.as_str(), "controller": true}));
    }
    // Nobody knows whether it had a machine: it is not taken for one that the scheduler passes over.
    let conditions = json!([{"type": "PodScheduled", "status": "True"}]);
    let object = json!({"kind": kinds::POD, "apiVersion": "v1", "metadata": {"namespace": namespace.as_str(),
        "name": name.as_str(), "uid": traces.uid.as_str(), "ownerReferences": owners},
        "status": {"conditions": conditions}});
    Some(Gone { summary: Summary::of(&object).ok()?, from, to })
}
