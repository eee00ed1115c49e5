//! In which of the three tiers a cause can be found: from the lists of a cluster, from a dump of them, or only by the
//! running system, which hears machines, programs and their telemetry as well.

use smol_str::SmolStr;
use tapio_schemas::SignalKind;
use tapio_schemas::entity::kinds;

use super::pattern::{Pattern, SymptomSpec};

/// Kinds of objects that `kubectl cluster-info dump` has. Other dumps have what was put into them.
const DUMPED: [&str; 6] =
    ["workload", kinds::POD, kinds::DEPLOYMENT, kinds::DAEMON_SET, kinds::SERVICE, kinds::NODE];
/// A sign that weighs less tells too little alone.
const WEIGHT_MIN: f64 = 0.5;

/// Where a cause can be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers {
    /// From lists of the API server, and from dumps that have the kinds.
    pub lists: bool,
    /// The kinds on which it sits, when `kubectl cluster-info dump` has none of them.
    pub not_dumped: Vec<SmolStr>,
}

impl Tiers {
    /// Those of a pattern: lists are enough when all that it requires, one of its vital signs, and at least one sign that
    /// says something by itself come from objects.
    pub fn of(pattern: &Pattern) -> Self {
        let signs = |wanted: fn(&SymptomSpec) -> bool| pattern.symptoms.iter().filter(move |s| wanted(s));
        let comes = |symptom: &SymptomSpec| !symptom.watched && is_of_objects(symptom.signal);
        let vital = signs(|s| s.vital).next().is_none() || signs(|s| s.vital).any(comes);
        let lists = vital && signs(|s| s.required).all(comes) && signs(|s| s.weight > WEIGHT_MIN).any(comes);
        let is_dumped = pattern.sits_on.iter().any(|kind| DUMPED.contains(&kind.as_str()));
        Self { lists, not_dumped: if is_dumped { Vec::new() } else { pattern.sits_on.clone() } }
    }

    /// In the cell of a table.
    pub fn words(&self) -> String {
        match (self.lists, self.not_dumped.as_slice()) {
            (false, _) => "running".to_owned(),
            (true, []) => "lists, dump, running".to_owned(),
            (true, kinds) => format!("lists, dump with {}, running", kinds.join(", ")),
        }
    }
}

/// True for what objects of the API and their Events tell.
fn is_of_objects(kind: SignalKind) -> bool {
    let name = kind.as_str();
    // Who applied a change is told by the log of the API server, which no list has.
    name.starts_with("k8s.")
        || (name.starts_with("change.") && kind != SignalKind::ChangeApplied)
        // The kubelet and the node problem detector tell of it in Events.
        || kind == SignalKind::OomKill
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    fn words(id: &str) -> String {
        Tiers::of(Model::builtin().unwrap().pattern(id).unwrap()).words()
    }

    #[test]
    fn a_cause_is_found_where_its_signs_come_from() {
        assert_eq!(words("image.not_found"), "lists, dump, running");
        assert_eq!(words("quota.exceeded"), "lists, dump with ResourceQuota, running");
        // Required, and only the kernel tells of it.
        assert_eq!(words("network.accept_queue_full"), "running");
        // Vital signs are measured or logged.
        assert_eq!(words("network.conntrack_full"), "running");
        // What is gone is in no list.
        assert_eq!(words("config.service_deleted"), "running");
        // A machine that is silent is listed, and that it lives is not.
        assert_eq!(words("network.partition"), "running");
    }
}
