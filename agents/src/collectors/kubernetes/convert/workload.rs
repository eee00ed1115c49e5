//! Changes that somebody made: images, templates, replicas, configuration.

use std::collections::BTreeMap;

use smol_str::{SmolStr, ToSmolStr, format_smolstr};
use tapio_schemas::entity::kinds;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::KubernetesData;

use super::{Changes, Fact, WatchType};
use crate::collectors::kubernetes::summary::{Detail, Rules, Summary, WorkloadState};

/// What says how others are to be treated was made, changed or removed.
pub(super) fn rules(out: &mut Changes<'_>, watch_type: WatchType, previous: Option<&Summary>) {
    let Some(now) = out.new.rules() else { return };
    let before = previous.and_then(Summary::rules);
    let (what, old, new) = match (watch_type, before) {
        (WatchType::Deleted, _) => ("deleted", selector(now), SmolStr::default()),
        (_, None) if out.new.created.is_some() && out.is_news(out.new.created, previous) => {
            ("created", SmolStr::default(), selector(now))
        }
        (_, Some(before)) if before.selector != now.selector => ("selector", selector(before), selector(now)),
        (_, Some(before)) if before.spec != now.spec => {
            let hash = |rules: &Rules| format_smolstr!("{:032x}", rules.spec);
            ("spec", hash(before), hash(now))
        }
        _ => return,
    };
    let data = KubernetesData { reason: SmolStr::new_static(what), ..changed(out.new, &old, &new) };
    let at = if what == "created" { out.new.created } else { out.changed_at };
    let fact = Fact { at, ..fact(out, format_smolstr!("{what}/{new}"), data) };
    out.push(EventKind::K8sSpecChanged, EventSeverity::Info, fact);
}

/// `app=api,tier=web`
fn selector(rules: &Rules) -> SmolStr {
    let pairs: Vec<String> = rules.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    SmolStr::new(pairs.join(","))
}

pub(super) fn changes(out: &mut Changes<'_>, previous: Option<&Summary>) {
    let (new, Some(previous)) = (out.new, previous) else { return };
    match (&new.detail, &previous.detail) {
        // ReplicaSets follow their Deployment, which tells it once.
        (Detail::Workload(_), _) if new.kind == kinds::REPLICA_SET && new.owner.is_some() => {}
        (Detail::Workload(now), Detail::Workload(before)) => workload(out, now, before, previous),
        (Detail::Data(now), Detail::Data(before)) => data(out, now, before),
        _ => {}
    }
}

fn workload(out: &mut Changes<'_>, now: &WorkloadState, before: &WorkloadState, previous: &Summary) {
    let old_images: BTreeMap<_, _> = before.images.iter().cloned().collect();
    for (container, image) in &now.images {
        if let Some(old) = old_images.get(container).filter(|old| *old != image) {
            let distinct = format_smolstr!("{}/{container}", out.new.generation);
            let data = KubernetesData { reason: container.clone(), ..changed(out.new, old, image) };
            out.push(EventKind::K8sImageChanged, EventSeverity::Warning, fact(out, distinct, data));
        }
    }
    if now.template != before.template {
        let (old, new) = (previous.generation.to_smolstr(), out.new.generation.to_smolstr());
        let data = changed(out.new, &old, &new);
        out.push(EventKind::K8sRollout, EventSeverity::Warning, fact(out, new, data));
    }
    if now.replicas != before.replicas {
        let replicas = |n: Option<i64>| n.map(|n| n.to_smolstr()).unwrap_or_default();
        let data = changed(out.new, &replicas(before.replicas), &replicas(now.replicas));
        out.push(EventKind::K8sScaled, EventSeverity::Info, fact(out, out.new.generation.to_smolstr(), data));
    } else if now.template == before.template && out.new.generation > previous.generation {
        let (old, new) = (previous.generation.to_smolstr(), out.new.generation.to_smolstr());
        let data = changed(out.new, &old, &new);
        out.push(EventKind::K8sObjectChanged, EventSeverity::Info, fact(out, new, data));
    }
}

/// One event per key: added, changed or removed. Values are told as hashes.
fn data(out: &mut Changes<'_>, now: &[(SmolStr, u64)], before: &[(SmolStr, u64)]) {
    let (new, old): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (now.iter().cloned().collect(), before.iter().cloned().collect());
    let mut keys: Vec<_> = new.keys().chain(old.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    for key in keys.into_iter().filter(|key| new.get(key) != old.get(key)) {
        let hash = |value: Option<&u64>| value.map(|v| format_smolstr!("{v:016x}")).unwrap_or_default();
        let values = changed(out.new, &hash(old.get(&key)), &hash(new.get(&key)));
        let distinct = format_smolstr!("{key}/{}", values.new_value);
        let data = KubernetesData { reason: key, ..values };
        out.push(EventKind::K8sConfigChanged, EventSeverity::Warning, fact(out, distinct, data));
    }
}

fn changed(new: &Summary, old_value: &SmolStr, new_value: &SmolStr) -> KubernetesData {
    KubernetesData {
        old_value: old_value.clone(),
        new_value: new_value.clone(),
        changed_by: new.changed_by.clone(),
        ..KubernetesData::default()
    }
}

/// A change, at the time that the API gives it when it gives one.
fn fact(out: &Changes<'_>, distinct: SmolStr, data: KubernetesData) -> Fact<'static> {
    Fact { at: out.changed_at, distinct, data, ..Fact::default() }
}
