//! What a cluster's own lists say: no installation, read-only.

use tapio_agents::collectors::kubernetes::Unavailable;
use tapio_agents::collectors::kubernetes::objects::Objects;
use tapio_agents::collectors::kubernetes::snapshot::api::{Cluster, Listing};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::UnixNanos;

use super::about::About;
use super::judged::{self, Holes};
use super::logs;
use crate::cli::{CheckArgs, ScopeArgs};
use crate::verdict::Answer;

/// What the cluster tells may be so far ahead of the clock here.
const AHEAD_MAX_NS: u64 = 5 * 60 * 1_000_000_000;

/// A cluster that can be listed.
pub struct Lists {
    cluster: Cluster,
}

/// True when there is simply no cluster.
pub fn is_expected(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Unavailable>().is_some_and(Unavailable::is_expected)
}

impl Lists {
    /// Finds it; does not talk to it.
    pub async fn find(scope: &ScopeArgs) -> anyhow::Result<Self> {
        let clock = SystemClock::shared();
        let cluster = Cluster::find(scope.kubeconfig.as_deref(), scope.context.as_deref(), clock).await?;
        Ok(Self { cluster })
    }

    /// Its single objects.
    pub fn objects(&self) -> Objects {
        self.cluster.objects()
    }

    /// Which it is.
    pub fn describe(&self) -> String {
        let context = self.cluster.context().map(|context| format!(" (context {context})"));
        format!("at {}{}", self.cluster.address(), context.unwrap_or_default())
    }

    /// Lists, infers, answers.
    pub async fn ask(&self, args: &CheckArgs, about: &About) -> anyhow::Result<Answer> {
        let scope = &args.scope;
        let selector = about.selector.as_ref();
        let mut listing = self.cluster.snapshot(scope.namespace.as_deref(), selector).await;
        let mut gaps = Vec::new();
        if scope.namespace.is_none() && !scope.all_namespaces && pods_are_forbidden(&listing) {
            let own = self.cluster.namespace();
            gaps.push(format!("only namespace {own} was looked at: all namespaces are not allowed"));
            listing = self.cluster.snapshot(Some(own), selector).await;
        }
        let blind = listing.missing.iter().find(|missing| missing.resource.required);
        let blind = blind.map(|missing| missing.reason.clone());
        gaps.extend(listing.missing.iter().map(|missing| missing.reason.clone()));
        let clock = UnixNanos(SystemClock::new().now_unix_nanos());
        let (now, wrong) = as_of(clock, listing.snapshot.newest());
        gaps.extend(wrong);
        let failing = listing.snapshot.failing();
        // Judged while the lines are fetched would be sooner, but who is healthy has none to fetch.
        let mut answer = judged::snapshot(listing.snapshot, now, about, Holes { blind, gaps })?;
        if !answer.findings.is_empty() {
            let (said, missing) = self.cluster.last_words(&failing).await;
            answer.logs = logs::of_findings(&answer.findings, &said);
            answer.freshness.gaps.extend(missing);
        }
        Ok(answer)
    }
}

/// The time as of which is judged, and what is beyond it. A clock that is behind the cluster's must not make news of the
/// future out of what has happened; a single one that is far ahead must not make the past of all others.
fn as_of(clock: UnixNanos, newest: UnixNanos) -> (UnixNanos, Option<String>) {
    let latest = clock.plus(AHEAD_MAX_NS);
    if newest <= latest {
        return (clock.max(newest), None);
    }
    let wrong = format!(
        "a clock is wrong: something in the cluster is of {newest}, and here it is {clock}: all is judged as of {latest}"
    );
    (latest, Some(wrong))
}

fn pods_are_forbidden(listing: &Listing) -> bool {
    listing.missing.iter().any(|missing| missing.forbidden && missing.resource.kind == "Pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_a_little_ahead_is_followed_and_one_that_is_far_ahead_is_told() {
        const MINUTE_NS: u64 = 60 * 1_000_000_000;
        let clock = UnixNanos(1_767_225_600_000_000_000);
        assert_eq!(as_of(clock, clock.minus(MINUTE_NS)), (clock, None));
        assert_eq!(as_of(clock, clock.plus(5 * MINUTE_NS)), (clock.plus(5 * MINUTE_NS), None));
        let (now, wrong) = as_of(clock, clock.plus(120 * MINUTE_NS));
        assert_eq!(now, clock.plus(5 * MINUTE_NS));
        let wrong = wrong.expect("it is told");
        assert!(
            wrong.contains("of 2026-01-01T02:00:00") && wrong.contains("as of 2026-01-01T00:05:00"),
            "{wrong}"
        );
    }
}
