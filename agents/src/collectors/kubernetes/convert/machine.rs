//! Changes of a machine that are no conditions: it was started anew, it takes no more pods.

use smol_str::SmolStr;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::KubernetesData;

use super::{Changes, Fact, WatchType};
use crate::collectors::kubernetes::summary::{Detail, Machine, Summary};

pub(super) fn changes(
    out: &mut Changes<'_>,
    now: &Machine,
    watch_type: WatchType,
    previous: Option<&Summary>,
) {
    let Some(Detail::Machine(before)) = previous.map(|previous| &previous.detail) else { return };
    if watch_type == WatchType::Deleted {
        return;
    }
    if now.is_cordoned != before.is_cordoned {
        let word = SmolStr::new_static(if now.is_cordoned { "cordoned" } else { "uncordoned" });
        let changed_by = out.new.changed_by.clone();
        let data = KubernetesData { reason: word.clone(), changed_by, ..KubernetesData::default() };
        out.push(
            EventKind::K8sSpecChanged,
            EventSeverity::Info,
            Fact { distinct: word, data, ..Fact::default() },
        );
    }
    if now.boot != before.boot && !before.boot.is_empty() && !now.boot.is_empty() {
        let data = KubernetesData {
            reason: SmolStr::new_static("Rebooted"),
            message: SmolStr::new_static("it was started anew"),
            old_value: before.boot.clone(),
            new_value: now.boot.clone(),
            ..KubernetesData::default()
        };
        let fact = Fact { distinct: now.boot.clone(), data, ..Fact::default() };
        out.push(EventKind::K8sNodeCondition, EventSeverity::Warning, fact);
    }
}
