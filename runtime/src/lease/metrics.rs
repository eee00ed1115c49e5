//! What leases count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::Metrics;

type GroupLabel = [(&'static str, String); 1];
type ResourceLabels = [(&'static str, String); 2];

/// The metrics of one group.
#[derive(Debug, Clone)]
pub(super) struct LeaseMetrics {
    group: String,
    pub(super) member: Gauge,
    pub(super) members: Gauge,
    pub(super) owned: Gauge,
    pub(super) acquired: Counter,
    pub(super) takeovers: Counter,
    pub(super) released: Counter,
    pub(super) lost: Counter,
    pub(super) renewal_failures: Counter,
    pub(super) expelled: Counter,
    epochs: Family<ResourceLabels, Gauge>,
}

impl LeaseMetrics {
    pub(super) fn register(metrics: &Metrics, group: &str) -> Self {
        let gauge = |name: &str, help: &str| {
            let family: Family<GroupLabel, Gauge> = metrics.shared(name, help);
            family.get_or_create(&[("group", group.to_owned())]).clone()
        };
        let counter = |name: &str, help: &str| {
            let family: Family<GroupLabel, Counter> = metrics.shared(name, help);
            family.get_or_create(&[("group", group.to_owned())]).clone()
        };
        Self {
            group: group.to_owned(),
            member: gauge("lease_member", "1 while this replica is a member of the group"),
            members: gauge("lease_members", "Members of the group as seen here"),
            owned: gauge("lease_owned", "Resources owned here"),
            acquired: counter("lease_acquired", "Resources taken"),
            takeovers: counter("lease_takeovers", "Resources taken from an owner that was gone"),
            released: counter("lease_released", "Resources handed over"),
            lost: counter("lease_lost", "Resources lost without handing over"),
            renewal_failures: counter("lease_renewal_failures", "Renewals that failed and were tried again"),
            expelled: counter("lease_expelled", "Silent members removed from the group by this replica"),
            epochs: metrics
                .shared("lease_epoch", "Fencing epoch of each resource owned here, 0 when not owned"),
        }
    }

    /// Resources are named by the configuration, so this label set is closed.
    pub(super) fn epoch(&self, resource: &str, epoch: u64) {
        let labels = [("group", self.group.clone()), ("resource", resource.to_owned())];
        self.epochs.get_or_create(&labels).set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }
}
