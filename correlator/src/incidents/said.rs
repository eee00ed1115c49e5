//! What failing containers of an incident said last.

use std::collections::BTreeSet;

use tapio_schemas::finding::LastWords;
use tapio_schemas::{Entity, Signal, SignalKind, SmolStr, UnixNanos};

use super::finding::RUN_UP_NS;
use super::graph::Graph;
use super::signals::is_change;
use super::view::View;

/// Containers that are told of an incident.
const CONTAINERS_MAX: usize = 3;

/// True for what is told beside a finding and belongs to no incident by itself.
pub fn is_said(kind: SignalKind) -> bool {
    kind == SignalKind::LastWords
}

/// Last words, each with what answers for it.
pub fn placed<'a>(signals: &[&'a Signal], graph: &Graph) -> Vec<(Entity, &'a Signal)> {
    signals.iter().map(|said| (graph.home(&said.entity.owner()), *said)).collect()
}

/// The last words of the containers that `members` are about, those of the seat first; of each container of one home the
/// newest ones.
pub fn of(
    view: &View<'_>,
    members: &[usize],
    seat: &Entity,
    first_bad: UnixNanos,
    all: &[(Entity, &Signal)],
) -> Vec<LastWords> {
    let deviations = members.iter().filter(|at| !is_change(view.signals[**at].kind));
    let about: BTreeSet<&Entity> = deviations.map(|at| &view.homes[*at]).chain([seat]).collect();
    let since = first_bad.minus(RUN_UP_NS);
    let mut found: Vec<_> =
        all.iter().filter(|(home, said)| about.contains(home) && said.onset >= since).collect();
    found.sort_by_key(|(home, said)| (home != seat, std::cmp::Reverse(said.onset), said.id));
    let mut told = BTreeSet::new();
    found.retain(|(home, said)| told.insert((home, said.entity.container.clone())));
    found.into_iter().take(CONTAINERS_MAX).map(|(_, said)| in_words(said)).collect()
}

fn in_words(said: &Signal) -> LastWords {
    let lines = said.attribute("lines").and_then(|lines| lines.as_text()).unwrap_or_default();
    LastWords {
        namespace: said.entity.namespace.clone(),
        pod: SmolStr::new(&said.entity.pod),
        container: said.entity.container.clone(),
        at: said.onset,
        lines: lines.lines().map(str::to_owned).collect(),
    }
}
