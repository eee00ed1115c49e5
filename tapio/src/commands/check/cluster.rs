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
        // A clock that is behind the cluster's must not make news of the future out of what has happened.
        let now = UnixNanos(SystemClock::new().now_unix_nanos()).max(listing.snapshot.newest());
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

fn pods_are_forbidden(listing: &Listing) -> bool {
    listing.missing.iter().any(|missing| missing.forbidden && missing.resource.kind == "Pod")
}
