//! What an object was like before, as far as it says so itself: the state from which watches would have told the
//! changes up to now.

use smol_str::SmolStr;
use tapio_schemas::entity::kinds;
use tapio_schemas::ids::UnixNanos;

use super::Standing;
use crate::collectors::kubernetes::convert::lost_readiness;
use crate::collectors::kubernetes::pod::PodState;
use crate::collectors::kubernetes::summary::{Condition, Detail, Summary};

/// A condition that changed sooner after the creation than this was set for the first time.
const FIRST_SET_NS: u64 = 60_000_000_000;

/// The object as it was at `since`: nothing of what it says of itself has happened yet.
pub(super) fn before(object: &Standing, since: UnixNanos) -> Summary {
    let now = &object.summary;
    let mut before = now.clone();
    before.deleted_from = None;
    match &now.detail {
        Detail::Pod(pod) => {
            // The scheduler has looked at it by now; that it had not yet is no news of the time between.
            let refused = now.condition("PodScheduled").filter(|bound| bound.status == "False");
            before.conditions = lost_readiness(now).into_iter().chain(refused).map(flip).collect();
            let pod = PodState { containers: Vec::new(), reason: SmolStr::default(), ..(**pod).clone() };
            before.detail = Detail::Pod(Box::new(pod));
        }
        _ => {
            let flipped = now.conditions.iter().filter(|c| has_changed(object.created, c, since));
            before.conditions = flipped.map(flip).collect();
        }
    }
    before
}

/// Whether a condition had another status at `since` and when the object was made.
fn has_changed(created: Option<UnixNanos>, condition: &Condition, since: UnixNanos) -> bool {
    let is_first = |at: UnixNanos| created.is_some_and(|created| at.since(created) < FIRST_SET_NS);
    condition.since.is_some_and(|at| at > since && !is_first(at))
}

fn flip(condition: &Condition) -> Condition {
    let status = if condition.status == "True" { "False" } else { "True" };
    Condition { status: SmolStr::new_static(status), reason: SmolStr::default(), ..condition.clone() }
}

/// The states of a Deployment between `before` and now, by what its ReplicaSets say of its revisions: when each began.
pub(super) fn revisions(
    deployment: &Standing,
    sets: &[&Standing],
    before: &Summary,
    since: UnixNanos,
) -> Vec<(UnixNanos, Summary)> {
    if deployment.summary.kind != kinds::DEPLOYMENT {
        return Vec::new();
    }
    let mut sets: Vec<&&Standing> = sets.iter().filter(|set| set.revision > 0).collect();
    sets.sort_by_key(|set| set.revision);
    let Some(first_new) = (1..sets.len()).find(|at| began(deployment, sets[at - 1], sets[*at]) > since)
    else {
        return Vec::new();
    };
    let steps = &sets[first_new - 1..];
    let state = |place: usize, set: &Standing| {
        let is_last = place + 1 == steps.len();
        let behind = (steps.len() - 1 - place) as u64;
        let generation = deployment.summary.generation.saturating_sub(behind);
        let detail = if is_last { deployment.summary.detail.clone() } else { template_of(deployment, set) };
        Summary { generation, detail, ..before.clone() }
    };
    let mut states = vec![(since, state(0, steps[0]))];
    for (place, pair) in steps.windows(2).enumerate() {
        states.push((began(deployment, pair[0], pair[1]), state(place + 1, pair[1])));
    }
    states
}

/// When the revision of `set` took over from the one before: a set that is older than its predecessor was used again.
fn began(deployment: &Standing, predecessor: &Standing, set: &Standing) -> UnixNanos {
    let (old, new) = (predecessor.created.unwrap_or_default(), set.created.unwrap_or_default());
    if new > old { new } else { deployment.updated.unwrap_or(old).max(old) }
}

/// The Deployment's own numbers with the template of a set.
fn template_of(deployment: &Standing, set: &Standing) -> Detail {
    match (&set.summary.detail, &deployment.summary.detail) {
        (Detail::Workload(of_set), Detail::Workload(own)) => {
            let mut state = of_set.clone();
            state.replicas = own.replicas;
            Detail::Workload(state)
        }
        (_, own) => own.clone(),
    }
}
